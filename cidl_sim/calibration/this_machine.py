"""Measure this machine: short runs, repeated and interleaved, then the fit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from cidl_sim.calibration.microbenchmark import ALTERNATING, PURPOSES, observe
from cidl_sim.calibration.profile import Observation, fit_device
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.progress import Progress, silent
from cidl_sim.devices.catalog import THIS_MACHINE
from cidl_sim.executor.job import ComputeDevice, JobResult
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.pipeline import RunSettings

# Computing on every core has to be this much faster with a load beside it before the loader loses its core:
# such runs come out very differently from minute to minute.
CLEARLY_FASTER = 0.95
Target = tuple[BlockStore, RunSettings]


class Calibration:
    """Rounds of short runs on some targets, and the profile that fits all of them so far.

    A round's runs may lie between other runs: what drifts, drifts in both. `compute_device`: the processor, or an
    accelerator. `compute_threads` None: measured, see `runs`.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        on_progress: Progress = silent,
        *,
        compute_device: ComputeDevice = "cpu",
        compute_threads: int | None = None,
    ) -> None:
        self._targets = targets
        self._on_progress = on_progress
        self._compute_device = compute_device
        self._wanted_threads = compute_threads
        self._threads = compute_threads or 1
        self.observations: list[Observation] = []

    @property
    def runs_per_round(self) -> int:
        """How many runs a round makes after the first one."""
        return len(PURPOSES) * len(self._targets)

    def round(self) -> None:
        """Run each target's runs (`microbenchmark`) once."""
        for _ in self.runs():
            pass

    def runs(self) -> Iterator[None]:
        """The runs of a round, one at each step.

        Before the first round it is measured whether one core is better left to the loader: the same run with overlap,
        on all cores and on all but one.
        """
        chose: Observation | None = None
        if not self.observations and self._compute_device == "cpu" and self._wanted_threads is None:
            self._threads, chose = _compute_threads(self._targets[0], self._on_progress)
            self.observations += [] if chose is None else [chose]
        for i, (store, settings) in enumerate(self._targets):
            for purpose in PURPOSES:
                # The run that chose the number of threads is the first round's.
                if chose is None or (i, purpose) != (0, ALTERNATING):
                    found = observe(
                        store,
                        settings,
                        purpose,
                        self._threads,
                        self._on_progress,
                        process=self._process,
                        compute_device=self._compute_device,
                    )
                    self.observations.append(found)
                    yield

    @property
    def _process(self) -> JobResult | None:
        """The most that the process took in any run so far."""
        results = [observation.result for observation in self.observations]
        return (
            JobResult(
                baseline_bytes=max(result.baseline_bytes for result in results),
                excess_bytes=max(result.excess_bytes for result in results),
            )
            if results
            else None
        )

    def device(self) -> DeviceProfile:
        """The profile of this machine, with room for all weights."""
        return fit_device(THIS_MACHINE, self.observations)


def measure_this_machine(
    targets: Sequence[Target],
    on_progress: Progress = silent,
    *,
    repeats: int = 1,
    compute_device: ComputeDevice = "cpu",
    compute_threads: int | None = None,
) -> DeviceProfile:
    """A profile of this machine for the blocks of stores under some settings, from `repeats` rounds of runs."""
    calibration = Calibration(targets, on_progress, compute_device=compute_device, compute_threads=compute_threads)
    for _ in range(repeats):
        calibration.round()
    return calibration.device()


def _compute_threads(target: Target, on_progress: Progress) -> tuple[int, Observation | None]:
    """With how many threads the executor computes best beside a load, and the run that showed it."""
    cores = os.cpu_count() or 1
    if cores == 1:
        return 1, None
    all_but_one, on_all = (observe(*target, ALTERNATING, n, on_progress) for n in (cores - 1, cores))
    if on_all.seen.trace.makespan_s < CLEARLY_FASTER * all_but_one.seen.trace.makespan_s:
        return cores, on_all
    return cores - 1, all_but_one
