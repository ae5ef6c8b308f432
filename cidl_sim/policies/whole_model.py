"""One network at a time, whole: what Apple's Stable Diffusion does where it is told to reduce its memory."""

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import Gate, Load, Plan
from cidl_sim.core.workload import Workload
from cidl_sim.policies.build import build_plan


def whole_model(workload: Workload, device: DeviceProfile) -> Plan:
    """A network's blocks are loaded once the network before it is done with, and kept through all of its rounds.

    A network is a stage, together with neighbours that have weights of it. Its first round may begin while the rest of
    it is loaded, so this is a little faster than one call that loads it all; with the cut `whole` it is the same.
    """
    firsts = _first_visits(workload)
    begin_of = [max(first for first in firsts if first <= visit.number) for visit in workload.visits]
    keep = {
        number
        for number, following in enumerate(workload.next_same_weights)
        if following is not None and begin_of[following] == begin_of[number]
    }
    loads = [
        Load(visit=visit.number, gate=Gate(visit=begin - 1, edge="end") if begin else None)
        for visit, begin in zip(workload.visits, begin_of, strict=True)
        if workload.previous_same_weights[visit.number] not in keep
    ]
    return build_plan("whole_model", workload, device, loads, keep)


def _first_visits(workload: Workload) -> list[int]:
    """The visits with which networks begin."""
    firsts: list[int] = []
    there: set[str] = set()
    for stage, first in zip(workload.stages, workload.first_visit_of_stage, strict=False):
        own = {block.weights for block in stage.blocks}
        if not own & there:
            firsts.append(first)
            there = set()
        there |= own
    return firsts
