"""The state machine that the simulator and the executor both drive. It has no clock.

A driver asks `next_load()` and `next_visit()`, starts what they give, and reports what finished.
Everything that decides *whether* something may start is here; everything that decides *how long* it
takes is in the driver. Starting whatever may start is always safe: a start never takes away another
start that was possible (see docs/design.md), so drivers need no look-ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cidl_sim.core.plan import Load, Plan, check_block_fits
from cidl_sim.core.workload import Visit, Workload

if TYPE_CHECKING:
    from cidl_sim.core.device import DeviceProfile

LoaderCause = Literal["gate", "memory", "weights_in_use", "channels", "done"]
ExecutorCause = Literal["load", "memory", "done"]


@dataclass(frozen=True, slots=True)
class Release:
    """Weights that left memory, and the visit they had been loaded or kept for."""

    weights: str
    visit: int
    weight_bytes: int


class Schedule:
    """Which load may start, which visit may run, what a finished visit releases.

    Not thread-safe: a driver with threads calls it under one lock.
    """

    def __init__(
        self, workload: Workload, plan: Plan, *, memory_limit_bytes: int, baseline_bytes: int = 0, channels: int = 1
    ) -> None:
        self.workload = workload
        self.memory_limit_bytes = memory_limit_bytes
        self.baseline_bytes = baseline_bytes
        self.channels = channels
        self._visits = workload.visits
        self._workspace = [visit.block.workspace_bytes for visit in self._visits]
        self._plan = plan
        self._loads: list[Load] = list(plan.loads)
        self._next_load = 0
        self._keep = set(plan.keep)
        self._retained: set[int] = set()
        self._current = 0
        self._running = False
        self._in_flight: dict[int, Load] = {}
        self._wasted: set[int] = set()
        self._resident_for: dict[str, int] = {}
        self._loaded_weights: set[str] = set()
        self._weights_held = 0
        self.peak_resident_bytes = baseline_bytes

    @classmethod
    def for_device(cls, workload: Workload, plan: Plan, device: DeviceProfile) -> Schedule:
        """A schedule under a device's limit, baseline and number of loader channels."""
        return cls(
            workload,
            plan,
            memory_limit_bytes=device.memory_limit_bytes,
            baseline_bytes=device.baseline_bytes,
            channels=device.loader.channels,
        )

    # What may happen next

    @property
    def is_done(self) -> bool:
        """Whether every visit that is not skipped has run."""
        return self._current == len(self._visits)

    @property
    def current(self) -> int:
        """The number of the visit that runs, or that runs next."""
        return self._current

    @property
    def is_loading(self) -> bool:
        """Whether a load is in flight."""
        return bool(self._in_flight)

    @property
    def resident_bytes(self) -> int:
        """Accounted memory now: baseline, weights resident or in flight, workspace of the running visit."""
        workspace = self._workspace[self._current] if self._running else 0
        return self.baseline_bytes + self._weights_held + workspace

    @property
    def weights_held(self) -> int:
        """Bytes of weights resident or in flight."""
        return self._weights_held

    def room_for_weights(self, until: int) -> int:
        """Bytes that weights may take until visit number `until` has run, beside every workspace up to it."""
        workspace = max(self._workspace[self._current : until + 1], default=0)
        return self.memory_limit_bytes - self.baseline_bytes - workspace

    @property
    def pending_load(self) -> Load | None:
        """The next load in the plan's order, whether it may start or not; None if all have started."""
        return self._loads[self._next_load] if self._next_load < len(self._loads) else None

    def next_load(self) -> Load | None:
        """The load that may start now, or None (then `loader_cause` says why)."""
        return self._loads[self._next_load] if self.loader_cause() is None else None

    def next_visit(self) -> Visit | None:
        """The visit that may start now, or None (then `executor_cause` says why)."""
        if self._running or self.executor_cause() is not None:
            return None
        return self._visits[self._current]

    def loader_cause(self) -> LoaderCause | None:
        """Why no load may start now; None if one may."""
        if self._next_load == len(self._loads):
            return "done"
        if len(self._in_flight) >= self.channels:
            return "channels"
        load = self._loads[self._next_load]
        if not self._gate_is_open(load):
            return "gate"
        block = self._visits[load.visit].block
        if block.weights in self._resident_for:
            return "weights_in_use"
        if self._needed_to_load(load) > self.memory_limit_bytes:
            return "memory"
        return None

    def executor_cause(self) -> ExecutorCause | None:
        """Why the current visit may not start; None if it may (or already runs)."""
        if self.is_done:
            return "done"
        block = self._visits[self._current].block
        if block.weights not in self._loaded_weights or self._resident_for[block.weights] != self._current:
            return "load"
        if self.baseline_bytes + self._weights_held + block.workspace_bytes > self.memory_limit_bytes:
            return "memory"
        return None

    def _gate_is_open(self, load: Load) -> bool:
        gate = load.gate
        if gate is None or gate.visit < self._current:
            return True
        return gate.edge == "start" and gate.visit == self._current and self._running

    def _needed_to_load(self, load: Load) -> int:
        # Rule 2: the largest workspace from the current visit to the loaded one must fit beside it,
        # so that a load can never take the room in which an earlier visit has to run.
        excess = self._weights_held + self._visits[load.visit].block.weight_bytes - self.room_for_weights(load.visit)
        return self.memory_limit_bytes + excess

    # What a driver reports

    def start_load(self, load: Load) -> bool:
        """Begin the load that `next_load` gave; returns whether it is the first load of its weights."""
        visit = self._visits[load.visit]
        self._next_load += 1
        self._in_flight[load.visit] = load
        self._resident_for[visit.block.weights] = load.visit
        self._weights_held += visit.block.weight_bytes
        self._note_peak()
        return self.workload.previous_same_weights[load.visit] is None

    def finish_load(self, visit: int) -> list[Release]:
        """End the load for visit number `visit`; a load whose visit was skipped releases its weights."""
        del self._in_flight[visit]
        weights = self._visits[visit].block.weights
        self._loaded_weights.add(weights)
        if visit in self._wasted:
            self._wasted.discard(visit)
            return [self._release(weights)]
        return []

    def start_visit(self, visit: Visit) -> None:
        """Begin the visit that `next_visit` gave."""
        self._running = True
        self._retained.discard(visit.number)
        self._note_peak()

    def finish_visit(self, visit: Visit) -> list[Release]:
        """End the running visit; its weights are released at once unless the plan keeps them."""
        self._running = False
        self._current = visit.number + 1
        following = self.workload.next_same_weights[visit.number]
        if visit.number in self._keep and following is not None:
            self._resident_for[visit.block.weights] = following
            self._retained.add(following)
            return []
        return [self._release(visit.block.weights)]

    def end_stage_early(self, stage: int) -> list[Release]:
        """Skip the remaining visits of `stage` (rule 4); returns what that releases.

        Unstarted loads of skipped visits are cancelled and keeps towards them dropped; a load in
        flight finishes as waste. Later visits that counted on a dropped keep get a load instead.
        """
        return self._skip_to(self.workload.first_visit_of_stage[stage + 1])

    def resume_at(self, visit: int) -> list[Release]:
        """Start at visit number `visit` instead of the first: keeps that are missing become loads."""
        return self._skip_to(visit)

    def _skip_to(self, target: int) -> list[Release]:
        if self._running:
            raise RuntimeError("visits can only be skipped between visits")
        skipped = range(self._current, target)
        released = []
        for weights, number in list(self._resident_for.items()):
            if number in skipped:
                if number in self._in_flight:
                    self._wasted.add(number)
                else:
                    released.append(self._release(weights))
        pending = [load for load in self._loads[self._next_load :] if load.visit not in skipped]
        arriving = {load.visit for load in pending} | set(self._resident_for.values())
        previous = self.workload.previous_same_weights
        for visit in self._visits[target:]:
            kept_from = previous[visit.number]
            if kept_from is not None and kept_from < target and visit.number not in arriving:
                place = next((i for i, load in enumerate(pending) if load.visit > visit.number), len(pending))
                pending.insert(place, Load(visit=visit.number))
        self._loads = self._loads[: self._next_load] + pending
        self._current = target
        return released

    def _release(self, weights: str) -> Release:
        visit = self._resident_for.pop(weights)
        self._retained.discard(visit)
        self._loaded_weights.discard(weights)
        weight_bytes = self._visits[visit].block.weight_bytes
        self._weights_held -= weight_bytes
        return Release(weights, visit, weight_bytes)

    def _note_peak(self) -> None:
        self.peak_resident_bytes = max(self.peak_resident_bytes, self.resident_bytes)

    # A limit that changes, a plan that changes (rule 5)

    def change_limit(self, limit_bytes: int) -> list[Release]:
        """Go on under another limit; returns what has to leave memory for it now.

        What the limit lost against the plan's is given up in weights that the plan retains, so that the room for
        loading ahead stays as it was; what it gained goes to retaining others. More is given up where the rest of
        the run could not end otherwise. Then what was loaded ahead goes until the rest fits, what is needed last
        first; a load in flight that does not fit any more ends as waste.
        InfeasibleError names the block that does not even fit alone.
        """
        remaining = self._visits[self._current :]
        check_block_fits(remaining, limit_bytes, self.baseline_bytes)
        self.memory_limit_bytes = limit_bytes
        candidates = self._retainable(remaining)
        low, high = 0, len(candidates)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._can_finish_with(candidates[:middle]) else (low, middle - 1)
        return self._retain_only(set(candidates[:low]))

    def go_on_with(self, plan: Plan) -> list[Release]:
        """Keep and load from now on as `plan` says, between two visits; returns what leaves memory for it now.

        Weights that are here stay, if the plan retains them now or as if they had been loaded ahead. Whether the rest
        of the run can end is the caller's to know: run a `settled_copy` first.
        """
        if self._running:
            raise RuntimeError("another plan can only be taken between visits")
        self._plan = plan
        return self._retain_only(
            {self._visits[number].block.weights for number in plan.keep if number >= self._current}
        )

    def settled_copy(self) -> Schedule:
        """A schedule of its own in which whatever was under way has just ended."""
        trial = self._copied()
        trial._settle()
        return trial

    @property
    def retained_weights(self) -> set[str]:
        """The weights that a remaining visit is to leave in memory, or that an earlier one left there."""
        kept = {self._visits[number].block.weights for number in self._keep if number >= self._current}
        return kept | {self._visits[number].block.weights for number in self._retained}

    def _retainable(self, remaining: Sequence[Visit]) -> list[str]:
        """Weights to retain, those of the plan first, each part evenly spread, within each group's budget."""
        planned = {self._visits[number].block.weights for number in self._plan.keep}
        revisited = {v.block.weights: v for v in reversed(remaining) if self._next_in_group(v) is not None}
        ours = evenly_ordered([weights for weights in reversed(revisited) if weights in planned])
        others = evenly_ordered([weights for weights in reversed(revisited) if weights not in planned])
        budgets = self._retained_bytes_of_the_plan()
        change = self.memory_limit_bytes - self._plan.memory_limit_bytes
        if change == 0:
            return ours  # a set that moves on has more of them than fit at once
        for group in self._groups_that_rotate():
            # What such a plan retains beside the running block, and that block as well, was counted.
            budgets[group] -= max(
                v.block.weight_bytes for v in remaining if self.workload.stages[v.stage].group == group
            )
        chosen = []
        for weights in [*ours, *(others if change > 0 else ())]:
            visit = revisited[weights]
            group = self.workload.stages[visit.stage].group
            budgets[group] = budgets.get(group, change) - visit.block.weight_bytes
            if budgets[group] >= 0:
                chosen.append(weights)
        return chosen

    def _retained_bytes_of_the_plan(self) -> dict[str, int]:
        """For each group, the most bytes that the plan retains at once, changed by what the limit lost or gained."""
        change = self.memory_limit_bytes - self._plan.memory_limit_bytes
        held: dict[str, int] = {}
        most: dict[str, int] = {}
        keep = set(self._plan.keep)
        for visit in self._visits:
            group, size = self.workload.stages[visit.stage].group, visit.block.weight_bytes
            if self.workload.previous_same_weights[visit.number] in keep:
                held[group] = held.get(group, 0) - size
            if visit.number in keep:
                held[group] = held.get(group, 0) + size
                most[group] = max(most.get(group, 0), held[group])
        return {group: count + change for group, count in most.items()}

    def _groups_that_rotate(self) -> set[str]:
        """Where the plan retains more in turns than at once: under another limit what is retained stays."""
        kept: dict[str, dict[str, int]] = {}
        for number in self._plan.keep:
            visit = self._visits[number]
            sizes = kept.setdefault(self.workload.stages[visit.stage].group, {})
            sizes[visit.block.weights] = visit.block.weight_bytes
        change = self.memory_limit_bytes - self._plan.memory_limit_bytes
        most = self._retained_bytes_of_the_plan() if change else {}
        return {group for group, held in most.items() if sum(kept.get(group, {}).values()) > held - change}

    def _next_in_group(self, visit: Visit) -> int | None:
        following = self.workload.next_same_weights[visit.number]
        if following is None or visit.number in self._plan.keep:
            return following
        stages = self.workload.stages
        same = stages[visit.stage].group == stages[self._visits[following].stage].group
        return following if same else None

    def _can_finish_with(self, retained: Sequence[str]) -> bool:
        trial = self._copied()
        trial._retain_only(set(retained))
        trial._settle()
        return trial.finish_without_clock()

    def _copied(self) -> Schedule:
        trial = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, (list, set, dict)):
                setattr(trial, name, copy(value))
        return trial

    def _settle(self) -> None:
        for number in list(self._in_flight):
            self.finish_load(number)
        if self._running:
            self.finish_visit(self._visits[self._current])

    def _retain_only(self, retained: set[str]) -> list[Release]:
        released = [
            self._release(weights)
            for weights, number in list(self._resident_for.items())
            if number in self._retained and weights not in retained
        ]
        planned = {self._visits[number].block.weights for number in self._plan.keep}
        rotating = self._groups_that_rotate()
        self._keep = {
            visit.number
            for visit in self._visits[self._current :]
            if visit.block.weights in retained
            and (
                visit.number in self._plan.keep
                or visit.block.weights not in planned
                or self.workload.stages[visit.stage].group in rotating
            )
            and self._next_in_group(visit) is not None
        }
        released += self._release_ahead()
        self._plan_loads_anew()
        return released

    def _release_ahead(self) -> list[Release]:
        """Let go of what is here too early: behind a visit whose weights are missing, or beyond the room there is."""
        released = []
        first = self._current + self._running
        waiting = sorted((n, w) for w, n in self._resident_for.items() if n >= first and n not in self._wasted)
        here = {number for number, _ in waiting}
        missing = next((n for n in range(first, len(self._visits)) if n not in here and not self._stays_for(n)), first)
        held = self._weights_held
        for number, weights in reversed(waiting):
            blocks = number > missing and number not in self._retained
            if not blocks and held <= self.room_for_weights(number):
                continue
            held -= self._visits[number].block.weight_bytes
            if number in self._in_flight:
                self._wasted.add(number)
            else:
                released.append(self._release(weights))
        return released

    def _stays_for(self, number: int) -> bool:
        """Whether an earlier visit that is still to end leaves the weights of this one in memory."""
        return self.workload.previous_same_weights[number] in self._keep

    def _plan_loads_anew(self) -> None:
        """Loads for all remaining visits whose weights neither are here nor stay, in order of execution."""
        gated = {load.visit: load for load in self._plan.loads}
        here = set(self._resident_for.values()) - self._wasted
        self._loads = self._loads[: self._next_load] + [
            gated.get(visit.number, Load(visit=visit.number))
            for visit in self._visits[self._current + self._running :]
            if visit.number not in here and not self._stays_for(visit.number)
        ]

    def finish_without_clock(self) -> bool:
        """Run to the end with every duration zero; False where nothing can go on."""
        while not self.is_done:
            progressed = self._load_without_clock()
            if (visit := self.next_visit()) is not None:
                self.start_visit(visit)
                # Gates on a visit's start open here, before its end gives memory back.
                self._load_without_clock()
                self.finish_visit(visit)
                progressed = True
            if not progressed:
                return False
        return True

    def _load_without_clock(self) -> bool:
        progressed = False
        while (load := self.next_load()) is not None:
            self.start_load(load)
            self.finish_load(load.visit)
            progressed = True
        return progressed

    # Explaining

    def explain_deadlock(self) -> str:
        """One line: which visit can never run, which limit binds and what would make it feasible."""
        visit = self._visits[self._current]
        block = visit.block
        where = f"visit {visit.number} ({self.workload.stages[visit.stage].name}, round {visit.round}, {block.name})"
        cause = self.executor_cause()
        if cause == "memory":
            need = self.baseline_bytes + self._weights_held + block.workspace_bytes
            return f"{where} never fits: {need} bytes are needed, the memory limit is {self.memory_limit_bytes}"
        if self._next_load == len(self._loads):
            return f"{where}: its weights are never loaded"
        load = self._loads[self._next_load]
        loader_cause = self.loader_cause()
        if loader_cause == "memory":
            need = self._needed_to_load(load)
            return (
                f"{where} never runs: loading {self._visits[load.visit].block.name!r} for visit {load.visit} needs "
                f"{need} bytes (it weighs {self._visits[load.visit].block.weight_bytes}, "
                f"{self._weights_held} are held), the memory limit is {self.memory_limit_bytes}; "
                f"raise memory_limit_bytes to at least {need} or keep less"
            )
        return f"{where} never runs: the load for visit {load.visit} waits for ever ({loader_cause})"


def evenly_ordered(names: Sequence[str]) -> list[str]:
    """The same names so that any number of first ones is spread evenly: 0, 1/2, 1/4, 3/4, 1/8, ... of the way."""
    bits = max(1, (len(names) - 1).bit_length())
    places = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits))
    return [names[place] for place in places if place < len(names)]
