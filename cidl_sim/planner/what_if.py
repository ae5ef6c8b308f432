"""What if the device were another one: sensitivities, break points and the memory curve of one workload."""

from __future__ import annotations

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.progress import StepProgress, silent
from cidl_sim.core.reports import WhatIfReport
from cidl_sim.core.timed import timed
from cidl_sim.core.workload import Workload
from cidl_sim.planner.break_points import break_points, memory_curve
from cidl_sim.planner.reruns import Reruns, best_policy
from cidl_sim.planner.sensitivity import sensitivities
from cidl_sim.simulator import quick

# How many plans are evaluated at the least, those that a policy tries among them.
PLANS = 200


def what_if(
    workload: Workload, device: DeviceProfile, policy: str | None = None, on_step: StepProgress = silent
) -> WhatIfReport:
    """Sensitivities, break points and the memory curve of a workload on a device.

    Without a policy the best one on the profile as it is. Raises PolicyError, DeviceError where a cost is unknown,
    InfeasibleError (naming the block that binds) where the workload does not fit the profile as it is.
    """
    quick.expect(timed(workload, device), PLANS)
    reruns = Reruns(workload, device, policy or best_policy(workload, device))
    found = sensitivities(reruns, on_step)
    points = break_points(reruns, on_step)
    curve = memory_curve(reruns, points, on_step)
    return WhatIfReport(
        workload=workload.name,
        device=device.name,
        policy=reruns.policy,
        makespan_s=reruns.here.makespan_s,
        memory_limit_bytes=device.memory_limit_bytes,
        retained_blocks=reruns.retained_blocks(reruns.here),
        sensitivities=tuple(found),
        break_points=tuple(points),
        memory_curve=tuple(curve),
        fall_backs=reruns.trace.header.fall_backs,
    )
