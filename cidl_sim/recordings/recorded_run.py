"""A run that was recorded elsewhere, as a trace: its intervals become visits, and drive the schedule.

Memory, unloads and the causes of waiting are then accounted exactly as in a simulation or in a run of the executor.
The trace's origin is `imported`, whatever the recorded app computed with: an importer cannot know.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Literal

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import TraceError
from cidl_sim.core.feasibility import check_plan
from cidl_sim.core.plan import FIRST_PIPELINE, Gate, Load, Plan
from cidl_sim.core.recorder import TraceRecorder
from cidl_sim.core.schedule import Schedule
from cidl_sim.core.trace import Trace, header_for
from cidl_sim.core.workload import Visit, Workload

RECORDED = "recorded"  # the policy of a plan that was read off a recording


@dataclass(frozen=True)
class Interval:
    """A load or an execution as it was recorded; nanoseconds from the start of the recording.

    `visit` and `weights`: one of them may be unknown. `cold` and `channel` are None where nothing tells.
    """

    operation: Literal["load", "execute"]
    start_ns: int
    end_ns: int
    source: str
    visit: int | None = None
    weights: str | None = None
    cold: bool | None = None
    channel: int | None = None


@dataclass(frozen=True)
class Recording:
    """What the files hold of one run. `facts` are figures of the machine and the app, for the trace's header."""

    intervals: list[Interval]
    began_ns: int
    facts: dict[str, str | int | float] = field(default_factory=dict)
    peak_footprint_bytes: int | None = None


def trace_of_recording(recording: Recording, workload: Workload, plan: Plan) -> Trace:
    """The trace of a run that followed `plan`. TraceError names the first load or visit that did not.

    Starts that the plan would have put later, for a gate or for memory, are counted among the `fall_backs`: an app
    that tells the time of an edge a little late is no reason to refuse its recording.
    """
    plan.check_workload(workload)
    driver = _Driver(workload, plan, recording)
    driver.run()
    header = header_for(
        workload,
        plan,
        origin="imported",
        enforced_by="none",
        clock="mach_time",
        machine=recording.facts,
        fall_backs=driver.remarks(),
        peak_kernel_bytes=recording.peak_footprint_bytes,
    )
    return driver.recorder.finish(header)


def recorded_plan(recording: Recording, workload: Workload, device: DeviceProfile) -> Plan:
    """The plan that a run followed, as far as a recording tells: which loads in which order, what was kept.

    A load gets a gate where the last thing before it was an edge of a visit, not the end of another load. Visits of
    stages that ended early count as loaded each after the visit before it.
    InfeasibleError if the run could not have gone this way within the device's memory.
    """
    loads = sorted(_of(recording, "load"), key=lambda i: (i.start_ns, i.visit))
    executions = _of(recording, "execute")
    planned = _with_skipped(_gated(loads, executions), executions, workload)
    loaded = {load.visit for load in planned}
    following = workload.next_same_weights
    plan = Plan(
        pipeline=str(workload.settings.get("pipeline", FIRST_PIPELINE)),
        policy=RECORDED,
        workload_name=workload.name,
        workload_sha256=workload.sha256,
        workload_settings=dict(workload.settings),
        device_name=device.name,
        device_sha256=device.sha256,
        memory_limit_bytes=device.memory_limit_bytes,
        baseline_bytes=device.baseline_bytes,
        channels=_most_at_once(loads),
        loads=tuple(planned),
        keep=tuple(v.number for v in workload.visits if (n := following[v.number]) is not None and n not in loaded),
    )
    check_plan(workload, device, plan)
    return plan


def _gated(loads: Sequence[Interval], executions: Sequence[Interval]) -> list[Load]:
    edges = sorted(
        (at_ns, _visit(interval), edge)
        for interval in executions
        for at_ns, edge in ((interval.start_ns, "start"), (interval.end_ns, "end"))
    )
    times, ends = [at_ns for at_ns, *_ in edges], sorted(load.end_ns for load in loads)
    result = []
    for load in loads:
        passed, ended = bisect_right(times, load.start_ns), bisect_right(ends, load.start_ns)
        is_gated = passed and not (ended and ends[ended - 1] >= times[passed - 1])
        gate = Gate(visit=edges[passed - 1][1], edge=edges[passed - 1][2]) if is_gated else None
        result.append(Load(visit=_visit(load), gate=gate))
    return result


def _with_skipped(loads: list[Load], executions: Sequence[Interval], workload: Workload) -> list[Load]:
    known = {load.visit for load in loads} | {_visit(interval) for interval in executions}
    result = list(loads)
    for number in sorted(set(range(len(workload.visits))) - known):
        place = next((i for i, load in enumerate(result) if load.visit > number), len(result))
        result.insert(place, Load(visit=number, gate=Gate(visit=number - 1, edge="end")))
    return result


# Which visit an interval belongs to


