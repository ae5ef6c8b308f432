"""Prefetch one block, keep none: the pipeline of two slots."""

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import Gate, Load, Plan
from cidl_sim.core.workload import Workload
from cidl_sim.policies.build import build_plan


def next_block(workload: Workload, device: DeviceProfile) -> Plan:
    """Each load may start when the visit before it starts (a lookahead of one block)."""
    loads = [
        Load(visit=v.number, gate=Gate(visit=v.number - 1, edge="start") if v.number else None) for v in workload.visits
    ]
    return build_plan("next_block", workload, device, loads, keep=())
