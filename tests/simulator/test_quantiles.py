"""Quantiles of the makespan under noise."""

from __future__ import annotations

import pytest

from cidl_sim.core.device import Noise
from cidl_sim.core.errors import InfeasibleError, InputError
from cidl_sim.core.reports import MakespanQuantiles
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import makespan_s, simulate
from cidl_sim.simulator.quantiles import makespan_quantiles
from tests.conftest import uniform_device, uniform_workload

WORKLOAD = uniform_workload(6, 4)
NOISY = uniform_device(3, 2, 1.5, noise=Noise(load=0.3, execute=0.1))
PLAN = make_plan("next_block", WORKLOAD, NOISY)


def test_quantiles_are_those_of_the_seeded_runs():
    makespans = [makespan_s(WORKLOAD, NOISY, PLAN, seed=seed) for seed in range(5, 26)]
    # Of 21 sorted runs these are the 2nd, the 11th and the 20th.
    second, middle, last_but_one = (sorted(makespans)[i] for i in (1, 10, 19))
    found = makespan_quantiles(WORKLOAD, NOISY, PLAN, runs=21, first_seed=5)
    assert (found.p5, found.p50, found.p95) == pytest.approx((second, middle, last_but_one))
    assert found == makespan_quantiles(WORKLOAD, NOISY, PLAN, runs=21, first_seed=5)


def test_of_many_runs_each_is_the_engines_though_compiled_code_takes_over():
    makespans = [makespan_s(WORKLOAD, NOISY, PLAN, seed=seed) for seed in range(301)]
    found = makespan_quantiles(WORKLOAD, NOISY, PLAN, runs=301)
    assert (found.p5, found.p50, found.p95) == tuple(sorted(makespans)[i] for i in (15, 150, 285))


def test_a_run_that_cannot_finish_names_its_visit():
    small = NOISY.model_copy(update={"memory_limit_bytes": 0})
    with pytest.raises(InfeasibleError, match="visit"):
        makespan_quantiles(WORKLOAD, small, PLAN, runs=3)


def test_the_middle_of_many_runs_lies_above_the_run_without_noise():
    # Both workers wait for the later one of two, so noise with mean one can only cost time.
    quiet = makespan_s(WORKLOAD, NOISY, PLAN)
    found = makespan_quantiles(WORKLOAD, NOISY, PLAN, runs=200)
    assert quiet < found.p50
    assert found.p5 < found.p50 < found.p95


def test_without_noise_one_run_stands_for_all():
    device = uniform_device(3, 2, 1.5)
    done: list[tuple[int, int]] = []
    found = makespan_quantiles(WORKLOAD, device, PLAN, runs=1000, on_run=lambda i, n, _: done.append((i, n)))
    assert done == [(1, 1)]
    seconds = makespan_s(WORKLOAD, device, PLAN)
    assert found == MakespanQuantiles(p5=seconds, p50=seconds, p95=seconds)


def test_a_limit_that_changes_counts_in_every_run():
    changes = [(10.0, 1)]
    trace = simulate(WORKLOAD, NOISY, PLAN, seed=7, limit_changes=changes)
    found = makespan_quantiles(WORKLOAD, NOISY, PLAN, runs=1, first_seed=7, limit_changes=changes)
    assert found.p50 == trace.makespan_s > makespan_s(WORKLOAD, NOISY, PLAN, seed=7)


def test_observers_hear_of_every_run():
    done: list[tuple[int, int]] = []
    makespan_quantiles(WORKLOAD, NOISY, PLAN, runs=3, on_run=lambda i, n, _: done.append((i, n)))
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_no_run_is_no_quantile():
    with pytest.raises(InputError, match="0 runs"):
        makespan_quantiles(WORKLOAD, NOISY, PLAN, runs=0)