def numbered(intervals: Sequence[Interval], workload: Workload) -> list[Interval]:
    """The same intervals with the visit of each, checked against each other.

    Where an execution does not say it, executions count from the first visit on. TraceError names the first interval
    that cannot belong to a whole run of `workload`.
    """
    ordered = sorted(intervals, key=lambda i: (i.start_ns, i.end_ns))
    executions = _numbered_executions([i for i in ordered if i.operation == "execute"], workload.visits)
    loads = _numbered_loads([i for i in ordered if i.operation == "load"], executions, workload.visits)
    loaded = {_visit(load) for load in loads}
    seen: set[str] = set()
    for execution in executions:
        weights = workload.visits[_visit(execution)].block.weights
        if weights not in seen and _visit(execution) not in loaded:
            raise TraceError(f"{execution.source}: {_named(workload, execution)} ran, but {weights!r} was never loaded")
        seen.add(weights)
    return [*loads, *executions]


def _numbered_executions(executions: Sequence[Interval], visits: Sequence[Visit]) -> list[Interval]:
    result: list[Interval] = []
    for interval in executions:
        number = len(result) if interval.visit is None else interval.visit
        result.append(_as_visit(interval, number, visits))
    for one, other in pairwise(result):
        if _visit(other) <= _visit(one):
            raise TraceError(f"{other.source}: visit {other.visit} after visit {one.visit}; visits run in order, once")
        if other.start_ns < one.end_ns:
            raise TraceError(f"{other.source}: visit {other.visit} began before visit {one.visit} had ended")
    if not result:
        raise TraceError("no execution was recorded, only loads")
    _check_complete([_visit(i) for i in result], visits)
    return result


def _check_complete(executed: Sequence[int], visits: Sequence[Visit]) -> None:
    """Every visit ran; only the rest of a stage may be missing, which ended early then."""
    for before, after in pairwise([-1, *executed, len(visits)]):
        ended_early = before >= 0 and after < len(visits) and visits[after].stage == visits[before].stage + 1
        starts_stage = after < len(visits) and (visits[after].round, visits[after].position) == (0, 0)
        if after != before + 1 and not (ended_early and starts_stage):
            missing = f"visit {before + 1}" if after == before + 2 else f"visits {before + 1} to {after - 1}"
            raise TraceError(
                f"no execution of {missing} (of {len(visits)}) was recorded; a recording has to hold the whole run, of "
                "the workload that it is imported with"
            )


def _numbered_loads(
    loads: Sequence[Interval], executions: Sequence[Interval], visits: Sequence[Visit]
) -> list[Interval]:
    """Where a load does not say it, the first visit of its weights that began after it."""
    by_weights: dict[str, list[Interval]] = defaultdict(list)
    began = {}
    for execution in executions:
        by_weights[visits[_visit(execution)].block.weights].append(execution)
        began[_visit(execution)] = execution.start_ns
    result: list[Interval] = []
    for load in loads:
        number = load.visit
        if number is None:
            later = (e for e in by_weights.get(load.weights or "", ()) if e.start_ns >= load.end_ns)
            number = next((_visit(execution) for execution in later), None)
        if number is None:
            raise TraceError(
                f"{load.source}: {load.weights!r} was loaded, but no visit of the workload ran it afterwards"
            )
        result.append(_as_visit(load, number, visits))
        if began.get(number, load.end_ns) < load.end_ns:
            raise TraceError(f"{load.source}: visit {number} began before the load of its weights had ended")
    twice = [number for number, count in Counter(map(_visit, result)).items() if count > 1]
    if twice:
        again = [load.source for load in result if load.visit == twice[0]][1]
        raise TraceError(f"{again}: the weights of visit {twice[0]} were loaded twice before it")
    return result


def _as_visit(interval: Interval, number: int, visits: Sequence[Visit]) -> Interval:
    if number >= len(visits):
        raise TraceError(f"{interval.source}: visit {number}, but the workload has only {len(visits)} visits")
    weights = visits[number].block.weights
    if interval.weights not in (None, weights):
        raise TraceError(
            f"{interval.source}: visit {number} of {interval.weights!r}; in the workload it is of {weights!r}"
        )
    return replace(interval, visit=number, weights=weights)


def _visit(interval: Interval) -> int:
    if interval.visit is None:
        raise ValueError("an interval that was not numbered")
    return interval.visit


def _of(recording: Recording, operation: str) -> list[Interval]:
    return [interval for interval in recording.intervals if interval.operation == operation]


def _most_at_once(loads: Iterable[Interval]) -> int:
    changes = sorted(change for load in loads for change in ((load.start_ns, 1), (load.end_ns, -1)))
    now, most = 0, 1
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def _named(workload: Workload, interval: Interval) -> str:
    return workload.label(workload.visits[_visit(interval)])


# From intervals to a trace


@dataclass(frozen=True)
class _Change:
    at_ns: int
    is_start: bool
    interval: Interval


