"""Lower bounds on the makespan of any plan, each a flat function that reads like its formula.

Durations are those without contention and first touch, so the bounds hold on devices that have them; a thermal factor
above one is taken as if it held all the time.

Notation: visit p executes e_p seconds and loads l_p (the cold time for the first load of its weights); L_p is the
least time that the loader spends on loads that have to end before visit p starts, whatever is retained.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.timed import Floats, Timed, timed
from cidl_sim.core.workload import Workload

if TYPE_CHECKING:
    from scipy.sparse import coo_array

# Between sums of durations in another order.
ROUNDING = 1e-12


def first_load_bound_s(priced: Timed) -> float:
    """l_0 + sum of all e_p: the executor runs one visit at a time, and none before the first load."""
    return priced.load_cost(0).seconds + float(priced.least_execute_s.sum())


def loading_bound_s(priced: Timed, least_s: Floats) -> float:
    """L_last + e_last: all loads have to end before the last visit starts."""
    return float(least_s[-1] + priced.least_execute_s[-1])


def loading_then_executing_bound_s(priced: Timed, least_s: Floats) -> float:
    """Max over p of L_p + sum of e_q for q >= p: what is loaded for the visits up to p comes before p starts."""
    remaining = np.cumsum(priced.least_execute_s[::-1])[::-1]
    return float(np.max(least_s + remaining))


def lower_bound_s(workload: Workload, device: DeviceProfile, reached_s: float = math.inf) -> float:
    """The best of the bounds above; see `best_bound_s`. DeviceError where a cost is unknown."""
    return best_bound_s(timed(workload, device), reached_s)


def best_bound_s(priced: Timed, reached_s: float = math.inf) -> float:
    """`lower_bound_s` of what is priced already.

    `reached_s`: a makespan that some plan is known to reach. Where it is the quick bound no linear program is solved,
    nor where loading everything again every time would not raise it.
    """
    quick_s = _quick_bound_s(priced)
    if quick_s >= reached_s * (1 - ROUNDING) or _best_bound_s(priced, np.cumsum(priced.least_load_s)) <= quick_s:
        return quick_s
    return _best_bound_s(priced, least_loading_s(priced))


def quick_bound_s(workload: Workload, device: DeviceProfile) -> float:
    """The same if memory retained everything after its first load: no linear program, and lower where it does not."""
    return _quick_bound_s(timed(workload, device))


def _quick_bound_s(priced: Timed) -> float:
    return _best_bound_s(priced, np.cumsum(_cold_loads_s(priced)))


def _best_bound_s(priced: Timed, least_s: Floats) -> float:
    return max(
        first_load_bound_s(priced), loading_bound_s(priced, least_s), loading_then_executing_bound_s(priced, least_s)
    )


def _cold_loads_s(priced: Timed) -> Floats:
    """The load of every visit whose weights were never loaded before; 0 for the others."""
    return np.where(priced.previous < 0, priced.least_load_s, 0.0)


def least_loading_s(priced: Timed) -> Floats:
    """L_p for every visit p, from the linear relaxation of what memory can retain.

    r_v says whether visit v finds its weights kept since the visit before of the same weights. While visit p executes,
    what is kept across it lies beside its own weights and workspace:

        maximise  sum l_v r_v   with   sum of s_v r_v over all v kept across p  <=  M - s_p - w_p,   0 <= r_v <= 1

    (the knapsack of interval packing; with equal sizes its matrix has consecutive ones, so the relaxation is exact).
    Any prices y_p >= 0 for these capacities bound what the visits up to p can save, by weak duality:

        saved_p <= sum over q < p of y_q (M - s_q - w_q) + sum over v <= p of max(0, l_v - s_v * sum of y across v)

    so one program, whose prices are taken, bounds every p, and an inexact solver cannot make the bound wrong.
    """
    loads, previous = priced.least_load_s, priced.previous
    reloads = np.flatnonzero(previous >= 0)
    if not len(reloads):
        return np.cumsum(loads)
    room = max(1, priced.room_bytes)  # no block has weights where there is none
    # What is kept is a multiple of the sizes' common divisor: room for 2.3 blocks keeps 2.
    unit = math.gcd(*priced.weight_bytes[reloads].tolist()) or 1
    sizes = priced.weight_bytes / room
    # As Python's integers, which no size overflows.
    beside = [room - w - s for w, s in zip(priced.weight_bytes.tolist(), priced.workspace_bytes.tolist(), strict=True)]
    capacity = np.array([left // unit * unit / room for left in beside])
    prices = _prices(priced, sizes, capacity)
    # Sum of the prices strictly between a visit and the one before of the same weights.
    before = np.concatenate([[0.0], np.cumsum(prices)])
    gains = np.zeros(len(loads))
    across = before[reloads] - before[previous[reloads] + 1]
    gains[reloads] = np.maximum(0.0, loads[reloads] - sizes[reloads] * across)
    saved = np.concatenate([[0.0], np.cumsum(prices * capacity)[:-1]]) + np.cumsum(gains)
    return np.maximum.accumulate(np.maximum(np.cumsum(loads) - saved, np.cumsum(_cold_loads_s(priced))))


def _prices(priced: Timed, sizes: Floats, capacity: Floats) -> Floats:
    """The dual prices of memory at every visit, in seconds for all of it."""
    from scipy.optimize import linprog  # takes longer to import than most plans to make

    loads = priced.least_load_s
    count = len(loads)
    balance = retention_balance(priced, sizes)
    lowest, highest = np.zeros(2 * count), np.concatenate([priced.previous >= 0, np.maximum(capacity, 0.0)])
    found = linprog(
        np.concatenate([-loads, np.zeros(count)]),
        A_eq=balance.tocsc(),
        b_eq=np.zeros(count),
        bounds=np.stack([lowest, highest], axis=1),
        method="highs",
    )
    if found.status != 0:
        return np.zeros(count)
    prices: Floats = np.maximum(0.0, -found.upper.marginals[count:])
    return prices


def retention_balance(priced: Timed, sizes: Floats) -> coo_array:
    """g_p - g_{p-1} + s_p r_p - s_{p-1} r_v = 0 for every visit p, where v is the next visit of p-1's weights.

    Columns are the r, then the g: what is kept across p is what was kept across p-1, and what that visit keeps, less
    what p finds kept.
    """
    from scipy.sparse import coo_array

    count = len(sizes)
    rows = np.arange(count)
    left = 1 + np.flatnonzero(priced.following[:-1] >= 0)
    following = priced.following[left - 1]
    return coo_array(
        (
            np.concatenate([np.ones(count), sizes, -np.ones(count - 1), -sizes[following]]),
            (
                np.concatenate([rows, rows, rows[1:], left]),
                np.concatenate([count + rows, rows, count + rows[:-1], following]),
            ),
        ),
        shape=(count, 2 * count),
    )
