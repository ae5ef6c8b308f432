"""What the engine and the schedule do where nothing stretches anything, in plain Python that is ready at once.

One loader channel, no contention, heat or first touch, no noise: two activities, of which the one that ends first comes
next. The figures are the engine's to the last bit. Some 3 microseconds a visit: many plans are for `batch`, which has
to wait for numba first.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from cidl_sim.core.plan import Plan
from cidl_sim.core.timed import Timed
from cidl_sim.simulator.arrays import Evaluation, loads_of


@dataclass(frozen=True)
class _Lists:
    """The arrays of `Timed` as lists, whose elements Python reads faster."""

    weights: list[int]
    weight_bytes: list[int]
    workspace_bytes: list[int]
    previous: list[int]
    following: list[int]
    load_s: list[float]
    execute_s: list[float]


_KNOWN: WeakKeyDictionary[Timed, _Lists] = WeakKeyDictionary()


def evaluate(priced: Timed, plan: Plan) -> Evaluation:
    """Makespan (inf if it cannot finish), peak and busy times of `plan` where `priced.is_plain`.

    Raises PlanError where the plan names unknown visits, DeviceError where it needs a cost that is unknown.
    """
    return _evaluated(priced, loads_of(plan, len(priced.workload.visits)), set(plan.keep))


def deep_makespan_s(priced: Timed, keep: Collection[int]) -> float:
    """The makespan if the visits in `keep` keep their weights and all else is loaded in order, as early as it fits.

    What fits depends on how many visits have ended, not on when. So a load waits for the load before it and for the end
    of one visit, an execution for the execution before it and for its load: no event has to be looked for.
    """
    kept = set(keep)
    lists = _lists_of(priced)
    previous, following, sizes = lists.previous, lists.following, lists.weight_bytes
    workspaces, load_s, execute_s = lists.workspace_bytes, lists.load_s, lists.execute_s
    unknown = priced.unknown_loads
    loader_s = executor_s = gate_s = 0.0
    left = priced.room_bytes
    ended = widest = 0  # visits that have to have ended by now, and the largest workspace from there on
    ends_s: list[float] = []
    for visit, workspace in enumerate(workspaces):
        before = previous[visit]
        size = sizes[visit] if before < 0 or before not in kept else -1
        widest = max(widest, workspace)
        if size >= 0 and unknown:
            priced.load_cost(visit)
        needed = max(size, 0)
        while needed + widest > left or (size >= 0 and before >= ended):
            if ended == visit:
                return math.inf
            if following[ended] < 0 or ended not in kept:
                left += sizes[ended]
            gate_s = ends_s[ended]
            ended += 1
            if workspaces[ended - 1] == widest:
                widest = max(workspaces[ended : visit + 1])
        if size >= 0:
            left -= size
            loader_s = (loader_s if loader_s > gate_s else gate_s) + load_s[visit]
            executor_s = max(executor_s, loader_s)
        executor_s += execute_s[visit]
        ends_s.append(executor_s)
    return executor_s


def _lists_of(priced: Timed) -> _Lists:
    if priced not in _KNOWN:
        _KNOWN[priced] = _Lists(
            weights=priced.weights.tolist(),
            weight_bytes=priced.weight_bytes.tolist(),
            workspace_bytes=priced.workspace_bytes.tolist(),
            previous=priced.previous.tolist(),
            following=priced.following.tolist(),
            load_s=(priced.load_fixed_s + priced.load_work_s).tolist(),
            execute_s=priced.execute_s.tolist(),
        )
    return _KNOWN[priced]


def _evaluated(priced: Timed, loads: Sequence[tuple[int, int]], keep: Collection[int]) -> Evaluation:
    for visit, _ in loads if priced.unknown_loads else ():
        priced.load_cost(visit)
    lists = _lists_of(priced)
    weights, workspaces, execute_s = lists.weights, lists.workspace_bytes, lists.execute_s
    room_bytes, baseline_bytes = priced.room_bytes, priced.device.baseline_bytes
    resident_for: dict[int, int] = {}  # weights, also those on their way, and the visit that they are there for
    held = peak = current = next_load = 0
    running, loading = False, -1
    now = loader_s = executor_s = first_start_s = loader_busy_s = executor_busy_s = 0.0
    while current < len(weights):
        # Weights that are on their way are not there; what else is resident for the current visit has been loaded.
        is_here = loading != current and resident_for.get(weights[current]) == current
        if is_here and not running and workspaces[current] <= room_bytes - held:
            running, executor_s = True, now + execute_s[current]
            executor_busy_s += executor_s - now
            first_start_s = first_start_s if current else now
            peak = max(peak, held + workspaces[current])
        if loading < 0 and next_load < len(loads):
            visit, gate = loads[next_load]
            if 2 * current + running >= gate and weights[visit] not in resident_for:
                size, free = lists.weight_bytes[visit], room_bytes - held
                if size <= free and max(workspaces[current : visit + 1], default=0) <= free - size:
                    next_load += 1
                    held += size
                    resident_for[weights[visit]] = loading = visit
                    peak = max(peak, held + (workspaces[current] if running else 0))
                    loader_s = now + lists.load_s[visit]
                    loader_busy_s += loader_s - now
        if loading < 0 and not running:
            return Evaluation(math.inf, baseline_bytes + peak, loader_busy_s, executor_busy_s, first_start_s)
        now = min(loader_s if loading >= 0 else math.inf, executor_s if running else math.inf)
        if loading >= 0 and loader_s <= now:
            loading = -1
        if running and executor_s <= now:
            running = False
            following = lists.following[current]
            if following >= 0 and current in keep:
                resident_for[weights[current]] = following
            else:
                del resident_for[weights[current]]
                held -= lists.weight_bytes[current]
            current += 1
    return Evaluation(now, baseline_bytes + peak, loader_busy_s, executor_busy_s, first_start_s)
