"""A validation on this machine: calibration and runs in turn, so that both see the same drift."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from cidl_sim.calibration.this_machine import Calibration, Target
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.progress import StepProgress, silent
from cidl_sim.executor.job import ComputeDevice
from cidl_sim.validation.compare import MeasuredCase
from cidl_sim.validation.runs import DEVICE_FILE, prepare, read_runs, run_round
from cidl_sim.validation.scenarios import choose_scenarios


def validate_machine(
    targets: Sequence[Target],
    folder: Path,
    *,
    prompt: str,
    repeats: int,
    on_step: StepProgress = silent,
    compute_device: ComputeDevice = "cpu",
    compute_threads: int | None = None,
) -> list[MeasuredCase]:
    """Calibrate, choose policies that the calibration never runs, then run them `repeats` times.

    Policies are chosen and planned with the profile of a first round of calibration. Another round's runs lie between
    the runs of each repeat after the first, and predictions are made with the profile of all of them. Everything is
    recorded in `folder`, see `runs`. InfeasibleError if no candidate fits its memory limit.
    """
    calibration = Calibration(
        targets,
        lambda *state: on_step("calibrate", *state),
        compute_device=compute_device,
        compute_threads=compute_threads,
    )
    calibration.round()
    first = calibration.device()
    chosen = choose_scenarios(targets, first, partial(on_step, "choose policies"))
    scenarios = [replace(scenario, compute_device=compute_device) for scenario in chosen]
    if not scenarios:
        raise InfeasibleError("no policy fits any of the memory limits that a validation tries")
    cases = prepare(scenarios, first, folder)
    share = math.ceil(calibration.runs_per_round / len(scenarios))
    for number in range(1, repeats + 1):
        between = calibration.runs() if number > 1 else iter(())
        run_round(
            scenarios,
            cases,
            folder,
            number,
            prompt=prompt,
            before_run=partial(_take, between, share),
            on_run=lambda name, *state: on_step(f"run {name}", *state),
        )
        _take(between)
    # The plans were made, and the runs accounted, with the first round's baseline.
    final = calibration.device().model_copy(update={"baseline_bytes": first.baseline_bytes})
    final.write(folder / DEVICE_FILE)
    return read_runs(folder)


def _take(steps: Iterator[None], count: int | None = None) -> None:
    """Do the next `count` steps, or all that are left."""
    for _ in islice(steps, count):
        pass
