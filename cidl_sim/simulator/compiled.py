"""What the engine and the schedule do, as a compiled state machine over arrays.

There is no heap of events: each step looks for the next end among the few activities in progress and jumps there.
Sums and quotients are formed in the engine's order, so that ends which coincide there coincide here. Import this
module only where something is evaluated: it brings numba along.

State is in records, which compiled code passes as pointers.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from cidl_sim.simulator.arrays import LOAD, Bools, Element, Floats, Ints, Records

# What an activity is doing. Its fixed part passes at its own pace, its work at a rate.
_IDLE, _FIXED, _WORKING = 0, 1, 2

# `widest` is the visit with the largest workspace from the current one to `looked_at`.
_RUN = np.dtype(
    [
        (name, np.int64)
        for name in ("current", "running", "next_load", "in_flight", "held", "touched", "peak", "widest", "looked_at")
    ]
    + [(name, np.float64) for name in ("heat", "loader_busy_s", "executor_busy_s", "first_start_s")]
)
# One for each channel, and the executor's at the end.
_ACTIVITY = np.dtype(
    [(name, np.int64) for name in ("phase", "visit")]
    + [(name, np.float64) for name in ("end_s", "remaining_s", "began_s", "rate")]
)
# For which visit they are resident (-1: for none), and whether their load has ended.
_WEIGHTS = np.dtype([("resident_for", np.int64), ("loaded", np.int64)])

# Counting references to arrays at every call would take ten times as long as the calls: what allocates nothing does
# without. The callers hold the arrays. Quotients may be inf as in numpy, not an exception.
_kernel = njit(cache=True, error_model="numpy", _nrt=False)
_inlined = njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)


@njit(cache=True)
def evaluate(
    devices: Records,
    visits: Records,
    thermal: Records,
    loads: Records,
    keep: Bools,
    load_factors: Floats,
    execute_factors: Floats,
) -> tuple[float, int, float, float, float]:
    """Run a plan and return the figures of an `Evaluation`.

    The makespan is inf where nothing can go on, the peak that beyond the baseline.
    """
    device, runs = devices[0], np.zeros(1, _RUN)
    weights = np.zeros(device.weights_count, _WEIGHTS)
    activities = np.zeros(device.channels + 1, _ACTIVITY)
    makespan_s = _makespan_s(
        device, visits, thermal, loads, keep, load_factors, execute_factors, runs[0], weights, activities
    )
    # A record does not hold its array, so the array is what is kept until here.
    run = runs[0]
    return makespan_s, run.peak, run.loader_busy_s, run.executor_busy_s, run.first_start_s


@njit(cache=True, nogil=True)
def evaluate_many(
    devices: Records,
    visits: Records,
    thermal: Records,
    keep: Bools,
    lookahead: Ints,
    load_factors: Floats,
    execute_factors: Floats,
    result: Records,
) -> None:
    """Fill `result` (policies, runs) for policies that load in order of execution (see `batch.makespans`).

    Factors have a row for each run. The peak is that beyond the baseline.
    """
    device, runs = devices[0], np.zeros(1, _RUN)
    weights = np.zeros(device.weights_count, _WEIGHTS)
    activities = np.zeros(device.channels + 1, _ACTIVITY)
    loads, nothing = np.zeros(len(visits), LOAD), np.zeros(1, _RUN)
    for policy in range(len(keep)):
        count = _list_loads(visits, keep[policy], lookahead[policy], loads)
        for number in range(len(load_factors)):
            runs[0] = nothing[0]
            for row in range(len(activities)):
                activities[row].phase = _IDLE
            result[policy, number].makespan_s = _makespan_s(
                device,
                visits,
                thermal,
                loads[:count],
                keep[policy],
                load_factors[number],
                execute_factors[number],
                runs[0],
                weights,
                activities,
            )
            result[policy, number].peak_resident_bytes = runs[0].peak
            result[policy, number].loader_busy_s = runs[0].loader_busy_s
            result[policy, number].executor_busy_s = runs[0].executor_busy_s
            result[policy, number].first_start_s = runs[0].first_start_s


@_kernel
def _list_loads(visits: Records, keep: Bools, lookahead: int, loads: Records) -> int:
    count = 0
    for number in range(len(visits)):
        previous = visits[number].previous
        if previous < 0 or not keep[previous]:
            loads[count].visit = number
            loads[count].gate = _gate(number, lookahead)
            count += 1
    return count


@_inlined
def _gate(number: int, lookahead: int) -> int:
    """The progress that a load waits for: the end of the visit before, or the start of one further ahead."""
    return 2 * (number - lookahead) + (1 if lookahead else 0)


@_kernel
def _makespan_s(
    device: Element,
    visits: Records,
    thermal: Records,
    loads: Records,
    keep: Bools,
    load_factors: Floats,
    execute_factors: Floats,
    run: Element,
    weights: Records,
    activities: Records,
) -> float:
    run.heat, run.widest = 1.0, -1
    for number in range(len(weights)):
        weights[number].resident_for, weights[number].loaded = -1, 0
    now, step = 0.0, 0
    while run.current < len(visits):
        _start_visit(device, visits, execute_factors, now, run, weights, activities)
        _start_loads(device, visits, loads, load_factors, now, run, weights, activities)
        # Nothing is dispatched before everything that ends at this instant has ended.
        may_dispatch = False
        while not may_dispatch:
            then = _next_end(activities)
            if then == np.inf:
                return np.inf
            if step < len(thermal):
                then = min(then, thermal[step].after_s)
            if run.in_flight:
                run.loader_busy_s += then - now
            if run.running:
                run.executor_busy_s += then - now
            now = then
            while step < len(thermal) and thermal[step].after_s <= now:
                run.heat = thermal[step].factor
                step += 1
            ends = True
            while ends:
                may_dispatch |= _end(device, visits, keep, load_factors, execute_factors, now, run, weights, activities)
                ends = device.is_fluid and _next_end(activities) <= now
    return now


@_inlined
def _next_end(activities: Records) -> float:
    end_s = np.inf
    for row in range(len(activities)):
        if activities[row].phase != _IDLE and activities[row].end_s < end_s:
            end_s = activities[row].end_s
    return end_s


@_inlined
def _set_rates(device: Element, now: float, run: Element, activities: Records) -> None:
    """Work done until now went at the old rates; what remains goes on as who is active now allows."""
    executor = device.channels
    sharing = 0
    for row in range(executor):
        sharing += activities[row].phase == _WORKING
    for row in range(executor + 1):
        activity = activities[row]
        if activity.phase != _WORKING:
            continue
        activity.remaining_s -= (now - activity.began_s) * activity.rate
        activity.began_s = now
        if row == executor:
            activity.rate = run.heat / (device.slowdown_while_loading if run.in_flight else 1.0)
        else:
            activity.rate = 1.0 / sharing / (device.slowdown_while_executing if run.running else 1.0)
        activity.end_s = now
        if activity.remaining_s > 0:
            activity.end_s = now + activity.remaining_s / activity.rate


@_inlined
def _begin(device: Element, now: float, fixed_s: float, work_s: float, factor: float, activity: Element) -> None:
    if device.is_fluid and fixed_s:
        activity.phase = _FIXED
        activity.end_s = now + fixed_s * factor
    else:
        activity.phase = _WORKING
        _begin_work(now, (fixed_s + work_s) * factor, activity)


@_inlined
def _begin_work(now: float, work_s: float, activity: Element) -> None:
    # Under contention the rates are set before anything else happens, and with them another end.
    activity.remaining_s, activity.began_s, activity.rate, activity.end_s = work_s, now, 1.0, now + work_s


@_inlined
def _end(
    device: Element,
    visits: Records,
    keep: Bools,
    load_factors: Floats,
    execute_factors: Floats,
    now: float,
    run: Element,
    weights: Records,
    activities: Records,
) -> bool:
    """End every activity, or its fixed part, that ends now; whether anything may be dispatched after that."""
    ended = False
    executor = device.channels
    for row in range(executor + 1):
        activity = activities[row]
        if activity.phase == _IDLE or activity.end_s > now:
            continue
        visit = activity.visit
        if activity.phase == _FIXED:
            activity.phase = _WORKING
            if row == executor:
                _begin_work(now, visits[visit].execute_work_s * execute_factors[visit], activity)
            else:
                _begin_work(now, visits[visit].load_work_s * load_factors[visit], activity)
            continue
        activity.phase = _IDLE
        ended = True
        if row == executor:
            _end_visit(visits[visit], visit, keep[visit], run, weights)
        else:
            weights[visits[visit].weights].loaded = 1
            run.in_flight -= 1
    if device.is_fluid:
        _set_rates(device, now, run, activities)
    return ended


@_inlined
def _end_visit(visit: Element, number: int, keeps: bool, run: Element, weights: Records) -> None:
    run.running = 0
    run.current = number + 1
    if keeps and visit.following >= 0:
        weights[visit.weights].resident_for = visit.following
    else:
        weights[visit.weights].resident_for = -1
        weights[visit.weights].loaded = 0
        run.held -= visit.weight_bytes


@_inlined
def _start_visit(
    device: Element, visits: Records, factors: Floats, now: float, run: Element, weights: Records, activities: Records
) -> None:
    current = run.current
    entry = weights[visits[current].weights]
    if run.running or not entry.loaded or entry.resident_for != current:
        return
    if visits[current].workspace_bytes > device.available_bytes - run.held:
        return
    _trim(device, visits, current, run)
    run.running = 1
    if current == 0:
        run.first_start_s = now
    run.peak = max(run.peak, run.held + visits[current].workspace_bytes)
    activity = activities[device.channels]
    activity.visit = current
    _begin(device, now, visits[current].execute_fixed_s, visits[current].execute_work_s, factors[current], activity)


@_inlined
def _start_loads(
    device: Element,
    visits: Records,
    loads: Records,
    factors: Floats,
    now: float,
    run: Element,
    weights: Records,
    activities: Records,
) -> None:
    """Start every load that may start, and set the rates of all that is active then."""
    while run.next_load < len(loads) and run.in_flight < device.channels:
        load = loads[run.next_load]
        entry = weights[visits[load.visit].weights]
        if 2 * run.current + run.running < load.gate or entry.resident_for >= 0:
            break
        if not _has_room(device, visits, load.visit, run):
            break
        entry.resident_for = load.visit
        _start_load(device, visits, load.visit, now, factors[load.visit], run, activities)
    if device.is_fluid:
        _set_rates(device, now, run, activities)


@_inlined
def _has_room(device: Element, visits: Records, visit: int, run: Element) -> bool:
    # In an order of differences that no size can overflow.
    free = device.available_bytes - run.held
    weight_bytes = visits[visit].weight_bytes
    return weight_bytes <= free and _largest_workspace(visits, visit, run) <= free - weight_bytes


@_inlined
def _start_load(
    device: Element, visits: Records, visit: int, now: float, factor: float, run: Element, activities: Records
) -> None:
    run.next_load += 1
    run.in_flight += 1
    run.held += visits[visit].weight_bytes
    workspace = visits[run.current].workspace_bytes if run.running else 0
    run.peak = max(run.peak, run.held + workspace)
    fixed_s, work_s = visits[visit].load_fixed_s, visits[visit].load_work_s
    if device.first_touch_bytes_per_s:
        fixed_s += _first_touch_s(device, visits, visit, run)
    row = 0
    while activities[row].phase != _IDLE:
        row += 1
    activity = activities[row]
    activity.visit = visit
    _begin(device, now, fixed_s, work_s, factor, activity)


@_inlined
def _first_touch_s(device: Element, visits: Records, visit: int, run: Element) -> float:
    _trim(device, visits, visit, run)
    fresh = max(0, run.held - run.touched)
    run.touched += fresh
    return fresh / device.first_touch_bytes_per_s


@_inlined
def _trim(device: Element, visits: Records, visit: int, run: Element) -> None:
    if run.touched and run.current <= visit:
        room = device.available_bytes - _largest_workspace(visits, visit, run)
        run.touched = min(run.touched, max(room, run.held))


@_inlined
def _largest_workspace(visits: Records, until: int, run: Element) -> int:
    """From the current visit to `until`; both mostly grow, so what was looked at is not looked at again."""
    if until < run.current:
        return 0
    if run.widest < run.current or run.widest > until:
        run.widest = run.looked_at = run.current
    while run.looked_at < until:
        run.looked_at += 1
        if visits[run.looked_at].workspace_bytes >= visits[run.widest].workspace_bytes:
            run.widest = run.looked_at
    return visits[run.widest].workspace_bytes
