"""How much more memory would remove the executor's waits, in slots: one block of the group that repeats each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import resident_need
from cidl_sim.core.timed import Timed, timed
from cidl_sim.core.workload import Workload
from cidl_sim.planner.bisection import smallest_limit
from cidl_sim.planner.break_points import PAYS
from cidl_sim.policies.build import Positions, deep_prefetch, keep_positions, repeated_positions, repeating_groups
from cidl_sim.policies.retained import even_positions
from cidl_sim.simulator import quick

# Rounds on which the number of retained blocks is chosen: one with first loads, three after it.
CHOSEN_ON_ROUNDS = 4
# Visits that may be simulated for one answer, at some 3 microseconds each (more where loads and executions slow each
# other down). Beyond that there is none: `cidl plan` should not take seconds longer for a remark, and
# `--memory-curve` answers it for who can wait.
MOST_VISITS = 80_000


@dataclass(frozen=True, slots=True)
class Slots:
    """So many slots more, and the plan with them: limit, makespan, and what each group retains.

    `stalls_s` and `executor_busy_s`: for so long the executor then waits for loads after the first, and executes.
    """

    slots: int
    slot_bytes: int
    memory_limit_bytes: int
    makespan_s: float
    stalls_s: float
    executor_busy_s: float
    retained: Positions


def fewest_slots(workload: Workload, device: DeviceProfile, own: Positions, group: str) -> Slots | None:
    """The fewest slots more (0: none) with which a run is as short as with all weights in memory, to a thousandth.

    That is with the blocks that a plan retains, `own`, or with evenly spread ones in `group`; sets that move on from
    round to round may do with fewer. None where all weights fit already, and where the answer would take too long.
    """
    stages = [stage for stage in workload.stages if stage.group == group]
    slot = max(block.weight_bytes for stage in stages for block in stage.blocks)
    everything = device.baseline_bytes + resident_need(workload)
    if not slot or everything <= device.memory_limit_bytes:
        return None
    most = -(-(everything - device.memory_limit_bytes) // slot)
    cut = workload.model_copy(
        update={"stages": tuple(s.model_copy(update={"rounds": min(s.rounds, CHOSEN_ON_ROUNDS)}) for s in stages)}
    )
    blocks = repeated_positions(workload, group)
    if (most.bit_length() + 2) * (3 * len(workload.visits) + blocks * len(cut.visits)) > MOST_VISITS:
        return None
    tried = _Choices(workload, device, own, group, slot, cut)
    target_s = tried.best(most)[0] * (1 + PAYS)

    def is_enough(slots: int) -> bool:
        return tried.best(slots)[0] <= target_s

    # A slot for every block of the group is nearly always enough, and far less than all weights take.
    slots = smallest_limit(is_enough, 0, blocks if blocks < most and is_enough(blocks) else most)
    seconds, retained = tried.best(slots)
    larger = _with_slots(device, slots, slot)
    plan = deep_prefetch("planned", workload, larger, _kept(workload, retained))
    run = quick.evaluate(timed(workload, larger), plan)
    return Slots(slots, slot, larger.memory_limit_bytes, seconds, run.stalls_s, run.executor_busy_s, retained)


def deep_makespan_s(priced: Timed, retained: Positions) -> float:
    """The makespan with these blocks retained and loads as early as memory allows; infinite where that does not fit."""
    return quick.deep_makespan_s(priced, _kept(priced.workload, retained))


class _Choices:
    """The best plan found with so many slots more, each timed on the whole workload."""

    def __init__(
        self, workload: Workload, device: DeviceProfile, own: Positions, group: str, slot: int, cut: Workload
    ) -> None:
        self._workload = workload
        self._device = device
        self._own = own
        self._group = group
        self._slot = slot
        self._cut = cut
        groups = repeating_groups(workload)
        self._all = {g: frozenset(range(repeated_positions(workload, g))) for g in groups}
        self._known: dict[int, tuple[float, Positions]] = {}

    def best(self, slots: int) -> tuple[float, Positions]:
        """The makespan in seconds and the retained blocks.

        The plan's own, or as many evenly spread ones as are best, the other groups as in the plan or all resident.
        """
        if slots not in self._known:
            device = _with_slots(self._device, slots, self._slot)
            spread = self._spread(device)
            candidates = [self._own, {**self._own, self._group: spread}]
            if len(self._all) > 1:
                candidates.append({**self._all, self._group: spread})
            priced = timed(self._workload, device)
            found = [(deep_makespan_s(priced, retained), retained) for retained in candidates]
            self._known[slots] = min(found, key=lambda row: row[0])
        return self._known[slots]

    def _spread(self, device: DeviceProfile) -> frozenset[int]:
        """The best number of evenly spread blocks, by a few rounds of the group."""
        blocks = repeated_positions(self._cut, self._group)
        priced = timed(self._cut, device)
        best, best_s = frozenset[int](), math.inf
        for count in range(blocks + 1):
            chosen = frozenset(even_positions(count, blocks)) if count else frozenset()
            seconds = deep_makespan_s(priced, {self._group: chosen})
            if seconds == math.inf:
                break  # a larger set needs more memory still
            if seconds < best_s:
                best, best_s = chosen, seconds
        return best


def _with_slots(device: DeviceProfile, slots: int, slot_bytes: int) -> DeviceProfile:
    return device.model_copy(update={"memory_limit_bytes": device.memory_limit_bytes + slots * slot_bytes})


def _kept(workload: Workload, retained: Positions) -> set[int]:
    return keep_positions(workload, {group: set(chosen) for group, chosen in retained.items()})