class _Driver:
    """Drives the schedule with recorded times, as the simulator does with computed ones."""

    def __init__(self, workload: Workload, plan: Plan, recording: Recording) -> None:
        self._workload = workload
        self._plan = plan
        self._recording = recording
        self._schedule = Schedule(
            workload,
            plan,
            memory_limit_bytes=plan.memory_limit_bytes,
            baseline_bytes=plan.baseline_bytes,
            channels=plan.channels,
        )
        self.recorder = TraceRecorder(self._schedule)
        executed = sorted(_visit(interval) for interval in _of(recording, "execute"))
        self._next_executed = dict(pairwise(executed))
        self._channels: dict[int, int] = {}  # of the loads in flight, by visit
        self._running: set[int] = set()
        self._early: Counter[str] = Counter()
        is_own = plan.policy == RECORDED
        self._way_out = "" if is_own else "; imported without a plan, the run's own is taken"

    def run(self) -> None:
        """Report every start and end in order of time; of several at one moment first what the schedule allows."""
        changes = [
            _Change(at_ns, is_start, interval)
            for interval in self._recording.intervals
            for at_ns, is_start in ((interval.start_ns, True), (interval.end_ns, False))
        ]
        changes.sort(key=lambda c: (c.at_ns, c.is_start, c.interval.operation, c.interval.visit))
        for at_ns, group in groupby(changes, key=lambda c: c.at_ns):
            at_s = (at_ns - self._recording.began_ns) / 1e9
            waiting = list(group)
            while waiting:
                allowed = (c for c in waiting if self._allows(c))
                change = next(allowed, None) or next(c for c in waiting if c.is_start)
                waiting.remove(change)
                self._report(change, at_s)
            self.recorder.settled(at_s)

    def remarks(self) -> tuple[str, ...]:
        """What began earlier than the plan says, and how often."""
        return tuple(f"{count} {what}" for what, count in self._early.items())

    def _allows(self, change: _Change) -> bool:
        number, is_load = _visit(change.interval), change.interval.operation == "load"
        if not change.is_start:
            return number in (self._channels if is_load else self._running)
        if is_load:
            load = self._schedule.next_load()
            return load is not None and load.visit == number
        visit = self._schedule.next_visit()
        return visit is not None and visit.number == number

    def _report(self, change: _Change, at_s: float) -> None:
        interval = change.interval
        if interval.operation == "load":
            (self._load_started if change.is_start else self._load_finished)(interval, at_s)
        else:
            (self._visit_started if change.is_start else self._visit_finished)(interval, at_s)

    def _load_started(self, interval: Interval, at_s: float) -> None:
        schedule, load = self._schedule, self._schedule.pending_load
        if load is None or load.visit != interval.visit:
            instead = "nothing more" if load is None else f"visit {load.visit}"
            raise TraceError(
                f"{interval.source}: the weights of visit {interval.visit} are loaded, the plan {self._plan.policy!r} "
                f"loads those of {instead} then{self._way_out}"
            )
        cause = schedule.loader_cause()
        if cause == "weights_in_use":
            raise TraceError(
                f"{interval.source}: {interval.weights!r} is loaded for visit {interval.visit} while it is in memory"
            )
        if cause == "channels":
            raise TraceError(f"{interval.source}: more loads at once than the plan's {self._plan.channels} channels")
        if cause is not None:
            self._early[f"loads began before {'their gate' if cause == 'gate' else 'memory allowed it'}"] += 1
        first = schedule.start_load(load)
        taken = set(self._channels.values())
        free = min(set(range(self._plan.channels)) - taken)
        channel = free if interval.channel is None else interval.channel
        if channel in taken or channel >= self._plan.channels:
            raise TraceError(f"{interval.source}: channel={channel} is in use, or not one of {self._plan.channels}")
        self._channels[load.visit] = channel
        cold = first if interval.cold is None else interval.cold
        self.recorder.load_started(at_s, load, f"loader.{channel}", cold=cold)

    def _load_finished(self, interval: Interval, at_s: float) -> None:
        number = _visit(interval)
        released = self._schedule.finish_load(number)
        self.recorder.load_finished(at_s, f"loader.{self._channels.pop(number)}", released)

    def _visit_started(self, interval: Interval, at_s: float) -> None:
        cause = self._schedule.executor_cause()
        if cause == "load":
            raise TraceError(
                f"{interval.source}: {_named(self._workload, interval)} ran without a load of its weights, which the "
                f"plan {self._plan.policy!r} does not keep{self._way_out}"
            )
        if cause == "memory":
            self._early["visits began before memory allowed it"] += 1
        visit = self._workload.visits[_visit(interval)]
        self._running.add(visit.number)
        self._schedule.start_visit(visit)
        self.recorder.visit_started(at_s, visit)

    def _visit_finished(self, interval: Interval, at_s: float) -> None:
        visit = self._workload.visits[_visit(interval)]
        self._running.discard(visit.number)
        self.recorder.visit_finished(at_s, self._schedule.finish_visit(visit))
        if self._next_executed.get(visit.number, visit.number + 1) != visit.number + 1:
            released = self._schedule.end_stage_early(visit.stage)
            self.recorder.event(at_s, "stage_ended_early", stage=visit.stage, after_visit=visit.number)
            self.recorder.unloaded(at_s, released)
