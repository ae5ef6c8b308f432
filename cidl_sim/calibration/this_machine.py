"""Measure this machine: short runs, repeated and interleaved, then the fit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from cidl_sim.calibration.microbenchmark import PURPOSES, observe
from cidl_sim.calibration.profile import Observation, fit_device
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.progress import Progress, silent
from cidl_sim.devices.catalog import THIS_MACHINE
from cidl_sim.executor.job import ComputeDevice, JobResult
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.pipeline import RunSettings

# Where a plan does not say it: computing on every core has to be this much faster, with and without loads beside it,
# before the loader loses its core.
CLEARLY_FASTER = 0.95
Target = tuple[BlockStore, RunSettings]


class Calibration:
    """Rounds of short runs on some targets, and the profile that fits all of them so far.

    A round's runs may lie between other runs: what drifts, drifts in both. `compute_device`: the processor, or an
    accelerator. `compute_threads` None: several numbers are measured, and plans choose.
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
        self._threads = _threads_to_try(compute_device, compute_threads)
        self.observations: list[Observation] = []

    @property
    def runs_per_round(self) -> int:
        """How many runs a round makes."""
        return len(self._threads) * len(PURPOSES) * len(self._targets)

    def round(self) -> None:
        """Run each target's runs (`microbenchmark`) once."""
        for _ in self.runs():
            pass

    def runs(self) -> Iterator[None]:
        """The runs of a round, one at each step: each with every number of threads, one after another."""
        # Of a store that was just built the disk may still be writing a part, beside the loads that are measured.
        os.sync()
        for store, settings in self._targets:
            for purpose in PURPOSES:
                for threads in self._threads:
                    found = observe(
                        store,
                        settings,
                        purpose,
                        threads,
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
        """The profile of this machine, with room for all weights, and what other numbers of threads would change."""
        took = {threads: self._took_s(threads) for threads in self._threads}
        fewest = self._threads[0]
        fastest = min(took, key=took.__getitem__)
        threads = fastest if took[fastest] < CLEARLY_FASTER * took[fewest] else fewest
        return fit_device(THIS_MACHINE, self.observations, threads=threads)

    def _took_s(self, threads: int) -> float:
        return sum(o.seen.trace.makespan_s for o in self.observations if o.result.threads == threads)


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


def _threads_to_try(compute_device: ComputeDevice, wanted: int | None) -> tuple[int, ...]:
    """Fewest first: on a processor all cores, and all but one, which is left to the loader."""
    if wanted is not None or compute_device != "cpu":
        return (wanted or 1,)
    cores = os.cpu_count() or 1
    return tuple(sorted({max(1, cores - 1), cores}))
