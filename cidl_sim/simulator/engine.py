"""Discrete-event simulation of a plan on a device profile, on SimPy.

The schedule decides what may start; this file only gives durations and moves the virtual clock. Work
under contention is a fluid: its rate changes whenever a load or a visit starts or ends, when another
channel begins to share the bandwidth, and at each thermal step.

Dispatching has a lower priority than everything else in SimPy's heap, so whatever ends at one instant
has ended before anything starts at it. That makes the result independent of the order of insertion,
and equal input gives byte-identical traces.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, Unpack, cast

from cidl_sim.core.costs import Cost
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.feasibility import explain_deadlock
from cidl_sim.core.plan import Load, Plan
from cidl_sim.core.recorder import TraceRecorder
from cidl_sim.core.refit import change_limit, go_on_with
from cidl_sim.core.schedule import Schedule
from cidl_sim.core.timed import timed
from cidl_sim.core.trace import Trace, header_for
from cidl_sim.core.workload import Visit, Workload
from cidl_sim.simulator.noise import Factors, cost_factors

if TYPE_CHECKING:
    import simpy
    from simpy.events import EventPriority

# After SimPy's own URGENT (0) and NORMAL (1).
_DISPATCH_PRIORITY = cast("EventPriority", 2)
_Process = Generator["simpy.Event", Any, None]
LimitChange = tuple[float, int]  # seconds from the start, bytes from then on


class OnlinePolicy(Protocol):
    """Told what ended, with its seconds from the start of the run; may give another plan between two visits."""

    def load_finished(self, visit: Visit, cold: bool, start_s: float, end_s: float) -> None:
        """The weights of `visit` were loaded; `cold` if for the first time."""

    def visit_finished(self, visit: Visit, start_s: float, end_s: float) -> None:
        """A visit was executed."""

    def replanned(self, schedule: Schedule) -> Plan | None:
        """Another plan for the rest of the run, or None to go on. It must not alter `schedule`."""


class Circumstances(TypedDict, total=False):
    """What a simulation may be given beside workload, device and plan.

    `seed` switches the device's noise on. `factors` multiply the cost of each load and each execution, by visit.
    `stage_rounds` gives, for stages that ended early, the rounds that really ran (replay of a recorded run).
    `limit_changes`: at so many seconds the memory limit becomes so many bytes. `online` may change the plan on the way.
    """

    seed: int | None
    stage_rounds: Mapping[int, int] | None
    limit_changes: Sequence[LimitChange]
    factors: Factors | None
    online: OnlinePolicy | None


def simulate(workload: Workload, device: DeviceProfile, plan: Plan, **circumstances: Unpack[Circumstances]) -> Trace:
    """Simulate `plan` and return its trace; see `Circumstances` for the rest.

    Raises InfeasibleError where the plan cannot finish within the memory limit, PlanError where it breaks a rule,
    DeviceError where a cost is unknown.
    """
    plan.check_workload(workload)
    engine = Engine(workload, device, plan, **circumstances)
    recorder = TraceRecorder(engine.schedule)
    engine.recorder = recorder
    engine.run()
    header = header_for(
        workload,
        plan,
        device_name=device.name,
        device_sha256=device.sha256,
        memory_limit_bytes=device.memory_limit_bytes,
        baseline_bytes=device.baseline_bytes,
        origin="simulated",
        enforced_by="none",
        clock="virtual",
        seed=circumstances.get("seed"),
        fall_backs=tuple(f"analytic cost for kind {kind}" for kind in engine.unmeasured_kinds),
    )
    return recorder.finish(header)


def makespan_s(workload: Workload, device: DeviceProfile, plan: Plan, **circumstances: Unpack[Circumstances]) -> float:
    """The makespan of `plan` in seconds, without recording a trace."""
    engine = Engine(workload, device, plan, **circumstances)
    engine.run()
    return engine.finished_s


class _Activity:
    """A load or an execution in progress; `rate` seconds of work pass per second of time."""

    __slots__ = ("is_load", "transferring")

    def __init__(self, *, is_load: bool) -> None:
        self.is_load = is_load
        self.transferring = False


class Engine:
    """One simulation. Use `simulate` unless you attach an observer of your own as `recorder`."""

    def __init__(
        self, workload: Workload, device: DeviceProfile, plan: Plan, **circumstances: Unpack[Circumstances]
    ) -> None:
        import simpy  # what only plans and prices need not wait for it

        self.schedule = Schedule.for_device(workload, plan, device)
        self.recorder: TraceRecorder | None = None
        self.finished_s = 0.0
        self._workload = workload
        self._device = device
        self._timed = timed(workload, device)
        self._env = simpy.Environment()
        self._early_ends = _last_visits(workload, circumstances.get("stage_rounds") or {})
        self._limit_changes = circumstances.get("limit_changes", ())
        self._online = circumstances.get("online")
        self._idle_channels = list(range(device.loader.channels - 1, -1, -1))
        self._active: list[_Activity] = []
        self._heat_factor = 1.0
        self._is_fluid = self._timed.is_fluid
        self._rates_changed = self._env.event()
        self._dispatch_pending = False
        self._done = self._env.event()
        seed, factors = circumstances.get("seed"), circumstances.get("factors")
        self._load_noise, self._execute_noise = cost_factors(device.noise, seed, len(workload.visits), factors)
        self._touched_bytes = 0
        self.unmeasured_kinds: list[str] = []

    def run(self) -> None:
        """Run to the end of the last visit; InfeasibleError if nothing can go on before that."""
        for step in self._device.thermal:
            self._env.process(self._heat(step.after_s, step.factor))
        for at_s, limit_bytes in self._limit_changes:
            self._env.process(self._change_limit(at_s, limit_bytes))
        self._request_dispatch()
        try:
            self._env.run(until=self._done)
        except RuntimeError:
            # SimPy's word for "nothing is left to happen"; an error of a process comes as itself.
            if self.schedule.is_done:
                raise
            raise InfeasibleError(explain_deadlock(self.schedule)) from None

    # Starting what may start

    def _request_dispatch(self) -> None:
        if not self._dispatch_pending:
            self._dispatch_pending = True
            event = self._env.event()
            event._ok, event._value = True, None
            event.callbacks.append(self._dispatch)
            self._env.schedule(event, priority=_DISPATCH_PRIORITY)

    def _dispatch(self, _: simpy.Event) -> None:
        self._dispatch_pending = False
        schedule, recorder, now = self.schedule, self.recorder, self._env.now
        started = True
        while started:
            started = False
            visit = schedule.next_visit()
            if visit is not None:
                self._trim(visit.number)
                schedule.start_visit(visit)
                if recorder:
                    recorder.visit_started(now, visit)
                self._env.process(self._execute(visit))
                started = True
            while (load := schedule.next_load()) is not None:
                cold = schedule.start_load(load)
                touch_s = self._first_touch_s(load.visit)
                channel = self._idle_channels.pop()
                if recorder:
                    recorder.load_started(now, load, f"loader.{channel}", cold=cold)
                self._env.process(self._load(load, channel, cold, touch_s))
                started = True
        if recorder:
            recorder.settled(now)

    def _load(self, load: Load, channel: int, cold: bool, touch_s: float) -> _Process:
        visit, began_s = self._workload.visits[load.visit], self._env.now
        cost = self._noted(visit, self._timed.load_cost(visit.number))
        if touch_s:
            cost = replace(cost, fixed_s=cost.fixed_s + touch_s)
        yield from self._perform(_Activity(is_load=True), cost, float(self._load_noise[load.visit]))
        released = self.schedule.finish_load(load.visit)
        self._idle_channels.append(channel)
        if self.recorder:
            self.recorder.load_finished(self._env.now, f"loader.{channel}", released)
        if self._online:
            self._online.load_finished(visit, cold, began_s, self._env.now)
        self._request_dispatch()

    def _execute(self, visit: Visit) -> _Process:
        cost, began_s = self._noted(visit, self._timed.execute_cost(visit.number)), self._env.now
        yield from self._perform(_Activity(is_load=False), cost, float(self._execute_noise[visit.number]))
        released = self.schedule.finish_visit(visit)
        if self.recorder:
            self.recorder.visit_finished(self._env.now, released)
        if visit.number in self._early_ends:
            stage = self._early_ends[visit.number]
            released = self.schedule.end_stage_early(stage)
            if self.recorder:
                self.recorder.event(self._env.now, "stage_ended_early", stage=stage, after_visit=visit.number)
                self.recorder.unloaded(self._env.now, released)
        if self.schedule.is_done:
            self.finished_s = self._env.now
            self._done.succeed()
            return
        if self._online:
            self._online.visit_finished(visit, began_s, self._env.now)
            self._take_plan(self._online.replanned(self.schedule))
        self._request_dispatch()

    def _take_plan(self, plan: Plan | None) -> None:
        if plan is None:
            return
        released = go_on_with(self.schedule, plan)
        if self.recorder:
            retained = len(self.schedule.retained_weights)
            self.recorder.event(self._env.now, "replanned", policy=plan.policy, retained=retained)
            self.recorder.unloaded(self._env.now, released)

    def _change_limit(self, at_s: float, limit_bytes: int) -> _Process:
        yield self._env.timeout(at_s)
        released = change_limit(self.schedule, limit_bytes)
        self._trim(self.schedule.current)
        if self.recorder:
            self.recorder.limit_changed(self._env.now, released)
        self._request_dispatch()

    # Durations

    def _perform(self, activity: _Activity, cost: Cost, noise: float) -> _Process:
        if not self._is_fluid:
            yield self._env.timeout(cost.seconds * noise)
            return
        self._active.append(activity)
        self._announce_rates()
        if cost.fixed_s:
            yield self._env.timeout(cost.fixed_s * noise)
        remaining = cost.work_s * noise
        activity.transferring = True
        self._announce_rates()
        while remaining > 0:
            rate, began, changed = self._rate(activity), self._env.now, self._rates_changed
            finished = self._env.timeout(remaining / rate)
            yield finished | changed
            if finished.processed:
                break
            remaining -= (self._env.now - began) * rate
        self._active.remove(activity)
        self._announce_rates()

    def _rate(self, activity: _Activity) -> float:
        """Seconds of contention-free work done per second; loads also share the bandwidth equally."""
        if activity.is_load:
            sharing = sum(1 for other in self._active if other.is_load and other.transferring)
            executing = any(not other.is_load for other in self._active)
            return 1.0 / sharing / (self._device.loader.slowdown_while_executing if executing else 1.0)
        loading = any(other.is_load for other in self._active)
        return self._heat_factor / (self._device.executor.slowdown_while_loading if loading else 1.0)

    def _announce_rates(self) -> None:
        changed, self._rates_changed = self._rates_changed, self._env.event()
        changed.succeed()

    def _heat(self, after_s: float, factor: float) -> _Process:
        yield self._env.timeout(after_s)
        self._heat_factor = factor
        self._announce_rates()

    def _first_touch_s(self, visit: int) -> float:
        """Seconds for the bytes that the load just started for `visit` takes beyond what was touched before."""
        rate = self._device.loader.first_touch_bytes_per_s
        if rate is None:
            return 0.0
        self._trim(visit)
        fresh = max(0, self.schedule.weights_held - self._touched_bytes)
        self._touched_bytes += fresh
        return fresh / rate

    def _trim(self, visit: int) -> None:
        """Free memory goes back to the system where weights may take less than was touched, as in the executor."""
        if self._touched_bytes and self.schedule.current <= visit:
            room = self.schedule.room_for_weights(visit)
            self._touched_bytes = min(self._touched_bytes, max(room, self.schedule.weights_held))

    def _noted(self, visit: Visit, cost: Cost) -> Cost:
        """The cost, after a note if nothing was measured that it comes from."""
        if not cost.measured and visit.block.kind not in self.unmeasured_kinds:
            self.unmeasured_kinds.append(visit.block.kind)
        return cost


def _last_visits(workload: Workload, stage_rounds: Mapping[int, int]) -> dict[int, int]:
    """The visits after which stages end early, each with the last stage that ends there."""
    ends: dict[int, int] = {}
    for stage, rounds in sorted(stage_rounds.items()):
        if rounds < workload.stages[stage].rounds:
            last = workload.first_visit_of_stage[stage] + rounds * len(workload.stages[stage].blocks) - 1
            # A stage that did not run at all ended with the one before it.
            skipped_from = [v for v, s in ends.items() if s == stage - 1] if rounds == 0 else []
            ends[skipped_from[0] if skipped_from else last] = stage
    return ends
