"""The reference app of On-device Sora (arXiv 2502.04363v2; eai-lab/On-device-Sora, commit 47a90a5), rule by rule.

Text encoder (and any other stage of one round): the next block is loaded while this one runs, each block
is unloaded after use, nothing is retained, nothing crosses the stage's border.

Denoiser (and any other stage of several rounds): the first and the last part of a step are loaded
without overlap; the blocks between them are prefetched one ahead, only within the step and only from the
second denoising step on; a prefix of them is retained.

Decoder: load, run, unload, part by part.

The app's source carries its counter of retained blocks over the switch from merged to plain blocks; this
policy follows the documented rule, by which the set is dropped there and chosen again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import Gate, Load, Plan
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.policies.build import build_plan

# The policy that every plan is held against.
REFERENCE = "on_device_sora"


def on_device_sora(workload: Workload, device: DeviceProfile) -> Plan:
    """Concurrent inference and dynamic loading as the app does them; the limit is read once per stage."""
    loads: list[Load] = []
    keep: set[int] = set()
    denoising_steps = 0
    for s, stage in enumerate(workload.stages):
        first_visit = workload.first_visit_of_stage[s]
        body = repeated_body(stage)
        retained = range(0)
        if _is_denoiser(stage):
            d = retained_blocks(device, stage.blocks[body.start : body.stop])
            retained = range(body.start, body.start + d)
        for r in range(stage.rounds):
            for p in range(len(stage.blocks)):
                number = first_visit + r * len(stage.blocks) + p
                if p in retained and r < stage.rounds - 1:
                    keep.add(number)
                if p in retained and r > 0:
                    continue
                if _is_denoiser(stage):
                    overlaps = denoising_steps + r > 0 and p in body and p - 1 in body
                else:
                    overlaps = stage.rounds == 1 and stage.group != "decoder" and p > 0
                loads.append(Load(visit=number, gate=_after_previous(number, overlaps)))
        if _is_denoiser(stage):
            denoising_steps += stage.rounds
    return build_plan(REFERENCE, workload, device, loads, keep)


def retained_blocks(device: DeviceProfile, blocks: Sequence[Block]) -> int:
    """How many of `blocks` the app's reserve rule retains.

    A block of size s is retained while remaining - s > need + 2 s, where remaining starts as what the
    system reports free before the first block is loaded and need is the footprint after that block ran.
    Hence d = ceil((available - need - 2 s) / s) - 1. The app's constants are 170 and 340 MB, one and two
    of its blocks; here they are one and two blocks of the workload at hand, the largest if they differ.
    """
    size = max(block.weight_bytes for block in blocks)
    if size == 0:
        return len(blocks)
    available = device.memory_limit_bytes - device.baseline_bytes
    need = device.baseline_bytes + size + max(block.workspace_bytes for block in blocks)
    # Exact integer arithmetic: ceil(a / s) - 1 for a = available - need - 2 s.
    d = -(-(available - need - 2 * size) // size) - 1
    return max(0, min(len(blocks), d))


def repeated_body(stage: Stage) -> range:
    """The positions of the blocks between a stage's first and last part.

    A first or last block is a part of its own if nothing else in the stage is of its kind while other
    kinds repeat (STDiT's embedders and final layer); uniform stages are body from end to end.
    """
    kinds = Counter(block.kind for block in stage.blocks)
    start, stop = 0, len(stage.blocks)
    if max(kinds.values()) > 1:
        start += kinds[stage.blocks[0].kind] == 1
        stop -= kinds[stage.blocks[-1].kind] == 1
    return range(start, stop)


def _is_denoiser(stage: Stage) -> bool:
    return stage.group == "denoiser" or (stage.rounds > 1 and stage.group != "decoder")


def _after_previous(number: int, overlaps: bool) -> Gate | None:
    return Gate(visit=number - 1, edge="start" if overlaps else "end") if number else None
