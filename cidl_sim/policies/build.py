"""From decisions (which visits keep their weights) to a plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import FIRST_PIPELINE, Gate, Load, Plan
from cidl_sim.core.workload import Workload

Positions = dict[str, frozenset[int]]  # of the blocks that each group retains


def build_plan(
    policy: str, workload: Workload, device: DeviceProfile, loads: Sequence[Load], keep: Iterable[int]
) -> Plan:
    """A plan with its identities filled in and no predictions yet."""
    return Plan(
        policy=policy,
        pipeline=str(workload.settings.get("pipeline", FIRST_PIPELINE)),
        workload_name=workload.name,
        workload_sha256=workload.sha256,
        workload_settings=workload.settings,
        device_name=device.name,
        device_sha256=device.sha256,
        memory_limit_bytes=device.memory_limit_bytes,
        baseline_bytes=device.baseline_bytes,
        channels=device.loader.channels,
        compute_threads=device.executor.threads,
        loads=tuple(loads),
        keep=tuple(sorted(keep)),
    )


def deep_prefetch(
    policy: str, workload: Workload, device: DeviceProfile, keep: set[int], lookahead: int | None = None
) -> Plan:
    """A plan that loads everything not kept, in order of execution, as early as memory allows.

    With a lookahead of n a load also waits for the start of the visit n before its own, with 0 for the end of the
    visit before.
    """
    previous = workload.previous_same_weights
    missing = [v.number for v in workload.visits if previous[v.number] not in keep]
    loads = [_load(number, lookahead) for number in missing]
    return build_plan(policy, workload, device, loads, keep)


# A policy is tried on one profile after another, and a record takes longer to check than its visit to evaluate.
@lru_cache(maxsize=1 << 16)
def _load(number: int, lookahead: int | None) -> Load:
    return Load(visit=number, gate=_gate(number, lookahead))


def _gate(number: int, lookahead: int | None) -> Gate | None:
    if lookahead is None or number < max(1, lookahead):
        return None
    if lookahead == 0:
        return Gate(visit=number - 1, edge="end")
    return Gate(visit=number - lookahead, edge="start")


def repeated_positions(workload: Workload, group: str) -> int:
    """The largest number of blocks in a stage of `group` whose weights are visited more than once; 0 if none."""
    return max(
        (
            len(stage.blocks)
            for s, stage in enumerate(workload.stages)
            if stage.group == group and _repeats(workload, s)
        ),
        default=0,
    )


def repeating_groups(workload: Workload) -> list[str]:
    """The groups that have something to retain, in order of execution."""
    groups = dict.fromkeys(stage.group for stage in workload.stages)
    return [group for group in groups if repeated_positions(workload, group)]


def keep_positions(workload: Workload, positions_of_group: dict[str, set[int]]) -> set[int]:
    """The visits that keep their weights when each group retains the blocks at the given positions.

    Weights stay from round to round and from stage to stage of one group (a keep crosses from merged to
    plain blocks that share weights), never from one group to another.
    """
    group_of = [stage.group for stage in workload.stages]
    following, visits = workload.next_same_weights, workload.visits
    keep: set[int] = set()
    for stage, first in zip(workload.stages, workload.first_visit_of_stage, strict=False):
        blocks = len(stage.blocks)
        last = first + (stage.rounds - 1) * blocks
        for position in positions_of_group.get(stage.group, ()):
            if position < blocks:
                # The next round visits the same weights again; only after the last one another group might.
                keep.update(range(first + position, last + position, blocks))
                then = following[last + position]
                if then is not None and group_of[visits[then].stage] == stage.group:
                    keep.add(last + position)
    return keep


def positions_of(plan: Plan, workload: Workload) -> Positions:
    """The blocks of each group that a plan retains in most of the rounds in which it could."""
    could: dict[tuple[str, int], int] = {}
    does: dict[tuple[str, int], int] = {}
    keep = set(plan.keep)
    for visit in workload.visits:
        if workload.next_same_weights[visit.number] is not None:
            place = workload.stages[visit.stage].group, visit.position
            could[place] = could.get(place, 0) + 1
            does[place] = does.get(place, 0) + (visit.number in keep)
    groups = repeating_groups(workload)
    return {g: frozenset(p for (group, p), n in could.items() if group == g and 2 * does[group, p] > n) for g in groups}


def _repeats(workload: Workload, stage: int) -> bool:
    first = workload.first_visit_of_stage[stage]
    return workload.stages[stage].rounds > 1 or any(
        workload.previous_same_weights[first + p] is not None or workload.next_same_weights[first + p] is not None
        for p in range(len(workload.stages[stage].blocks))
    )
