"""How a driver's reports become a trace. Attached from outside; it never decides anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cidl_sim.core.plan import Load
from cidl_sim.core.schedule import Release, Schedule
from cidl_sim.core.trace import Event, Header, Operation, Span, Trace
from cidl_sim.core.workload import Visit


class TraceRecorder:
    """Builds a trace from what a driver reports. Attached from outside; it never decides anything.

    Idle workers get wait spans whose cause is what the schedule says at that moment; when the cause
    changes while waiting, one wait ends and another begins.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._spans: list[Span] = []
        self._events: list[Event] = []
        self._open: dict[str, tuple[Visit, float, bool]] = {}
        self._idle: dict[str, tuple[float, str, int] | None] = {"executor": (0.0, "load", 0)}
        for channel in range(schedule.channels):
            self._idle[f"loader.{channel}"] = (0.0, "gate", 0)

    def load_started(self, at_s: float, load: Load, worker: str, *, cold: bool) -> None:
        """A load began on `worker`."""
        self._begin(at_s, worker, self._schedule.workload.visits[load.visit], cold)

    def load_finished(self, at_s: float, worker: str, released: Iterable[Release]) -> None:
        """The load on `worker` ended; `released` is not empty if it was wasted."""
        visit, start_s, cold = self._end(at_s, worker)
        self._add("load", worker, visit.number, start_s, at_s, visit.block.weight_bytes, cold=cold)
        self.unloaded(at_s, released)

    def visit_started(self, at_s: float, visit: Visit) -> None:
        """A visit began."""
        self._begin(at_s, "executor", visit, cold=False)

    def visit_finished(self, at_s: float, released: Iterable[Release]) -> None:
        """The running visit ended and released weights."""
        visit, start_s, _ = self._end(at_s, "executor")
        self._add("execute", "executor", visit.number, start_s, at_s, visit.block.workspace_bytes)
        self.unloaded(at_s, released)

    def unloaded(self, at_s: float, released: Iterable[Release]) -> None:
        """Weights left memory."""
        for release in released:
            self._add("unload", "executor", release.visit, at_s, at_s, release.weight_bytes)

    def event(self, at_s: float, kind: str, **values: str | int | float | bool | None) -> None:
        """Record a moment."""
        self._events.append(Event(kind=kind, at_s=at_s, values=values))

    def limit_changed(self, at_s: float, released: Sequence[Release]) -> None:
        """The memory limit became another, and what did not fit any more left memory."""
        schedule = self._schedule
        self.event(
            at_s,
            "limit_changed",
            limit_bytes=schedule.memory_limit_bytes,
            retained=len(schedule.retained_weights),
            unloaded=len(released),
            unloaded_bytes=sum(release.weight_bytes for release in released),
        )
        self.unloaded(at_s, released)

    def settled(self, at_s: float) -> None:
        """Everything that may start at `at_s` has started: note why the idle workers wait."""
        for worker, idle in self._idle.items():
            if idle is None:
                continue
            since, cause, visit = idle
            now, awaited = self._cause(worker) or cause, self._awaited_visit(worker)
            if now != cause or (worker == "executor" and awaited != visit):
                self._add_wait(worker, visit, since, at_s, cause)
                since = at_s
            # Another channel may have taken the load that this one waited for.
            self._idle[worker] = (since, now, awaited)

    def _begin(self, at_s: float, worker: str, visit: Visit, cold: bool) -> None:
        idle = self._idle[worker]
        if idle is not None:
            self._add_wait(worker, visit.number, idle[0], at_s, idle[1])
        self._idle[worker] = None
        self._open[worker] = (visit, at_s, cold)

    def _end(self, at_s: float, worker: str) -> tuple[Visit, float, bool]:
        opened = self._open.pop(worker)
        self._idle[worker] = (at_s, self._cause(worker) or "dispatch", self._awaited_visit(worker))
        return opened

    def _cause(self, worker: str) -> str | None:
        return self._schedule.executor_cause() if worker == "executor" else self._schedule.loader_cause()

    def _awaited_visit(self, worker: str) -> int:
        """The visit that the executor is to run next, or whose weights the loader is to load next."""
        schedule, last = self._schedule, len(self._schedule.workload.visits) - 1
        if worker == "executor":
            return min(schedule.current, last)
        return last if schedule.pending_load is None else schedule.pending_load.visit

    def _add_wait(self, worker: str, visit: int, start_s: float, end_s: float, cause: str) -> None:
        if end_s > start_s and cause != "done":
            self._add("wait", worker, visit, start_s, end_s, 0, cause=cause)

    def _add(
        self,
        operation: Operation,
        worker: str,
        visit: int,
        start_s: float,
        end_s: float,
        bytes_: int,
        *,
        cold: bool = False,
        cause: str | None = None,
    ) -> None:
        self._spans.append(
            Span.model_construct(
                operation=operation,
                worker=worker,
                visit=visit,
                start_s=start_s,
                end_s=end_s,
                bytes=bytes_,
                cold=cold,
                cause=cause,
                resident_bytes=self._schedule.resident_bytes,
            )
        )

    def finish(self, header: Header) -> Trace:
        """The trace of everything recorded so far, spans in order of their start."""
        order = {"unload": 0, "load": 1, "execute": 2, "wait": 3}
        spans = sorted(self._spans, key=lambda s: (s.start_s, s.end_s, order[s.operation], s.worker, s.visit))
        header = header.model_copy(update={"peak_resident_bytes": self._schedule.peak_resident_bytes})
        return Trace(header=header, spans=tuple(spans), events=tuple(self._events))
