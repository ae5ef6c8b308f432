"""What a page compares a plan or a run with: lower bounds by what they count, and every policy's makespan."""

from __future__ import annotations

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import Plan
from cidl_sim.core.progress import StepProgress, silent
from cidl_sim.core.timed import timed
from cidl_sim.core.workload import Workload
from cidl_sim.planner.bounds import (
    first_load_bound_s,
    least_loading_s,
    loading_bound_s,
    loading_then_executing_bound_s,
)
from cidl_sim.planner.evaluate import baseline_makespans
from cidl_sim.report.run_page import Comparison


def comparison_of(
    workload: Workload, device: DeviceProfile, plan: Plan | None, on_step: StepProgress = silent
) -> Comparison:
    """Bounds and policies; of a plan for this very device also the bound that was found with it.

    Raises InfeasibleError if no plan fits, DeviceError where a cost is unknown.
    """
    on_step("bounds", 0, 1, "")
    priced = timed(workload, device)
    least_s = least_loading_s(priced)
    bounds = {
        "first load, then execution": first_load_bound_s(priced),
        "loading": loading_bound_s(priced, least_s),
        "loading, then the rest": loading_then_executing_bound_s(priced, least_s),
    }
    if plan is not None and plan.lower_bound_s is not None and plan.device_sha256 == device.sha256:
        bounds["found by the planner"] = plan.lower_bound_s
    on_step("policies", 0, 1, "")
    return Comparison(bounds, baseline_makespans(workload, device))
