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

from cidl_sim.core.timed import Timed
from cidl_sim.planner.bounds import retention_balance

# How much more a load counts that the plan at hand saves too: enough to choose among equals.
NEARNESS = 1e-3


def packed_keeps(priced: Timed, at_hand: Collection[int], rest: float = 1.0) -> set[int] | None:
    """The visits that keep their weights, near to those `at_hand`; None where the program cannot be solved.

    `rest`: what a second of the loader's rest counts; above 1 fewer visits go without room for a load.
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_array, diags_array, eye_array, hstack

    workload, previous = priced.workload, priced.workload.previous_same_weights
    room = max(1, priced.room_bytes)  # no block has weights where there is none
    count = len(previous)
    sizes = priced.weight_bytes.astype(float)
    largest = np.array([max(block.weight_bytes for block in stage.blocks) for stage in workload.stages], float)
    ahead = np.repeat(largest, np.diff(workload.first_visit_of_stage))
    beside = room - sizes - priced.workspace_bytes - ahead
    may = (priced.previous >= 0) & priced.stays[priced.previous]
    near = np.array([1 + NEARNESS * (number in at_hand) for number in previous])
    # In shares of the room; columns are r, g and z.
    nothing = coo_array((count, count))
    balance = hstack([retention_balance(priced, sizes / room), nothing])
    limits = hstack([nothing, eye_array(count), diags_array(-ahead / room)])
    found = linprog(
        np.concatenate([-priced.least_load_s * near, np.zeros(count), rest * priced.least_execute_s]),
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
