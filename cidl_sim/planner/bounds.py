"""Lower bounds on the makespan of any plan, each a flat function that reads like its formula.

Durations are those without contention, so the bounds hold on devices that have it; a thermal factor above
one is taken as if it held all the time.
"""

from __future__ import annotations

from cidl_sim.core.costs import execute_cost, load_cost
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.workload import Workload


def executor_bound_s(workload: Workload, device: DeviceProfile) -> float:
    """First load + sum of all executions: the executor runs one visit at a time and none before its load."""
    first = load_cost(workload.visits[0].block, device, cold=True).seconds
    return first + sum(execute_cost(v.block, device).seconds for v in workload.visits) / _speedup(device)


def loader_bound_s(workload: Workload, device: DeviceProfile) -> float:
    """Each set of weights once, then the last execution: nothing runs unloaded, and bandwidth is shared.

    With several channels only the transfers queue up; latencies may overlap.
    """
    channels = device.loader.channels
    total = 0.0
    for visit in workload.visits:
        if workload.previous_same_weights[visit.number] is None:
            cost = load_cost(visit.block, device, cold=True)
            total += cost.work_s + (cost.fixed_s if channels == 1 else 0.0)
    return total + execute_cost(workload.visits[-1].block, device).seconds / _speedup(device)


def lower_bound_s(workload: Workload, device: DeviceProfile) -> float:
    """The best of the bounds above."""
    return max(executor_bound_s(workload, device), loader_bound_s(workload, device))


def _speedup(device: DeviceProfile) -> float:
    return max([1.0, *(step.factor for step in device.thermal)])
