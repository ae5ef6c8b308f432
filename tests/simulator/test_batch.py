"""The compiled evaluator against the engine, with everything switched on."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cidl_sim.core.device import DeviceProfile, Executor, Loader, Measured, Noise
from cidl_sim.core.errors import DeviceError, InfeasibleError, PlanError
from cidl_sim.core.plan import Gate, Load, Plan
from cidl_sim.core.timed import timed
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.policies.build import build_plan, deep_prefetch, keep_positions
from cidl_sim.simulator import engine
from cidl_sim.simulator.arrays import arrays_of
from cidl_sim.simulator.batch import evaluate, keep_matrix, makespan_s, makespans, pattern_makespans
from cidl_sim.simulator.engine import simulate
from tests.conftest import analytic_device, uniform_device, uniform_workload
from tests.core.strategies import cases

EXACT = 1e-9
SEEDS = st.sampled_from([None, 0, 3, 2**63])


def without_contention(device: DeviceProfile) -> DeviceProfile:
    loader = {"channels": 1, "slowdown_while_executing": 1.0, "first_touch_bytes_per_s": None}
    update = {
        "loader": device.loader.model_copy(update=loader),
        "executor": device.executor.model_copy(update={"slowdown_while_loading": 1.0}),
        "thermal": (),
    }
    return device.model_copy(update=update)


def assert_equals_engine(workload: Workload, device: DeviceProfile, plan: Plan, **circumstances: object) -> float:
    """Every figure of the evaluator is the engine's; the makespan, inf where the engine finds the plan infeasible."""
    ours = evaluate(arrays_of(timed(workload, device)), plan, **circumstances)
    try:
        trace = simulate(workload, device, plan, **circumstances)
    except InfeasibleError:
        assert ours.makespan_s == math.inf
        return math.inf
    assert ours.makespan_s == pytest.approx(trace.makespan_s, rel=EXACT, abs=0)
    assert ours.peak_resident_bytes == trace.peak_resident_bytes
    assert ours.loader_busy_s == pytest.approx(trace.loader_busy_s, rel=EXACT)
    assert ours.executor_busy_s == pytest.approx(trace.executor_busy_s, rel=EXACT)
    return ours.makespan_s


@given(cases(), SEEDS, st.sampled_from([0.0, 0.3]))
def test_equals_the_engine_with_everything_switched_on(case, seed, drift):
    workload, device, plan = case
    noise = device.noise.model_copy(update={"load_drift": drift, "execute_drift": drift / 2})
    assert_equals_engine(workload, device.model_copy(update={"noise": noise}), plan, seed=seed)


@given(cases(plain=True), SEEDS)
def test_equals_the_engine_without_contention(case, seed):
    assert_equals_engine(*case, seed=seed)


@given(cases(), st.integers(0, 99))
def test_equals_the_engine_under_factors_of_the_caller(case, chance):
    workload, device, plan = case
    random = np.random.default_rng(chance)
    factors = tuple(random.uniform(0.5, 2.0, len(workload.visits)) for _ in range(2))
    assert_equals_engine(workload, device, plan, factors=factors)


@given(cases(), st.randoms(use_true_random=False))
def test_equals_the_engine_whatever_the_order_of_the_loads(case, chance):
    workload, device, plan = case
    loads = list(plan.loads)
    chance.shuffle(loads)
    assert_equals_engine(workload, device, plan.model_copy(update={"loads": tuple(loads)}))


@given(cases(), st.data())
def test_equals_the_engine_when_kinds_are_measured_with_cold_loads(case, data):
    workload, device, plan = case
    seconds = st.sampled_from([0.0, 0.1, 1.0, 3.0])
    kinds = {visit.block.kind for visit in workload.visits}
    measured = {
        kind: Measured(load_s=data.draw(seconds), cold_load_s=data.draw(seconds), exec_s=data.draw(seconds))
        for kind in sorted(kinds)
    }
    assert_equals_engine(workload, device.model_copy(update={"measured": measured}), plan)


