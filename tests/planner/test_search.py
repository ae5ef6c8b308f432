"""Local search over retained sets."""

from __future__ import annotations

import time

from cidl_sim.core.device import Executor, Loader
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.planner.search import positions_of, search
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import makespan_s
from tests.conftest import analytic_device, uniform_device, uniform_workload


def mixed_workload(rounds: int = 6) -> Workload:
    sizes = (9, 4, 13, 6, 8, 12, 5, 7)
    blocks = [Block(name=f"b{i}", kind=f"b{i}", weight_bytes=s, flops=3 + i % 3) for i, s in enumerate(sizes)]
    return Workload(name="mixed", stages=[Stage(name="s", rounds=rounds, blocks=blocks)])


def soon() -> float:
    return time.monotonic() + 2.0


def test_blocks_of_mixed_sizes_are_retained_better_than_by_any_policy():
    workload, device = mixed_workload(), analytic_device(40)
    spread = make_plan("spread", workload, device)
    known_s = min(makespan_s(workload, device, make_plan(p, workload, device)) for p in ("spread", "prefix", "lru"))
    plan, found_s = search(workload, device, [positions_of(spread, workload)], known_s=known_s, deadline_s=soon())
    assert found_s < known_s
    assert makespan_s(workload, device, plan) == found_s
    plan.check(workload, device)


def test_without_time_nothing_is_found():
    workload, device = mixed_workload(), analytic_device(40)
    assert search(workload, device, [], known_s=100.0, deadline_s=0.0) == (None, 100.0)


def test_what_cannot_be_retained_leaves_nothing_to_search():
    workload = uniform_workload(4, 1)
    began = time.monotonic()
    plan, _ = search(workload, uniform_device(2, 1, 1), [{}], known_s=1.0, deadline_s=began + 60)
    assert plan is None
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
    deep = makespan_s(workload, device, make_plan("prefix:0", workload, device))
    _, found_s = search(workload, device, [{"denoiser": frozenset()}], known_s=deep, deadline_s=soon())
    assert found_s < deep
