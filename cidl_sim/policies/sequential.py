"""Load, run, unload: no overlap, nothing kept."""

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import Plan
from cidl_sim.core.workload import Workload
from cidl_sim.policies.build import deep_prefetch


def sequential(workload: Workload, device: DeviceProfile) -> Plan:
    """Each load waits for the end of the visit before it."""
    return deep_prefetch("sequential", workload, device, set(), lookahead=0)
