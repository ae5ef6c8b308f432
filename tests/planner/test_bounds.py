import pytest
from hypothesis import given

from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.plan import read_plan
from cidl_sim.planner.bounds import executor_bound_s, loader_bound_s, lower_bound_s
from cidl_sim.planner.evaluate import baseline_makespans, evaluated_plan
from cidl_sim.policies.catalog import POLICIES, make_plan
from cidl_sim.simulator.engine import simulate
from tests.conftest import uniform_device, uniform_workload
from tests.core.strategies import cases


def test_the_bounds_of_a_uniform_sweep():
    workload, device = uniform_workload(8, 4), uniform_device(4, 10, 5)
    assert executor_bound_s(workload, device) == 10 + 8 * 4 * 5
    assert loader_bound_s(workload, device) == 8 * 10 + 5


@given(cases())
def test_no_policy_beats_a_bound(case):
    workload, device, _ = case
    bound = lower_bound_s(workload, device)
    for policy in POLICIES:
        try:
            makespan = simulate(workload, device, make_plan(policy, workload, device)).makespan_s
        except InfeasibleError:
            continue
        assert makespan >= bound * (1 - 1e-12)


def test_a_plan_that_meets_the_bound_is_proven_optimal():
    plan, trace = evaluated_plan("next_block", uniform_workload(4, 3), uniform_device(4, 1, 3))
    assert plan.proven_optimal
    assert plan.gap == pytest.approx(0)
    assert plan.makespan_s == trace.makespan_s == 1 + 4 * 3 * 3


def test_a_plan_above_the_bound_says_by_how_much():
    plan, _ = evaluated_plan("sequential", uniform_workload(4, 3), uniform_device(4, 1, 3))
    assert not plan.proven_optimal
    assert plan.gap == pytest.approx(48 / 37 - 1)


def test_an_evaluated_plan_keeps_its_identity_in_a_file_and_its_trace_names_it(tmp_path):
    plan, trace = evaluated_plan("spread", uniform_workload(4, 3), uniform_device(3, 1, 3))
    plan.write(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json").sha256 == plan.sha256 == trace.header.plan_sha256


def test_baselines_hold_every_policy():
    makespans = baseline_makespans(uniform_workload(4, 3), uniform_device(2, 1, 3))
    assert set(makespans) == set(POLICIES)
    assert makespans["sequential"] == 48
