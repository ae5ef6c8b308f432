"""Limits that change during a run, and plans taken on the way, without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.feasibility import explain_deadlock, finish_without_clock, largest_need
from cidl_sim.core.plan import Plan
from cidl_sim.core.refit import change_limit, evenly_ordered, go_on_with, settled_copy
from cidl_sim.core.schedule import Schedule
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.policies.catalog import POLICIES, make_plan
from tests.conftest import uniform_device, uniform_workload
from tests.core.strategies import devices, workloads


def schedule_of(workload: Workload, plan: Plan) -> Schedule:
    return Schedule(
        workload, plan, memory_limit_bytes=plan.memory_limit_bytes, baseline_bytes=plan.baseline_bytes, channels=2
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Workload, Plan, dict[int, int]]:
    """A workload, a plan for it, and limits that hold from the n-th operation on."""
    workload = draw(workloads())
    device = draw(devices(workload))
    try:
        plan = make_plan(draw(st.sampled_from(sorted(POLICIES))), workload, device)
    except InfeasibleError:
        plan = make_plan("sequential", workload, device)
    least = largest_need(workload)[0] + plan.baseline_bytes
    limit = st.integers(least, max(least, plan.baseline_bytes + 2 * workload.weights_bytes))
    return workload, plan, draw(st.dictionaries(st.integers(0, 60), limit, max_size=4))


@given(cases(), st.data())
def test_any_change_that_leaves_room_for_one_block_lets_the_run_finish_within_the_limit(case, data):
    workload, plan, changes = case
    schedule = schedule_of(workload, plan)
    ran: list[int] = []
    in_flight: list[int] = []
    operation = 0
    visit = None
    held: dict[str, int] = {}
    while not schedule.is_done:
        if operation in changes:
            for release in change_limit(schedule, changes[operation]):
                held.pop(release.weights)
        operation += 1
        choices = []
        if (load := schedule.next_load()) is not None:
            choices.append("load")
        choices += ["loaded"] * bool(in_flight)
        if visit is None and (following := schedule.next_visit()) is not None:
            choices.append("start")
        choices += ["finish"] * (visit is not None)
        assert choices, explain_deadlock(schedule)
        match data.draw(st.sampled_from(choices)):
            case "load":
                schedule.start_load(load)
                assert schedule.resident_bytes <= schedule.memory_limit_bytes
                in_flight.append(load.visit)
                block = workload.visits[load.visit].block
                assert block.weights not in held
                held[block.weights] = block.weight_bytes
            case "loaded":
                for release in schedule.finish_load(in_flight.pop(0)):
                    held.pop(release.weights)
            case "start":
                visit = following
                schedule.start_visit(visit)
                assert schedule.resident_bytes <= schedule.memory_limit_bytes
                assert visit.block.weights in held
            case "finish":
                for release in schedule.finish_visit(visit):
                    held.pop(release.weights)
                ran.append(visit.number)
                visit = None
    assert ran == list(range(len(workload.visits)))


def load_what_may_start(schedule: Schedule) -> int:
    """Start and end loads until none may start; returns their number."""
    count = 0
    while (load := schedule.next_load()) is not None:
        schedule.start_load(load)
        schedule.finish_load(load.visit)
        count += 1
    return count


def run_visits(schedule: Schedule, count: int) -> int:
    """Run so many visits, loading as far ahead as may be; returns the number of loads that took."""
    loads = 0
    for _ in range(count):
        loads += load_what_may_start(schedule)
        visit = schedule.next_visit()
        schedule.start_visit(visit)
        loads += load_what_may_start(schedule)
        schedule.finish_visit(visit)
    return loads


def finished(schedule: Schedule) -> int:
    """Run to the end without a clock; the number of loads that took."""
    return run_visits(schedule, len(schedule.workload.visits) - schedule.current)


def test_when_the_limit_shrinks_retained_blocks_go_first_and_the_room_to_load_ahead_stays():
    workload, device = uniform_workload(8, 4), uniform_device(6, 1, 1)
    schedule = schedule_of(workload, make_plan("prefix:4", workload, device))
    run_visits(schedule, 8)  # the first round
    assert schedule.retained_weights == {"b0", "b1", "b2", "b3"}
    released = change_limit(schedule, uniform_device(4, 1, 1).memory_limit_bytes)
    assert schedule.retained_weights == {"b0", "b2"}
    # What had been loaded ahead of b1, which is missing now, would stand in its way.
    assert {release.weights for release in released[:2]} == {"b1", "b3"}
    assert {release.weights for release in released[2:]} <= {"b4", "b5"}
    assert finished(schedule) == 3 * (8 - 2)


def test_when_the_limit_grows_more_stays_from_the_next_round_on():
    workload, device = uniform_workload(8, 4), uniform_device(3, 1, 1)
    plan = make_plan("next_block", workload, device)
    same, grown = schedule_of(workload, plan), schedule_of(workload, plan)
    assert finished(same) == 32
    change_limit(grown, uniform_device(7, 1, 1).memory_limit_bytes)
    assert len(grown.retained_weights) == 7 - 3
    assert finished(grown) == 32 - 3 * 4


def test_a_limit_that_comes_back_brings_the_plans_retained_blocks_back():
    workload, device = uniform_workload(8, 6), uniform_device(6, 1, 1)
    plan = make_plan("prefix:5", workload, device)
    schedule = schedule_of(workload, plan)
    planned = schedule.retained_weights
    change_limit(schedule, uniform_device(2, 1, 1).memory_limit_bytes)
    assert len(schedule.retained_weights) == 1
    change_limit(schedule, device.memory_limit_bytes)
    assert schedule.retained_weights == planned


def test_the_block_that_does_not_even_fit_alone_is_named():
    workload, device = uniform_workload(4, 2), uniform_device(3, 1, 1)
    schedule = schedule_of(workload, make_plan("sequential", workload, device))
    with pytest.raises(InfeasibleError, match="block 'b0' needs"):
        change_limit(schedule, workload.visits[0].block.weight_bytes - 1)


def test_the_limit_may_change_after_the_last_visit_of_a_group_that_rotates():
    repeated, last = (
        tuple(Block(name=f"{group}{i}", kind=group, weight_bytes=1) for i in range(count))
        for group, count in (("a", 6), ("b", 2))
    )
    workload = Workload(name="w", stages=(Stage(name="a", rounds=4, blocks=repeated), Stage(name="b", blocks=last)))
    plan = make_plan("rotating:2", workload, uniform_device(5, 1, 1))
    schedule = schedule_of(workload, plan)
    run_visits(schedule, 24)
    change_limit(schedule, 2)
    assert finished(schedule) <= 2
    assert schedule.is_done


def test_another_plan_is_only_taken_between_visits():
    workload, device = uniform_workload(8, 12), uniform_device(3, 1, 1)
    plan = make_plan("next_block", workload, device)
    schedule = Schedule.for_device(workload, plan, device)
    load = schedule.next_load()
    schedule.start_load(load)
    schedule.finish_load(load.visit)
    schedule.start_visit(schedule.next_visit())
    with pytest.raises(RuntimeError, match="between visits"):
        go_on_with(schedule, plan)


def test_a_settled_copy_leaves_the_schedule_as_it_is():
    workload, device = uniform_workload(8, 12), uniform_device(3, 1, 1)
    schedule = Schedule.for_device(workload, make_plan("prefix:1", workload, device), device)
    schedule.start_load(schedule.next_load())
    copied = settled_copy(schedule)
    assert schedule.loading
    assert not copied.loading
    assert finish_without_clock(copied)
    assert (schedule.current, copied.is_done, schedule.is_done) == (0, True, False)


@given(st.integers(0, 70))
def test_the_even_order_is_a_permutation_whose_beginnings_are_spread(count):
    names = [str(i) for i in range(count)]
    order = evenly_ordered(names)
    assert sorted(order, key=int) == names
    for d in range(1, count + 1):
        places = sorted(int(name) for name in order[:d])
        largest = max(b - a for a, b in zip(places, [*places[1:], places[0] + count], strict=True))
        assert largest <= 4 * count / d + 1
