"""From traces to a device profile: medians per kind, a line through the loads, contention, noise."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from cidl_sim.calibration.microbenchmark import Observation
from cidl_sim.core.device import DeviceProfile, Executor, Figure, Loader, Measured, Noise, Provenance
from cidl_sim.core.trace import Span, Trace
from cidl_sim.core.workload import Block, Workload

# On top of the largest excess seen in the calibration runs: what differs from run to run.
BASELINE_MARGIN_BYTES = 8 << 20


def fit_device(
    name: str, alone: Observation, overlapped: Observation, memory_limit_bytes: int | None = None
) -> DeviceProfile:
    """A profile from a sequential run and one with overlap.

    Without `memory_limit_bytes` the limit leaves room for everything; set it to what you plan for.
    """
    workload, trace = alone.workload, alone.trace
    blocks = {visit.number: visit.block for visit in workload.visits}
    loads, executions = _samples(trace.of("load"), blocks), _samples(trace.of("execute"), blocks)
    kinds = {block.kind: block for block in blocks.values()}
    measured = {
        kind: Measured(
            load_s=statistics.median(loads[kind]) if kind in loads else _load_of_twin(kind, kinds, loads, workload),
            exec_s=statistics.median(executions[kind]),
            weight_bytes=block.weight_bytes,
            flops=block.flops,
            samples=len(executions[kind]),
        )
        for kind, block in kinds.items()
    }
    latency_s, bandwidth = load_line([(blocks[s.visit].weight_bytes, s.end_s - s.start_s) for s in trace.of("load")])
    flops_per_s = sum(blocks[s.visit].flops for s in trace.of("execute")) / trace.executor_busy_s
    results = (alone.result, overlapped.result)
    baseline = max(r.baseline_bytes for r in results) + max(r.excess_bytes for r in results) + BASELINE_MARGIN_BYTES
    largest_workspace = max(block.workspace_bytes for block in blocks.values())
    header = trace.header
    return DeviceProfile(
        name=name,
        memory_limit_bytes=memory_limit_bytes or baseline + largest_workspace + workload.weights_bytes,
        baseline_bytes=baseline,
        loader=Loader(
            latency_s=latency_s,
            bandwidth_bytes_per_s=bandwidth,
            slowdown_while_executing=slowdown(overlapped.trace, "load", measured, blocks),
        ),
        executor=Executor(
            flops_per_s=flops_per_s,
            slowdown_while_loading=slowdown(overlapped.trace, "execute", measured, blocks),
            threads=alone.result.threads,
        ),
        measured=measured,
        noise=Noise(load=relative_spread(loads), execute=relative_spread(executions)),
        provenance=Provenance(
            device=f"{header.machine['processor']}, {header.machine['compute_threads']} of "
            f"{header.machine['cores']} cores compute",
            os=f"{header.machine['system']} {header.machine['release']}",
            source=f"cidl calibration, {header.date}, workload {workload.name}, "
            + ", ".join(f"{package} {version}" for package, version in header.versions.items()),
            mark="measured",
            figures={
                "memory_limit_bytes": Figure(source="chosen, not a property of the machine", mark="assumed"),
                "executor.flops_per_s": Figure(source="arithmetic of all blocks over their time", mark="derived"),
                "loader.bandwidth_bytes_per_s": Figure(source="line through the loads of all kinds", mark="derived"),
                "loader.latency_s": Figure(source="line through the loads of all kinds", mark="derived"),
            },
        ),
    )


def load_line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Latency in s and bandwidth in bytes/s of the line through (bytes, seconds), neither below zero."""
    sizes, seconds = np.array([p[0] for p in points], float), np.array([p[1] for p in points], float)
    if len(points) > 1 and np.ptp(sizes) > 0:
        slope, intercept = np.polyfit(sizes, seconds, 1)
        if slope > 0 and intercept >= 0:
            return float(intercept), float(1.0 / slope)
    return 0.0, float(sizes.sum() / seconds.sum())


def slowdown(trace: Trace, operation: str, measured: dict[str, Measured], blocks: dict[int, Block]) -> float:
    """By how much the other side slows this one down: s in W = O/s + (D - O), summed over all spans.

    W is the duration alone, D the duration here, O the part of D during which the other side worked.
    """
    spans = trace.of("load" if operation == "load" else "execute")
    others = trace.of("execute" if operation == "load" else "load")
    overlap = alone = undisturbed = 0.0
    for span in spans:
        cost = measured[blocks[span.visit].kind]
        usual = (cost.load_s if operation == "load" else cost.exec_s) or 0.0
        covered = sum(max(0.0, min(span.end_s, o.end_s) - max(span.start_s, o.start_s)) for o in others)
        overlap += covered
        alone += usual
        undisturbed += span.end_s - span.start_s - covered
    work_under_contention = alone - undisturbed
    if overlap <= 0 or work_under_contention <= 0:
        return 1.0
    return max(1.0, overlap / work_under_contention)


def relative_spread(samples: dict[str, list[float]]) -> float:
    """Relative standard deviation within kinds, as the median over the kinds with at least 8 samples.

    Estimated from the interquartile range, which a single hiccup does not move.
    """
    spreads = []
    for values in samples.values():
        if len(values) >= 8:
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            spreads.append((high - low) / 1.349 / middle)
    return float(np.median(spreads)) if spreads else 0.0


def _samples(spans: Sequence[Span], blocks: dict[int, Block]) -> dict[str, list[float]]:
    by_kind: dict[str, list[float]] = defaultdict(list)
    for span in spans:
        by_kind[blocks[span.visit].kind].append(span.end_s - span.start_s)
    return dict(by_kind)


def _load_of_twin(
    kind: str, kinds: dict[str, Block], loads: dict[str, list[float]], workload: Workload
) -> float | None:
    """A kind that was never loaded itself shares weights with one that was (merged and plain blocks)."""
    weights = {b.weights for s in workload.stages for b in s.blocks if b.kind == kind}
    twins = [b.kind for s in workload.stages for b in s.blocks if b.weights in weights and b.kind in loads]
    return statistics.median(loads[twins[0]]) if twins else None
