"""From traces to a device profile: medians per kind, a line through the loads, contention, noise, drift."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cidl_sim.calibration.microbenchmark import EXECUTIONS, LOADS, OVERLAP, ROTATING, Observation
from cidl_sim.core.device import DeviceProfile, Executor, Figure, Loader, Measured, Noise, Provenance
from cidl_sim.core.estimates import load_line, spread_of
from cidl_sim.core.samples import Conditions, CostSample, by_kind, samples_of
from cidl_sim.core.trace import Operation
from cidl_sim.core.workload import Block

# On top of the largest excess seen in the calibration runs: what differs from run to run, up to 7 % in one validation.
BASELINE_MARGIN_BYTES = 24 << 20
FIRST_TOUCH_STEPS = 100
# A cold load counts as its own cost only where it differs clearly: most kinds have few cold loads.
CLEARLY_COLD = 1.1

KindSamples = dict[Operation, dict[str, list[CostSample]]]


def fit_device(name: str, observations: Sequence[Observation], memory_limit_bytes: int | None = None) -> DeviceProfile:
    """A profile from the runs that `microbenchmark` describes, of one or several workloads, in their order in time.

    Costs are of loads and executions that had the machine to themselves, the driver's own time before each
    included. Contention compares each run with overlap with the other runs of its workload nearest in time,
    so that drift between them does not pass for contention; so does the cost of first touch. Without
    `memory_limit_bytes` the limit leaves room for everything; set it to what you plan for.
    """
    alone = _alone(observations)
    samples = _samples([sample for found in alone for sample in found])
    blocks = {v.block.kind: v.block for o in observations for v in o.workload.visits}
    latency_s, bandwidth = load_line([(s.bytes, s.cost_s) for kind in samples["load"].values() for s in kind])
    conditions = Conditions(latency_s=latency_s)
    conditions = replace(
        conditions,
        slowdown_while_executing=_median_slowdown(observations, "load", conditions),
        slowdown_while_loading=_median_slowdown(observations, "execute", conditions),
    )
    conditions = replace(conditions, first_touch_bytes_per_s=_first_touch_rate(observations, conditions))
    executed = [s for kind in samples["execute"].values() for s in kind]
    busy_s = sum(s.seconds for s in executed)
    baseline = (
        max(o.result.baseline_bytes for o in observations)
        + max(o.result.excess_bytes for o in observations)
        + BASELINE_MARGIN_BYTES
    )
    return DeviceProfile(
        name=name,
        memory_limit_bytes=memory_limit_bytes or baseline + max(_largest(o) for o in observations),
        baseline_bytes=baseline,
        loader=Loader(
            latency_s=latency_s,
            bandwidth_bytes_per_s=bandwidth,
            slowdown_while_executing=conditions.slowdown_while_executing,
            first_touch_bytes_per_s=conditions.first_touch_bytes_per_s,
        ),
        executor=Executor(
            flops_per_s=sum(blocks[s.kind].flops for s in executed) / busy_s,
            launch_s=statistics.median(s.gap_s for s in executed),
            slowdown_while_loading=conditions.slowdown_while_loading,
            threads=observations[0].result.threads,
        ),
        measured={kind: _measured(kind, block, samples, observations) for kind, block in blocks.items()},
        noise=Noise(
            load=relative_spread(alone, "load"),
            execute=relative_spread(alone, "execute"),
            load_drift=drift(observations, "load", conditions),
            execute_drift=drift(observations, "execute", conditions),
        ),
        provenance=_provenance(observations),
    )


def slowdown(samples: Iterable[CostSample], usual_s: dict[str, float]) -> float:
    """By how much the other side slows this one down: s in W = O/s + (D - O), summed over all samples.

    W is the usual duration of the kind alone, D the duration here, O the part of D during which the other side
    worked.
    """
    overlap = work_under_contention = 0.0
    for sample in samples:
        if sample.kind in usual_s:
            overlap += sample.overlap_s
            work_under_contention += usual_s[sample.kind] - (sample.seconds - sample.overlap_s)
    if overlap <= 0 or work_under_contention <= 0:
        return 1.0
    return max(1.0, overlap / work_under_contention)


def relative_spread(runs: Sequence[Sequence[CostSample]], operation: Operation) -> float:
    """Relative standard deviation of loads or executions within kinds and runs.

    The median over the kinds of a run with enough samples, estimated from the interquartile range, which a
    single hiccup does not move; then the median over the runs.
    """
    found = []
    for samples in runs:
        kinds = by_kind((s for s in samples if s.operation == operation), lambda s: s.seconds)
        spreads = [spread for values in kinds.values() if (spread := spread_of(values)) is not None]
        if spreads:
            found.append(statistics.median(spreads))
    return statistics.median(found) if found else 0.0


def drift(observations: Sequence[Observation], operation: Operation, conditions: Conditions) -> float:
    """Relative standard deviation, from run to run, of the factor that all loads (or executions) of a run share.

    A run's factor is its time for this operation, free of the conditions, over what the kinds' means over all runs
    would take. Loads that touch their memory first are left out: that time varies on its own. At least 3 runs, else 0.
    """
    runs = []
    for observation in observations:
        found = (s for s in _samples_under(observation, conditions) if s.operation == operation and not s.fresh_bytes)
        runs.append(by_kind(found, lambda s: s.seconds))
    everything: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for kind, values in run.items():
            everything[kind] += values
    usual = {kind: statistics.fmean(values) for kind, values in everything.items()}
    expected = [sum(len(values) * usual[kind] for kind, values in run.items()) for run in runs]
    factors = [
        sum(sum(values) for values in run.values()) / seconds
        for run, seconds in zip(runs, expected, strict=True)
        if seconds > 0
    ]
    return statistics.stdev(factors) / statistics.fmean(factors) if len(factors) >= 3 else 0.0


def _alone(observations: Sequence[Observation]) -> list[list[CostSample]]:
    """Of each run, the samples that count: loads where they were alone, and executions where those were.

    A kind that is executed only while weights are still coming in (a text encoder runs once) is taken from the
    sequential runs.
    """
    found, seen = [], set()
    for observation in observations:
        if observation.purpose == EXECUTIONS:
            samples = _samples_under(observation)
            found.append([s for s in samples if s.operation == "execute" and s.overlap_s == 0])
            seen |= {s.kind for s in found[-1]}
    for observation in observations:
        if observation.purpose == LOADS:
            samples = _samples_under(observation)
            found.append([s for s in samples if s.operation == "load" or s.kind not in seen])
    return found


def _samples_under(observation: Observation, conditions: Conditions | None = None) -> list[CostSample]:
    return samples_of(observation.trace, conditions, all_touched=observation.purpose in ROTATING)


def _samples(samples: Iterable[CostSample]) -> KindSamples:
    result: KindSamples = {"load": defaultdict(list), "execute": defaultdict(list)}
    for sample in samples:
        result[sample.operation][sample.kind].append(sample)
    return result


def _measured(kind: str, block: Block, samples: KindSamples, observations: Sequence[Observation]) -> Measured:
    executions = [s.cost_s for s in samples["execute"][kind]]
    loads = _loads(kind, samples, observations)
    # A kind whose weights are loaded once in a run has only cold loads: those are its loads, then.
    warm = [s.cost_s for s in loads if not s.cold] or [s.cost_s for s in loads]
    cold = [s.cost_s for s in loads if s.cold]
    load_s = statistics.median(warm) if warm else None
    cold_s = statistics.median(cold) if cold else None
    return Measured(
        load_s=load_s,
        cold_load_s=cold_s if load_s and cold_s and cold_s > CLEARLY_COLD * load_s else None,
        exec_s=statistics.median(executions),
        weight_bytes=block.weight_bytes,
        flops=block.flops,
        samples=len(executions),
        load_spread=spread_of(warm),
        exec_spread=spread_of(executions),
        workspace_bytes=_workspace(kind, observations),
    )


def _loads(kind: str, samples: KindSamples, observations: Sequence[Observation]) -> list[CostSample]:
    """The loads of every kind that has the same weights: they read the same files.

    So a block at one resolution and at another, merged or not, has one load cost, and what drifted between their runs
    does not pass for a difference between the kinds.
    """
    weights: dict[str, set[str]] = defaultdict(set)
    for observation in observations:
        for stage in observation.workload.stages:
            for block in stage.blocks:
                weights[block.kind].add(block.weights)
    same = (other for other in weights if weights[other] == weights[kind])
    return [sample for other in same for sample in samples["load"].get(other, [])]


def _workspace(kind: str, observations: Sequence[Observation]) -> int | None:
    found = [o.result.workspace_bytes[kind] for o in observations if kind in o.result.workspace_bytes]
    return round(statistics.median(found)) if found else None


def _first_touch_rate(observations: Sequence[Observation], conditions: Conditions) -> float | None:
    """Bytes/s at which memory is touched first: the fresh bytes of all runs over what their loads took too long.

    Too long is measured against the same loads in the nearest run whose memory was touched before. What contention
    does to a load depends on when its touching ends, so the rate is found by going round. None where fresh memory
    costs nothing that shows.
    """
    runs = [
        (observation, _usual(observations, place, "load", cold=True))
        for place, observation in enumerate(observations)
        if observation.purpose == EXECUTIONS
    ]
    rate: float | None = None
    for _ in range(FIRST_TOUCH_STEPS):
        before, fresh_bytes, extra_s = rate, 0, 0.0
        for observation, usual in runs:
            for sample in _samples_under(observation, replace(conditions, first_touch_bytes_per_s=rate)):
                if sample.fresh_bytes and sample.kind in usual:
                    fresh_bytes += sample.fresh_bytes
                    extra_s += sample.seconds - usual[sample.kind] + (sample.fresh_bytes / rate if rate else 0.0)
        rate = fresh_bytes / extra_s if extra_s > 0 else None
        if rate is None or (before is not None and abs(rate / before - 1) < 1e-9):
            break
    return rate


def _median_slowdown(observations: Sequence[Observation], operation: Operation, conditions: Conditions) -> float:
    found = []
    for place, observation in enumerate(observations):
        if observation.purpose != OVERLAP:
            continue
        usual = _usual(observations, place, operation)
        samples = _samples_under(observation, conditions)
        found.append(slowdown((s for s in samples if s.operation == operation and not s.cold), usual))
    return statistics.median(found) if found else 1.0


def _usual(
    observations: Sequence[Observation], place: int, operation: Operation, *, cold: bool = False
) -> dict[str, float]:
    """Mean seconds by kind in the runs of the same workload nearest to the one at `place` that had no overlap.

    Of loads either the first ones (`cold`) or the others.
    """
    nearest: dict[str, tuple[int, list[CostSample]]] = {}
    for i, observation in enumerate(observations):
        if observation.workload.name != observations[place].workload.name:
            continue
        for samples in _alone([observation]):
            for kind, values in _samples(s for s in samples if s.cold == cold)[operation].items():
                # Executions: those that found their weights in memory count, whatever is nearer.
                rank = abs(i - place) + (len(observations) if observation.purpose == LOADS else 0)
                if kind not in nearest or rank < nearest[kind][0]:
                    nearest[kind] = rank, values
    return {kind: statistics.fmean(s.seconds for s in values) for kind, (_, values) in nearest.items()}


def _largest(observation: Observation) -> int:
    visits = observation.workload.visits
    return max(visit.block.workspace_bytes for visit in visits) + observation.workload.weights_bytes


def _provenance(observations: Sequence[Observation]) -> Provenance:
    header = observations[0].trace.header
    names = dict.fromkeys(o.workload.name for o in observations)
    machine = header.machine
    derived = {
        "executor.flops_per_s": "arithmetic of all blocks over their time",
        "loader.first_touch_bytes_per_s": "loads into new memory against the same loads into used memory",
        "executor.launch_s": "median time between a visit's being possible and its start; contained in exec_s",
        "loader.bandwidth_bytes_per_s": "line through the loads of all kinds",
        "loader.latency_s": "line through the loads of all kinds",
    }
    return Provenance(
        device=f"{machine['processor']}, {machine['compute_threads']} of {machine['cores']} cores compute",
        os=f"{machine['system']} {machine['release']}",
        source=f"cidl calibrate, {len(observations)} runs of {', '.join(names)}",
        mark="measured",
        date=header.date,
        versions=header.versions,
        process_bytes=round(statistics.median(o.result.baseline_bytes for o in observations)),
        figures={
            "memory_limit_bytes": Figure(source="chosen, not a property of the machine", mark="assumed"),
            **{key: Figure(source=source, mark="derived") for key, source in derived.items()},
        },
    )
