"""The real runtime under a script: what ends next is what a case says, and what starts is up to the runtime.

Loads and visits block in their own threads until it is their turn to end. The next one ends only when the runtime has
started everything that it may start, so nothing depends on how fast the threads are. The recorder is told the case's
times, not the machine's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from conformance_cases.observing import EventRecorder
from conformance_cases.records import Case, Happening

from cidl_sim.core.plan import Load
from cidl_sim.core.schedule import Release, Schedule
from cidl_sim.core.workload import Visit, Workload
from cidl_sim.executor.backend import Call, Outcome
from cidl_sim.executor.runtime import Limits, Runtime

_PATIENCE_S = 20
_ENDS = ("load_finished", "visit_finished", "limit_changed")


class Script:
    """What ends when, in the order of a case."""

    def __init__(self, case: Case) -> None:
        self.now_s = 0.0
        self._limit_bytes = case.device.memory_limit_bytes
        self._first_answer: int | None = self._limit_bytes
        self._workload = case.workload
        self._ends = [event for event in case.events if event.event in _ENDS]
        self._turns: dict[str, threading.Event] = {}
        self._is_over = False

    def limit_now(self) -> int:
        """The limit as the runtime asks for it; at first the device's, even if a change is due before it asks."""
        answer, self._first_answer = self._first_answer, None
        return self._limit_bytes if answer is None else answer

    def begins(self, name: str) -> None:
        """A load, by its weights, or the "visit" goes on until it is its turn to end."""
        self._turns[name] = threading.Event()
        if self._is_over:
            self._turns[name].set()

    def wait_for_turn_of(self, name: str) -> None:
        """Block the calling thread until the case says that this ends."""
        assert self._turns[name].wait(_PATIENCE_S), f"{name}: the run did not come to where the case has it end"

    def go_on(self, schedule: Schedule) -> None:
        """Let the next thing end if nothing more may start. Called under the runtime's lock."""
        if schedule.is_done:
            self._is_over = True
            for turn in self._turns.values():
                turn.set()  # waste that the case does not wait for
        elif schedule.next_load() is None and schedule.next_visit() is None and self._ends:
            self._end(self._ends.pop(0))

    def _end(self, event: Happening) -> None:
        self.now_s = event.at_s
        if event.event == "limit_changed":
            self._limit_bytes = event.limit_bytes or 0
        elif event.event == "visit_finished":
            self._turns["visit"].set()
        else:
            self._turns[self._workload.visits[event.visit or 0].block.weights].set()


class SteppedRecorder(EventRecorder):
    """Puts the case's times in place of the machine's, and tells the script after each step; ends with the last visit.

    The runtime calls it under its lock.
    """

    def __init__(self, schedule: Schedule, script: Script) -> None:
        super().__init__(schedule)
        self._script = script
        self._is_over = False

    def load_started(self, at_s: float, load: Load, worker: str, *, cold: bool) -> None:
        super().load_started(self._script.now_s, load, worker, cold=cold)
        self._script.begins(self.schedule.workload.visits[load.visit].block.weights)
        self._script.go_on(self.schedule)

    def load_finished(self, at_s: float, worker: str, released: Iterable[Release]) -> None:
        if not self._is_over:
            super().load_finished(self._script.now_s, worker, released)

    def visit_started(self, at_s: float, visit: Visit) -> None:
        super().visit_started(self._script.now_s, visit)
        self._script.begins("visit")
        self._script.go_on(self.schedule)

    def visit_finished(self, at_s: float, released: Iterable[Release]) -> None:
        super().visit_finished(self._script.now_s, released)

    def unloaded(self, at_s: float, released: Iterable[Release]) -> None:
        super().unloaded(self._script.now_s, released)

    def event(self, at_s: float, kind: str, **values: str | int | float | bool | None) -> None:
        super().event(self._script.now_s, kind, **values)

    def settled(self, at_s: float) -> None:
        if not self._is_over:
            super().settled(self._script.now_s)
            self._is_over = self.schedule.is_done
            self._script.go_on(self.schedule)


class SteppedBackend:
    """Holds names instead of weights, refuses orders that no machine could bear, and loads as long as the case says."""

    origin = "imported"

    def __init__(self, workload: Workload, script: Script) -> None:
        self.fall_backs: list[str] = []
        self.reserved: set[str] = set()
        self.loaded: set[str] = set()
        self._sizes = {v.block.weights: v.block.weight_bytes for v in workload.visits}
        self._script = script

    def reserve(self, weights: str) -> None:
        assert weights not in self.reserved
        self.reserved.add(weights)

    def load(self, weights: str) -> None:
        self._script.wait_for_turn_of(weights)
        assert weights in self.reserved - self.loaded
        self.loaded.add(weights)

    def callable_for(self, visit: Visit) -> Call:
        assert visit.block.weights in self.loaded
        return lambda: None

    def unload(self, weights: str) -> None:
        self.loaded.remove(weights)
        self.reserved.remove(weights)

    def make_room(self, weights_bytes: int) -> None: ...

    def grow(self, capacity_bytes: int) -> None: ...

    def footprint_bytes(self) -> int:
        return sum(self._sizes[weights] for weights in self.reserved)

    def figures(self) -> dict[str, int | str]:
        return {}

    def close(self) -> None:
        assert not self.reserved


class SteppedProgram:
    """Runs visits as long as the case says, and ends its stages early."""

    def __init__(self, case: Case, script: Script) -> None:
        self._ends = {end.after_visit: end.stage for end in case.scenario.early_ends}
        self._script = script

    def run(self, visit: Visit, block: Call) -> Outcome:
        self._script.wait_for_turn_of("visit")
        return Outcome(end_stage=self._ends.get(visit.number))


def stepped_run(case: Case) -> SteppedRecorder:
    """Run a case on the real runtime; what was recorded. Everything was given back, and every thread has ended."""
    script = Script(case)
    backend = SteppedBackend(case.workload, script)
    watched = script.limit_now if case.scenario.limit_changes else None
    limits = Limits(case.device.memory_limit_bytes, case.device.baseline_bytes, watched)
    runtime = Runtime(case.workload, case.plan, limits, backend)
    recorder = SteppedRecorder(runtime.schedule, script)
    runtime.recorder = recorder
    runtime.run(SteppedProgram(case, script))
    backend.close()
    return recorder
