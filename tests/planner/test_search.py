"""Annealing over who keeps weights, and what the engine makes of it."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cidl_sim.core.device import Executor, Loader
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.feasibility import check_plan
from cidl_sim.core.plan import Load
from cidl_sim.core.timed import timed
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.planner import annealing
from cidl_sim.planner.search import search
from cidl_sim.policies.build import build_plan, positions_of
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import makespan_s
from tests.conftest import analytic_device, uniform_device, uniform_workload
from tests.planner.test_exact import small_cases


def mixed_workload(rounds: int = 6) -> Workload:
    sizes = (9, 4, 13, 6, 8, 12, 5, 7)
    blocks = [Block(name=f"b{i}", kind=f"b{i}", weight_bytes=s, flops=3 + i % 3) for i, s in enumerate(sizes)]
    return Workload(name="mixed", stages=[Stage(name="s", rounds=rounds, blocks=blocks)])


def soon() -> float:
    return time.monotonic() + 2.0


def test_blocks_of_mixed_sizes_are_retained_better_than_by_any_policy():
    workload, device = mixed_workload(), analytic_device(40)
    plans = [make_plan(policy, workload, device) for policy in ("spread", "rotating")]
    known_s = min(makespan_s(workload, device, make_plan(p, workload, device)) for p in ("spread", "prefix", "lru"))
    plan, found_s = search(timed(workload, device), plans, known_s=known_s, deadline_s=soon())
    assert found_s < known_s
    assert makespan_s(workload, device, plan) == found_s
    check_plan(workload, device, plan)


def test_without_time_nothing_is_found():
    workload, device = mixed_workload(), analytic_device(40)
    plans = [make_plan("spread", workload, device)]
    assert search(timed(workload, device), plans, known_s=100.0, deadline_s=0.0) == (None, 100.0)


def test_what_cannot_be_retained_leaves_nothing_to_search():
    workload, device = uniform_workload(4, 1), uniform_device(2, 1, 1)
    began = time.monotonic()
    plans = [make_plan("sequential", workload, device)]
    assert search(timed(workload, device), plans, known_s=1.0, deadline_s=began + 60) == (None, 1.0)
    assert time.monotonic() - began < 30


def test_a_retained_set_is_read_from_a_plan():
    workload, device = uniform_workload(8, 4), uniform_device(5, 10, 5)
    assert positions_of(make_plan("prefix:3", workload, device), workload) == {"denoiser": frozenset({0, 1, 2})}
    assert positions_of(make_plan("next_block", workload, device), workload) == {"denoiser": frozenset()}


def test_strong_contention_can_call_for_a_shorter_lookahead():
    # Both sides slow each other threefold: a load beside an execution costs more than one after the other.
    device = analytic_device(
        20,
        loader=Loader(bandwidth_bytes_per_s=1.0, slowdown_while_executing=3.0),
        executor=Executor(flops_per_s=1.0, slowdown_while_loading=3.0),
    )
    workload = uniform_workload(6, 3, weight_bytes=4, flops=4)
    deep = make_plan("prefix:0", workload, device)
    deep_s = makespan_s(workload, device, deep)
    _, found_s = search(timed(workload, device), [deep], known_s=deep_s, deadline_s=soon())
    assert found_s < deep_s


@given(small_cases(workspaces=True), st.integers(0, 2**32 - 1))
def test_the_walk_judges_plans_as_the_engine_does(case, seed):
    workload, device = case
    chance = np.random.default_rng(seed)
    visits = annealing.walked(timed(workload, device))
    keep = chance.integers(0, 2, len(visits.following)).astype(bool)
    order = np.argsort(np.arange(len(keep)) + chance.uniform(0, 1.5, len(keep)))
    previous, following = workload.previous_same_weights, workload.next_same_weights
    kept = {v for v in range(len(keep)) if keep[v] and following[v] is not None}
    loads = [Load(visit=int(v)) for v in order if previous[v] not in kept]
    plan = build_plan("tried", workload, device, loads, kept)
    try:
        expected = makespan_s(workload, device, plan)
    except InfeasibleError:
        expected = float("inf")
    assert annealing.makespan_s(visits, keep, order) == pytest.approx(expected)


def test_a_walk_is_repeatable_and_never_ends_worse_than_it_began():
    workload, device = mixed_workload(), analytic_device(40)
    visits = annealing.walked(timed(workload, device))
    keep, order = np.zeros(len(visits.following), bool), np.arange(len(visits.following))
    began_s = annealing.makespan_s(visits, keep, order)
    first, again = (annealing.anneal(visits, keep, order, 500, 1.0, 0.1, True, 7) for _ in range(2))
    assert first[0] < began_s
    assert first[0] == again[0] == annealing.makespan_s(visits, first[1], first[2])
    assert (first[1] == again[1]).all()
    assert sorted(first[2]) == list(order)
