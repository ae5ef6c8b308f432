"""Load, run, unload: no overlap, nothing kept."""

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import Gate, Load, Plan
from cidl_sim.core.workload import Workload
from cidl_sim.policies.build import build_plan


def sequential(workload: Workload, device: DeviceProfile) -> Plan:
    """Each load waits for the end of the visit before it."""
    loads = [
        Load(visit=v.number, gate=Gate(visit=v.number - 1, edge="end") if v.number else None) for v in workload.visits
    ]
    return build_plan("sequential", workload, device, loads, keep=())
