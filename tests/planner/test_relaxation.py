"""Bounds from prices: valid whatever the prices are, and as good as published optima where those are known."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cidl_sim.core.timed import timed
from cidl_sim.planner.prices import Prices, price_bound_s
from cidl_sim.planner.relaxation import columns_with, relaxed_bound_s, shortened, steady_bound_s
from tests.conftest import uniform_device, uniform_workload
from tests.planner.test_exact import PUBLISHED, brute_force_s, small_cases


def soon() -> float:
    return time.monotonic() + 60


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(small_cases(workspaces=True), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_no_prices_exceed_the_optimum(case, pieces, seed):
    workload, device = case
    chance = np.random.default_rng(seed)
    drawn = chance.uniform(0, 2, (2, len(workload.visits), pieces)) * chance.integers(0, 2, (2, 1, 1))
    assert price_bound_s(timed(workload, device), Prices(drawn[0], drawn[1])) <= brute_force_s(workload, device) + 1e-9


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(small_cases(workspaces=True), st.integers(1, 3))
def test_the_relaxation_does_not_exceed_the_optimum(case, pieces):
    workload, device = case
    optimum = brute_force_s(workload, device)
    assert relaxed_bound_s(timed(workload, device), pieces=pieces, deadline_s=soon()) <= optimum + 1e-6
    assert steady_bound_s(timed(workload, device), pieces=pieces, deadline_s=soon()) <= optimum + 1e-6


def test_at_no_price_only_the_first_loads_are_waited_for():
    workload, device = uniform_workload(4, 3), uniform_device(2, 10, 5)
    free = np.zeros((len(workload.visits), 1))
    # But for the first block, and the second one, which only 5 s of work can hide.
    assert price_bound_s(timed(workload, device), Prices(free, free)) == 10 + (10 - 5) + 4 * 3 * 5


@pytest.mark.parametrize(("n", "rounds", "slots", "load_s", "exec_s", "optimum"), PUBLISHED)
def test_the_relaxation_equals_published_optima(n, rounds, slots, load_s, exec_s, optimum):
    workload, device = uniform_workload(n, rounds), uniform_device(slots, load_s, exec_s)
    assert relaxed_bound_s(timed(workload, device), pieces=4, deadline_s=soon()) == pytest.approx(optimum)


@pytest.mark.parametrize(("slots", "optimum"), [(10, 7304), (16, 6840)])
def test_a_few_rounds_stand_for_thirty(slots, optimum):
    workload, device = uniform_workload(28, 30), uniform_device(slots, 12, 8)
    found = relaxed_bound_s(timed(workload, device), pieces=2, deadline_s=soon(), most_rounds=5)
    assert found == pytest.approx(optimum)


def test_durations_without_a_common_unit_lose_nothing():
    workload, device = uniform_workload(6, 12), uniform_device(3, math.pi, math.sqrt(2))
    few = relaxed_bound_s(timed(workload, device), pieces=2, deadline_s=soon(), most_rounds=5)
    steady = steady_bound_s(timed(workload, device), pieces=2, deadline_s=soon())
    everything = relaxed_bound_s(timed(workload, device), pieces=2, deadline_s=soon())
    assert max(few, steady) <= everything * (1 + 1e-9)
    assert max(few, steady) == pytest.approx(everything, rel=0.02)


def test_two_stages_that_share_weights_have_a_bound():
    workload = uniform_workload(5, 8)
    stage = workload.stages[0]
    workload = workload.model_copy(update={"stages": (stage, stage.model_copy(update={"name": "plain"}))})
    device = uniform_device(3, 3.0, 2.0)
    few, steady = (
        relaxed_bound_s(timed(workload, device), pieces=2, deadline_s=soon(), most_rounds=5),
        steady_bound_s(timed(workload, device), pieces=2, deadline_s=soon()),
    )
    whole = relaxed_bound_s(timed(workload, device), pieces=2, deadline_s=soon())
    assert 160 < max(few, steady) <= whole * (1 + 1e-9)


def test_a_deadline_in_the_past_gives_no_bound():
    workload, device = uniform_workload(8, 8), uniform_device(4, 10, 5)
    assert relaxed_bound_s(timed(workload, device), pieces=1, deadline_s=time.monotonic() - 1) == 0
    assert steady_bound_s(timed(workload, device), pieces=1, deadline_s=time.monotonic() - 1) == 0


def test_finer_pieces_and_more_rounds_take_more_columns():
    workload, device = uniform_workload(8, 8), uniform_device(4, 10, 5)
    assert columns_with(shortened(timed(workload, device), 5), 1) < columns_with(timed(workload, device), 1)
    assert columns_with(timed(workload, device), 1) < columns_with(timed(workload, device), 2)
