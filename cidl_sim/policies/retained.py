"""prefix:d, spread:d and rotating:d: d blocks of each group stay in memory, prefetch as deep as memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.feasibility import check_plan
from cidl_sim.core.plan import Plan
from cidl_sim.core.timed import Timed, timed
from cidl_sim.core.workload import Workload
from cidl_sim.policies.build import deep_prefetch, keep_positions, repeated_positions, repeating_groups
from cidl_sim.simulator.quick import deep_makespan_s

Positions = Callable[[int, int], set[int]]
Keeps = Callable[[Workload, dict[str, int]], set[int]]  # visits that keep their weights, for numbers by group

# Of a group with more blocks so many numbers are tried, evenly spaced.
MOST_TRIED = 128
# Makespans that differ by less are equal but for rounding; what is longer by more than `CLEARLY` is never the best.
SAME, CLEARLY = 1e-12, 1e-9


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
    return _retained("prefix", workload, device, retained)


def spread(workload: Workload, device: DeviceProfile, retained: int | dict[str, int] | None = None) -> Plan:
    """Keep d blocks of each round at even distances, so that the loads in between come at an even pace.

    Without a number: the best one per group, found by simulation. InfeasibleError if d does not fit.
    """
    return _retained("spread", workload, device, retained)


def rotating(workload: Workload, device: DeviceProfile, retained: int | dict[str, int] | None = None) -> Plan:
    """Load at even distances over all rounds, so often that d blocks lie in memory beside the one that runs.

    Of n blocks that is one load for (n - 1) / (n - 1 - d) visits, which is no whole number as a rule, so the retained
    set moves on from round to round, and a round has n (n - 1 - d) / (n - 1) loads: fewer than the n - d of any fixed
    set. Without a number: the best one per group, found by simulation. InfeasibleError if d does not fit.
    """
    return _retained("rotating", workload, device, retained)


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


# By policy: the visits that keep their weights, for a workload and the number of blocks of each group.
KEEPS: dict[str, Keeps] = {"prefix": _at(first_positions), "spread": _at(even_positions), "rotating": _moving_on}


def _retained(
    name: str,
    workload: Workload,
    device: DeviceProfile,
    retained: int | dict[str, int] | None,
) -> Plan:
    keeps = KEEPS[name]
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
        check_plan(workload, device, plan)
    except InfeasibleError as problem:
        raise InfeasibleError(f"{label} does not fit: {problem}") from None
    return plan


def _plan(label: str, keeps: Keeps, workload: Workload, device: DeviceProfile, numbers: dict[str, int]) -> Plan:
    return deep_prefetch(label, workload, device, keeps(workload, numbers))


def _best(name: str, keeps: Keeps, workload: Workload, device: DeviceProfile) -> Plan:
    """Try every number (or `MOST_TRIED`) in one group after the other; they hardly influence each other."""
    priced = timed(workload, device)
    numbers = dict.fromkeys(repeating_groups(workload), 0)
    best_s = deep_makespan_s(priced, keeps(workload, numbers))
    for group in tuple(numbers):
        count = repeated_positions(workload, group)
        tried = [{**numbers, group: int(d)} for d in np.unique(np.linspace(1, count, min(count, MOST_TRIED)).round())]
        found_s = _makespans_s(priced, [partial(keeps, workload, candidate) for candidate in tried], best_s)
        for candidate, seconds in zip(tried, found_s, strict=True):
            if seconds < best_s * (1 - SAME):
                numbers, best_s = candidate, seconds
    plan = _plan(f"{name}:{_label(numbers)}", keeps, workload, device, numbers)
    if best_s == math.inf:
        check_plan(workload, device, plan)  # says at which visit it cannot go on
    return plan


def _makespans_s(priced: Timed, keeps: Sequence[Callable[[], set[int]]], best_s: float) -> list[float]:
    """With deep prefetch, by what is kept, ever more; infinite where it does not fit or where others are better.

    The largest sets come first: they do not fit, which shows at once, or they leave others no chance, because loads
    and executions alone take longer.
    """
    found = [math.inf] * len(keeps)
    execute_s = priced.least_execute_s
    # Latencies of several channels overlap.
    loads_s = priced.load_work_s + (priced.load_fixed_s if priced.device.loader.channels == 1 else 0.0)
    cold = priced.previous < 0
    # Whatever is kept: what is loaded for the first time up to a visit comes before it, and all executions from it on.
    least_s = float(np.max(np.cumsum(np.where(cold, loads_s, 0.0)) + np.cumsum(execute_s[::-1])[::-1]))
    if least_s >= best_s * (1 - SAME):
        return found
    for number in reversed(range(len(keeps))):
        keep = keeps[number]()
        is_kept = np.zeros(len(cold), np.bool_)
        is_kept[list(keep)] = True
        is_loaded = cold | ~is_kept[priced.previous]
        loading_s = float(loads_s[is_loaded].sum() + execute_s[-1])
        if loading_s < best_s * (1 - SAME) and loading_s <= min(found) * (1 + CLEARLY):
            found[number] = deep_makespan_s(priced, keep)
    return found


def _label(numbers: dict[str, int]) -> str:
    if len(numbers) <= 1:
        return str(next(iter(numbers.values()), 0))
    return ",".join(f"{group}={d}" for group, d in numbers.items())