def plan_of(workload: Workload, device: DeviceProfile, keep: np.ndarray, lookahead: int | None) -> Plan:
    """What a row of `makespans` stands for, as a plan."""
    previous = workload.previous_same_weights

    def gate(visit: int) -> Gate | None:
        if lookahead is None or visit < max(1, lookahead):
            return None
        return Gate(visit=visit - lookahead, edge="start") if lookahead else Gate(visit=visit - 1, edge="end")

    numbers = [v.number for v in workload.visits if previous[v.number] is None or not keep[previous[v.number]]]
    kept = [int(v) for v in np.flatnonzero(keep) if workload.next_same_weights[v] is not None]
    return build_plan("x", workload, device, [Load(visit=v, gate=gate(v)) for v in numbers], kept)


def engine_makespan_s(workload: Workload, device: DeviceProfile, plan: Plan, seed: int | None = None) -> float:
    try:
        return engine.makespan_s(workload, device, plan, seed=seed)
    except InfeasibleError:
        return math.inf


@given(cases(), st.booleans(), st.sampled_from([None, 0, 1, 2, 7]), st.integers(0, 99))
def test_every_row_of_a_batch_equals_the_engine(case, plain, lookahead, chance):
    workload, device, _ = case
    if plain:
        device = without_contention(device)
    random = np.random.default_rng(chance)
    keep = random.random((5, len(workload.visits))) < random.random((5, 1))
    found = makespans(arrays_of(timed(workload, device)), keep, lookahead)
    expected = [engine_makespan_s(workload, device, plan_of(workload, device, row, lookahead)) for row in keep]
    assert found == pytest.approx(expected, rel=EXACT, abs=0)


@given(cases(), st.booleans(), st.integers(0, 99))
def test_runs_of_a_batch_equal_the_engines_seeds(case, plain, chance):
    workload, device, _ = case
    if plain:
        device = without_contention(device)
    keep = np.random.default_rng(chance).random((3, len(workload.visits))) < 0.2
    found = makespans(arrays_of(timed(workload, device)), keep, seeds=[4, 5])
    plans = [plan_of(workload, device, row, None) for row in keep]
    expected = [[engine_makespan_s(workload, device, plan, seed) for seed in (4, 5)] for plan in plans]
    assert found == pytest.approx(np.array(expected), rel=EXACT, abs=0)


@st.composite
def many_rounds(draw: st.DrawFn) -> tuple[Workload, DeviceProfile]:
    """Up to two stages of up to 40 rounds on a device without contention."""
    sizes, spaces = st.sampled_from([0, 1, 2, 3, 5]), st.sampled_from([0, 0, 1, 4])
    stages: list[Stage] = []
    for s in range(draw(st.integers(1, 2))):
        blocks = [
            Block(
                name=f"s{s}.{i}",
                kind=f"s{s}.{i}",
                weights=f"w{i}" if s == 0 or i >= len(stages[0].blocks) else stages[0].blocks[i].weights,
                weight_bytes=draw(sizes) if s == 0 or i >= len(stages[0].blocks) else stages[0].blocks[i].weight_bytes,
                workspace_bytes=draw(spaces),
                flops=draw(st.sampled_from([0.0, 0.7, 1.0, 2.0, 3.3])),
            )
            for i in range(draw(st.integers(1, 6)))
        ]
        stages.append(Stage(name=f"s{s}", group="g", rounds=draw(st.integers(1, 40)), blocks=blocks))
    workload = Workload(name="many", stages=stages)
    need = max(v.block.weight_bytes + v.block.workspace_bytes for v in workload.visits)
    device = analytic_device(
        max(1, need + draw(st.integers(0, 12))),
        loader=Loader(bandwidth_bytes_per_s=draw(st.sampled_from([0.7, 1.0, 1.5])), latency_s=0.1),
    )
    return workload, device


@given(many_rounds(), st.sampled_from([1, 2, 3, 5]), st.sampled_from([None, 0, 1, 3, 8, 30]), st.integers(0, 99))
def test_rounds_that_come_back_are_skipped_without_a_difference(case, period, lookahead, chance):
    workload, device = case
    random = np.random.default_rng(chance)
    compiled = arrays_of(timed(workload, device))
    keep = keep_matrix(compiled, random.random((4, period, 6)) < random.random((4, 1, 1)) / 2)
    # A change of policy in the middle must be noticed.
    keep[3, int(random.integers(keep.shape[1])) :] = False
    found = makespans(compiled, keep, lookahead)
    expected = [engine_makespan_s(workload, device, plan_of(workload, device, row, lookahead)) for row in keep]
    assert found == pytest.approx(expected, rel=EXACT, abs=0)


