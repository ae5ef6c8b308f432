"""What a plan's check says: nothing of a plan that can run, and otherwise the first visit that cannot."""

from __future__ import annotations

import pytest
from hypothesis import given

from cidl_sim.core.errors import InfeasibleError, PlanError
from cidl_sim.core.feasibility import check_plan, check_plan_within
from cidl_sim.core.plan import Gate, Load, Plan
from cidl_sim.policies.build import build_plan
from tests.conftest import analytic_device, uniform_device, uniform_workload
from tests.core.strategies import cases


def plan_of(loads: list[Load], keep: tuple[int, ...] = (), blocks: int = 2, rounds: int = 2) -> Plan:
    return build_plan("test", uniform_workload(blocks, rounds), uniform_device(2, 1, 1), loads, keep)


def every(*visits: int) -> list[Load]:
    return [Load(visit=v) for v in visits]


def check(plan: Plan, slots: int = 2, blocks: int = 2, rounds: int = 2) -> None:
    check_plan(uniform_workload(blocks, rounds), uniform_device(slots, 1, 1), plan)


def test_a_plan_that_loads_every_visit_is_right():
    check(plan_of(every(0, 1, 2, 3)))


def test_a_kept_visit_needs_no_load():
    check(plan_of(every(0, 1, 3), keep=(0,)))


@pytest.mark.parametrize(
    ("loads", "keep", "complaint"),
    [
        (every(0, 1, 2), (), r"visit 3 .*neither loaded nor kept"),
        (every(0, 1, 2, 3), (0,), r"visit 2 .*loaded although visit 0 keeps"),
        (every(0, 1, 2, 3, 3), (), r"visit 3 .*loaded twice"),
        (every(0, 1, 2, 3), (3,), r"visit 3 .*not visited again"),
        (every(0, 1, 2, 3, 9), (), "only 4 visits"),
        (every(0, 1, 2, 3), (77,), "only 4 visits"),
        ([Load(visit=0, gate=Gate(visit=9, edge="end")), *every(1, 2, 3)], (), "only 4 visits"),
    ],
)
def test_the_first_visit_that_breaks_a_rule_is_named(loads, keep, complaint):
    with pytest.raises(PlanError, match=complaint):
        check(plan_of(loads, keep))


def test_a_plan_for_another_workload_is_refused():
    with pytest.raises(PlanError, match="made for workload 'uniform'"):
        check(plan_of(every(0, 1, 2, 3)), rounds=3)


def test_the_limit_need_not_be_that_of_a_profile():
    workload, plan = uniform_workload(2, 2), plan_of(every(1, 0, 2, 3))
    check_plan_within(workload, plan, memory_limit_bytes=3, baseline_bytes=1)
    with pytest.raises(InfeasibleError, match="memory limit is 2"):
        check_plan_within(workload, plan, memory_limit_bytes=2, baseline_bytes=1)


def test_a_deadlock_is_found_without_a_clock():
    waits_for_itself = [Load(visit=0, gate=Gate(visit=0, edge="end")), *every(1, 2, 3)]
    with pytest.raises(InfeasibleError, match=r"visit 0 .*waits for ever \(gate\)"):
        check(plan_of(waits_for_itself))
    needs_the_other_block_first = every(1, 0, 2, 3)
    check(plan_of(needs_the_other_block_first), slots=2)
    with pytest.raises(InfeasibleError, match="memory limit is 1"):
        check(plan_of(needs_the_other_block_first), slots=1)


def test_keeping_more_than_fits_says_what_would_help():
    keep_both = plan_of(every(0, 1, 2, 5), keep=(0, 1), blocks=3)
    with pytest.raises(InfeasibleError, match="raise memory_limit_bytes to at least 3 or keep less"):
        check_plan(uniform_workload(3, 2), uniform_device(2, 1, 1), keep_both)


def test_a_block_that_never_fits_is_named_with_what_it_needs():
    workload = uniform_workload(2, 2, workspace_bytes=3)
    plan = build_plan("test", workload, analytic_device(4), every(0, 1, 2, 3), ())
    with pytest.raises(InfeasibleError, match=r"block 'b0' needs 5 bytes .*at least 5"):
        check_plan(workload, analytic_device(4, baseline_bytes=1), plan)


@given(cases())
def test_checking_never_fails_other_than_by_its_own_errors(case):
    workload, device, plan = case
    try:
        check_plan(workload, device, plan)
    except (PlanError, InfeasibleError) as problem:
        assert "\n" not in str(problem)
