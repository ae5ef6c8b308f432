"""Inverse questions: the answer meets the target, and below `needed` nothing can."""

from __future__ import annotations

import pytest

from cidl_sim.core.errors import InputError
from cidl_sim.core.what_if import with_value
from cidl_sim.planner.bisection import RATE_RESOLUTION
from cidl_sim.planner.bounds import lower_bound_s
from cidl_sim.planner.inverse import RATES, least_for
from cidl_sim.planner.reruns import best_policy
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import makespan_s
from tests.conftest import analytic_device, uniform_device, uniform_workload


def by_parameter(workload, device, target_s):
    return {row.parameter: row for row in least_for(workload, device, target_s)}


def best_s(workload, device) -> float:
    return makespan_s(workload, device, make_plan(best_policy(workload, device), workload, device))


def test_the_least_memory_meets_the_target_and_one_block_less_does_not():
    # Room for 4 of 8 blocks: 265 s with a policy (250 at best), for 5: less.
    workload, device = uniform_workload(8, 4), uniform_device(4, 10, 5)
    row = by_parameter(workload, device, 265)["memory_limit_bytes"]
    assert (row.value, row.makespan_s) == (4, 265)
    assert best_s(workload, uniform_device(3, 10, 5)) > 265
    assert row.needed is None or row.needed <= row.value
    if row.needed is not None:
        assert lower_bound_s(workload, uniform_device(int(row.needed) - 1, 10, 5)) > 265


def test_rates_are_found_to_a_hundredth():
    workload = uniform_workload(4, 3, weight_bytes=10, flops=3)
    device = analytic_device(25)
    target_s = best_s(workload, device)
    rows = by_parameter(workload, device, 0.75 * target_s)
    for parameter in RATES:
        row = rows[parameter]
        if row.value is None:
            continue
        changed = with_value(device, parameter, row.value)
        assert row.makespan_s == pytest.approx(best_s(workload, changed), rel=0.05)
        assert row.makespan_s <= 0.75 * target_s
        assert row.needed is None or row.needed <= row.value * RATE_RESOLUTION


def test_what_nothing_meets_says_so_with_the_bound():
    workload = uniform_workload(4, 3, weight_bytes=10, flops=3)
    rows = by_parameter(workload, analytic_device(25), 20)
    row = rows["memory_limit_bytes"]
    assert row.value is None
    # The first load and 12 executions of 3 s, with all the memory there can be.
    assert "no memory limit meets 20 s: no plan is faster than" in row.sentence
    # Loads alone take 40 s at any rate of the executor.
    assert rows["executor.flops_per_s"].value is None


def test_a_rate_that_is_not_given_is_named():
    rows = by_parameter(uniform_workload(3, 2), uniform_device(2, 1, 1), 5)
    assert rows["executor.flops_per_s"].sentence == "executor.flops_per_s is not given"


@pytest.mark.parametrize("target_s", [0, -1, float("nan"), float("inf")])
def test_a_target_that_is_no_time_is_refused(target_s):
    with pytest.raises(InputError, match="positive number of seconds"):
        least_for(uniform_workload(3, 2), uniform_device(2, 1, 1), target_s)
