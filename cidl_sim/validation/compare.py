"""Simulated against measured: run plans for real, simulate the same plans, compare.

Two errors are kept apart. Prediction uses the calibrated profile alone. Replay gives the simulator each
run's own mean durations per kind, so what is left is the structure of the model, not the drift of rates.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.stats import kendalltau

from cidl_sim.core.device import DeviceProfile, Measured
from cidl_sim.core.plan import Plan
from cidl_sim.core.trace import Trace, read_trace
from cidl_sim.core.workload import Workload
from cidl_sim.diffusion.job import Job, JobResult, run_job
from cidl_sim.executor.store import BlockStore
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate

OnRun = Callable[[str, int, int, str], None]

# The policies that every comparison runs; prefix and spread with their best numbers.
POLICIES_TO_COMPARE = ("sequential", "next_block", "on_device_sora", "lru", "prefix", "spread")


@dataclass
class Comparison:
    """One policy: its plan, its simulation and its real runs."""

    policy: str
    plan: Plan
    simulated: Trace
    measured: list[Trace] = field(default_factory=list)
    results: list[JobResult] = field(default_factory=list)
    replayed_s: list[float] = field(default_factory=list)

    @property
    def measured_makespan_s(self) -> float:
        """Median over the runs."""
        return statistics.median(trace.makespan_s for trace in self.measured)

    @property
    def prediction_error(self) -> float:
        """Relative difference of the simulated from the measured makespan, signed."""
        return self.simulated.makespan_s / self.measured_makespan_s - 1

    @property
    def replay_error(self) -> float:
        """The largest relative difference of a replay from its run, signed."""
        errors = [r / trace.makespan_s - 1 for r, trace in zip(self.replayed_s, self.measured, strict=True)]
        return max(errors, key=abs)

    @property
    def peak_kernel_bytes(self) -> int | None:
        """The most that the kernel charged in any run."""
        peaks = [result.peak_kernel_bytes for result in self.results if result.peak_kernel_bytes is not None]
        return max(peaks, default=None)

    def row(self) -> dict[str, Any]:
        """The figures of this policy."""
        return {
            "policy": self.policy,
            "plan": self.plan.policy,
            "simulated_makespan_s": self.simulated.makespan_s,
            "measured_makespan_s": self.measured_makespan_s,
            "runs_s": [trace.makespan_s for trace in self.measured],
            "difference": self.prediction_error,
            "replay_error": self.replay_error,
            "peak_resident_bytes": self.simulated.peak_resident_bytes,
            "measured_peak_resident_bytes": max(trace.peak_resident_bytes for trace in self.measured),
            "peak_kernel_bytes": self.peak_kernel_bytes,
            "enforced_by": self.measured[0].header.enforced_by,
        }


def compare_policies(
    store: BlockStore,
    workload: Workload,
    device: DeviceProfile,
    folder: Path,
    *,
    prompt: str,
    seed: int = 42,
    policies: Sequence[str] = POLICIES_TO_COMPARE,
    repeats: int = 1,
    on_run: OnRun = lambda policy, done, total, stage: None,
) -> list[Comparison]:
    """Plan, simulate and really run each policy under the device's limit, repeats interleaved.

    Plans, traces and videos go to `folder`, named after the policy.
    """
    comparisons = []
    for policy in policies:
        plan = make_plan(policy, workload, device)
        simulated = simulate(workload, device, plan)
        plan = plan.model_copy(
            update={"makespan_s": simulated.makespan_s, "peak_resident_bytes": simulated.peak_resident_bytes}
        )
        plan.write(folder / f"plan-{policy}.json")
        comparisons.append(Comparison(policy, plan, simulated))
    for _ in range(repeats):
        for comparison in comparisons:
            _run_once(comparison, store, workload, device, folder, prompt, seed, on_run)
    return comparisons


def _run_once(
    comparison: Comparison,
    store: BlockStore,
    workload: Workload,
    device: DeviceProfile,
    folder: Path,
    prompt: str,
    seed: int,
    on_run: OnRun,
) -> None:
    policy = comparison.policy
    trace_file = folder / f"trace-{policy}.json"
    job = Job(
        plan=str(folder / f"plan-{policy}.json"),
        store=str(store.root.absolute()),
        prompts=(prompt,),
        seed=seed,
        videos=(str(folder / f"video-{policy}.mp4"),),
        trace=str(trace_file),
    )
    result = run_job(
        job,
        kernel_limit_bytes=device.memory_limit_bytes,
        on_progress=lambda done, total, stage: on_run(policy, done, total, stage),
    )
    trace = read_trace(trace_file)
    comparison.results.append(result)
    comparison.measured.append(trace)
    own = own_rates(trace, workload, device)
    replayed = simulate(
        workload, own, comparison.plan, stage_rounds=trace.stage_rounds, limit_changes=trace.limit_changes
    )
    comparison.replayed_s.append(replayed.makespan_s)


def own_rates(trace: Trace, workload: Workload, device: DeviceProfile) -> DeviceProfile:
    """The profile with a run's own mean durations per kind; they contain the run's contention already."""
    loads: dict[str, list[float]] = defaultdict(list)
    executions: dict[str, list[float]] = defaultdict(list)
    for span in trace.spans:
        if span.operation in ("load", "execute"):
            samples = loads if span.operation == "load" else executions
            samples[workload.visits[span.visit].block.kind].append(span.end_s - span.start_s)
    kinds = {visit.block.kind for visit in workload.visits}
    measured = {
        kind: Measured(
            load_s=statistics.fmean(loads[kind]) if kind in loads else device.measured[kind].load_s,
            exec_s=statistics.fmean(executions[kind]) if kind in executions else device.measured[kind].exec_s,
        )
        for kind in kinds
    }
    loader = device.loader.model_copy(update={"slowdown_while_executing": 1.0})
    executor = device.executor.model_copy(update={"slowdown_while_loading": 1.0})
    return device.model_copy(update={"measured": measured, "loader": loader, "executor": executor})


def report(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The figures of `cidl validate`. Spread and tau are None where one run or one policy cannot tell."""
    predictions = [abs(c.prediction_error) for c in comparisons]
    replays = [abs(c.replay_error) for c in comparisons]
    spreads = [_spread([t.makespan_s for t in c.measured]) for c in comparisons if len(c.measured) > 1]
    memory = [
        abs(c.peak_kernel_bytes - _expected_kernel_peak(c)) / c.peak_kernel_bytes
        for c in comparisons
        if c.peak_kernel_bytes
    ]
    simulated = [c.simulated.makespan_s for c in comparisons]
    measured = [c.measured_makespan_s for c in comparisons]
    return {
        "replay_error": {"mean": statistics.fmean(replays), "max": max(replays)},
        "prediction_error": {"mean": statistics.fmean(predictions), "max": max(predictions)},
        "run_to_run_spread": max(spreads) if spreads else None,
        "kendall_tau": float(kendalltau(simulated, measured).statistic) if len(comparisons) > 1 else None,
        "peak_memory_error": max(memory) if memory else None,
        "policies": [c.row() for c in comparisons],
    }


def _spread(values: list[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)


def _expected_kernel_peak(comparison: Comparison) -> int:
    return comparison.simulated.peak_resident_bytes
