"""The runtime: the same frames whatever the plan, sane traces, and no thread left behind by a failure."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cidl_sim.core.device import DeviceProfile, Measured
from cidl_sim.core.errors import InfeasibleError, StoreError
from cidl_sim.core.feasibility import check_plan
from cidl_sim.core.plan import Gate, Load, Plan
from cidl_sim.core.trace import Trace, header_for
from cidl_sim.core.workload import Block, Stage, Visit, Workload
from cidl_sim.executor.backend import Call, Outcome
from cidl_sim.executor.runtime import Limits, Runtime, run_all_resident
from cidl_sim.policies.build import build_plan, deep_prefetch
from cidl_sim.policies.catalog import STREAMING, make_plan
from tests.conftest import analytic_device, uniform_device, uniform_workload
from tests.core.strategies import cases
from tests.executor.tiny_runs import (
    SETTINGS,
    RecordingProgram,
    run_control,
    run_plan,
    run_policy,
    tight_device,
    tiny_workload,
)

# Whoever breaks the locking finds out by a deadlock.
pytestmark = pytest.mark.timeout(60)


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader.")]


def assert_sane(trace: Trace, workload: Workload, plan: Plan, limit: int) -> None:
    """What holds for the trace of any run in which no stage ended early."""
    loads, executions, unloads = trace.of("load"), trace.of("execute"), trace.of("unload")
    assert [span.visit for span in executions] == list(range(len(workload.visits)))
    assert [span.visit for span in loads] == [load.visit for load in plan.loads]
    started = {span.visit: span.start_s for span in executions}
    ended = {span.visit: span.end_s for span in executions}
    for before, after in itertools.pairwise(executions):
        assert before.end_s <= after.start_s
    for span, load in zip(loads, plan.loads, strict=True):
        assert span.end_s <= started[span.visit]
        assert span.cold == (workload.previous_same_weights[span.visit] is None)
        assert span.bytes == workload.visits[span.visit].block.weight_bytes
        if load.gate is not None:
            passed = started if load.gate.edge == "start" else ended
            assert span.start_s >= passed[load.gate.visit]
    for worker in {span.worker for span in loads}:
        own = [span for span in loads if span.worker == worker]
        assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(own))
    # Weights leave after the last visit that they were loaded or kept for.
    assert sorted(span.visit for span in unloads) == sorted(set(started) - set(plan.keep))
    assert all(span.end_s == ended[span.visit] for span in unloads)
    assert all(span.end_s >= span.start_s for span in trace.spans)
    assert max(span.resident_bytes for span in trace.spans) <= limit
    assert trace.peak_resident_bytes <= limit
    assert trace.memory_curve[-1][1] == trace.header.baseline_bytes


# The tiny model


@dataclass(frozen=True)
class TinyRun:
    plan: Plan
    program: RecordingProgram
    trace: Trace


@pytest.fixture(scope="module")
def control(tiny_store: Path) -> RecordingProgram:
    return run_control(tiny_store)


@pytest.fixture(scope="module", params=STREAMING)
def tiny_run(request: pytest.FixtureRequest, tiny_store: Path) -> TinyRun:
    workload = tiny_workload()
    plan = make_plan(request.param, workload, tight_device(workload))
    return TinyRun(plan, *run_plan(tiny_store, plan))


def test_every_policy_gives_the_frames_of_the_all_resident_run(tiny_run, control):
    assert torch.equal(tiny_run.program.frames, control.frames)
    assert len(tiny_run.program.results) == len(control.results)
    for (block, result), (_, expected) in zip(tiny_run.program.results, control.results, strict=True):
        assert torch.equal(result, expected), block


def test_every_policy_leaves_a_sane_trace(tiny_run):
    workload = tiny_workload()
    assert tiny_run.plan.memory_limit_bytes < workload.weights_bytes
    assert_sane(tiny_run.trace, workload, tiny_run.plan, tiny_run.plan.memory_limit_bytes)


def test_the_frames_of_the_tiny_model_are_not_all_alike(control):
    # Otherwise equal frames would prove nothing.
    assert control.frames.float().std() > 1
    assert len(torch.unique(control.frames.flatten(1), dim=0)) == SETTINGS.frames


def test_no_thread_is_left_after_a_run(tiny_run):
    assert loader_threads() == []


def test_several_channels_give_the_same_frames(tiny_store, control):
    workload = tiny_workload()
    plan = make_plan("lru", workload, tight_device(workload, channels=3))
    assert plan.channels == 3
    program, trace = run_plan(tiny_store, plan)
    assert torch.equal(program.frames, control.frames)
    assert {span.worker for span in trace.of("load")} <= {"loader.0", "loader.1", "loader.2"}


def test_a_stage_that_ends_early_gives_the_frames_of_the_static_leap(tiny_store):
    dynamic, static = (SETTINGS.model_copy(update={"steps": 6, "lpl": lpl}) for lpl in ("dynamic", "2"))
    program, trace = run_policy(tiny_store, "lru", dynamic)
    control = run_control(tiny_store, static)
    assert program.evaluations == control.evaluations == 3
    assert torch.equal(program.frames, control.frames)
    kinds = [event.kind for event in trace.events]
    assert kinds == ["drift_similarity", "drift_similarity", "stage_ended_early"]
    workload = tiny_workload(dynamic)
    denoiser = next(s for s, stage in enumerate(workload.stages) if stage.name == "denoiser")
    assert trace.events[-1].values["stage"] == denoiser
    assert trace.stage_rounds[denoiser] == 3 - SETTINGS.tdtm
    assert trace.peak_resident_bytes <= trace.header.memory_limit_bytes
    assert trace.memory_curve[-1][1] == 0


def test_the_all_resident_control_ends_a_stage_early_too(tiny_store):
    dynamic, static = (SETTINGS.model_copy(update={"steps": 6, "lpl": lpl}) for lpl in ("dynamic", "2"))
    assert torch.equal(run_control(tiny_store, dynamic).frames, run_control(tiny_store, static).frames)


# Made-up machines


class FakeBackend:
    """Holds names instead of weights and refuses any order of calls that a machine could not bear."""

    origin = "imported"

    def __init__(self, workload: Workload) -> None:
        self.fall_backs: list[str] = []
        self.sizes = {v.block.weights: v.block.weight_bytes for v in workload.visits}
        self.reserved: set[str] = set()
        self.loaded: set[str] = set()
        self.calls: list[tuple[str, str]] = []

    def reserve(self, weights: str) -> None:
        assert weights not in self.reserved
        self.reserved.add(weights)
        self.calls.append(("reserve", weights))

    def load(self, weights: str) -> None:
        assert weights in self.reserved
        assert weights not in self.loaded
        self.loaded.add(weights)
        self.calls.append(("load", weights))

    def callable_for(self, visit: Visit) -> Call:
        assert visit.block.weights in self.loaded
        return lambda: visit.number

    def unload(self, weights: str) -> None:
        self.loaded.remove(weights)
        self.reserved.remove(weights)
        self.calls.append(("unload", weights))

    def make_room(self, weights_bytes: int) -> None:
        assert self.footprint_bytes() <= weights_bytes

    def footprint_bytes(self) -> int:
        return sum(self.sizes[weights] for weights in self.reserved)

    def close(self) -> None:
        assert not self.reserved


@dataclass
class FakeProgram:
    """Records the visits; `act` may raise or decide something."""

    act: Callable[[Visit], Outcome | None] = lambda visit: None
    visits: list[int] = field(default_factory=list)

    def run(self, visit: Visit, block: Call) -> Outcome:
        self.visits.append(block())
        return self.act(visit) or Outcome()


def runtime_of(
    workload: Workload, device: DeviceProfile, plan: Plan, backend: FakeBackend | None = None
) -> tuple[Runtime, FakeBackend]:
    backend = FakeBackend(workload) if backend is None else backend
    return Runtime(workload, plan, Limits(device.memory_limit_bytes, device.baseline_bytes), backend), backend


def trace_of(runtime: Runtime, workload: Workload, plan: Plan) -> Trace:
    return runtime.recorder.finish(
        header_for(workload, plan, origin="imported", enforced_by="accounting", clock="perf_counter")
    )


@settings(deadline=None)
@given(cases())
def test_any_plan_that_fits_runs_to_its_end_and_gives_everything_back(case):
    workload, device, plan = case
    try:
        check_plan(workload, device, plan)
    except InfeasibleError:
        return
    program = FakeProgram()
    runtime, backend = runtime_of(workload, device, plan)
    runtime.run(program)
    assert program.visits == list(range(len(workload.visits)))
    assert backend.reserved == set()
    assert [weights for call, weights in backend.calls if call == "reserve"] == [
        workload.visits[load.visit].block.weights for load in plan.loads
    ]
    assert loader_threads() == []
    assert_sane(trace_of(runtime, workload, plan), workload, plan, device.memory_limit_bytes)


class Broken(FakeBackend):
    """Fails in one method, at the third call of it."""

    def __init__(self, workload: Workload, method: str) -> None:
        super().__init__(workload)
        self.failure = StoreError(f"{method} failed")
        self.left = 3
        original = getattr(self, method)

        def failing(*arguments: object) -> object:
            self.left -= 1
            if self.left <= 0:
                raise self.failure
            return original(*arguments)

        setattr(self, method, failing)


@pytest.mark.parametrize("policy", ["sequential", "next_block", "lru"])
@pytest.mark.parametrize("method", ["reserve", "load", "callable_for", "unload", "make_room"])
def test_what_the_backend_raises_surfaces_and_ends_every_thread(method, policy):
    workload, device = uniform_workload(4, 3), uniform_device(3, 1, 1)
    plan = make_plan(policy, workload, device)
    program = FakeProgram()
    runtime, backend = runtime_of(workload, device, plan, Broken(workload, method))
    with pytest.raises(StoreError) as raised:
        runtime.run(program)
    assert raised.value is backend.failure
    assert loader_threads() == []
    assert len(program.visits) < len(workload.visits)


@pytest.mark.parametrize("policy", ["sequential", "next_block", "lru"])
@pytest.mark.parametrize("fails_at", [0, 5, 11], ids=["first visit", "middle", "last visit"])
def test_what_the_program_raises_surfaces_and_ends_every_thread(policy, fails_at):
    workload, device = uniform_workload(4, 3), uniform_device(3, 1, 1)
    plan = make_plan(policy, workload, device)
    failure = ArithmeticError("not a number")

    def act(visit: Visit) -> None:
        if visit.number == fails_at:
            raise failure

    program = FakeProgram(act)
    runtime, _ = runtime_of(workload, device, plan)
    with pytest.raises(ArithmeticError) as raised:
        runtime.run(program)
    assert raised.value is failure
    assert program.visits == list(range(fails_at + 1))
    assert loader_threads() == []
    # What happened until then is still there to be read.
    assert len(trace_of(runtime, workload, plan).of("execute")) == fails_at


def test_an_observer_that_raises_ends_every_thread():
    workload, device = uniform_workload(4, 3), uniform_device(3, 1, 1)
    runtime, _ = runtime_of(workload, device, make_plan("lru", workload, device))

    def interrupt(visit: Visit) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runtime.run(FakeProgram(), interrupt)
    assert loader_threads() == []


@pytest.mark.parametrize("while_waiting", [True, False])
def test_an_interruption_ends_the_run_after_the_visit_under_way(while_waiting):
    workload, device = uniform_workload(4, 3), uniform_device(3, 1, 1)

    class Interrupts(FakeBackend):
        def load(self, weights: str) -> None:
            super().load(weights)
            if while_waiting and weights == "b2":
                runtime.interrupt(SystemExit(143))

    def act(visit: Visit) -> None:
        if not while_waiting and visit.number == 2:
            runtime.interrupt(SystemExit(143))

    plan = make_plan("sequential", workload, device)
    program = FakeProgram(act)
    runtime, _ = runtime_of(workload, device, plan, Interrupts(workload))
    with pytest.raises(SystemExit, match="143"):
        runtime.run(program)
    assert program.visits in ([0, 1], [0, 1, 2])
    assert loader_threads() == []


def test_a_loader_that_fails_while_a_visit_runs_lets_the_visit_finish():
    workload, device = uniform_workload(3, 1), uniform_device(3, 1, 1)
    failed = threading.Event()

    class FailsWhileRunning(FakeBackend):
        def load(self, weights: str) -> None:
            super().load(weights)
            if weights == "b1":
                running.wait(10)
                failed.set()
                raise StoreError("b1 is broken")

    running = threading.Event()

    def act(visit: Visit) -> None:
        running.set()
        assert failed.wait(10)

    program = FakeProgram(act)
    plan = deep_prefetch("test", workload, device, set())
    runtime, _ = runtime_of(workload, device, plan, FailsWhileRunning(workload))
    with pytest.raises(StoreError, match="b1 is broken"):
        runtime.run(program)
    assert program.visits == [0]
    assert [span.visit for span in trace_of(runtime, workload, plan).of("execute")] == [0]


def test_channels_load_at_the_same_time():
    workload = uniform_workload(4, 1)
    device = analytic_device(4)
    device = device.model_copy(update={"loader": device.loader.model_copy(update={"channels": 2})})
    both = threading.Barrier(2)

    class WaitsForTheOther(FakeBackend):
        def load(self, weights: str) -> None:
            both.wait(10)
            super().load(weights)

    plan = deep_prefetch("test", workload, device, set())
    program = FakeProgram()
    runtime, _ = runtime_of(workload, device, plan, WaitsForTheOther(workload))
    runtime.run(program)
    trace = trace_of(runtime, workload, plan)
    assert program.visits == [0, 1, 2, 3]
    assert {span.worker for span in trace.of("load")} == {"loader.0", "loader.1"}


def test_a_load_waits_for_its_gate():
    workload, device = uniform_workload(3, 1), uniform_device(3, 1, 1)
    loads = [
        Load(visit=0),
        Load(visit=1, gate=Gate(visit=0, edge="start")),
        Load(visit=2, gate=Gate(visit=1, edge="end")),
    ]
    plan = build_plan("test", workload, device, loads, ())
    loaded = {name: threading.Event() for name in ("b0", "b1", "b2")}

    class Announces(FakeBackend):
        def load(self, weights: str) -> None:
            super().load(weights)
            loaded[weights].set()

    def act(visit: Visit) -> None:
        if visit.number == 0:
            # The load behind this visit's start comes while it runs; the one behind visit 1's end cannot.
            assert loaded["b1"].wait(10)
        assert loaded["b2"].is_set() == (visit.number == 2)

    program = FakeProgram(act)
    runtime, _ = runtime_of(workload, device, plan, Announces(workload))
    runtime.run(program)
    assert program.visits == [0, 1, 2]


# Stages that end early


def two_stages(rounds: int) -> Workload:
    """Two blocks swept `rounds` times, then two others once."""
    first, second = ([Block(name=f"{s}{i}", kind=s, weight_bytes=1) for i in range(2)] for s in "ab")
    return Workload(
        name="two stages",
        stages=(Stage(name="a", rounds=rounds, blocks=first), Stage(name="b", blocks=second)),
    )


@pytest.fixture(params=["sequential", "next_block", "lru", "prefix:1"])
def early(request: pytest.FixtureRequest) -> Iterator[tuple[Workload, DeviceProfile, Plan]]:
    workload, device = two_stages(4), analytic_device(3)
    yield workload, device, make_plan(request.param, workload, device)


@pytest.mark.parametrize("ends_at", [0, 1, 4, 7])
def test_a_stage_that_ends_early_releases_everything_and_says_so(early, ends_at):
    workload, device, plan = early
    program = FakeProgram(lambda visit: Outcome(end_stage=0) if visit.number == ends_at else None)
    runtime, backend = runtime_of(workload, device, plan)
    runtime.run(program)
    trace = trace_of(runtime, workload, plan)
    assert program.visits == [*range(ends_at + 1), 8, 9]
    assert backend.reserved == set()
    assert runtime.schedule.resident_bytes == 0
    assert [(event.kind, event.values) for event in trace.events] == [
        ("stage_ended_early", {"stage": 0, "after_visit": ends_at})
    ]
    assert trace.stage_rounds == {0: (ends_at + 1) // 2, 1: 1}
    assert len(trace.of("unload")) == len(trace.of("load"))
    assert trace.peak_resident_bytes <= device.memory_limit_bytes
    assert loader_threads() == []


def test_a_load_in_flight_for_a_skipped_visit_finishes_as_waste():
    workload, device = two_stages(3), analytic_device(4)
    plan = deep_prefetch("test", workload, device, set())
    in_flight, ended = threading.Event(), threading.Event()

    class SlowSecondRound(FakeBackend):
        def load(self, weights: str) -> None:
            if ("load", weights) in self.calls:
                in_flight.set()
                assert ended.wait(10)
            super().load(weights)

    def end(visit: Visit) -> Outcome | None:
        if visit.number != 1:
            return None
        assert in_flight.wait(10)
        return Outcome(end_stage=0)

    def announce(visit: Visit) -> None:
        if visit.number == 1:
            ended.set()

    program = FakeProgram(end)
    runtime, backend = runtime_of(workload, device, plan, SlowSecondRound(workload))
    runtime.run(program, announce)
    trace = trace_of(runtime, workload, plan)
    assert program.visits == [0, 1, 6, 7]
    assert [span.visit for span in trace.of("load")] == [0, 1, 2, 6, 7]
    (loaded,) = (span for span in trace.of("load") if span.visit == 2)
    (released,) = (span for span in trace.of("unload") if span.visit == 2)
    assert released.start_s == loaded.end_s
    assert backend.reserved == set()


def test_events_of_the_program_reach_the_trace():
    workload, device = uniform_workload(2, 1), uniform_device(2, 1, 1)
    plan = make_plan("sequential", workload, device)
    program = FakeProgram(lambda visit: Outcome(events=(("seen", {"visit": visit.number}),)))
    runtime, _ = runtime_of(workload, device, plan)
    runtime.run(program)
    events = trace_of(runtime, workload, plan).events
    assert [(event.kind, event.values) for event in events] == [("seen", {"visit": 0}), ("seen", {"visit": 1})]


def test_the_observer_sees_every_visit_in_order():
    workload, device = uniform_workload(3, 2), uniform_device(2, 1, 1)
    seen: list[int] = []
    runtime, _ = runtime_of(workload, device, make_plan("next_block", workload, device))
    runtime.run(FakeProgram(), lambda visit: seen.append(visit.number))
    assert seen == [0, 1, 2, 3, 4, 5]


# A run that others drive


def entered_and_left(runtime: Runtime, visits: Iterable[Visit], outcome: Outcome | None = None) -> list[int]:
    """Enter and leave the visits by hand; what their blocks gave. `outcome` is that of the last one."""
    results: list[int] = []
    *others, last = visits
    for visit in others:
        results.append(runtime.enter(visit)())
        runtime.leave(visit)
    results.append(runtime.enter(last)())
    runtime.leave(last, outcome or Outcome())
    return results


@settings(deadline=None)
@given(cases())
def test_a_run_that_is_driven_by_hand_is_that_of_a_program(case):
    workload, device, plan = case
    try:
        check_plan(workload, device, plan)
    except InfeasibleError:
        return
    runtime, backend = runtime_of(workload, device, plan)
    with runtime.visiting() as visits:
        assert entered_and_left(visits, workload.visits) == list(range(len(workload.visits)))
        assert visits.next_visit() is None
    assert backend.reserved == set()
    assert loader_threads() == []
    assert_sane(trace_of(runtime, workload, plan), workload, plan, device.memory_limit_bytes)


@pytest.fixture
def driven() -> tuple[Workload, Plan, Runtime]:
    workload, device = uniform_workload(4, 3), uniform_device(3, 1, 1)
    plan = make_plan("next_block", workload, device)
    return workload, plan, runtime_of(workload, device, plan)[0]


def test_the_hooks_of_a_module_may_drive_a_run(driven):
    workload, plan, runtime = driven
    model = torch.nn.Sequential(*(torch.nn.Identity() for _ in range(4)))
    seen: list[int] = []

    def before(module: torch.nn.Module, inputs: object) -> None:
        seen.append(runtime.enter(runtime.next_visit())())

    def after(module: torch.nn.Module, inputs: object, output: object) -> None:
        runtime.leave(workload.visits[seen[-1]])

    for block in model:
        block.register_forward_pre_hook(before)
        block.register_forward_hook(after)
    with runtime.visiting():
        for _ in range(3):
            model(torch.ones(1))
    assert seen == list(range(12))
    assert [span.visit for span in trace_of(runtime, workload, plan).of("execute")] == seen


def test_visits_are_entered_in_their_order_and_one_at_a_time(driven):
    workload, _, runtime = driven
    first, second = workload.visits[:2]
    with runtime.visiting() as visits:
        with pytest.raises(RuntimeError, match=r"^visit 1 .* was entered, but visit 0 \(.*\) comes next$"):
            visits.enter(second)
        visits.enter(first)
        with pytest.raises(RuntimeError, match=r"^visit 0 .* was entered, but visit 0 .* is under way$"):
            visits.enter(first)
        with pytest.raises(RuntimeError, match=r"^visit 1 .* was left, but visit 0 .* is under way$"):
            visits.leave(second)
        visits.leave(first)
        with pytest.raises(RuntimeError, match=r"^visit 0 .* was left, but visit 1 .* comes next$"):
            visits.leave(first)
        # None of these did any harm.
        entered_and_left(visits, workload.visits[1:])
        with pytest.raises(RuntimeError, match=r"^visit 0 .* was entered, but the last one has run$"):
            visits.enter(first)


def test_a_run_that_is_left_before_its_last_visit_is_over(driven):
    workload, plan, runtime = driven
    with pytest.raises(RuntimeError, match="within `visiting`"):
        runtime.enter(workload.visits[0])
    with runtime.visiting() as visits:
        entered_and_left(visits, workload.visits[:5])
        visits.enter(workload.visits[5])
    assert loader_threads() == []
    for call in (runtime.leave, runtime.enter):
        with pytest.raises(RuntimeError, match="within `visiting`"):
            call(workload.visits[5])
    with pytest.raises(RuntimeError, match="runs once"), runtime.visiting():
        pass
    trace = trace_of(runtime, workload, plan)
    assert [span.visit for span in trace.of("execute")] == [0, 1, 2, 3, 4]
    assert trace.events == ()


@pytest.mark.parametrize("in_a_visit", [True, False])
def test_an_exception_of_the_driver_surfaces_and_ends_every_thread(driven, in_a_visit):
    workload, plan, runtime = driven
    failure = ArithmeticError("not a number")
    with pytest.raises(ArithmeticError) as raised, runtime.visiting() as visits:
        entered_and_left(visits, workload.visits[:5])
        if in_a_visit:
            visits.enter(workload.visits[5])
        raise failure
    assert raised.value is failure
    assert loader_threads() == []
    trace = trace_of(runtime, workload, plan)
    assert [span.visit for span in trace.of("execute")] == [0, 1, 2, 3, 4]
    assert trace.events == ()


@pytest.mark.parametrize("swallowed", [True, False])
def test_an_interruption_ends_a_driven_run_at_the_next_visit(driven, swallowed):
    workload, plan, runtime = driven
    with pytest.raises(SystemExit, match="143"), runtime.visiting() as visits:
        visits.enter(workload.visits[0])
        runtime.interrupt(SystemExit(143))
        visits.leave(workload.visits[0])
        if not swallowed:
            visits.enter(workload.visits[1])
        for call in (visits.next_visit, lambda: visits.enter(workload.visits[1]), lambda: visits.end_stage(0)):
            with pytest.raises(SystemExit, match="143"):
                call()
    assert loader_threads() == []
    trace = trace_of(runtime, workload, plan)
    assert [span.visit for span in trace.of("execute")] == [0]
    assert [(event.kind, event.values["reason"]) for event in trace.events] == [("stopped", "SystemExit: 143")]


def test_an_interruption_during_the_last_visit_is_not_lost(driven):
    workload, _, runtime = driven
    with pytest.raises(SystemExit, match="143"), runtime.visiting() as visits:
        entered_and_left(visits, workload.visits)
        runtime.interrupt(SystemExit(143))


def test_what_a_loader_raises_reaches_the_driver_of_a_run():
    workload, device = uniform_workload(4, 3), uniform_device(3, 1, 1)
    plan = make_plan("next_block", workload, device)
    runtime, backend = runtime_of(workload, device, plan, Broken(workload, "load"))
    with pytest.raises(StoreError) as raised, runtime.visiting() as visits:
        entered_and_left(visits, workload.visits)
    assert raised.value is backend.failure
    assert loader_threads() == []
    (stopped,) = trace_of(runtime, workload, plan).events
    assert (stopped.kind, stopped.values["reason"]) == ("stopped", "StoreError: load failed")


@pytest.mark.parametrize("ends_at", [0, 1, 4, 7])
@pytest.mark.parametrize("after_leaving", [True, False])
def test_a_driver_may_end_a_stage_early_with_a_visit_or_after_it(early, ends_at, after_leaving):
    workload, device, plan = early
    runtime, backend = runtime_of(workload, device, plan)
    with runtime.visiting() as visits:
        outcome = None if after_leaving else Outcome(end_stage=0)
        entered_and_left(visits, workload.visits[: ends_at + 1], outcome)
        if after_leaving:
            visits.end_stage(0)
        entered_and_left(visits, workload.visits[8:])
    assert backend.reserved == set()
    assert runtime.schedule.resident_bytes == 0
    trace = trace_of(runtime, workload, plan)
    assert [span.visit for span in trace.of("execute")] == [*range(ends_at + 1), 8, 9]
    assert [(event.kind, event.values) for event in trace.events] == [
        ("stage_ended_early", {"stage": 0, "after_visit": ends_at})
    ]
    assert loader_threads() == []


@pytest.mark.parametrize("visit", [0, 5, 11])
def test_a_driven_run_may_go_on_where_another_one_was_left(driven, visit):
    workload, plan, runtime = driven
    runtime.resume_at(visit)
    with runtime.visiting() as visits:
        assert visits.next_visit() == workload.visits[visit]
        assert entered_and_left(visits, workload.visits[visit:]) == list(range(visit, 12))
    trace = trace_of(runtime, workload, plan)
    assert [(event.kind, event.values) for event in trace.events] == [("resumed", {"visit": visit})]


# The control


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4))
def test_the_control_loads_each_weight_once_and_runs_every_visit(blocks, rounds):
    workload = uniform_workload(blocks, rounds)
    backend, program = FakeBackend(workload), FakeProgram()
    seconds, events = run_all_resident(workload, backend, program)
    assert program.visits == list(range(blocks * rounds))
    assert len([call for call, _ in backend.calls if call == "load"]) == blocks == len(backend.loaded)
    assert seconds >= 0
    assert events == ()


def test_the_control_skips_the_rest_of_a_stage_that_ends_early():
    workload = two_stages(3)
    program = FakeProgram(lambda visit: Outcome(end_stage=0, events=(("leapt", {}),)) if visit.number == 1 else None)
    _, events = run_all_resident(workload, FakeBackend(workload), program)
    assert program.visits == [0, 1, 6, 7]
    assert [event.kind for event in events] == ["leapt"]


def test_a_stage_that_ends_early_may_ask_for_loads_after_the_last_planned_one():
    block = Block(name="a", kind="a", weight_bytes=1)
    stages = (Stage(name="s0", rounds=3, blocks=(block,)), Stage(name="s1", blocks=(block,)))
    workload = Workload(name="w", stages=stages)
    device = DeviceProfile(name="d", memory_limit_bytes=2, measured={"a": Measured(load_s=1, exec_s=1)})
    plan = build_plan("keeps across the end", workload, device, [Load(visit=0)], {0, 1, 2})

    class EndsAtOnce:
        def run(self, visit, block) -> Outcome:
            time.sleep(0.2)  # the loader has nothing left to do by now
            return Outcome(end_stage=0 if visit.number == 0 else None)

    runtime = Runtime(workload, plan, Limits(2, 0), QuietBackend())
    runner = threading.Thread(target=runtime.run, args=(EndsAtOnce(),), daemon=True)
    runner.start()
    runner.join(timeout=30)
    assert not runner.is_alive()
    assert [event.kind for event in trace_of(runtime, workload, plan).events] == ["stage_ended_early"]


class QuietBackend:
    origin = "torch-cpu"

    def __init__(self) -> None:
        self.fall_backs: list[str] = []

    def reserve(self, weights: str) -> None: ...
    def load(self, weights: str) -> None: ...
    def unload(self, weights: str) -> None: ...
    def make_room(self, weights_bytes: int) -> None: ...
    def close(self) -> None: ...

    def callable_for(self, visit):
        return lambda: None

    def footprint_bytes(self) -> int:
        return 0
