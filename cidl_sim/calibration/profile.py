"""Device profiles from runs: a new one of calibration's, or one that is known already, corrected by what was seen."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cidl_sim.calibration.fit import MachineCosts, Seen, fit_machine
from cidl_sim.calibration.robust import Fit, Interval
from cidl_sim.core.device import DeviceProfile, Executor, Figure, Loader, Measured, Noise, Provenance
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Block
from cidl_sim.executor.job import JobResult

# On top of the largest excess seen in the calibration runs: what differs from run to run, up to 7 % in one validation.
BASELINE_MARGIN_BYTES = 24 << 20
# Each run counts this much less than the one after it for what the next will be like, so the last three count about
# four fifths; a profile counts as all the runs that were before. A machine with other guests is faster or slower by a
# third for some seconds, so that a single run says little of the next, and stays so for minutes: other figures predict
# recorded runs no better, taken together (experiments/learning.py).
RECENT = 0.6
_NINE_IN_TEN = 1.645  # standard deviations
_DERIVED = {
    "executor.flops_per_s": "arithmetic of all blocks over their time",
    "executor.launch_s": "median time between a visit's being possible and its start; contained in exec_s",
    "executor.slowdown_while_loading": "executions beside a load against their neighbours without",
    "loader.bandwidth_bytes_per_s": "line through the loads of all kinds",
    "loader.first_touch_bytes_per_s": "loads into new memory against loads into used memory",
    "loader.latency_s": "line through the loads of all kinds",
    "loader.slowdown_while_executing": "loads beside an execution against their neighbours without",
}


@dataclass(frozen=True)
class Observation:
    """A calibration run: what was seen, and what the worker reported of memory and threads."""

    seen: Seen
    result: JobResult


def fit_device(
    name: str,
    observations: Sequence[Observation],
    memory_limit_bytes: int | None = None,
    *,
    threads: int | None = None,
) -> DeviceProfile:
    """A profile from calibration's runs, of one or several workloads, in their order in time.

    Without `memory_limit_bytes` the limit leaves room for everything; set it to what you plan for. Of runs with several
    numbers of compute threads those with `threads` (None: the first run's) say what holds, the others what would hold.
    """
    by_threads: dict[int, list[Observation]] = {}
    for observation in observations:
        by_threads.setdefault(observation.result.threads, []).append(observation)
    own = by_threads.pop(threads or observations[0].result.threads)
    profile = _fitted(name, own, memory_limit_bytes)
    others = (_fitted(name, found, None).thread_choice for _, found in sorted(by_threads.items()))
    return profile.model_copy(update={"other_threads": tuple(others)})


def _fitted(name: str, observations: Sequence[Observation], memory_limit_bytes: int | None) -> DeviceProfile:
    runs = [observation.seen for observation in observations]
    results = [observation.result for observation in observations]
    costs = fit_machine(runs)
    blocks = _blocks(runs)
    excess = max(result.excess_bytes for result in results)
    baseline = max(result.baseline_bytes for result in results) + excess + BASELINE_MARGIN_BYTES
    load_slowdown, execution_slowdown = costs.load_slowdown or Interval(1.0), costs.execution_slowdown or Interval(1.0)
    return DeviceProfile(
        name=name,
        memory_limit_bytes=memory_limit_bytes or baseline + max(_largest(seen) for seen in runs),
        baseline_bytes=baseline,
        loader=Loader(
            latency_s=costs.latency_s,
            bandwidth_bytes_per_s=costs.bandwidth_bytes_per_s,
            slowdown_while_executing=load_slowdown.value,
            first_touch_bytes_per_s=costs.first_touch_bytes_per_s,
        ),
        executor=Executor(
            flops_per_s=_flops_per_s(costs, blocks),
            launch_s=costs.launch_s,
            slowdown_while_loading=execution_slowdown.value,
            threads=results[0].threads,
        ),
        measured={
            kind: Measured(
                **_costs_of(kind, costs),
                weight_bytes=block.weight_bytes,
                flops=block.flops,
                workspace_bytes=_workspace(kind, results),
            )
            for kind, block in blocks.items()
        },
        noise=_noise(costs),
        provenance=_provenance(
            runs[0].trace,
            f"cidl calibrate, {len(runs)} runs of {', '.join(dict.fromkeys(seen.workload.name for seen in runs))}",
            costs,
            process_bytes=round(statistics.median(result.baseline_bytes for result in results)),
        ),
    )


def learned(device: DeviceProfile, runs: Sequence[Seen]) -> DeviceProfile:
    """`device`, a profile of the machine that made `runs`, with what they show: costs, rates of now, contention, noise.

    Of `runs`, in their order in time, later ones count more (`RECENT`), and `device` counts as many before the first.
    Memory stays: the limit, the baseline, and what visits take beside weights; what is known of other numbers of
    compute threads than the executor's stays too.
    """
    weighted = [Seen(seen.workload, seen.trace, RECENT ** (len(runs) - 1 - i)) for i, seen in enumerate(runs)]
    costs = fit_machine(weighted, device, RECENT ** len(runs) / (1 - RECENT))
    blocks = _blocks(runs)
    measured = {}
    for kind in [*device.measured, *(kind for kind in blocks if kind not in device.measured)]:
        known = device.measured.get(kind, Measured())
        found: dict[str, Any] = {name: value for name, value in _costs_of(kind, costs).items() if value is not None}
        if kind in blocks:
            found |= {"weight_bytes": blocks[kind].weight_bytes, "flops": blocks[kind].flops}
        measured[kind] = known.model_copy(update=found)
    share = 1 - RECENT ** len(runs)  # by how much all runs together count
    loader, executor = device.loader, device.executor
    load_slowdown = costs.load_slowdown or Interval(loader.slowdown_while_executing)
    execution_slowdown = costs.execution_slowdown or Interval(executor.slowdown_while_loading)
    return device.model_copy(
        update={
            "loader": loader.model_copy(
                update={
                    "bandwidth_bytes_per_s": costs.bandwidth_bytes_per_s,
                    "slowdown_while_executing": load_slowdown.value,
                    "first_touch_bytes_per_s": costs.first_touch_bytes_per_s,
                }
            ),
            "executor": executor.model_copy(
                update={
                    "flops_per_s": _flops_per_s(costs, blocks) or executor.flops_per_s,
                    "slowdown_while_loading": execution_slowdown.value,
                }
            ),
            "measured": measured,
            "noise": _corrected(device.noise, costs, share / 2),
            "provenance": _provenance(
                runs[-1].trace,
                _learned_from(device.provenance.source, runs),
                costs,
                process_bytes=device.provenance.process_bytes,
            ),
        }
    )


def _blocks(runs: Sequence[Seen]) -> dict[str, Block]:
    return {visit.block.kind: visit.block for seen in runs for visit in seen.workload.visits}


def _costs_of(kind: str, costs: MachineCosts) -> dict[str, Any]:
    """The fields of `Measured` that time decides."""
    warm, cold = costs.loads.get(kind, (None, None))
    return {
        "load_s": warm,
        "cold_load_s": cold,
        "exec_s": costs.executions.get(kind),
        "samples": costs.samples.get(kind),
        "load_spread": costs.load_spreads.get(kind),
        "exec_spread": costs.execution_spreads.get(kind),
    }


def _flops_per_s(costs: MachineCosts, blocks: dict[str, Block]) -> float | None:
    """Arithmetic of everything that was executed over what it costs."""
    done = sum(blocks[kind].flops * count for kind, count in costs.samples.items())
    took_s = sum(costs.executions[kind] * count for kind, count in costs.samples.items())
    return done / took_s if done and took_s else None


def _noise(costs: MachineCosts) -> Noise:
    return Noise(
        load=costs.load_fit.spread,
        execute=costs.execution_fit.spread,
        load_drift=costs.load_fit.drift,
        execute_drift=costs.execution_fit.drift,
    )


def _corrected(known: Noise, costs: MachineCosts, share: float) -> Noise:
    """Variances of before and of the runs, mixed; of drift, those of the changes from run to run, half of them each."""
    found = {
        "load": costs.load_fit.spread**2,
        "execute": costs.execution_fit.spread**2,
        "load_drift": costs.load_fit.change_from_run_to_run**2 / 2,
        "execute_drift": costs.execution_fit.change_from_run_to_run**2 / 2,
    }
    return Noise(
        **{name: (share * new + (1 - share) * getattr(known, name) ** 2) ** 0.5 for name, new in found.items()}
    )


def _workspace(kind: str, results: Sequence[JobResult]) -> int | None:
    found = [result.workspace_bytes[kind] for result in results if kind in result.workspace_bytes]
    return round(statistics.median(found)) if found else None


def _largest(seen: Seen) -> int:
    return max(visit.block.workspace_bytes for visit in seen.workload.visits) + seen.workload.weights_bytes


def _learned_from(source: str, runs: Sequence[Seen]) -> str:
    """The source of a profile that learned from `runs`; what it had learned before is counted, not listed."""
    first, _, earlier = source.partition("; learned from ")
    before = int(earlier.split(" ", 1)[0]) if earlier[:1].isdigit() else 0
    policies = ", ".join(f"{seen.trace.header.policy} of {seen.workload.name}" for seen in runs[-3:])
    return f"{first}; learned from {before + len(runs)} runs, last {policies}"


def _provenance(trace: Trace, source: str, costs: MachineCosts, *, process_bytes: int | None) -> Provenance:
    header = trace.header
    machine = header.machine
    intervals = {
        "executor.slowdown_while_loading": costs.execution_slowdown,
        "loader.bandwidth_bytes_per_s": _between_runs(costs.bandwidth_bytes_per_s, costs.load_fit),
        "loader.slowdown_while_executing": costs.load_slowdown,
    }
    figures = {"memory_limit_bytes": Figure(source="chosen, not a property of the machine", mark="assumed")}
    for key, how in _DERIVED.items():
        interval = intervals.get(key) or Interval(0.0)
        figures[key] = Figure(source=how, mark="derived", low=interval.low, high=interval.high)
    return Provenance(
        device=f"{machine.get('processor', '?')}, {machine.get('compute_threads', '?')} of "
        f"{machine.get('cores', '?')} cores compute",
        os=f"{machine.get('system', '?')} {machine.get('release', '?')}",
        source=source,
        mark="measured",
        date=header.date,
        versions=header.versions,
        process_bytes=process_bytes,
        figures=figures,
    )


def _between_runs(value: float, fit: Fit) -> Interval:
    """A rate, and between what it lies in nine of ten runs."""
    wide = _NINE_IN_TEN * fit.drift
    return Interval(value, value / (1 + wide), value * (1 + wide)) if wide else Interval(value)
