"""The engine against hand-computed schedules and invariants."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cidl_sim.core.device import DeviceProfile, Executor, Loader, Measured, Noise, ThermalStep
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.plan import Load
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.planner.bounds import lower_bound_s
from cidl_sim.policies.build import build_plan, deep_prefetch
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import makespan_s, simulate
from cidl_sim.simulator.noise import noise_factors
from tests.conftest import analytic_device, uniform_device, uniform_workload
from tests.core.strategies import cases


def chain(*blocks: tuple[int, int], rounds: int = 1) -> Workload:
    """Blocks of (weight bytes = load seconds, flops = execution seconds)."""
    stage = Stage(
        name="s",
        rounds=rounds,
        blocks=[Block(name=f"b{i}", kind=f"b{i}", weight_bytes=w, flops=e) for i, (w, e) in enumerate(blocks)],
    )
    return Workload(name="chain", stages=[stage])


def intervals(trace: Trace, operation: str) -> list[tuple[int, float, float]]:
    return [(s.visit, s.start_s, s.end_s) for s in trace.of(operation)]


def run(workload: Workload, device: DeviceProfile, keep: tuple[int, ...] = ()) -> Trace:
    return simulate(workload, device, deep_prefetch("test", workload, device, set(keep)))


def test_a_schedule_of_five_blocks_is_the_one_computed_by_hand():
    # docs/background/simulator.md draws it: loads 3 2 4 1 2, executions 2 4 1 3 2, room for 7 bytes.
    workload = chain((3, 2), (2, 4), (4, 1), (1, 3), (2, 2))
    trace = run(workload, analytic_device(7))
    # b0 leaves at 5, so that b2 (4) fits beside b1 (2); from then on the loader never waits.
    assert intervals(trace, "load") == [(0, 0, 3), (1, 3, 5), (2, 5, 9), (3, 9, 10), (4, 10, 12)]
    assert intervals(trace, "execute") == [(0, 3, 5), (1, 5, 9), (2, 9, 10), (3, 10, 13), (4, 13, 15)]
    assert trace.makespan_s == 15
    assert trace.peak_resident_bytes == 6
    assert trace.idle_s == {"executor": {"load": 3.0}}


def test_a_tight_limit_makes_the_loader_wait_for_memory():
    trace = run(chain((3, 2), (2, 4), (4, 1)), analytic_device(5))
    # b2 needs b0 and b1 gone: it starts at 9.
    assert intervals(trace, "load") == [(0, 0, 3), (1, 3, 5), (2, 9, 13)]
    assert trace.idle_s["loader.0"] == {"memory": 4.0}
    assert trace.makespan_s == 14


def test_kept_weights_are_not_loaded_again():
    trace = run(chain((3, 2), (2, 2), rounds=2), analytic_device(5), keep=(0,))
    assert [visit for visit, _, _ in intervals(trace, "load")] == [0, 1, 3]


def test_a_workspace_takes_part_in_the_limit():
    workload = Workload(
        name="w",
        stages=[
            Stage(
                name="s",
                blocks=[
                    Block(name="a", kind="a", weight_bytes=1, workspace_bytes=4, flops=5),
                    Block(name="b", kind="b", weight_bytes=1, flops=1),
                ],
            )
        ],
    )
    assert intervals(run(workload, analytic_device(5)), "load") == [(0, 0, 1), (1, 6, 7)]
    assert intervals(run(workload, analytic_device(6)), "load") == [(0, 0, 1), (1, 1, 2)]


def test_two_channels_share_the_bandwidth_equally():
    workload = chain((4, 1), (4, 1))
    one = run(workload, analytic_device(100))
    two = run(workload, analytic_device(100, loader=Loader(channels=2, bandwidth_bytes_per_s=1.0)))
    assert intervals(one, "load") == [(0, 0, 4), (1, 4, 8)]
    assert intervals(two, "load") == [(0, 0, 8), (1, 0, 8)]
    assert {s.worker for s in two.of("load")} == {"loader.0", "loader.1"}


def test_latencies_of_two_channels_overlap():
    workload = chain((4, 1), (4, 1))
    device = analytic_device(100, loader=Loader(channels=2, latency_s=3.0, bandwidth_bytes_per_s=1.0))
    assert [end for _, _, end in intervals(run(workload, device), "load")] == [11, 11]


def test_contention_is_a_fluid():
    # b1 is loaded for 4 s while b0 executes: at half the rate on both sides.
    workload = chain((1, 4), (4, 1))
    device = analytic_device(
        100,
        loader=Loader(bandwidth_bytes_per_s=1.0, slowdown_while_executing=2.0),
        executor=Executor(flops_per_s=1.0, slowdown_while_loading=2.0),
    )
    trace = run(workload, device)
    assert intervals(trace, "execute")[0] == (0, 1, 9)
    assert intervals(trace, "load")[1] == (1, 1, 9)
    assert trace.makespan_s == 10


def test_only_the_overlapping_part_is_slowed_down():
    # b0 executes 6 s; the load of b1 (2 s at half the rate) covers its first 4 s, in which it does 2 s of work.
    workload = chain((1, 6), (2, 1))
    device = analytic_device(
        100,
        loader=Loader(bandwidth_bytes_per_s=1.0, slowdown_while_executing=2.0),
        executor=Executor(flops_per_s=1.0, slowdown_while_loading=2.0),
    )
    trace = run(workload, device)
    assert intervals(trace, "load")[1] == (1, 1, 5)
    assert intervals(trace, "execute")[0] == (0, 1, 9)


def test_the_first_load_of_weights_is_cold():
    workload = uniform_workload(1, 3)
    device = DeviceProfile(name="d", memory_limit_bytes=1, measured={"b": Measured(load_s=1, cold_load_s=5, exec_s=1)})
    trace = simulate(workload, device, make_plan("sequential", workload, device))
    assert [(s.cold, s.end_s - s.start_s) for s in trace.of("load")] == [(True, 5), (False, 1), (False, 1)]


def test_memory_is_touched_once():
    # New memory takes 0.5 s a byte: 3 bytes for b0, 2 for b1 beside it; b2 needs one more, b3 none.
    workload = chain((3, 2), (2, 4), (4, 1), (1, 3))
    device = analytic_device(7, loader=Loader(bandwidth_bytes_per_s=1.0, first_touch_bytes_per_s=2.0))
    trace = run(workload, device)
    assert intervals(trace, "load") == [(0, 0, 4.5), (1, 4.5, 7.5), (2, 7.5, 12), (3, 12, 13)]
    assert trace.peak_resident_bytes == 6


def test_memory_given_back_is_touched_again():
    # Room for 4 bytes from 1.5 s on, for 7 again from 9 s on: b1 finds 2 of its bytes used, b2 has 3 to touch.
    workload = chain((2, 1), (4, 4), (3, 4))
    loader = Loader(bandwidth_bytes_per_s=2.0, first_touch_bytes_per_s=2.0)
    plan = deep_prefetch("test", workload, analytic_device(7, loader=loader), set())
    trace = simulate(workload, analytic_device(7, loader=loader), plan, limit_changes=[(1.5, 4), (7.0, 7)])
    assert intervals(trace, "load") == [(0, 0, 2), (1, 3, 6), (2, 7, 10)]


def test_a_thermal_step_slows_the_rest_of_an_execution():
    workload = chain((1, 10))
    device = analytic_device(100, thermal=(ThermalStep(after_s=6.0, factor=0.5),))
    # Five seconds at full rate, then the other five at half.
    assert run(workload, device).makespan_s == 16


def test_durations_of_zero_are_valid():
    trace = run(chain((0, 0), (0, 0), rounds=2), analytic_device(1))
    assert trace.makespan_s == 0


def test_a_plan_that_cannot_go_on_says_why():
    workload = uniform_workload(2, 2)
    device = uniform_device(1, 1, 1)
    plan = build_plan("bad", workload, device, [Load(visit=1), Load(visit=0), Load(visit=2), Load(visit=3)], ())
    with pytest.raises(InfeasibleError, match="visit 0"):
        simulate(workload, device, plan)


def test_a_stage_that_ended_early_is_replayed_with_its_rounds():
    blocks = [Block(name=f"b{i}", kind="b", weight_bytes=1, flops=1) for i in range(2)]
    workload = Workload(
        name="w", stages=[Stage(name="s", rounds=4, blocks=blocks), Stage(name="t", blocks=[blocks[0].model_copy()])]
    )
    device = analytic_device(2)
    trace = simulate(workload, device, make_plan("next_block", workload, device), stage_rounds={0: 2, 1: 1})
    assert trace.stage_rounds == {0: 2, 1: 1}
    assert [v for v, _, _ in intervals(trace, "execute")] == [0, 1, 2, 3, 8]


def test_a_stage_that_never_ran_ended_with_the_one_before():
    stages = [Stage(name=n, rounds=2, blocks=[Block(name="b", kind="b", weight_bytes=1, flops=1)]) for n in "abc"]
    workload = Workload(name="w", stages=stages)
    device = analytic_device(2)
    plan = make_plan("next_block", workload, device)
    trace = simulate(workload, device, plan, stage_rounds={0: 1, 1: 0, 2: 2})
    assert trace.stage_rounds == {0: 1, 1: 0, 2: 2}


# Invariants


@given(cases())
def test_invariants_of_every_trace(case):
    workload, device, plan = case
    try:
        trace = simulate(workload, device, plan)
    except InfeasibleError:
        return
    assert trace.peak_resident_bytes <= device.memory_limit_bytes
    executions = trace.of("execute")
    assert [s.visit for s in executions] == [v.number for v in workload.visits]
    assert all(a.end_s <= b.start_s for a, b in pairwise(executions))
    loads = {s.visit: s for s in trace.of("load")}
    for span in executions:
        if span.visit in loads:
            assert loads[span.visit].end_s <= span.start_s
    for worker in {s.worker for s in trace.of("load")}:
        lane = sorted((s.start_s, s.end_s) for s in trace.of("load") if s.worker == worker)
        assert all(a[1] <= b[0] for a, b in pairwise(lane))
    assert trace.makespan_s >= lower_bound_s(workload, device) * (1 - 1e-12)


@given(cases(), st.integers(0, 2**32))
def test_the_same_input_gives_byte_identical_traces(case, seed):
    workload, device, plan = case
    try:
        first = simulate(workload, device, plan, seed=seed)
    except InfeasibleError:
        return
    assert first.to_json() == simulate(workload, device, plan, seed=seed).to_json()
    assert makespan_s(workload, device, plan, seed=seed) == first.makespan_s


# Noise


def test_noise_has_mean_one_and_the_asked_for_spread():
    factors = noise_factors(seed=1, visits=200_000, operation="load", relative_std=0.3)
    assert factors.mean() == pytest.approx(1, abs=0.005)
    assert factors.std() == pytest.approx(0.3, abs=0.005)
    assert (factors > 0).all()


def test_noise_depends_on_seed_visit_and_operation_alone():
    longer = noise_factors(7, 100, "load", 0.2)
    assert (noise_factors(7, 50, "load", 0.2) == longer[:50]).all()
    assert (noise_factors(8, 50, "load", 0.2) != longer[:50]).all()
    assert (noise_factors(7, 50, "execute", 0.2) != longer[:50]).all()


def test_noise_is_off_without_a_seed():
    workload = uniform_workload(3, 3)
    quiet = uniform_device(2, 2, 1)
    noisy = quiet.model_copy(update={"noise": Noise(load=0.5, execute=0.5)})
    plan = make_plan("next_block", workload, quiet)
    assert makespan_s(workload, noisy, plan) == makespan_s(workload, quiet, plan)
    assert makespan_s(workload, noisy, plan, seed=1) != makespan_s(workload, noisy, plan, seed=2)
