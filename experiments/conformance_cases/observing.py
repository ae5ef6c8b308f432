"""What a driver does, as the events of a conformance case.

Both drivers report to a recorder; the one here notes every report in the order in which it comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import DeviceError, InfeasibleError, PlanError
from cidl_sim.core.feasibility import check_plan
from cidl_sim.core.plan import Load, Plan
from cidl_sim.core.recorder import TraceRecorder
from cidl_sim.core.schedule import Release, Schedule
from cidl_sim.core.workload import Visit, Workload
from cidl_sim.simulator.engine import Circumstances, Engine
from conformance_cases.records import Completion, EarlyEnd, Happening, Refused, Replan, Scenario

_STARTS = ("load_started", "visit_started")
Reported = tuple[float, str, dict[str, int | bool]]  # at_s, event, what else a case says of it


class EventRecorder(TraceRecorder):
    """Notes events in order of report, and at each settled moment what the schedule accounts for."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.schedule = schedule
        self.reported: list[Reported] = []
        self.accounted: list[tuple[int, int]] = []  # how many events there were, and the bytes then
        self._under_way: dict[str, int] = {}

    def load_started(self, at_s: float, load: Load, worker: str, *, cold: bool) -> None:
        """A load began."""
        super().load_started(at_s, load, worker, cold=cold)
        self._under_way[worker] = load.visit
        self._note(at_s, "load_started", visit=load.visit, cold=cold)

    def load_finished(self, at_s: float, worker: str, released: Iterable[Release]) -> None:
        """The load of `worker` ended."""
        self._note(at_s, "load_finished", visit=self._under_way[worker])
        super().load_finished(at_s, worker, released)

    def visit_started(self, at_s: float, visit: Visit) -> None:
        """A visit began."""
        super().visit_started(at_s, visit)
        self._under_way["executor"] = visit.number
        self._note(at_s, "visit_started", visit=visit.number)

    def visit_finished(self, at_s: float, released: Iterable[Release]) -> None:
        """The running visit ended."""
        self._note(at_s, "visit_finished", visit=self._under_way["executor"])
        super().visit_finished(at_s, released)

    def unloaded(self, at_s: float, released: Iterable[Release]) -> None:
        """Weights left memory."""
        released = list(released)
        super().unloaded(at_s, released)
        for release in released:
            self._note(at_s, "released", visit=release.visit)

    def event(self, at_s: float, kind: str, **values: str | int | float | bool | None) -> None:
        """Note what a case knows of a moment."""
        super().event(at_s, kind, **values)
        if kind == "stage_ended_early":
            self._note(at_s, kind, visit=int(values["after_visit"] or 0), stage=int(values["stage"] or 0))
        elif kind == "limit_changed":
            self._note(at_s, kind, limit_bytes=int(values["limit_bytes"] or 0))
        else:
            self._note(at_s, kind, visit=self.schedule.current - 1)

    def settled(self, at_s: float) -> None:
        """Everything that may start has started."""
        super().settled(at_s)
        self.accounted.append((len(self.reported), self.schedule.resident_bytes))

    def _note(self, at_s: float, event: str, **values: int | bool) -> None:
        self.reported.append((at_s, event, values))


class _Decisions:
    """An online policy that takes what a case says instead of deciding anything."""

    def __init__(self, plan: Plan, replans: Sequence[Replan]) -> None:
        self._plans = {r.after_visit: plan.model_copy(update={"keep": r.keep}) for r in replans}

    def load_finished(self, visit: Visit, cold: bool, start_s: float, end_s: float) -> None:
        """Nothing is learnt from a load."""

    def visit_finished(self, visit: Visit, start_s: float, end_s: float) -> None:
        """Nothing is learnt from a visit."""

    def replanned(self, schedule: Schedule) -> Plan | None:
        """The plan that the case has for this moment."""
        return self._plans.get(schedule.current - 1)


