"""Local search over retained sets, for what is too large for the exact models.

Rounds repeat, so a candidate is not judged on all of them: a shortened workload of a few rounds is simulated, and what
one round more adds stands for every round that was left out. A set that looks better there is then timed on the whole
workload, by the engine, and only that counts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.plan import Gate, Load, Plan
from cidl_sim.core.workload import Workload
from cidl_sim.policies.build import build_plan, deep_prefetch, keep_positions, repeated_positions, repeating_groups
from cidl_sim.simulator.engine import makespan_s

Positions = dict[str, frozenset[int]]  # of the blocks that each group retains
# Rounds that a candidate is judged on: the first, one to settle, the last.
JUDGED_ROUNDS = 3
LOOKAHEADS = (1, 2, 3, 5, 8)


def search(
    workload: Workload,
    device: DeviceProfile,
    starts: Sequence[Positions],
    *,
    known_s: float,
    deadline_s: float,
    bound_s: float = 0.0,
    seed: int = 0,
) -> tuple[Plan | None, float]:
    """The best plan found before `deadline_s` (of `time.monotonic`) if it is faster than `known_s`, and its makespan.

    From each retained set of `starts` blocks come in, go out, or change places, as long as that helps; then the same
    from random changes of the best set. Of what is found last, lookaheads are tried. Stops early at `bound_s`.
    """
    found = _Search(workload, device, known_s, bound_s, deadline_s, random.Random(seed))
    for start in starts:
        found.descend(start)
    while found.goes_on():
        found.descend(found.shaken())
        found.try_lookaheads()
    return found.plan, found.makespan_s


class _Search:
    def __init__(
        self,
        workload: Workload,
        device: DeviceProfile,
        known_s: float,
        bound_s: float,
        deadline_s: float,
        chance: random.Random,
    ) -> None:
        self._workload = workload
        self._device = device
        self._judge = _Judge(workload, device)
        self._bound_s = bound_s
        self._deadline_s = deadline_s
        self._chance = chance
        self._best: Positions = {}
        self._best_estimate_s = float("inf")
        self._tried: Plan | None = None
        self.plan: Plan | None = None
        self.makespan_s = known_s

    def goes_on(self) -> bool:
        """There is time left, and something to be found."""
        has_choice = any(count > 0 for count in self._judge.counts.values())
        return has_choice and time.monotonic() < self._deadline_s and self.makespan_s > self._bound_s * (1 + 1e-9)

    def descend(self, start: Positions) -> None:
        """Change one block, or two, as long as that helps; then time what came out on the whole workload."""
        here, here_s = start, self._judge.estimate_s(start)
        improved = True
        while improved and self.goes_on():
            improved = False
            moves = list(_moves(here, self._judge.counts))
            self._chance.shuffle(moves)
            for moved in moves:
                moved_s = self._judge.estimate_s(moved)
                if moved_s < here_s * (1 - 1e-9):
                    here, here_s, improved = moved, moved_s, True
                    break
                if not self.goes_on():
                    break
        if here_s < self._best_estimate_s:
            self._best, self._best_estimate_s = here, here_s
            self._time(self._judge.plan(self._workload, here))

    def shaken(self) -> Positions:
        """The best set after a few changes at random."""
        changed = self._best
        for _ in range(self._chance.randint(2, 5)):
            moves = list(_moves(changed, self._judge.counts))
            changed = self._chance.choice(moves) if moves else changed
        return changed

    def try_lookaheads(self) -> None:
        """Where loads and executions slow each other down, loading later may be better; once for each plan."""
        if self.plan is None or self.plan is self._tried:
            return
        self._tried = plan = self.plan
        for ahead in LOOKAHEADS:
            if self.goes_on():
                self._time(_with_lookahead(plan, self._workload, self._device, ahead))

    def _time(self, plan: Plan) -> None:
        try:
            seconds = makespan_s(self._workload, self._device, plan)
        except InfeasibleError:
            return
        if seconds < self.makespan_s:
            self.plan, self.makespan_s = plan, seconds


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


class _Judge:
    """Estimates the makespan of retained sets from shortened workloads; infinite where one does not fit."""

    def __init__(self, workload: Workload, device: DeviceProfile) -> None:
        self._device = device
        self.counts = {group: repeated_positions(workload, group) for group in repeating_groups(workload)}
        self._short = _shortened(workload, {})
        # For each long stage: the rounds that are left out, and the workload with one of them.
        self._longer = [
            (stage.rounds - JUDGED_ROUNDS, _shortened(workload, {number: JUDGED_ROUNDS + 1}))
            for number, stage in enumerate(workload.stages)
            if stage.rounds > JUDGED_ROUNDS
        ]
        self._known: dict[tuple[tuple[str, frozenset[int]], ...], float] = {}

    def plan(self, workload: Workload, positions: Positions) -> Plan:
        """Those blocks retained, the others loaded as early as memory allows."""
        keep = keep_positions(workload, {group: set(chosen) for group, chosen in positions.items()})
        return deep_prefetch("planned", workload, self._device, keep)

    def estimate_s(self, positions: Positions) -> float:
        """What the short workload takes, and what one round more of a stage adds for each that is left out."""
        key = tuple(sorted(positions.items()))
        if key not in self._known:
            try:
                short_s = self._makespan_s(self._short, positions)
                added_s = (left * (self._makespan_s(longer, positions) - short_s) for left, longer in self._longer)
                self._known[key] = short_s + sum(added_s)
            except InfeasibleError:
                self._known[key] = float("inf")
        return self._known[key]

    def _makespan_s(self, workload: Workload, positions: Positions) -> float:
        return makespan_s(workload, self._device, self.plan(workload, positions))


def _shortened(workload: Workload, longer: dict[int, int]) -> Workload:
    """At most `JUDGED_ROUNDS` rounds of every stage, but `longer` ones where it says so, by stage number."""
    stages = [
        stage.model_copy(update={"rounds": min(longer.get(number, JUDGED_ROUNDS), stage.rounds)})
        for number, stage in enumerate(workload.stages)
    ]
    return workload.model_copy(update={"stages": tuple(stages)})


def _moves(here: Positions, counts: dict[str, int]) -> Iterator[Positions]:
    """Every retained set that differs by one block in, one block out, or one for another."""
    for group, count in counts.items():
        inside, outside = here.get(group, frozenset()), set(range(count)) - here.get(group, frozenset())
        for block in outside:
            yield {**here, group: inside | {block}}
        for block in inside:
            yield {**here, group: inside - {block}}
            for other in outside:
                yield {**here, group: (inside - {block}) | {other}}


def _with_lookahead(plan: Plan, workload: Workload, device: DeviceProfile, ahead: int) -> Plan:
    """The plan with loads that wait until so many visits before their own."""
    loads = [
        Load(visit=load.visit, gate=Gate(visit=load.visit - ahead, edge="start") if load.visit >= ahead else None)
        for load in plan.loads
    ]
    return build_plan(plan.policy, workload, device, loads, plan.keep)
