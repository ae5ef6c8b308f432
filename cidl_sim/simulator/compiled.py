"""What the engine and the schedule do, as a compiled state machine over arrays.

There is no heap of events: each step looks for the next end among the few activities in progress and jumps there.
Sums and quotients are formed in the engine's order, so that ends which coincide there coincide here. Import this
module only where something is evaluated: it brings numba along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from cidl_sim.simulator.batch import Bools, Costs, Decisions, Floats, Ints
    from cidl_sim.simulator.engine import Factors

# What an activity is doing. Its fixed part passes at its own pace, its work at a rate.
_IDLE, _FIXED, _WORKING = 0, 1, 2

# Places in the integer state of a run. The widest visit is the one with the largest workspace from the current one to
# the last one looked at.
_CURRENT, _RUNNING, _NEXT_LOAD, _IN_FLIGHT, _HELD, _TOUCHED, _PEAK, _WIDEST, _LOOKED_AT = range(9)

# Places in the activities' rows, one row per channel and the executor's at the end.
_END_S, _REMAINING_S, _BEGAN_S, _RATE = range(4)


class Run(NamedTuple):
    """What changes during a run: the places above, weights by number, activities by row (`phases` and `visits` too)."""

    state: Ints
    resident_for: Ints
    loaded: Bools
    visits: Ints
    phases: Ints
    activities: Floats


@njit(cache=True)
def evaluate(costs: Costs, decisions: Decisions, factors: Factors) -> tuple[float, int, float, float]:
    """Run a plan: makespan in s (inf where nothing can go on), peak in bytes beyond the baseline, busy times in s."""
    rows = costs.channels + 1
    run = Run(
        np.zeros(9, np.int64),
        np.full(costs.weights_count, -1, np.int64),
        np.zeros(costs.weights_count, np.bool_),
        np.zeros(rows, np.int64),
        np.zeros(rows, np.int64),
        np.zeros((rows, 4)),
    )
    state, steps = run.state, len(costs.thermal_after_s)
    state[_WIDEST] = -1
    now, heat, step, loader_busy_s, executor_busy_s = 0.0, 1.0, 0, 0.0, 0.0
    while state[_CURRENT] < len(costs.weights):
        _dispatch(costs, decisions, factors, now, run)
        _set_rates(costs, now, heat, run)
        # Nothing is dispatched before everything that ends at this instant has ended.
        may_dispatch = False
        while not may_dispatch:
            then = _next_end(run)
            if then == np.inf:
                return np.inf, state[_PEAK], loader_busy_s, executor_busy_s
            if step < steps:
                then = min(then, costs.thermal_after_s[step])
            loader_busy_s += then - now if state[_IN_FLIGHT] else 0.0
            executor_busy_s += then - now if state[_RUNNING] else 0.0
            now = then
            while step < steps and costs.thermal_after_s[step] <= now:
                heat = costs.thermal_factor[step]
                step += 1
            while True:
                may_dispatch |= _end(costs, decisions.keep, factors, now, run)
                _set_rates(costs, now, heat, run)
                if _next_end(run) > now:
                    break
    return now, state[_PEAK], loader_busy_s, executor_busy_s


@njit(cache=True)
def _next_end(run: Run) -> float:
    end_s = np.inf
    for row in range(len(run.phases)):
        if run.phases[row] != _IDLE:
            end_s = min(end_s, run.activities[row, _END_S])
    return end_s


@njit(cache=True)
def _set_rates(costs: Costs, now: float, heat: float, run: Run) -> None:
    """Under contention work done until now went at the old rates; what remains goes on as who is active now allows."""
    if not costs.is_fluid:
        return
    executor, state, phases = costs.channels, run.state, run.phases
    sharing = 0
    for row in range(executor):
        sharing += phases[row] == _WORKING
    for row in range(executor + 1):
        if phases[row] != _WORKING:
            continue
        activity = run.activities[row]
        activity[_REMAINING_S] -= (now - activity[_BEGAN_S]) * activity[_RATE]
        activity[_BEGAN_S] = now
        if row == executor:
            activity[_RATE] = heat / (costs.slowdown_while_loading if state[_IN_FLIGHT] else 1.0)
        else:
            activity[_RATE] = 1.0 / sharing / (costs.slowdown_while_executing if state[_RUNNING] else 1.0)
        activity[_END_S] = now
        if activity[_REMAINING_S] > 0:
            activity[_END_S] = now + activity[_REMAINING_S] / activity[_RATE]


@njit(cache=True)
def _begin_work(costs: Costs, now: float, work_s: float, activity: Floats) -> None:
    activity[_REMAINING_S], activity[_BEGAN_S], activity[_RATE] = work_s, now, 1.0
    # Without contention this is the end; otherwise it only has to lie ahead until the rates are set.
    activity[_END_S] = np.inf if costs.is_fluid and work_s > 0 else now + work_s


@njit(cache=True)
def _end(costs: Costs, keep: Bools, factors: Factors, now: float, run: Run) -> bool:
    """End every activity, or its fixed part, that ends now; whether anything may be dispatched after that."""
    ended = False
    executor = costs.channels
    for row in range(executor + 1):
        if run.phases[row] == _IDLE or run.activities[row, _END_S] > now:
            continue
        visit = run.visits[row]
        if run.phases[row] == _FIXED:
            run.phases[row] = _WORKING
            _begin_work(costs, now, costs.load_work_s[visit] * factors[0][visit], run.activities[row])
            continue
        run.phases[row] = _IDLE
        ended = True
        if row == executor:
            _end_visit(costs, keep, visit, run)
        else:
            run.loaded[costs.weights[visit]] = True
            run.state[_IN_FLIGHT] -= 1
    return ended


@njit(cache=True)
def _end_visit(costs: Costs, keep: Bools, visit: int, run: Run) -> None:
    weights = costs.weights[visit]
    run.state[_RUNNING] = 0
    run.state[_CURRENT] = visit + 1
    if keep[visit] and costs.following[visit] >= 0:
        run.resident_for[weights] = costs.following[visit]
    else:
        run.resident_for[weights] = -1
        run.loaded[weights] = False
        run.state[_HELD] -= costs.weight_bytes[visit]


@njit(cache=True)
def _dispatch(costs: Costs, decisions: Decisions, factors: Factors, now: float, run: Run) -> None:
    """Start the current visit and every load that may start."""
    state, current, executor = run.state, run.state[_CURRENT], costs.channels
    if not state[_RUNNING] and _visit_may_start(costs, current, run):
        _trim(costs, current, state)
        state[_RUNNING] = 1
        _note_peak(costs, state)
        run.visits[executor], run.phases[executor] = current, _WORKING
        _begin_work(costs, now, costs.execute_s[current] * factors[1][current], run.activities[executor])
    while state[_NEXT_LOAD] < len(decisions.loads) and state[_IN_FLIGHT] < executor:
        visit = decisions.loads[state[_NEXT_LOAD]]
        is_open = 2 * current + state[_RUNNING] >= decisions.gates[state[_NEXT_LOAD]]
        if not is_open or run.resident_for[costs.weights[visit]] >= 0 or not _has_room(costs, visit, state):
            break
        _start_load(costs, visit, now, factors[0][visit], run)


@njit(cache=True)
def _visit_may_start(costs: Costs, visit: int, run: Run) -> bool:
    weights = costs.weights[visit]
    is_here = run.loaded[weights] and run.resident_for[weights] == visit
    return is_here and costs.workspace_bytes[visit] <= costs.available_bytes - run.state[_HELD]


@njit(cache=True)
def _has_room(costs: Costs, visit: int, state: Ints) -> bool:
    # In an order of differences that no size can overflow.
    free = costs.available_bytes - state[_HELD]
    weight_bytes = costs.weight_bytes[visit]
    return weight_bytes <= free and _largest_workspace(costs, visit, state) <= free - weight_bytes


@njit(cache=True)
def _start_load(costs: Costs, visit: int, now: float, factor: float, run: Run) -> None:
    state, row = run.state, 0
    state[_NEXT_LOAD] += 1
    state[_IN_FLIGHT] += 1
    state[_HELD] += costs.weight_bytes[visit]
    run.resident_for[costs.weights[visit]] = visit
    _note_peak(costs, state)
    fixed_s = costs.load_fixed_s[visit] + _first_touch_s(costs, visit, state)
    while run.phases[row] != _IDLE:
        row += 1
    run.visits[row] = visit
    if costs.is_fluid and fixed_s:
        run.phases[row] = _FIXED
        run.activities[row, _END_S] = now + fixed_s * factor
    else:
        run.phases[row] = _WORKING
        _begin_work(costs, now, (fixed_s + costs.load_work_s[visit]) * factor, run.activities[row])


@njit(cache=True)
def _note_peak(costs: Costs, state: Ints) -> None:
    workspace = costs.workspace_bytes[state[_CURRENT]] if state[_RUNNING] else 0
    state[_PEAK] = max(state[_PEAK], state[_HELD] + workspace)


@njit(cache=True)
def _first_touch_s(costs: Costs, visit: int, state: Ints) -> float:
    if not costs.first_touch_bytes_per_s:
        return 0.0
    _trim(costs, visit, state)
    fresh = max(0, state[_HELD] - state[_TOUCHED])
    state[_TOUCHED] += fresh
    return fresh / costs.first_touch_bytes_per_s


@njit(cache=True)
def _trim(costs: Costs, visit: int, state: Ints) -> None:
    if state[_TOUCHED] and state[_CURRENT] <= visit:
        room = costs.available_bytes - _largest_workspace(costs, visit, state)
        state[_TOUCHED] = min(state[_TOUCHED], max(room, state[_HELD]))


@njit(cache=True)
def _largest_workspace(costs: Costs, until: int, state: Ints) -> int:
    """From the current visit to `until`; both mostly grow, so what was looked at is not looked at again."""
    if until < state[_CURRENT]:
        return 0
    if not state[_CURRENT] <= state[_WIDEST] <= until:
        state[_WIDEST] = state[_LOOKED_AT] = state[_CURRENT]
    while state[_LOOKED_AT] < until:
        state[_LOOKED_AT] += 1
        if costs.workspace_bytes[state[_LOOKED_AT]] >= costs.workspace_bytes[state[_WIDEST]]:
            state[_WIDEST] = state[_LOOKED_AT]
    return costs.workspace_bytes[state[_WIDEST]]
