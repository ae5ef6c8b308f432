"""The best plan that is known for a workload on a device, and how good any plan can be at most.

Anytime: the policies come first, with the bounds that cost nothing; what they leave open goes to the interval model,
first its relaxation (often enough to prove a policy's plan), then the model itself, as long as there is time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import Plan
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Workload
from cidl_sim.planner.bounds import execution_s, lower_bound_s
from cidl_sim.planner.evaluate import TOLERANCE, baseline_makespans, with_predictions
from cidl_sim.planner.exact import instance_of, solve_by_intervals
from cidl_sim.policies.catalog import make_plan

OnStep = Callable[[int, int, str], None]  # done, total, what


@dataclass(frozen=True)
class Planned:
    """A plan with its predictions, its simulation, and the makespans in s of the policies beside it."""

    plan: Plan
    trace: Trace
    baselines: dict[str, float | None]


def best_plan(
    workload: Workload,
    device: DeviceProfile,
    *,
    time_limit_s: float = 10.0,
    on_step: OnStep = lambda done, total, what: None,
) -> Planned:
    """The best plan found within about `time_limit_s`, never worse than any policy's.

    InfeasibleError if no plan fits the device's memory.
    """
    deadline = time.monotonic() + time_limit_s
    on_step(0, 3, "policies")
    baselines = baseline_makespans(workload, device)
    best = min((p for p in baselines if baselines[p] is not None), key=lambda p: baselines[p] or 0.0)
    plan, best_s = make_plan(best, workload, device), baselines[best] or 0.0
    bound_s = lower_bound_s(workload, device)
    for relaxed in (True, False):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or best_s <= bound_s * (1 + TOLERANCE) or not _can_close(workload, device, best_s - bound_s):
            break
        on_step(*((1, 3, "relaxation") if relaxed else (2, 3, "interval model")))
        found = solve_by_intervals(workload, device, time_limit_s=left_s, relaxed=relaxed)
        if found is None:
            break
        bound_s = max(bound_s, found.bound_s)
        if found.plan is not None and found.makespan_s is not None and found.makespan_s < best_s:
            plan, best_s = found.plan, found.makespan_s
    on_step(3, 3, "")
    return Planned(*with_predictions(plan, workload, device, bound_s), baselines)


def _can_close(workload: Workload, device: DeviceProfile, gap_s: float) -> bool:
    """Whether the interval model, whose units may be coarser than the durations, can see a gap that small."""
    instance = instance_of(workload, device)
    lost_s = float(execution_s(workload, device).sum()) - sum(instance.executions) * instance.unit_s
    return instance.is_exact or lost_s < gap_s
