"""prefix:d, spread:d and rotating:d: d blocks of each group stay in memory, prefetch as deep as memory allows."""

from __future__ import annotations

from collections.abc import Callable

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.plan import Plan
from cidl_sim.core.workload import Workload
from cidl_sim.policies.build import deep_prefetch, keep_positions, repeated_positions, repeating_groups
from cidl_sim.simulator.engine import makespan_s

Positions = Callable[[int, int], set[int]]
Keeps = Callable[[Workload, dict[str, int]], set[int]]  # visits that keep their weights, for numbers by group


def first_positions(d: int, n: int) -> set[int]:
    """The first `d` of `n` blocks."""
    return set(range(min(d, n)))


def even_positions(d: int, n: int) -> set[int]:
    """`d` of `n` blocks, evenly spaced, the first one among them."""
    d = min(d, n)
    return {i * n // d for i in range(d)}


def prefix(workload: Workload, device: DeviceProfile, retained: int | dict[str, int] | None = None) -> Plan:
    """Keep the first d blocks of each round, or of each group the number given for it.

    Without a number: the best one per group, found by simulation. InfeasibleError if d does not fit.
    """
    return _retained("prefix", _at(first_positions), workload, device, retained)


def spread(workload: Workload, device: DeviceProfile, retained: int | dict[str, int] | None = None) -> Plan:
    """Keep d blocks of each round at even distances, so that the loads in between come at an even pace.

    Without a number: the best one per group, found by simulation. InfeasibleError if d does not fit.
    """
    return _retained("spread", _at(even_positions), workload, device, retained)


def rotating(workload: Workload, device: DeviceProfile, retained: int | dict[str, int] | None = None) -> Plan:
    """Load at even distances over all rounds, so often that d blocks lie in memory beside the one that runs.

    Of n blocks that is one load for (n - 1) / (n - 1 - d) visits, which is no whole number as a rule, so the retained
    set moves on from round to round, and a round has n (n - 1 - d) / (n - 1) loads: fewer than the n - d of any fixed
    set. Without a number: the best one per group, found by simulation. InfeasibleError if d does not fit.
    """
    return _retained("rotating", _moving_on, workload, device, retained)


def _at(positions: Positions) -> Keeps:
    def keeps(workload: Workload, numbers: dict[str, int]) -> set[int]:
        sets = {
            group: positions(d, repeated_positions(workload, group)) if d else set() for group, d in numbers.items()
        }
        return keep_positions(workload, sets)

    return keeps


def _moving_on(workload: Workload, numbers: dict[str, int]) -> set[int]:
    keep = set()
    others = {group: max(1, repeated_positions(workload, group) - 1) for group in numbers}
    visits_seen = dict.fromkeys(numbers, 0)
    for number in sorted(keep_positions(workload, {group: set(range(n + 1)) for group, n in others.items()})):
        group = workload.stages[workload.visits[number].stage].group
        loads = others[group] - min(numbers[group], others[group])
        seen, visits_seen[group] = visits_seen[group], visits_seen[group] + 1
        # In whole numbers: the share of visits with a load is loads / others.
        if (seen + 1) * loads // others[group] == seen * loads // others[group]:
            keep.add(number)
    return keep


def _retained(
    name: str,
    keeps: Keeps,
    workload: Workload,
    device: DeviceProfile,
    retained: int | dict[str, int] | None,
) -> Plan:
    groups = repeating_groups(workload)
    if retained is None:
        return _best(name, keeps, workload, device)
    numbers = dict.fromkeys(groups, retained) if isinstance(retained, int) else retained
    label = f"{name}:" + (str(retained) if isinstance(retained, int) else _label(numbers))
    unknown = set(numbers) - set(groups)
    if unknown:
        raise InfeasibleError(
            f"{label}: nothing to retain in {', '.join(sorted(unknown))}; groups with several rounds: "
            f"{', '.join(groups) or 'none'}"
        )
    plan = _plan(label, keeps, workload, device, numbers)
    try:
        plan.check(workload, device)
    except InfeasibleError as problem:
        raise InfeasibleError(f"{label} does not fit: {problem}") from None
    return plan


def _plan(label: str, keeps: Keeps, workload: Workload, device: DeviceProfile, numbers: dict[str, int]) -> Plan:
    return deep_prefetch(label, workload, device, keeps(workload, numbers))


def _best(name: str, keeps: Keeps, workload: Workload, device: DeviceProfile) -> Plan:
    """Try every number in one group after the other; the groups hardly influence each other."""
    numbers = dict.fromkeys(repeating_groups(workload), 0)
    best = _plan(f"{name}:{_label(numbers)}", keeps, workload, device, numbers)
    best_s = makespan_s(workload, device, best)
    for group in numbers:
        for d in range(1, repeated_positions(workload, group) + 1):
            tried = {**numbers, group: d}
            plan = _plan(f"{name}:{_label(tried)}", keeps, workload, device, tried)
            try:
                seconds = makespan_s(workload, device, plan)
            except InfeasibleError:
                break  # a larger set needs more memory still
            if seconds < best_s:
                best, best_s, numbers = plan, seconds, tried
    return best


def _label(numbers: dict[str, int]) -> str:
    if len(numbers) <= 1:
        return str(next(iter(numbers.values()), 0))
    return ",".join(f"{group}={d}" for group, d in numbers.items())
