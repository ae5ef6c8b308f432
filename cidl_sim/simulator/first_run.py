"""The first run on a device with Core ML, in which every model is prepared, and the later ones: both simulated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cidl_sim.core.costs import knows_cold_load, measured_kind
from cidl_sim.core.device import DeviceProfile, Mark, Measured
from cidl_sim.core.plan import Plan
from cidl_sim.core.timed import timed
from cidl_sim.core.workload import Block, Workload
from cidl_sim.simulator.quick import checked_makespan_s

_WEAKER: tuple[Mark, ...] = ("measured", "published", "derived", "assumed")


@dataclass(frozen=True)
class RunTimes:
    """Makespans of a plan in seconds, when everything is loaded for the first time on the device and afterwards.

    `first_s` is None where some kinds, `unknown_kinds` with `unknown_share` of the weights, have no cold load in the
    profile; `first_at_least_s` counts later loads for these. `mark`: the weakest of the profile's figures that were
    used, None if it has no marks.
    """

    first_s: float | None
    first_at_least_s: float
    later_s: float
    unknown_kinds: tuple[str, ...]
    unknown_share: float
    mark: Mark | None


def run_times(workload: Workload, device: DeviceProfile, plan: Plan) -> RunTimes:
    """Simulate the first run and a later one under `plan`. Errors as of `simulate`."""
    plan.check_workload(workload)
    first_s = checked_makespan_s(timed(workload, device), plan)
    blocks = [block for stage in workload.stages for block in stage.blocks]
    unknown = [block for block in blocks if not knows_cold_load(block, device)]
    unknown_bytes = sum({block.weights: block.weight_bytes for block in unknown}.values())
    return RunTimes(
        first_s=None if unknown else first_s,
        first_at_least_s=first_s,
        later_s=checked_makespan_s(timed(workload, device.without_cold_loads()), plan),
        unknown_kinds=tuple(dict.fromkeys(block.kind for block in unknown)),
        unknown_share=unknown_bytes / workload.weights_bytes if unknown_bytes else 0.0,
        mark=_weakest_mark(blocks, device),
    )


def run_sentence(times: RunTimes) -> str:
    """First and later runs in a sentence."""
    later = f"later ones {times.later_s:,.1f} s, until the system throws away what it prepared"
    if times.first_s is not None:
        return f"The first run on the device takes {times.first_s:,.1f} s with the loads that prepare models, {later}."
    unknown = f"no cold load in the profile for {times.unknown_share:.1%} of the weights"
    return (
        f"How long the first run takes is unknown ({unknown}), but at least {times.first_at_least_s:,.1f} s; {later}."
    )


def _weakest_mark(blocks: Iterable[Block], device: DeviceProfile) -> Mark | None:
    provenance = device.provenance
    marks = set() if provenance.mark is None else {provenance.mark}
    for kind in {measured_kind(block.kind, device) for block in blocks}:
        measured = Measured() if kind is None else device.measured[kind]
        stems = [f"measured.{kind}"]
        # The formulas stand in for what was not measured.
        stems += ["loader.bandwidth", "loader.latency"] if measured.load_s is None else []
        stems += ["executor.flops", "executor.efficiency"] if measured.exec_s is None else []
        marks |= {figure.mark for key, figure in provenance.figures.items() if key.startswith(tuple(stems))}
    return max(marks, key=_WEAKER.index, default=None)
