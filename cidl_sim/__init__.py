"""Simulate, plan and run generative models that are larger than the memory of the device.

    from cidl_sim import find_workload, find_device, make_plan, simulate

    workload, device = find_workload("opensora-v1.2"), find_device("iphone-15-pro")
    trace = simulate(workload, device, make_plan("spread", workload, device))
    print(trace.makespan_s, trace.peak_resident_bytes)

The verbs of the command line are functions here; the package's folders hold the rest (docs/reference/python.md).
"""

from cidl_sim.core.device import DeviceProfile, read_device
from cidl_sim.core.plan import Plan, read_plan
from cidl_sim.core.trace import Trace, read_trace
from cidl_sim.core.workload import Block, Stage, Workload, read_workload
from cidl_sim.devices.catalog import find_device
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.planner.evaluate import evaluated_plan
from cidl_sim.planner.planner import best_plan
from cidl_sim.policies.catalog import POLICIES, make_plan
from cidl_sim.simulator.engine import simulate

__all__ = [
    "POLICIES",
    "Block",
    "DeviceProfile",
    "Plan",
    "Stage",
    "Trace",
    "Workload",
    "best_plan",
    "evaluated_plan",
    "find_device",
    "find_workload",
    "make_plan",
    "read_device",
    "read_plan",
    "read_trace",
    "read_workload",
    "simulate",
]
