"""A policy's plan with its predictions: makespan, bound, gap, and the baselines beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.plan import Plan
from cidl_sim.core.timed import Timed, timed
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Workload
from cidl_sim.planner.bounds import lower_bound_s
from cidl_sim.policies.catalog import POLICIES, make_plan
from cidl_sim.simulator.engine import simulate
from cidl_sim.simulator.quick import makespan_s

# Equal up to rounding in the sums of durations.
TOLERANCE = 1e-9


def evaluated_plan(policy: str, workload: Workload, device: DeviceProfile) -> tuple[Plan, Trace]:
    """The plan of `policy` with its simulated makespan, bound and gap filled in, and that simulation."""
    plan = make_plan(policy, workload, device)
    return with_predictions(plan, workload, device, lower_bound_s(workload, device))


def with_predictions(plan: Plan, workload: Workload, device: DeviceProfile, bound_s: float) -> tuple[Plan, Trace]:
    """`plan` with its simulated makespan, the bound and the gap to it filled in, and that simulation."""
    trace = simulate(workload, device, plan)
    gap = max(0.0, trace.makespan_s / bound_s - 1) if bound_s > 0 else 0.0
    figures: dict[str, Any] = {
        "makespan_s": trace.makespan_s,
        "lower_bound_s": bound_s,
        "gap": gap,
        "proven_optimal": gap <= TOLERANCE,
        "proof_scope": "any plan for this workload and device",
        "peak_resident_bytes": trace.peak_resident_bytes,
    }
    plan = plan.model_copy(update=figures)
    # The predictions are part of the plan's identity; the trace is of the plan that is handed out.
    header = trace.header.model_copy(update={"plan_sha256": plan.sha256})
    return plan, trace.model_copy(update={"header": header})


def baseline_makespans(
    workload: Workload, device: DeviceProfile, policies: Sequence[str] = tuple(POLICIES)
) -> dict[str, float | None]:
    """The simulated makespan in seconds of each policy; None where it does not fit the memory."""
    priced = timed(workload, device)
    makespans: dict[str, float | None] = {}
    for policy in policies:
        found = baseline(priced, policy)
        makespans[policy] = None if found is None else found[0]
    return makespans


def baseline(priced: Timed, policy: str) -> tuple[float, Plan] | None:
    """The simulated makespan in seconds of a policy, and its plan; None where it does not fit the memory."""
    try:
        plan = make_plan(policy, priced.workload, priced.device)
    except InfeasibleError:
        return None
    seconds = makespan_s(priced, plan)
    return None if seconds == math.inf else (seconds, plan)
