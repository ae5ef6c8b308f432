"""The second driver of the schedule: real threads, real loads, the machine's own clock.

The calling thread executes visits; one thread per loader channel loads. They meet at one lock, under which
the schedule decides and the trace is written. Whoever fails says so there, and everybody stops.

`Runtime.run` feeds a program visit by visit. Whoever has no program, but code that runs blocks by itself (a module with
hooks, say), drives the same run through `Runtime.visiting`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cidl_sim.core.plan import Plan
from cidl_sim.core.recorder import TraceRecorder
from cidl_sim.core.refit import change_limit
from cidl_sim.core.schedule import Release, Schedule
from cidl_sim.core.trace import Event
from cidl_sim.core.workload import Visit, Workload
from cidl_sim.executor.backend import Backend, Call, Outcome, Program

OnVisit = Callable[[Visit], None]
# How late an interruption may be seen while the calling thread waits for a load, and a change of the limit.
_GLANCE_S = 0.1
_UNDECIDED = Outcome()
_OUTSIDE = "visits are entered and left within `visiting` alone"


@dataclass(frozen=True)
class Limits:
    """What the schedule accounts with: the limit and what the process takes before any weight is loaded.

    `now` tells the limit at any time (None: unlimited, or not told); when its answer changes, the limit does.
    """

    memory_limit_bytes: int
    baseline_bytes: int
    now: Callable[[], int | None] | None = None


class Runtime:
    """One real run of a plan. `recorder` holds what happened so far, also after a failure."""

    def __init__(self, workload: Workload, plan: Plan, limits: Limits, backend: Backend) -> None:
        self.schedule = Schedule(
            workload,
            plan,
            memory_limit_bytes=limits.memory_limit_bytes,
            baseline_bytes=limits.baseline_bytes,
            channels=plan.channels,
        )
        self.recorder = TraceRecorder(self.schedule)
        self._workload = workload
        self._backend = backend
        self._limits = limits
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._interruption: BaseException | None = None
        self._is_open = False
        self._over = threading.Event()
        self._began = 0.0

    def resume_at(self, visit: int) -> None:
        """Before the run: begin at visit number `visit`; what feeds the blocks must be in the state it had there."""
        self.schedule.resume_at(visit)
        self.recorder.event(0.0, "resumed", visit=visit)

    def run(self, program: Program, on_visit: OnVisit = lambda visit: None) -> None:
        """Run every visit. Raises what a loader or the program raised, after all threads have ended."""
        with self.visiting() as visits:
            while (visit := visits.next_visit()) is not None:
                visits.leave(visit, program.run(visit, visits.enter(visit)))
                on_visit(visit)

    @contextmanager
    def visiting(self) -> Iterator[Runtime]:
        """The run while its caller enters and leaves the visits; weights are loaded and unloaded beside that.

        The visits are those of the schedule, in its order, one at a time: `enter` one, use its block, `leave` it. Not
        all of them have to run: whoever leaves the context, in whatever way, ends every thread and with them the run.
        Raises what a loader raised, or the reason of an interruption, if the body raises nothing. RuntimeError if there
        was a run already.
        """
        if self._over.is_set() or self._is_open:
            raise RuntimeError("a runtime runs once")
        threads = self._threads()
        self._is_open = True
        self._began = time.perf_counter()
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            with self._changed:
                self._is_open = False
                self._failure = self._failure or self._interruption
                self._over.set()
                self._changed.notify_all()
            for thread in threads:
                thread.join()
            if self._failure is not None:
                self.recorder.event(self._now(), "stopped", reason=f"{type(self._failure).__name__}: {self._failure}")
        if self._failure is not None:
            raise self._failure

    def next_visit(self) -> Visit | None:
        """The visit to `enter` next, or None after the last. Raises what ended the run, if something did."""
        with self._changed:
            self._check_open()
            return None if self.schedule.is_done else self._workload.visits[self.schedule.current]

    def enter(self, visit: Visit) -> Call:
        """Wait until `visit` may start, start it, and return its block, the weights bound.

        Raises what ended the run meanwhile: what a loader raised, or the reason of an interruption. RuntimeError if it
        is not this visit's turn, or outside `visiting`.
        """
        with self._changed:
            self._check_open()
            if self.schedule.is_running or visit.number != self.schedule.current:
                raise RuntimeError(f"{self._workload.label(visit)} was entered, but {self._turn()}")
            while self.schedule.next_visit() is None:
                self._changed.wait(_GLANCE_S)
                self._check_open()
            self._backend.make_room(self.schedule.room_for_weights(visit.number))
            self.schedule.start_visit(visit)
            self.recorder.visit_started(self._now(), visit)
            self._changed.notify_all()
        return self._backend.callable_for(visit)

    def leave(self, visit: Visit, outcome: Outcome = _UNDECIDED) -> None:
        """End the visit that was entered, with what it decided. RuntimeError if it is not under way.

        What ended the run meanwhile is left to the next `enter`.
        """
        with self._changed:
            if not self._is_open:
                raise RuntimeError(_OUTSIDE)
            if not self.schedule.is_running or visit.number != self.schedule.current:
                raise RuntimeError(f"{self._workload.label(visit)} was left, but {self._turn()}")
            now = self._now()
            released = self.schedule.finish_visit(visit)
            self.recorder.visit_finished(now, released)
            self._unload(released)
            for kind, values in outcome.events:
                self.recorder.event(now, kind, **values)
            if outcome.end_stage is not None:
                self._end_stage(outcome.end_stage, now)
            self.recorder.settled(now)
            self._changed.notify_all()

    def end_stage(self, stage: int) -> None:
        """Between two visits: skip what is left of stage number `stage`.

        For whoever learns that a visit was the stage's last one only after leaving it; `Outcome.end_stage` does the
        same before. Raises what `enter` raises.
        """
        with self._changed:
            self._check_open()
            now = self._now()
            self._end_stage(stage, now)
            self.recorder.settled(now)
            self._changed.notify_all()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began; 0 before it does."""
        return self._now() if self._began else 0.0

    def note(self, kind: str, **values: str | int | float | bool | None) -> None:
        """Put an event into the trace, as of now."""
        with self._changed:
            self.recorder.event(self.elapsed_s, kind, **values)

    def interrupt(self, reason: BaseException) -> None:
        """Make the run end with `reason` after the visit under way. Takes no lock: for signal handlers.

        A handler that raises instead may do so between a lock's acquisition and the block that releases it,
        and then the loaders wait for ever.
        """
        self._interruption = reason

    def _now(self) -> float:
        return time.perf_counter() - self._began

    def _check_open(self) -> None:
        self._failure = self._failure or self._interruption
        if self._failure is not None:
            raise self._failure
        if not self._is_open:
            raise RuntimeError(_OUTSIDE)

    def _turn(self) -> str:
        """What may be entered or left now, for a message."""
        if self.schedule.is_done:
            return "the last one has run"
        label = self._workload.label(self._workload.visits[self.schedule.current])
        return f"{label} is under way" if self.schedule.is_running else f"{label} comes next"

    def _end_stage(self, stage: int, now: float) -> None:
        after_visit = self.schedule.current - 1
        released = self.schedule.end_stage_early(stage)
        self.recorder.event(now, "stage_ended_early", stage=stage, after_visit=after_visit)
        self.recorder.unloaded(now, released)
        self._unload(released)

    def _threads(self) -> list[threading.Thread]:
        """One for each loader channel, and one that watches the limit if that may change."""
        names = [f"loader.{channel}" for channel in range(self.schedule.channels)]
        # Daemons, so that a caller who never leaves `visiting` can still end the process.
        threads = [
            threading.Thread(target=self._guarded, args=(self._load_all, name), name=name, daemon=True)
            for name in names
        ]
        if self._limits.now is not None:
            watch = (self._watch_limit, self._limits.now)
            threads.append(threading.Thread(target=self._guarded, args=watch, name="limit", daemon=True))
        return threads

    def _guarded(self, work: Callable[[Any], None], argument: Any) -> None:
        """What a thread runs: whatever it raises ends the run."""
        try:
            work(argument)
        except BaseException as failure:
            with self._changed:
                self._failure = self._failure or failure
                self._changed.notify_all()

    def _watch_limit(self, limit_now: Callable[[], int | None]) -> None:
        # The kernel rounds limits to pages: what counts is that its answer changes.
        last = limit_now()
        while not self._over.wait(_GLANCE_S):
            limit = limit_now()
            if limit != last and limit is not None:
                with self._changed:
                    self._change_limit(limit)
            last = limit

    def _change_limit(self, limit_bytes: int) -> None:
        schedule = self.schedule
        released = change_limit(schedule, limit_bytes)
        self.recorder.limit_changed(self._now(), released)
        self._unload(released)
        self._backend.grow(limit_bytes - schedule.baseline_bytes)
        self._backend.make_room(schedule.room_for_weights(schedule.current))
        self.recorder.settled(self._now())
        self._changed.notify_all()

    def _load_all(self, worker: str) -> None:
        while self._load_one(worker):
            pass

    def _load_one(self, worker: str) -> bool:
        with self._changed:
            while (load := self.schedule.next_load()) is None:
                # Not when the loads are used up: a stage that ends early may turn keeps into loads.
                if not self._is_open or self._failure is not None:
                    return False
                self._changed.wait()
            if not self._is_open or self._failure is not None:
                return False
            weights = self._workload.visits[load.visit].block.weights
            cold = self.schedule.start_load(load)
            self._backend.reserve(weights)
            self._backend.make_room(self.schedule.room_for_weights(load.visit))
            self.recorder.load_started(self._now(), load, worker, cold=cold)
        self._backend.load(weights)
        with self._changed:
            now = self._now()
            released = self.schedule.finish_load(load.visit)
            self.recorder.load_finished(now, worker, released)
            self._unload(released)
            self.recorder.settled(now)
            self._changed.notify_all()
        return True

    def _unload(self, released: Iterable[Release]) -> None:
        for release in released:
            self._backend.unload(release.weights)


def run_all_resident(
    workload: Workload, backend: Backend, program: Program, on_visit: OnVisit = lambda visit: None
) -> tuple[float, tuple[Event, ...]]:
    """The control: load every block, keep all of them, run every visit. Returns seconds and events.

    It knows no limit; under a kernel limit below the weights it is killed.
    """
    began = time.perf_counter()
    for weights in dict.fromkeys(visit.block.weights for visit in workload.visits):
        backend.reserve(weights)
        backend.load(weights)
    events: list[Event] = []
    next_allowed = 0
    for visit in workload.visits:
        if visit.number < next_allowed:
            continue
        outcome = program.run(visit, backend.callable_for(visit))
        on_visit(visit)
        at_s = time.perf_counter() - began
        events += [Event(kind=kind, at_s=at_s, values=values) for kind, values in outcome.events]
        if outcome.end_stage is not None:
            next_allowed = workload.first_visit_of_stage[outcome.end_stage + 1]
    return time.perf_counter() - began, tuple(events)