def circumstances_of(workload: Workload, plan: Plan, scenario: Scenario) -> Circumstances:
    """A scenario as the simulator takes it."""
    return {
        "stage_rounds": _stage_rounds(workload, scenario.early_ends),
        "limit_changes": [(change.at_s, change.limit_bytes) for change in scenario.limit_changes],
        "online": _Decisions(plan, scenario.replans) if scenario.replans else None,
    }


def _stage_rounds(workload: Workload, early_ends: Iterable[EarlyEnd]) -> dict[int, int]:
    rounds: dict[int, int] = {}
    for end in early_ends:
        visit = workload.visits[end.after_visit]
        if visit.position + 1 != len(workload.stages[visit.stage].blocks):
            raise ValueError(f"visit {end.after_visit} is not the last of a round: the simulator cannot end there")
        rounds[visit.stage] = visit.round + 1
        rounds |= dict.fromkeys(range(visit.stage + 1, end.stage + 1), 0)
    return rounds


def observed(workload: Workload, device: DeviceProfile, plan: Plan, scenario: Scenario) -> Completion:
    """What the simulator does; raises what it raises."""
    engine = Engine(workload, device, plan, **circumstances_of(workload, plan, scenario))
    recorder = EventRecorder(engine.schedule)
    engine.recorder = recorder
    engine.run()
    return Completion(
        makespan_s=engine.finished_s,
        peak_resident_bytes=engine.schedule.peak_resident_bytes,
        events=events_of(workload, device.baseline_bytes, recorder.reported),
    )


def refusal_of(workload: Workload, device: DeviceProfile, plan: Plan, error: Exception) -> Refused:
    """Which visit or block an error's line is about, as a case says it."""
    message = str(error)
    visits = [v for v in workload.visits if message.startswith(f"visit {v.number} ")]
    match error:
        case PlanError():
            number = int(message.split()[1].rstrip(":")) if message.startswith("visit ") else None
            return Refused(kind="plan", visit=number, block=visits[0].block.name if visits else None)
        case InfeasibleError():
            named = visits or [v for v in workload.visits if f"block {v.block.name!r}" in message]
            return Refused(kind="infeasible", visit=named[0].number, block=named[0].block.name)
        case DeviceError():
            named = [v for v in workload.visits if f"kind {v.block.kind!r}" in message]
            return Refused(kind="device", block=named[0].block.name)
    raise error


def check(workload: Workload, device: DeviceProfile, plan: Plan) -> None:
    """Refuse a plan before it runs, as every driver of this project has it done."""
    check_plan(workload, device, plan)


# Order and bytes


def events_of(workload: Workload, baseline_bytes: int, reported: Iterable[Reported]) -> tuple[Happening, ...]:
    """Reports as the events of a case: ends at one instant in a case's order, bytes added up from the blocks alone."""
    held, workspace, events = baseline_bytes, 0, []
    for at_s, event, values in _in_order(list(reported)):
        block = workload.visits[values.get("visit", 0)].block
        if event == "load_started":
            held += block.weight_bytes
        elif event == "released":
            held -= block.weight_bytes
        elif event in ("visit_started", "visit_finished"):
            workspace = block.workspace_bytes if event == "visit_started" else 0
        events.append(Happening(at_s=at_s, event=event, resident_bytes=held + workspace, **values))
    return tuple(events)


def _in_order(reported: Sequence[Reported]) -> Iterator[Reported]:
    """Of what ends at one instant before anything starts, the visit first, then loads by visit.

    Which of them ends first means nothing: a driver may report them in any order.
    """
    for (_, is_start), run in groupby(reported, key=lambda event: (event[0], event[1] in _STARTS)):
        if is_start:
            yield from run
            continue
        ends: list[list[Reported]] = []
        for report in run:
            if report[1] in ("visit_finished", "load_finished", "limit_changed"):
                ends.append([])
            ends[-1].append(report)
        for end in sorted(ends, key=lambda end: (end[0][1] == "load_finished", end[0][2].get("visit", 0))):
            for _, same in groupby(end, key=lambda report: report[1]):
                yield from sorted(same, key=lambda report: report[2].get("visit", 0))
