"""Where the answer changes: the limits and rates at which more memory, bandwidth or arithmetic stops paying.

Each point is found by bisection on simulated makespans with a new plan at every value, so it belongs to the policy.
Bisection takes for granted that more of a figure never hurts; contention can break that by a little.
"""

from __future__ import annotations

from collections.abc import Callable

from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.feasibility import largest_need, resident_need
from cidl_sim.core.progress import StepProgress, silent
from cidl_sim.core.reports import BreakPoint, CurvePoint
from cidl_sim.core.what_if import with_value
from cidl_sim.planner.bisection import bytes_text, rate_text, smallest_limit, smallest_rate
from cidl_sim.planner.bounds import lower_bound_s
from cidl_sim.planner.reruns import Replanned, Reruns

# What shortens the makespan by less than this share does not pay; waits below it count as none.
PAYS = 1e-3
CURVE_POINTS = 16


def break_points(reruns: Reruns, on_step: StepProgress = silent) -> list[BreakPoint]:
    """The least memory, the memory above which more stops paying, and the two rates at which the binding side changes.

    DeviceError where a cost is unknown.
    """
    points: list[BreakPoint] = []
    for find in (_least_memory, _enough_memory, _hidden_loading, _binding_loader):
        on_step("break points", len(points), 4, find.__name__.strip("_").replace("_", " "))
        points.append(find(reruns))
    on_step("break points", 4, 4, "")
    return points


def memory_points(reruns: Reruns, on_step: StepProgress = silent) -> list[BreakPoint]:
    """The least memory, the memory above which more stops paying, and that from which on the executor never waits."""
    points: list[BreakPoint] = []
    for find in (_least_memory, _enough_memory, _zero_stall):
        on_step("limits of interest", len(points), 3, find.__name__.strip("_").replace("_", " "))
        points.append(find(reruns))
    on_step("limits of interest", 3, 3, "")
    return points


