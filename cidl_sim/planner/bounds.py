"""Lower bounds on the makespan of any plan, each a flat function that reads like its formula.

Durations are those without contention and first touch, so the bounds hold on devices that have them; a thermal factor
above one is taken as if it held all the time.

Notation: visit p executes e_p seconds and loads l_p (the cold time for the first load of its weights); L_p is the
least time that the loader spends on loads that have to end before visit p starts, whatever is retained.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_array

from cidl_sim.core.costs import execute_cost, load_cost
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.workload import Workload

Seconds = NDArray[np.float64]


def first_load_bound_s(workload: Workload, device: DeviceProfile) -> float:
    """l_0 + sum of all e_p: the executor runs one visit at a time, and none before the first load."""
    first = load_cost(workload.visits[0].block, device, cold=True).seconds
    return first + float(execution_s(workload, device).sum())


def loading_bound_s(workload: Workload, device: DeviceProfile, least_s: Seconds) -> float:
    """L_last + e_last: all loads have to end before the last visit starts."""
    return float(least_s[-1] + execution_s(workload, device)[-1])


def loading_then_executing_bound_s(workload: Workload, device: DeviceProfile, least_s: Seconds) -> float:
    """Max over p of L_p + sum of e_q for q >= p: what is loaded for the visits up to p comes before p starts."""
    remaining = np.cumsum(execution_s(workload, device)[::-1])[::-1]
    return float(np.max(least_s + remaining))


def lower_bound_s(workload: Workload, device: DeviceProfile) -> float:
    """The best of the bounds above."""
    return _best_bound_s(workload, device, least_loading_s(workload, device))


def quick_bound_s(workload: Workload, device: DeviceProfile) -> float:
    """The same if memory retained everything after its first load: no linear program, and lower where it does not."""
    cold = [previous is None for previous in workload.previous_same_weights]
    return _best_bound_s(workload, device, np.cumsum(np.where(cold, loading_s(workload, device), 0.0)))


def _best_bound_s(workload: Workload, device: DeviceProfile, least_s: Seconds) -> float:
    return max(
        first_load_bound_s(workload, device),
        loading_bound_s(workload, device, least_s),
        loading_then_executing_bound_s(workload, device, least_s),
    )


def least_loading_s(workload: Workload, device: DeviceProfile) -> Seconds:
    """L_p for every visit p, from the linear relaxation of what memory can retain.

    r_v says whether visit v finds its weights kept since the visit before of the same weights. While visit p executes,
    what is kept across it lies beside its own weights and workspace:

        maximise  sum l_v r_v   with   sum of s_v r_v over all v kept across p  <=  M - s_p - w_p,   0 <= r_v <= 1

    (the knapsack of interval packing; with equal sizes its matrix has consecutive ones, so the relaxation is exact).
    Any prices y_p >= 0 for these capacities bound what the visits up to p can save, by weak duality:

        saved_p <= sum over q < p of y_q (M - s_q - w_q) + sum over v <= p of max(0, l_v - s_v * sum of y across v)

    so one program, whose prices are taken, bounds every p, and an inexact solver cannot make the bound wrong.
    """
    visits, previous = workload.visits, workload.previous_same_weights
    loads = loading_s(workload, device)
    reloads = [v for v in range(len(visits)) if previous[v] is not None]
    if not reloads:
        return np.cumsum(loads)
    room = max(1, device.memory_limit_bytes - device.baseline_bytes)  # no block has weights where there is none
    # What is kept is a multiple of the sizes' common divisor: room for 2.3 blocks keeps 2.
    unit = math.gcd(*(visits[v].block.weight_bytes for v in reloads)) or 1
    beside = [room - visit.block.weight_bytes - visit.block.workspace_bytes for visit in visits]
    sizes = np.array([visit.block.weight_bytes / room for visit in visits])
    capacity = np.array([left // unit * unit / room for left in beside])
    prices = _prices(workload, loads, sizes, capacity)
    # Sum of the prices strictly between a visit and the one before of the same weights.
    before = np.concatenate([[0.0], np.cumsum(prices)])
    gains = np.zeros(len(visits))
    for v in reloads:
        gains[v] = max(0.0, loads[v] - sizes[v] * (before[v] - before[(previous[v] or 0) + 1]))
    saved = np.concatenate([[0.0], np.cumsum(prices * capacity)[:-1]]) + np.cumsum(gains)
    cold = np.where([previous[v] is None for v in range(len(visits))], loads, 0.0)
    return np.maximum.accumulate(np.maximum(np.cumsum(loads) - saved, np.cumsum(cold)))


def _prices(workload: Workload, loads: Seconds, sizes: Seconds, capacity: Seconds) -> Seconds:
    """The dual prices of memory at every visit, in seconds for all of it."""
    count = len(loads)
    balance = retention_balance(workload, sizes)
    can_be_kept = [float(previous is not None) for previous in workload.previous_same_weights]
    bounds = [(0.0, upper) for upper in [*can_be_kept, *np.maximum(capacity, 0.0)]]
    objective = np.concatenate([-loads, np.zeros(count)])
    found = linprog(objective, A_eq=balance.tocsc(), b_eq=np.zeros(count), bounds=bounds, method="highs")
    if found.status != 0:
        return np.zeros(count)
    prices: Seconds = np.maximum(0.0, -found.upper.marginals[count:])
    return prices


def retention_balance(workload: Workload, sizes: Seconds) -> coo_array:
    """g_p - g_{p-1} + s_p r_p - s_{p-1} r_v = 0 for every visit p, where v is the next visit of p-1's weights.

    Columns are the r, then the g: what is kept across p is what was kept across p-1, and what that visit keeps, less
    what p finds kept.
    """
    count = len(sizes)
    rows, columns, values = [], [], []
    for p in range(count):
        entries = [(count + p, 1.0), (p, sizes[p])]
        if p > 0:
            entries.append((count + p - 1, -1.0))
            following = workload.next_same_weights[p - 1]
            if following is not None:
                entries.append((following, -sizes[following]))
        for column, value in entries:
            rows.append(p)
            columns.append(column)
            values.append(value)
    return coo_array((values, (rows, columns)), shape=(count, 2 * count))


def execution_s(workload: Workload, device: DeviceProfile) -> Seconds:
    """e_p of every visit, as fast as the device ever gets."""
    speedup = max([1.0, *(step.factor for step in device.thermal)])
    seconds = [execute_cost(visit.block, device).seconds / speedup for visit in workload.visits]
    return np.array(seconds)


def loading_s(workload: Workload, device: DeviceProfile) -> Seconds:
    """l_p of every visit that is loaded. With several channels only transfers queue up; latencies may overlap."""
    alone = device.loader.channels == 1
    costs = [
        load_cost(visit.block, device, cold=workload.previous_same_weights[visit.number] is None)
        for visit in workload.visits
    ]
    return np.array([cost.work_s + (cost.fixed_s if alone else 0.0) for cost in costs])
