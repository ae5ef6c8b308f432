"""Who keeps weights where the loader is the bottleneck: a packing of intervals, solved exactly where sizes are equal.

Weights that stay from one visit to the next save a load and take their room at every visit in between. Beside them
lies the running visit, and what the loader brings meanwhile; where a visit's room for loading is given to weights that
stay instead, the loader rests while that visit executes:

    maximise  sum l_v r_v - rest * sum e_p z_p
    with      g_p = g_{p-1} + s * (what visit p-1 keeps) - s_p r_p,    g_p <= M - s_p - w_p - a_p + a_p z_p,
              0 <= r_v <= 1,   0 <= z_p <= 1

r_v: visit v finds its weights kept; g_p: bytes kept across visit p; a_p: the largest block of its stage, which is what
a load takes. With equal sizes the matrix is one of intervals, so the solution is of whole numbers (Fulkerson and Gross
1965); it knows the ends of a run, which a pattern that repeats wastes. Of equally good packings the one nearest to a
plan at hand is taken, because its loads keep their distances.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array, diags_array, eye_array, hstack

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.workload import Workload
from cidl_sim.planner.bounds import execution_s, loading_s, retention_balance

# How much more a load counts that the plan at hand saves too: enough to choose among equals.
NEARNESS = 1e-3


def packed_keeps(
    workload: Workload, device: DeviceProfile, at_hand: Collection[int], rest: float = 1.0
) -> set[int] | None:
    """The visits that keep their weights, near to those `at_hand`; None where the program cannot be solved.

    `rest`: what a second of the loader's rest counts; above 1 fewer visits go without room for a load.
    """
    visits, previous = workload.visits, workload.previous_same_weights
    room = max(1, device.memory_limit_bytes - device.baseline_bytes)  # no block has weights where there is none
    count = len(visits)
    sizes = np.array([visit.block.weight_bytes for visit in visits], float)
    stages = np.array([visit.stage for visit in visits])
    ahead = np.array([max(block.weight_bytes for block in stage.blocks) for stage in workload.stages], float)[stages]
    beside = room - sizes - np.array([visit.block.workspace_bytes for visit in visits]) - ahead
    may = [number is not None and _in_one_group(workload, number, v) for v, number in enumerate(previous)]
    near = np.array([1 + NEARNESS * (number in at_hand) for number in previous])
    # In shares of the room; columns are r, g and z.
    nothing = coo_array((count, count))
    balance = hstack([retention_balance(workload, sizes / room), nothing])
    limits = hstack([nothing, eye_array(count), diags_array(-ahead / room)])
    found = linprog(
        np.concatenate([-loading_s(workload, device) * near, np.zeros(count), rest * execution_s(workload, device)]),
        A_ub=limits.tocsc(),
        b_ub=beside / room,
        A_eq=balance.tocsc(),
        b_eq=np.zeros(count),
        bounds=[*((0.0, float(can)) for can in may), *([(0.0, None)] * count), *([(0.0, 1.0)] * count)],
        method="highs-ds",
    )
    if found.status != 0:
        return None
    shares = found.x[:count]
    return {number for number, share in zip(previous, shares, strict=True) if number is not None and share > 0.5}


def _in_one_group(workload: Workload, earlier: int, later: int) -> bool:
    groups = (workload.stages[workload.visits[number].stage].group for number in (earlier, later))
    return len(set(groups)) == 1
