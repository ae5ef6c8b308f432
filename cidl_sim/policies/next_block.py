"""Prefetch one block, keep none: the pipeline of two slots."""

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import Plan
from cidl_sim.core.workload import Workload
from cidl_sim.policies.build import deep_prefetch


def next_block(workload: Workload, device: DeviceProfile) -> Plan:
    """Each load may start when the visit before it starts (a lookahead of one block)."""
    return deep_prefetch("next_block", workload, device, set(), lookahead=1)
