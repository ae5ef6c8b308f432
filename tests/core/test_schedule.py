"""The state machine under drivers that choose at random what happens next."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.feasibility import check_plan, explain_deadlock
from cidl_sim.core.plan import Gate, Load, Plan
from cidl_sim.core.schedule import Schedule
from cidl_sim.policies.build import build_plan, deep_prefetch
from cidl_sim.policies.catalog import make_plan
from tests.conftest import uniform_device, uniform_workload
from tests.core.strategies import cases


def drive(schedule: Schedule, chance: random.Random, ends: dict[int, int] | None = None) -> list[int]:
    """Drive a schedule with arbitrary durations, checking every invariant; returns the visits that ran."""
    loading: list[Load] = []
    running = None
    ran: list[int] = []
    loaded: set[int] = set()
    while not schedule.is_done:
        options = []
        if (load := schedule.next_load()) is not None:
            options.append("start load")
        visit = schedule.next_visit()
        if visit is not None:
            options.append("start visit")
        options += ["end load"] * bool(loading) + ["end visit"] * (running is not None)
        if not options:
            raise InfeasibleError(explain_deadlock(schedule))
        match chance.choice(options):
            case "start load":
                schedule.start_load(load)
                loading.append(load)
                assert len(loading) <= schedule.channels
            case "end load":
                ended = loading.pop(chance.randrange(len(loading)))
                schedule.finish_load(ended.visit)
                loaded.add(ended.visit)
            case "start visit":
                assert not ran or visit.number > ran[-1]
                schedule.start_visit(visit)
                running = visit
            case "end visit":
                schedule.finish_visit(running)
                ran.append(running.number)
                if ends and running.number in ends:
                    schedule.end_stage_early(ends[running.number])
                running = None
        assert schedule.resident_bytes <= schedule.memory_limit_bytes
    return ran


@given(cases(), st.randoms(use_true_random=False))
def test_memory_never_exceeds_the_limit_and_deadlock_does_not_depend_on_durations(case, chance):
    workload, device, plan = case
    try:
        check_plan(workload, device, plan)
        fits = True
    except InfeasibleError:
        fits = False
    schedule = Schedule.for_device(workload, plan, device)
    if fits:
        assert drive(schedule, chance) == [v.number for v in workload.visits]
        assert schedule.peak_resident_bytes <= device.memory_limit_bytes
    else:
        with pytest.raises(InfeasibleError):
            drive(schedule, chance)


@given(cases(), st.randoms(use_true_random=False), st.data())
def test_a_stage_may_end_after_any_round_and_the_rest_still_runs(case, chance, data):
    workload, device, _ = case
    plan = random_keeps_that_fit(workload, device, chance)
    stage = data.draw(st.integers(0, len(workload.stages) - 1))
    rounds = data.draw(st.integers(1, workload.stages[stage].rounds))
    first, size = workload.first_visit_of_stage[stage], len(workload.stages[stage].blocks)
    last = first + rounds * size - 1
    schedule = Schedule.for_device(workload, plan, device)
    ran = drive(schedule, chance, {last: stage})
    skipped = range(last + 1, workload.first_visit_of_stage[stage + 1])
    assert ran == [v.number for v in workload.visits if v.number not in skipped]
    assert schedule.resident_bytes == device.baseline_bytes + in_flight_bytes(schedule)


@given(cases(), st.randoms(use_true_random=False), st.data())
def test_a_run_can_resume_at_any_visit(case, chance, data):
    workload, device, _ = case
    plan = random_keeps_that_fit(workload, device, chance)
    start = data.draw(st.integers(0, len(workload.visits) - 1))
    schedule = Schedule.for_device(workload, plan, device)
    schedule.resume_at(start)
    assert drive(schedule, chance) == list(range(start, len(workload.visits)))


def random_keeps_that_fit(workload, device, chance: random.Random) -> Plan:
    candidates = [v for v, following in enumerate(workload.next_same_weights) if following is not None]
    keep: set[int] = set()
    for visit in chance.sample(candidates, len(candidates)):
        plan = deep_prefetch("random", workload, device, keep | {visit})
        try:
            check_plan(workload, device, plan)
        except InfeasibleError:
            continue
        keep.add(visit)
    return deep_prefetch("random", workload, device, keep)


def in_flight_bytes(schedule: Schedule) -> int:
    # Loads that were wasted may still be under way when the last visit ends.
    return sum(schedule.workload.visits[v].block.weight_bytes for v in schedule.loading)


def schedule_of(loads: list[Load], keep: tuple[int, ...], slots: int, blocks: int = 2, rounds: int = 2) -> Schedule:
    workload, device = uniform_workload(blocks, rounds), uniform_device(slots, 1, 1)
    return Schedule.for_device(workload, build_plan("test", workload, device, loads, keep), device)


def test_a_gate_opens_at_the_edge_it_names():
    gated = [Load(visit=0), Load(visit=1, gate=Gate(visit=0, edge="start")), Load(visit=2), Load(visit=3)]
    schedule = schedule_of(gated, (), slots=4)
    schedule.start_load(schedule.next_load())
    schedule.finish_load(0)
    assert schedule.loader_cause() == "gate"
    schedule.start_visit(schedule.next_visit())
    assert schedule.next_load() == gated[1]


def test_weights_are_not_loaded_twice_while_they_are_in_use():
    schedule = schedule_of([Load(visit=v) for v in range(4)], (), slots=4)
    for visit in (0, 1):
        schedule.start_load(schedule.next_load())
        schedule.finish_load(visit)
    assert schedule.loader_cause() == "weights_in_use"


def test_a_load_leaves_room_for_the_workspace_of_every_visit_before_it():
    workload = uniform_workload(3, 1)
    blocks = list(workload.stages[0].blocks)
    blocks[1] = blocks[1].model_copy(update={"workspace_bytes": 2})
    workload = workload.model_copy(
        update={"stages": (workload.stages[0].model_copy(update={"blocks": tuple(blocks)}),)}
    )
    device = uniform_device(4, 1, 1)
    plan = build_plan("test", workload, device, [Load(visit=v) for v in range(3)], ())
    schedule = Schedule.for_device(workload, plan, device)
    for visit in (0, 1):
        schedule.start_load(schedule.next_load())
        schedule.finish_load(visit)
    assert schedule.loader_cause() == "memory"


def test_a_load_in_flight_for_a_skipped_visit_finishes_as_waste():
    schedule = schedule_of([Load(visit=v) for v in range(4)], (), slots=4)
    for visit in (0, 1):
        schedule.start_load(schedule.next_load())
        schedule.finish_load(visit)
        schedule.start_visit(schedule.next_visit())
        schedule.finish_visit(schedule.workload.visits[visit])
    schedule.start_load(schedule.next_load())
    assert schedule.end_stage_early(0) == []
    assert schedule.is_done
    assert schedule.loader_cause() == "done"
    assert [r.weights for r in schedule.finish_load(2)] == ["b0"]
    assert schedule.resident_bytes == 0


def test_a_keep_towards_a_skipped_visit_is_dropped():
    schedule = schedule_of([Load(visit=0), Load(visit=1), Load(visit=3)], (0,), slots=4)
    for visit in (0, 1):
        schedule.start_load(schedule.next_load())
        schedule.finish_load(visit)
        schedule.start_visit(schedule.next_visit())
        schedule.finish_visit(schedule.workload.visits[visit])
    assert [r.weights for r in schedule.end_stage_early(0)] == ["b0"]


def test_ending_a_stage_that_is_over_changes_nothing():
    workload = uniform_workload(2, 1)
    (stage,) = workload.stages
    again = stage.model_copy(update={"name": "again"})
    workload = workload.model_copy(update={"stages": (stage, again)})
    device = uniform_device(2, 1, 1)
    schedule = Schedule.for_device(workload, make_plan("sequential", workload, device), device)
    schedule.resume_at(3)
    assert schedule.end_stage_early(0) == []
    assert schedule.current == 3


def test_resuming_turns_missing_keeps_into_loads():
    schedule = schedule_of([Load(visit=0), Load(visit=1), Load(visit=3)], (0,), slots=2)
    schedule.resume_at(2)
    assert schedule.next_load() == Load(visit=2)