@given(cases(), st.sets(st.integers(0, 4)), st.integers(1, 5))
def test_a_pattern_of_one_round_retains_what_the_policies_retain(case, positions, width):
    workload, device, _ = case
    pattern = np.array([[[p in positions for p in range(width)]]])
    groups = {stage.group: {p for p in positions if p < width} for stage in workload.stages}
    keep = keep_matrix(arrays_of(timed(workload, device)), pattern)
    assert set(np.flatnonzero(keep[0])) == keep_positions(workload, groups)


def test_rotating_patterns_take_turns():
    workload = uniform_workload(2, 4)
    case = arrays_of(timed(workload, uniform_device(3, 2.0, 1.0)))
    patterns = np.array([[[True, False], [False, True]]])
    keep = keep_matrix(case, patterns)
    # The last round has nothing to keep for.
    assert np.flatnonzero(keep[0]).tolist() == [0, 3, 4]
    assert pattern_makespans(case, patterns).tolist() == makespans(case, keep).tolist()


def test_more_policies_than_a_core_takes_at_a_time_and_one_lookahead_for_each():
    workload, device = uniform_workload(4, 3), uniform_device(3, 2.0, 1.5)
    case = arrays_of(timed(workload, device))
    keep = np.random.default_rng(0).random((600, 12)) < 0.2
    lookahead = np.arange(600) % 4
    found = makespans(case, keep, lookahead)
    alone = [makespans(case, keep[i : i + 1], int(lookahead[i]))[0] for i in range(0, 600, 37)]
    assert found[::37].tolist() == alone
    assert makespans(case, keep[:0]).shape == (0,)


def test_a_deadlock_takes_for_ever():
    workload = uniform_workload(2, 2)
    device = analytic_device(1)
    # The first block stays, so there is no room for the second one.
    assert assert_equals_engine(workload, device, deep_prefetch("x", workload, device, {0})) == math.inf


def test_a_gate_on_its_own_visit_never_opens():
    workload = uniform_workload(2, 1)
    device = uniform_device(2, 1.0, 1.0)
    loads = [Load(visit=0), Load(visit=1, gate=Gate(visit=1, edge="start"))]
    assert assert_equals_engine(workload, device, build_plan("x", workload, device, loads, ())) == math.inf


def test_one_visit_is_a_load_and_an_execution():
    workload = uniform_workload(1, 1)
    device = uniform_device(1, 3.0, 2.0)
    assert assert_equals_engine(workload, device, deep_prefetch("x", workload, device, set())) == 5.0


@pytest.mark.parametrize("fluid", [{}, {"loader": Loader(slowdown_while_executing=2.0)}])
def test_nothing_takes_no_time(fluid):
    workload = uniform_workload(3, 2)
    for load_s, exec_s in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
        device = uniform_device(2, load_s, exec_s, **fluid)
        expected = 6 * (load_s + exec_s)
        assert assert_equals_engine(workload, device, deep_prefetch("x", workload, device, set())) == expected


def test_memory_for_exactly_one_block_with_its_workspace():
    workload = uniform_workload(3, 2, weight_bytes=5, workspace_bytes=2, flops=4)
    plan_for = {limit: analytic_device(limit) for limit in (6, 7)}
    makespans = {
        limit: assert_equals_engine(workload, device, deep_prefetch("x", workload, device, set()))
        for limit, device in plan_for.items()
    }
    assert makespans == {6: math.inf, 7: 6 * 9.0}


def test_sizes_near_the_largest_do_not_overflow():
    huge = 2**63 - 1
    stage = Stage(
        name="s",
        rounds=2,
        blocks=(
            Block(name="a", kind="k", weight_bytes=huge, workspace_bytes=0),
            Block(name="b", kind="k", weight_bytes=1, workspace_bytes=huge),
        ),
    )
    workload = Workload(name="huge", stages=[stage])
    device = uniform_device(huge, 1.0, 1.0).model_copy(update={"measured": {"k": Measured(load_s=1.0, exec_s=1.0)}})
    assert assert_equals_engine(workload, device, deep_prefetch("x", workload, device, set())) == math.inf
    roomy = device.model_copy(update={"memory_limit_bytes": huge, "baseline_bytes": 0})
    fits = Workload(name="huge", stages=[stage.model_copy(update={"blocks": stage.blocks[:1]})])
    assert assert_equals_engine(fits, roomy, deep_prefetch("x", fits, roomy, {0})) == 3.0


