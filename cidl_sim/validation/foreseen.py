"""Runs that are predicted before they are made, with all that was known then; and what the machine did meanwhile."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cidl_sim.calibration.fit import Seen
from cidl_sim.calibration.prediction import forecast
from cidl_sim.calibration.probe import Probe, Rates
from cidl_sim.calibration.profile import learned
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.forecast import Prediction
from cidl_sim.core.progress import StepProgress, silent
from cidl_sim.core.reports import ErrorFigures, ForeseenRun
from cidl_sim.core.workload import Workload
from cidl_sim.executor.store import BlockStore
from cidl_sim.validation.compare import MeasuredCase
from cidl_sim.validation.runs import DEVICE_FILE, Scenario, prepare, run_round


@dataclass
class Foreseen:
    """Policies that ran, each planned with what was known before its first run; the profile after the last run."""

    cases: list[MeasuredCase]
    runs: list[ForeseenRun]
    device: DeviceProfile

    @property
    def error(self) -> ErrorFigures:
        """Mean and largest magnitude of the predictions' errors."""
        errors = [abs(run.error) for run in self.runs]
        return ErrorFigures(mean=statistics.fmean(errors), max=max(errors))

    @property
    def best(self) -> MeasuredCase:
        """The policy whose runs took least, by their median."""
        return min(self.cases, key=lambda case: case.measured_makespan_s)


def run_foreseen(
    policies: Sequence[str],
    store: BlockStore,
    workload: Workload,
    device: DeviceProfile,
    folder: Path,
    *,
    prompt: str,
    seed: int = 42,
    repeats: int = 1,
    on_run: StepProgress = silent,
    on_learned: Callable[[DeviceProfile], object] = silent,
) -> Foreseen:
    """Plan, predict and run each policy under the device's limit, `repeats` times in turns; each run teaches.

    Before and after each run a short probe looks how fast the machine is, relative to the first look.
    """
    probe, cases, runs = Probe(store), dict[str, MeasuredCase](), list[ForeseenRun]()
    limit, now = device.memory_limit_bytes, device
    first = probe.rates()
    for number in range(1, repeats + 1):
        for policy in policies:
            scenario = Scenario(policy, store, workload, policy, limit)
            if policy not in cases:
                cases[policy] = prepare([scenario], now, folder)[0]
                now.write(folder / policy / DEVICE_FILE)
            case = cases[policy]
            foreseen = forecast(workload, case.plan, now, limit)
            before = probe.rates()
            run_round([scenario], [case], folder, number, prompt=prompt, seed=seed, forecast=foreseen, on_run=on_run)
            after = probe.rates()
            trace = case.measured[-1]
            runs.append(_row(case, number, foreseen.prediction, trace.makespan_s, first, (before, after)))
            now = learned(now.with_threads(case.plan.compute_threads), [Seen(workload, trace)])
            on_learned(now)
    return Foreseen(list(cases.values()), runs, now)


def _row(
    case: MeasuredCase, number: int, predicted: Prediction, measured_s: float, first: Rates, looks: tuple[Rates, Rates]
) -> ForeseenRun:
    return ForeseenRun(
        policy=case.plan.policy,
        repeat=number,
        predicted_s=predicted.makespan_s,
        low_s=predicted.low_s,
        high_s=predicted.high_s,
        measured_s=measured_s,
        error=predicted.makespan_s / measured_s - 1,
        load_rate=statistics.fmean(look.load for look in looks) / first.load,
        execute_rate=statistics.fmean(look.execute for look in looks) / first.execute,
    )
