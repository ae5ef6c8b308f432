"""The exact models against each other, against brute force through the engine, and against published optima."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.feasibility import check_plan, largest_need
from cidl_sim.core.plan import Load
from cidl_sim.core.timed import timed
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.planner.bounds import lower_bound_s
from cidl_sim.planner.exact import instance_of, solve_by_constraints, solve_by_intervals
from cidl_sim.policies.build import build_plan
from cidl_sim.simulator.engine import makespan_s
from tests.conftest import analytic_device, uniform_device, uniform_workload


def solved_by_all(workload, device):
    """By the interval model, and by the constraint model."""
    return [solve_by_intervals(timed(workload, device)), solve_by_constraints(timed(workload, device))]


# n, K, C, l, e, and the optimum.
PUBLISHED = [(8, 4, 4, 10, 5, 250), (8, 4, 4, 10, 10, 330), (10, 4, 5, 12, 8, 380), (12, 4, 6, 12, 8, 440)]


@pytest.mark.parametrize(("n", "rounds", "slots", "load_s", "exec_s", "optimum"), PUBLISHED)
def test_published_optima_are_found_and_proven(n, rounds, slots, load_s, exec_s, optimum):
    workload, device = uniform_workload(n, rounds), uniform_device(slots, load_s, exec_s)
    found = solve_by_intervals(timed(workload, device))
    assert found.bound_s == found.makespan_s == found.model_s == optimum
    check_plan(workload, device, found.plan)


def test_the_constraint_model_finds_a_published_optimum():
    found = solve_by_constraints(timed(uniform_workload(8, 4), uniform_device(4, 10, 5)), time_limit_s=60)
    assert found.bound_s == found.makespan_s == found.model_s == 250


@st.composite
def small_cases(draw: st.DrawFn, *, workspaces: bool = False) -> tuple[Workload, DeviceProfile]:
    """At most 5 visits of blocks of mixed sizes, some of no length; one workspace for all, or mixed ones."""
    blocks = draw(st.integers(1, 3))
    rounds = draw(st.integers(1, 5 // blocks))
    workspace = draw(st.integers(0, 2))
    sizes = [draw(st.integers(1, 4)) for _ in range(blocks)]
    # The last block may share the first one's weights, and so come twice in a round.
    shared = blocks > 1 and draw(st.booleans())
    sizes[-1] = sizes[0] if shared else sizes[-1]
    made = [
        Block(
            name=f"b{i}",
            kind=f"b{i}",
            weights="b0" if shared and i == blocks - 1 else f"b{i}",
            weight_bytes=sizes[i],
            workspace_bytes=draw(st.integers(0, 3)) if workspaces else workspace,
            flops=draw(st.integers(0, 4)),
        )
        for i in range(blocks)
    ]
    workload = Workload(name="small", stages=[Stage(name="s", rounds=rounds, blocks=made)])
    need, _ = largest_need(workload)
    return workload, analytic_device(need + draw(st.integers(0, 6)))


def brute_force_s(workload: Workload, device: DeviceProfile) -> float:
    """The least makespan over all sets of keeps and all orders of loads."""
    visits = range(len(workload.visits))
    reloads = [v for v in visits if workload.previous_same_weights[v] is not None]
    best = float("inf")
    for count in range(len(reloads) + 1):
        for kept in combinations(reloads, count):
            keep = {workload.previous_same_weights[v] for v in kept}
            for order in permutations([v for v in visits if v not in kept]):
                plan = build_plan("tried", workload, device, [Load(visit=v) for v in order], keep)
                try:
                    best = min(best, makespan_s(workload, device, plan))
                except InfeasibleError:
                    continue
    return best


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(small_cases())
def test_both_models_equal_brute_force(case):
    workload, device = case
    optimum = brute_force_s(workload, device)
    assert lower_bound_s(workload, device) <= optimum * (1 + 1e-9)
    for found in solved_by_all(workload, device):
        assert found.bound_s == pytest.approx(optimum)
        assert found.makespan_s == pytest.approx(optimum)
        assert found.model_s == pytest.approx(optimum)


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(small_cases(workspaces=True))
def test_with_mixed_workspaces_the_bounds_hold_and_the_engine_has_the_last_word(case):
    workload, device = case
    optimum = brute_force_s(workload, device)
    for found in solved_by_all(workload, device):
        assert found.bound_s <= optimum + 1e-9
        assert found.makespan_s is None or found.makespan_s >= optimum - 1e-9


@settings(max_examples=30)
@given(small_cases(), st.sampled_from(["memory_limit_bytes", "loader.bandwidth_bytes_per_s", "executor.flops_per_s"]))
def test_more_of_anything_never_worsens_the_optimum(case, key):
    workload, device = case
    better = with_value(device, key, 2 * device.memory_limit_bytes if key == "memory_limit_bytes" else 2.0)
    least, here = (solve_by_intervals(timed(workload, d)).makespan_s for d in (better, device))
    assert least <= here + 1e-9


def test_rounded_durations_give_a_bound_that_holds_and_a_plan_that_the_engine_times(monkeypatch):
    # No unit divides these: the bound is that of shorter durations, within a few per cent in coarse units.
    monkeypatch.setattr("cidl_sim.planner.exact.UNITS_TRIED", (250,))
    workload = uniform_workload(6, 3)
    device = uniform_device(3, math.pi, math.sqrt(2))
    instance = instance_of(timed(workload, device), most_units=500)
    assert not instance.is_exact
    assert instance.unit_s * max(instance.loads) <= math.pi
    found = solve_by_intervals(timed(workload, device), time_limit_s=120.0)
    assert found.bound_s <= found.makespan_s <= found.bound_s * 1.04
    assert found.makespan_s == makespan_s(workload, device, found.plan)


def test_decimal_durations_are_exact():
    instance = instance_of(timed(uniform_workload(3, 2), uniform_device(2, 0.35, 0.1)))
    assert instance.is_exact
    assert instance.unit_s == pytest.approx(0.05)
    assert (instance.loads[0], instance.executions[0]) == (7, 2)


def test_an_instance_that_is_too_large_is_left_to_others():
    assert solve_by_intervals(timed(uniform_workload(300, 30), uniform_device(100, 0.0123, 0.0077))) is None


@pytest.mark.parametrize("durations", [(0, 0), (0, 1), (1, 0)])
def test_durations_of_zero_are_solved(durations):
    workload, device = uniform_workload(3, 2), uniform_device(2, *durations)
    for found in solved_by_all(workload, device):
        assert found.bound_s == found.makespan_s


def test_a_time_limit_of_nothing_still_gives_a_bound():
    found = solve_by_intervals(timed(uniform_workload(8, 4), uniform_device(4, 10, 5)), time_limit_s=0)
    assert 160 <= found.bound_s <= 250