def shared_workload(rounds: int) -> Workload:
    """Two blocks of a round share weights; a second stage visits some of them under other names."""
    plain = [Block(name=n, kind=n, weights=w, weight_bytes=b, flops=2) for n, w, b in (("a", "x", 3), ("b", "y", 2))]
    twin = Block(name="a2", kind="a2", weights="x", weight_bytes=3, flops=1, workspace_bytes=1)
    merged = [block.model_copy(update={"name": f"{block.name}'", "flops": 1.0}) for block in plain]
    stages = [
        Stage(name="plain", group="g", rounds=rounds, blocks=[*plain, twin]),
        Stage(name="merged", group="g", rounds=rounds, blocks=merged),
    ]
    return Workload(name="shared", stages=stages)


@pytest.mark.parametrize("kept", [(), (0,), (0, 2, 3, 5), (1, 4), (5, 6), tuple(range(8))])
def test_weights_shared_within_a_round_and_kept_across_stages(kept):
    workload = shared_workload(2)
    device = analytic_device(7, loader=Loader(bandwidth_bytes_per_s=1.0, slowdown_while_executing=1.5))
    keep = {number for number in kept if workload.next_same_weights[number] is not None}
    assert assert_equals_engine(workload, device, deep_prefetch("x", workload, device, keep)) < math.inf


@pytest.mark.parametrize("edge", ["start", "end"])
@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_gates_on_either_edge(edge, ahead):
    workload = uniform_workload(4, 3)
    device = uniform_device(3, 2.0, 1.5)
    loads = [
        Load(visit=v.number, gate=Gate(visit=v.number - ahead, edge=edge) if v.number >= ahead else None)
        for v in workload.visits
    ]
    assert_equals_engine(workload, device, build_plan("x", workload, device, loads, ()))


def test_only_a_plan_that_needs_a_load_of_unknown_cost_is_refused():
    blocks = [Block(name=name, kind=name, weights="w", weight_bytes=1) for name in ("a", "b")]
    workload = Workload(name="twins", stages=[Stage(name="s", blocks=blocks)])
    measured = {"a": Measured(load_s=1.0, exec_s=1.0), "b": Measured(exec_s=1.0)}
    device = DeviceProfile(name="d", memory_limit_bytes=2, measured=measured)
    assert assert_equals_engine(workload, device, deep_prefetch("x", workload, device, {0})) == 3.0
    with pytest.raises(DeviceError, match="no load cost for kind 'b'"):
        makespan_s(arrays_of(timed(workload, device)), deep_prefetch("x", workload, device, set()))
    assert makespans(arrays_of(timed(workload, device)), np.array([[True, False]])).tolist() == [3.0]
    with pytest.raises(DeviceError, match="no load cost for kind 'b'"):
        makespans(arrays_of(timed(workload, device)), np.array([[True, False], [False, False]]))


def test_an_unknown_visit_is_named():
    workload, device = uniform_workload(2, 1), uniform_device(2, 1.0, 1.0)
    plan = build_plan("x", workload, device, [Load(visit=0), Load(visit=7)], ())
    with pytest.raises(PlanError, match="visit 7: the workload has only 2 visits"):
        makespan_s(arrays_of(timed(workload, device)), plan)


def test_numba_is_only_imported_to_evaluate():
    code = "import sys, cidl_sim.cli, cidl_sim.simulator.batch; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_noise_without_a_seed_is_off():
    workload = uniform_workload(2, 2)
    device = uniform_device(2, 1.0, 1.0, noise=Noise(load=0.5), executor=Executor())
    plan = deep_prefetch("x", workload, device, set())
    case = arrays_of(timed(workload, device))
    assert makespan_s(case, plan) == 5.0
    assert makespan_s(case, plan, seed=1) != 5.0
