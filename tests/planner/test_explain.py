"""What is said of a plan, on workloads small enough to work it out by hand or to try everything."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cidl_sim.core.device import DeviceProfile, Measured
from cidl_sim.core.timed import Timed
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.planner import slots
from cidl_sim.planner.break_points import PAYS
from cidl_sim.planner.evaluate import baseline_makespans, evaluated_plan, with_predictions
from cidl_sim.planner.explain import explain
from cidl_sim.policies.build import deep_prefetch
from cidl_sim.policies.catalog import STREAMING, make_plan
from cidl_sim.simulator import quick
from cidl_sim.simulator.engine import makespan_s
from tests.conftest import uniform_device, uniform_workload


def said_of(policy: str, workload: Workload, device: DeviceProfile) -> list[str]:
    plan, trace = evaluated_plan(policy, workload, device)
    return explain(workload, device, plan, trace, baseline_makespans(workload, device))


def test_where_loads_hide_behind_executions_the_executor_binds_and_waits_for_the_first_load_alone():
    said = said_of("spread:0", uniform_workload(4, 25), uniform_device(2, 1, 2))
    # 1 s for the first load, then 100 executions of 2 s.
    assert "proven optimal: any plan for this workload and device takes at least as long" in said
    assert "bound by the executor: busy 100 %, the loader 50 % of the time" in said
    assert "no stalls: the executor waits for the first load alone (1 s)" in said
    assert "it retains none of the 4 blocks of the denoiser and loads up to 1 block ahead" in said
    assert not [sentence for sentence in said if "slot" in sentence or "memory" in sentence]


def test_where_nothing_overlaps_neither_side_binds():
    said = said_of("sequential", uniform_workload(4, 3), uniform_device(2, 2, 1))
    assert "bound by neither side alone: executor busy 33 %, loader 67 % of the time" in said
    # 12 loads of 2 s, 4 of which are first ones.
    assert "the executor waits 24 s, 33 % of it for weights that are loaded for the first time" in said
    assert "it retains none of the 4 blocks of the denoiser and loads nothing ahead" in said
    assert any(sentence.startswith("loading as early as memory allows would be ") for sentence in said)


def test_all_weights_resident_leave_nothing_but_first_loads():
    said = said_of("spread:4", uniform_workload(4, 3), uniform_device(4, 2, 1))
    assert "the executor waits 5 s, all of it for weights that are loaded for the first time" in said
    assert any(sentence.startswith("it retains all 4 blocks of the denoiser") for sentence in said)
    assert not [sentence for sentence in said if "memory" in sentence or "keeping" in sentence]


def test_no_wait_at_all_is_said():
    said = said_of("next_block", uniform_workload(4, 3), uniform_device(2, 0, 1))
    assert "the executor never waits" in said


def test_groups_that_are_bound_by_different_sides_are_told_apart():
    first = Stage(name="text_encoder", blocks=[Block(name=f"t{i}", kind="t", weight_bytes=1) for i in range(10)])
    second = uniform_workload(10, 5).stages[0]
    workload = Workload(name="two", stages=[first, second])
    measured = {"t": Measured(load_s=10, exec_s=1), "b": Measured(load_s=1, exec_s=10)}
    device = DeviceProfile(name="two", memory_limit_bytes=2, measured=measured)
    bound = next(s for s in said_of("spread:0", workload, device) if s.startswith("bound"))
    assert bound.startswith("bound by the loader in the text encoder (busy 100 %, the executor waits 90 %), ")
    assert bound.endswith("by the executor in the denoiser (busy 100 %, the loader 10 %)")


@pytest.mark.parametrize("retained", [2, 3])
def test_spread_blocks_beat_the_first_ones_by_what_a_rerun_says(retained):
    workload, device = uniform_workload(8, 10), uniform_device(retained + 2, 1.3, 1)
    spread_s, prefix_s = (
        makespan_s(workload, device, make_plan(f"{name}:{retained}", workload, device)) for name in ("spread", "prefix")
    )
    assert spread_s < prefix_s
    percent = f"{100 * (prefix_s / spread_s - 1):.1f}".removesuffix(".0")
    said = said_of(f"spread:{retained}", workload, device)
    assert f"keeping {retained} blocks evenly spread beats keeping the first {retained} by {percent} %" in said
    said = said_of(f"prefix:{retained}", workload, device)
    assert f"keeping {retained} evenly spread instead would be {percent} % faster" in said


def test_a_tiny_block_is_not_counted_as_a_slot_in_the_comparison():
    blocks = [Block(name=f"b{i}", kind="b", weight_bytes=10) for i in range(8)]
    blocks[-1] = Block(name="b7", kind="tiny", weight_bytes=1)
    workload = Workload(name="uneven", stages=[Stage(name="denoiser", rounds=10, blocks=blocks)])
    measured = {"b": Measured(load_s=1.3, exec_s=1), "tiny": Measured(load_s=0.1, exec_s=1)}
    device = DeviceProfile(name="d", memory_limit_bytes=51, measured=measured)
    keep = {v.number for v in workload.visits[:-8] if v.position in (0, 3, 5, 7)}
    plan, trace = with_predictions(deep_prefetch("planned", workload, device, keep), workload, device, 1.0)
    said = explain(workload, device, plan, trace, {})
    compared = next(sentence for sentence in said if sentence.startswith("keeping"))
    assert re.fullmatch(r"keeping these 4 blocks beats keeping the first 3 by .* within the same bytes", compared)


@pytest.mark.parametrize(("blocks", "slots", "load_s"), [(6, 3, 1.5), (8, 4, 1.5), (8, 3, 3.0), (12, 4, 1.4)])
def test_the_slots_that_remove_all_stalls_are_the_fewest_that_spread_needs(blocks, slots, load_s):
    workload = uniform_workload(blocks, 12)

    def best_s(limit: int) -> float:
        device = uniform_device(limit, load_s, 1)
        return makespan_s(workload, device, make_plan("spread", workload, device))

    fewest = next(k for k in range(blocks) if best_s(slots + k) <= best_s(blocks) * (1 + PAYS))
    said = said_of("spread", workload, uniform_device(slots, load_s, 1))
    number = "1 more slot" if fewest == 1 else f"{fewest} more slots"
    sentence = next(s for s in said if s.startswith(number))
    assert f"(a limit of {slots + fewest} bytes, " in sentence
    faster = best_s(slots) / best_s(slots + fewest) - 1
    assert float(re.findall(r"([\d.]+) % faster", sentence)[0]) == pytest.approx(100 * faster, abs=0.51)


def test_stalls_that_remain_with_all_memory_are_said():
    said = said_of("spread", uniform_workload(6, 12), uniform_device(3, 1.5, 1))
    # The first round: 6 loads of 1.5 s behind executions of 1 s.
    assert any("all stalls but 2.5 s that no memory removes" in sentence for sentence in said)


def test_stalls_that_more_memory_leaves_as_they_are_are_not_called_removed():
    device = with_value(uniform_device(4, 1.5, 1), "executor.slowdown_while_loading", 1.3)
    said = said_of("spread", uniform_workload(6, 8), device)
    # Both wait 1 s in the first round; with all weights in memory no load slows an execution down after it.
    sentence = next(s for s in said if "2 more slots" in s)
    assert "would leave 1 s of stalls and shorten executions by 9.69 s with fewer loads beside them" in sentence
    assert "remove" not in sentence


def test_a_plan_that_could_do_better_in_the_same_memory_is_told_so():
    said = said_of("prefix:1", uniform_workload(8, 10), uniform_device(7, 1.3, 1))
    assert any(re.match(r"keeping \d blocks evenly spread, loaded as early as this memory allows, ", s) for s in said)


def test_more_memory_is_not_asked_about_where_that_takes_too_long(monkeypatch):
    workload, device = uniform_workload(6, 12), uniform_device(3, 1.5, 1)
    whole = said_of("spread", workload, device)
    monkeypatch.setattr(slots, "MOST_VISITS", 0)
    assert said_of("spread", workload, device) == [sentence for sentence in whole if "more slot" not in sentence]


@pytest.mark.parametrize(("blocks", "rounds"), [(6, 12), (24, 30), (30, 40), (60, 60)])
def test_no_more_visits_are_simulated_than_the_limit_says(blocks, rounds, monkeypatch):
    workload, device = uniform_workload(blocks, rounds), uniform_device(4, 1.5, 1)
    plan, trace = evaluated_plan("next_block", workload, device)
    visits = []

    deep_makespan_s = quick.deep_makespan_s

    def counting(priced: Timed, keep: set[int]) -> float:
        visits.append(len(priced.workload.visits))
        return deep_makespan_s(priced, keep)

    monkeypatch.setattr(quick, "deep_makespan_s", counting)
    explain(workload, device, plan, trace, {})
    # One rerun is the plan's own blocks, loaded earlier.
    assert sum(visits) <= slots.MOST_VISITS + len(workload.visits)


def test_sets_that_rotate_are_not_called_one_set():
    workload, device = uniform_workload(4, 6), uniform_device(4, 2, 1)
    keep = {v.number for v in workload.visits[:-4] if v.position in ((0, 2) if v.round % 2 else (1,))}
    plan, trace = with_predictions(deep_prefetch("planned", workload, device, keep), workload, device, 1.0)
    said = explain(workload, device, plan, trace, {})
    assert any(s.startswith("it retains 1 to 2 of the 4 blocks of the denoiser, not the same ones") for s in said)
    assert not [sentence for sentence in said if "beat" in sentence]
    said = explain(workload, device, plan, trace, {"spread": 1.1 * trace.makespan_s})
    assert "other blocks in every round beat the best evenly spread ones by 10 %" in said
    said = explain(workload, device, plan, trace, {"spread": 0.8 * trace.makespan_s})
    assert "keeping the best evenly spread blocks in all rounds would be 25 % faster" in said


def test_the_reference_policy_is_held_against_the_best_other_one():
    workload, device = uniform_workload(8, 10), uniform_device(6, 1.3, 1)
    said = said_of("on_device_sora", workload, device)
    assert re.fullmatch(r"\w+ is [\d.]+ % faster", said[0])
    assert not [sentence for sentence in said if "than on_device_sora" in sentence]


@pytest.mark.parametrize(
    ("reference_s", "sentence"),
    [(2.0, "100 % faster than on_device_sora"), (0.8, "25 % slower than on_device_sora"), (1.0, "as fast as on_dev")],
)
def test_the_gain_is_a_ratio_of_makespans(reference_s, sentence):
    workload, device = uniform_workload(2, 2), uniform_device(2, 1, 1)
    plan, trace = evaluated_plan("spread", workload, device)
    said = explain(workload, device, plan, trace, {"on_device_sora": reference_s * trace.makespan_s})
    assert said[0].startswith(sentence)
    assert explain(workload, device, plan, trace, {"on_device_sora": None})[0] == (
        "on_device_sora does not fit this device"
    )


@pytest.mark.parametrize(("gap", "text"), [(0.0341, "3.5 %"), (0.1201, "13 %"), (0.00001, "0.1 %"), (0.03, "3 %")])
def test_what_other_plans_can_gain_is_rounded_up(gap, text):
    workload, device = uniform_workload(2, 2), uniform_device(2, 1, 1)
    plan, trace = evaluated_plan("spread", workload, device)
    plan = plan.model_copy(update={"gap": gap, "proven_optimal": False})
    assert f"no plan can be more than {text} faster" in explain(workload, device, plan, trace, {})


@given(
    policy=st.sampled_from(STREAMING),
    blocks=st.integers(1, 6),
    rounds=st.integers(1, 5),
    slots=st.integers(2, 8),
    load_s=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    exec_s=st.sampled_from([0.0, 1.0, 2.0]),
)
def test_every_plan_can_be_explained_in_sentences_without_odd_numbers(policy, blocks, rounds, slots, load_s, exec_s):
    said = said_of(policy, uniform_workload(blocks, rounds), uniform_device(slots, load_s, exec_s))
    assert said
    assert all(sentence and "\n" not in sentence for sentence in said)
    assert not [s for s in said if re.search(r"\b(nan|inf|None)\b|-\d", s)]
    shares = [float(share) for s in said if s.startswith("bound") for share in re.findall(r"([\d.]+) %", s)]
    assert all(0 <= share <= 100 and math.isfinite(share) for share in shares)
