"""The state machine that the simulator and the executor both drive. It has no clock.

A driver asks `next_load()` and `next_visit()`, starts what they give, and reports what finished.
Everything that decides *whether* something may start is here; everything that decides *how long* it
takes is in the driver. Starting whatever may start is always safe: a start never takes away another
start that was possible (see docs/background/design.md), so drivers need no look-ahead.

These are the rules of execution 1 to 4. Rule 5, a limit or a plan that changes on the way, is in `core/refit.py`, and
what can be said of a plan without any driver in `core/feasibility.py`; both use what is public here.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import Literal

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import Load, Plan
from cidl_sim.core.workload import Visit, Workload

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
        self.plan = plan
        self.memory_limit_bytes = memory_limit_bytes
        self.baseline_bytes = baseline_bytes
        self.channels = channels
        self._visits = workload.visits
        self._workspace = [visit.block.workspace_bytes for visit in self._visits]
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
    def is_running(self) -> bool:
        """Whether the current visit has started and not ended."""
        return self._running

    @property
    def loading(self) -> tuple[int, ...]:
        """The visits whose weights are in flight, wasted ones included, in the order in which their loads began."""
        return tuple(self._in_flight)

    @property
    def waiting(self) -> list[int]:
        """The visits still to start whose weights are here or on their way, in order."""
        first = self._current + self._running
        return sorted(n for n in self._resident_for.values() if n >= first and n not in self._wasted)

    @property
    def left_for(self) -> list[int]:
        """The visits still to start for which an earlier one left its weights here, the longest held first."""
        return [number for number in self._resident_for.values() if number in self._retained]

    @property
    def retained_weights(self) -> set[str]:
        """The weights that a remaining visit is to leave in memory, or that an earlier one left there."""
        kept = {self._visits[number].block.weights for number in self._keep if number >= self._current}
        return kept | {self._visits[number].block.weights for number in self._retained}

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

    def needed_to_load(self, load: Load) -> int:
        """The smallest memory limit in bytes under which `load` could start now (rule 2)."""
        # The largest workspace from the current visit to the loaded one must fit beside it,
        # so that a load can never take the room in which an earlier visit has to run.
        excess = self._weights_held + self._visits[load.visit].block.weight_bytes - self.room_for_weights(load.visit)
        return self.memory_limit_bytes + excess

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
        if self.needed_to_load(load) > self.memory_limit_bytes:
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
        return self._skip_to(max(self._current, self.workload.first_visit_of_stage[stage + 1]))

    def resume_at(self, visit: int) -> list[Release]:
        """Start at visit number `visit` instead of the first: keeps that are missing become loads."""
        return self._skip_to(visit)

    def _skip_to(self, target: int) -> list[Release]:
        if self._running:
            raise RuntimeError("visits can only be skipped between visits")
        skipped = range(self._current, target)
        released = []
        for number in [n for n in self._resident_for.values() if n in skipped]:
            released += self.give_up(number)
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

    # What a limit or a plan that changes alters (core/refit.py)

    def copy(self) -> Schedule:
        """A schedule of its own in the same state."""
        copied = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, (list, set, dict)):
                setattr(copied, name, copy(value))
        return copied

    def give_up(self, visit: int) -> list[Release]:
        """Let go of the weights that are here for visit number `visit`, or let their load in flight end as waste."""
        if visit in self._in_flight:
            self._wasted.add(visit)
            return []
        return [self._release(self._visits[visit].block.weights)]

    def decide_anew(self, keep: Iterable[int], loads: Iterable[Load]) -> None:
        """Replace what is still to come: after which visits weights are kept, and which loads start in which order."""
        self._keep = set(keep)
        self._loads = [*self._loads[: self._next_load], *loads]

    def _release(self, weights: str) -> Release:
        visit = self._resident_for.pop(weights)
        self._retained.discard(visit)
        self._loaded_weights.discard(weights)
        weight_bytes = self._visits[visit].block.weight_bytes
        self._weights_held -= weight_bytes
        return Release(weights, visit, weight_bytes)

    def _note_peak(self) -> None:
        self.peak_resident_bytes = max(self.peak_resident_bytes, self.resident_bytes)