def memory_curve(reruns: Reruns, points: list[BreakPoint], on_step: StepProgress = silent) -> list[CurvePoint]:
    """The makespan against the memory limit: evenly spaced from the least one to beyond the last point of interest.

    The points themselves and the device's own limit are among them.
    """
    marked = {int(p.value) for p in points if p.parameter == "memory_limit_bytes" and p.value is not None}
    own = reruns.device.memory_limit_bytes
    least, beyond = min(*marked, own), round(1.1 * max(marked, default=own))
    even = {least + (beyond - least) * i // (CURVE_POINTS - 1) for i in range(CURVE_POINTS)}
    limits = sorted(marked | even | {own})
    curve = []
    for done, limit in enumerate(limits):
        on_step("memory curve", done, len(limits), "")
        outcome = _under(reruns, limit)
        if outcome is not None:
            bound_s = lower_bound_s(reruns.workload, outcome.device, outcome.makespan_s)
            retained = reruns.retained_blocks(outcome)
            point = CurvePoint(
                memory_limit_bytes=limit,
                makespan_s=outcome.makespan_s,
                lower_bound_s=bound_s,
                retained_blocks=retained,
                policy=outcome.plan.policy,
            )
            curve.append(point)
    on_step("memory curve", len(limits), len(limits), "")
    return curve


def _least_memory(reruns: Reruns) -> BreakPoint:
    """No plan fits below the largest block with its workspace; the policy may need more than that."""
    _, visit = largest_need(reruns.workload)
    floor = _floor(reruns)
    limit = smallest_limit(lambda limit: _under(reruns, limit) is not None, floor, reruns.device.memory_limit_bytes)
    why = f"block {visit.block.name!r} needs that with its workspace and the baseline"
    if limit > floor:
        why = f"{reruns.policy} needs that; another policy may do with {bytes_text(floor)}"
    return _at_limit("feasible", reruns, limit, f"feasible from {bytes_text(limit)} on: {why}")


def _enough_memory(reruns: Reruns) -> BreakPoint:
    """The smallest limit under which the makespan is what it is with every weight resident."""
    floor, everything = _floor(reruns), _everything(reruns)
    unlimited = reruns.on(with_value(reruns.device, "memory_limit_bytes", everything))

    def is_enough(limit: int) -> bool:
        outcome = _under(reruns, limit)
        return outcome is not None and outcome.makespan_s <= unlimited.makespan_s * (1 + PAYS)

    limit = smallest_limit(is_enough, floor, everything)
    outcome = reruns.on(with_value(reruns.device, "memory_limit_bytes", limit))
    retained, wait_s = reruns.retained_blocks(outcome), outcome.run.stalls_s
    waits = "the executor then waits for the first load alone"
    if wait_s > PAYS * outcome.makespan_s:
        waits = f"the executor then still waits {_seconds(wait_s)} for loads that no memory hides"
    if limit == floor:
        sentence = f"more memory than the least ({bytes_text(limit)}) never pays; {waits}"
    elif retained:
        sentence = f"retention stops paying above {bytes_text(limit)}, with {retained} blocks retained; {waits}"
    else:
        sentence = f"memory stops paying above {bytes_text(limit)}, with no block retained; {waits}"
    return _at_limit("enough_memory", reruns, limit, sentence)


def _zero_stall(reruns: Reruns) -> BreakPoint:
    """The smallest limit under which the executor waits for the first load alone."""

    def is_hidden(limit: int) -> bool:
        outcome = _under(reruns, limit)
        return outcome is not None and outcome.run.stalls_s <= PAYS * outcome.makespan_s

    floor, everything = _floor(reruns), _everything(reruns)
    if not is_hidden(everything):
        never = "the executor waits for loads with all weights in memory too"
        return BreakPoint(name="zero_stall", parameter="memory_limit_bytes", sentence=never)
    limit = smallest_limit(is_hidden, floor, everything)
    sentence = f"from {bytes_text(limit)} on the executor waits for the first load alone"
    return _at_limit("zero_stall", reruns, limit, sentence)


def _hidden_loading(reruns: Reruns) -> BreakPoint:
    """The bandwidth above which the executor waits for the first load alone."""

    def is_hidden(outcome: Replanned) -> bool:
        return outcome.run.stalls_s <= PAYS * outcome.makespan_s

    return _at_rate(
        "hidden_loading",
        reruns,
        "loader.bandwidth_bytes_per_s",
        is_hidden,
        "loading is fully hidden above {rate} (now {now})",
        "loading is fully hidden at any bandwidth",
        "no bandwidth hides loading fully",
    )


def _binding_loader(reruns: Reruns) -> BreakPoint:
    """The executor's rate above which the loader is busy for longer than the executor."""

    def binds(outcome: Replanned) -> bool:
        return outcome.run.loader_busy_s > outcome.run.executor_busy_s

    return _at_rate(
        "binding_loader",
        reruns,
        "executor.flops_per_s",
        binds,
        "the loader binds above {rate} (now {now}): it is then busy for longer than the executor",
        "the loader binds at any rate of the executor",
        "the loader binds at no rate of the executor",
    )


def _at_rate(
    name: str, reruns: Reruns, parameter: str, holds: Callable[[Replanned], bool], at: str, always: str, never: str
) -> BreakPoint:
    section, _, field = parameter.partition(".")
    now = getattr(getattr(reruns.device, section), field)
    if now is None:
        return BreakPoint(name=name, parameter=parameter, sentence=f"{parameter} is not given: {name} is unknown")
    outcomes: dict[float, Replanned] = {}

    def holds_at(rate: float) -> bool:
        outcomes[rate] = reruns.on(with_value(reruns.device, parameter, rate))
        return holds(outcomes[rate])

    rate = smallest_rate(holds_at, now)
    if rate is None:
        return BreakPoint(name=name, parameter=parameter, sentence=always if holds_at(now) else never)
    found = outcomes[rate]
    sentence = at.format(rate=rate_text(parameter, rate), now=rate_text(parameter, now))
    return _point(name, parameter, rate, reruns, found, sentence)


def _at_limit(name: str, reruns: Reruns, limit: int, sentence: str) -> BreakPoint:
    outcome = reruns.on(with_value(reruns.device, "memory_limit_bytes", limit))
    return _point(name, "memory_limit_bytes", limit, reruns, outcome, sentence)


def _point(name: str, parameter: str, value: float, reruns: Reruns, outcome: Replanned, sentence: str) -> BreakPoint:
    return BreakPoint(
        name=name,
        parameter=parameter,
        value=value,
        makespan_s=outcome.makespan_s,
        retained_blocks=reruns.retained_blocks(outcome),
        sentence=sentence,
    )


def _floor(reruns: Reruns) -> int:
    """The limit below which no plan fits; a profile's limit is at least one byte."""
    return max(1, largest_need(reruns.workload)[0] + reruns.device.baseline_bytes)


def _everything(reruns: Reruns) -> int:
    """The limit under which all weights are in memory."""
    return max(_floor(reruns), reruns.device.baseline_bytes + resident_need(reruns.workload))


def _under(reruns: Reruns, limit: int) -> Replanned | None:
    try:
        return reruns.on(with_value(reruns.device, "memory_limit_bytes", limit))
    except InfeasibleError:
        return None


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s"
