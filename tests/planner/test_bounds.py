import pytest
from hypothesis import given

from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.plan import read_plan
from cidl_sim.core.timed import timed
from cidl_sim.planner.bounds import (
    first_load_bound_s,
    least_loading_s,
    loading_bound_s,
    lower_bound_s,
    quick_bound_s,
)
from cidl_sim.planner.evaluate import baseline_makespans, evaluated_plan
from cidl_sim.policies.catalog import POLICIES
from cidl_sim.simulator.engine import simulate
from tests.conftest import uniform_device, uniform_workload
from tests.core.strategies import cases


def test_the_bounds_of_a_uniform_sweep():
    workload, device = uniform_workload(8, 4), uniform_device(4, 10, 5)
    assert first_load_bound_s(timed(workload, device)) == 10 + 8 * 4 * 5
    least = least_loading_s(timed(workload, device))
    assert list(least[:8]) == [10 * p for p in range(1, 9)]  # the first round is cold
    assert loading_bound_s(timed(workload, device), least) == pytest.approx(least[-1] + 5)


def test_what_fits_is_loaded_once():
    workload, device = uniform_workload(4, 3), uniform_device(4, 10, 1)
    assert list(least_loading_s(timed(workload, device))) == pytest.approx([10, 20, 30] + [40] * 9)
    # The last block of the first round comes at 40; it and everything after it is still to be executed.
    assert lower_bound_s(workload, device) == pytest.approx(40 + 9)


@given(cases())
def test_without_the_program_the_bound_is_lower_or_as_good(case):
    workload, device, _ = case
    assert quick_bound_s(workload, device) <= lower_bound_s(workload, device) * (1 + 1e-9)


def test_what_fits_is_bounded_without_a_program():
    assert quick_bound_s(uniform_workload(4, 3), uniform_device(2, 10, 1)) == pytest.approx(40 + 9)


def test_nothing_can_be_kept_where_a_block_fills_the_memory():
    workload, device = uniform_workload(3, 4), uniform_device(1, 10, 1)
    assert least_loading_s(timed(workload, device))[-1] == pytest.approx(3 * 4 * 10)


@pytest.mark.parametrize(("blocks", "rounds", "slots"), [(5, 4, 3), (8, 6, 4), (6, 3, 5), (4, 5, 2)])
def test_with_equal_sizes_the_least_number_of_loads_is_that_of_the_best_packing(blocks, rounds, slots):
    # A slot keeps one weight across the n - 1 visits in between, and then the next: greedy, slot by slot.
    visits, kept = blocks * rounds, 0
    in_use = [0] * (slots - 1)
    for end in range(blocks, visits):
        begin = end - blocks
        free = [i for i, until in enumerate(in_use) if until <= begin + 1]
        if free:
            in_use[max(free, key=lambda i: in_use[i])] = end
            kept += 1
    workload, device = uniform_workload(blocks, rounds), uniform_device(slots, 1, 0)
    assert least_loading_s(timed(workload, device))[-1] == pytest.approx(visits - kept)


@pytest.mark.parametrize(
    ("n", "rounds", "slots", "load_s", "exec_s", "optimum"),
    [(8, 4, 4, 10, 10, 330), (12, 4, 6, 12, 8, 440), (28, 30, 16, 12, 8, 6840)],
)
def test_the_bound_alone_proves_some_published_optima(n, rounds, slots, load_s, exec_s, optimum):
    assert lower_bound_s(uniform_workload(n, rounds), uniform_device(slots, load_s, exec_s)) == pytest.approx(optimum)


def test_a_workspace_takes_room_from_what_is_kept():
    device = uniform_device(6, 10, 1)
    narrow = uniform_workload(6, 4)
    wide = uniform_workload(6, 4, workspace_bytes=3)
    assert lower_bound_s(wide, device) > lower_bound_s(narrow, device)


@given(cases())
def test_what_is_loaded_before_a_visit_is_never_less_than_the_bound_says(case):
    workload, device, plan = case
    if device.loader.channels > 1:
        return
    try:
        trace = simulate(workload, device, plan)
    except InfeasibleError:
        return
    least = least_loading_s(timed(workload, device))
    starts = {span.visit: span.start_s for span in trace.of("execute")}
    for visit, least_s in enumerate(least):
        assert starts[visit] >= least_s * (1 - 1e-9) - 1e-9


@given(cases())
def test_no_policy_beats_a_bound(case):
    workload, device, _ = case
    bound = lower_bound_s(workload, device)
    for makespan in baseline_makespans(workload, device).values():
        assert makespan is None or makespan >= bound * (1 - 1e-12)


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
