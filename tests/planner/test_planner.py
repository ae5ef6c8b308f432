"""The planner: never worse than a policy, and honest about what is proven."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from cidl_sim.core.device import Executor, Loader
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.feasibility import check_plan
from cidl_sim.planner.bounds import lower_bound_s
from cidl_sim.planner.planner import best_plan
from cidl_sim.simulator.engine import makespan_s
from tests.conftest import analytic_device, uniform_device, uniform_workload
from tests.core.strategies import cases


@settings(max_examples=15)
@given(cases())
def test_the_plan_is_never_worse_than_a_policy_and_never_better_than_its_bound(case):
    workload, device, _ = case
    found = best_plan(workload, device, time_limit_s=0.1)
    check_plan(workload, device, found.plan)
    assert found.plan.makespan_s == found.trace.makespan_s == makespan_s(workload, device, found.plan)
    assert found.plan.makespan_s <= min(s for s in found.baselines.values() if s is not None)
    assert found.plan.lower_bound_s <= found.plan.makespan_s * (1 + 1e-9)
    assert found.plan.proven_optimal == (found.plan.gap <= 1e-9)


def test_blocks_without_weights_need_no_memory_at_all():
    found = best_plan(uniform_workload(3, 2, weight_bytes=0, flops=1), analytic_device(1, baseline_bytes=1))
    assert found.plan.makespan_s == 6
    assert found.plan.proven_optimal


def test_a_plan_that_no_policy_finds():
    # 8 blocks, 4 rounds, 4 slots: the best policy takes 255.
    found = best_plan(uniform_workload(8, 4), uniform_device(4, 10, 5))
    assert min(s for s in found.baselines.values() if s is not None) == 255
    assert found.plan.policy == "planned"
    assert found.plan.makespan_s == 250
    assert found.plan.proven_optimal


def test_the_relaxation_proves_a_policys_plan():
    workload, device = uniform_workload(10, 4), uniform_device(5, 12, 8)
    assert lower_bound_s(workload, device) < 380
    found = best_plan(workload, device)
    assert found.plan.policy.startswith("spread")
    assert found.plan.makespan_s == found.plan.lower_bound_s == 380


def test_without_time_the_best_policy_comes_back_at_once():
    steps = []
    found = best_plan(
        uniform_workload(8, 4), uniform_device(4, 10, 5), time_limit_s=0, on_step=lambda *step: steps.append(step)
    )
    assert found.plan.makespan_s == 255
    assert not found.plan.proven_optimal
    assert found.notes == ("the time limit was up before anything but the policies was tried",)
    assert (steps[0], steps[-1]) == ((0, 4, "policies"), (4, 4, ""))


def test_thousands_of_visits_fall_back_on_policies_and_say_so():
    found = best_plan(uniform_workload(1200, 3), uniform_device(300, 3, 2), time_limit_s=0.5)
    assert found.plan.makespan_s <= min(s for s in found.baselines.values() if s is not None) * (1 + 1e-9)
    assert found.plan.lower_bound_s <= found.plan.makespan_s
    assert found.plan.proven_optimal or found.notes


def test_a_limit_below_one_block_names_the_block():
    with pytest.raises(InfeasibleError, match="block 'b0' needs"):
        best_plan(uniform_workload(3, 2, weight_bytes=10), uniform_device(9, 1, 1))


def test_under_contention_a_gap_stays_open_and_is_reported():
    device = analytic_device(
        3,
        loader=Loader(bandwidth_bytes_per_s=1.0, slowdown_while_executing=2.0),
        executor=Executor(flops_per_s=1.0, slowdown_while_loading=2.0),
    )
    found = best_plan(uniform_workload(4, 3, flops=1), device, time_limit_s=1)
    assert not found.plan.proven_optimal
    assert found.plan.gap == pytest.approx(found.plan.makespan_s / found.plan.lower_bound_s - 1)
    assert found.plan.gap > 0
