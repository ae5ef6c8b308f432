"""The cut chosen with the plan: costs of other cuts, never worse than the given one, proven where it is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from cidl_sim.blocks.cuts import HALVES, JOINED, CutChoices, joined_workload
from cidl_sim.core.costs import execute_cost, load_cost
from cidl_sim.core.device import Executor, Loader, Measured
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.feasibility import check_plan
from cidl_sim.core.workload import Block, Workload
from cidl_sim.pipelines.catalog import cut_choices, find_workload
from cidl_sim.pipelines.open_sora.settings import GRAMMAR
from cidl_sim.planner.evaluate import baseline_makespans
from cidl_sim.planner.partitions import AS_GIVEN, best_partition, check_fits
from cidl_sim.simulator.engine import makespan_s
from tests.conftest import analytic_device, uniform_device, uniform_workload
from tests.core.strategies import cases

# Every cut of a named model is measured, which takes a second: tests name the few that they are about.
TINY = "opensora-tiny-32x32-17f-2s"
# Its largest blocks are the denoiser's pairs.
SMALL = "opensora-small-48x48-17f-2s"


def few_cuts(
    workload: Workload, text_encoder: tuple[int, ...], denoiser: tuple[int, ...], decoder: tuple[int, ...]
) -> CutChoices:
    counts = {"text_encoder": text_encoder, "denoiser": denoiser, "decoder": decoder}
    return replace(cut_choices(workload), choices=counts)


def part(kind: str = "b", **figures: float) -> Block:
    return Block(name=kind, kind=kind, **{"weight_bytes": 4, "flops": 8, **figures})


def like(parts: list[Block], **figures: float) -> Block:
    return Block(name="x", kind="x", like=tuple(parts), **figures)


# Partitions by name


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("reference", "reference"),
        ("fine", "fine"),
        ("t1.d1.v1", "reference"),
        ("tfine.dfine.v1", "fine"),
        ("t1.d4", "d4"),
        ("tfine.d2.v3", "tfine.d2.v3"),
    ],
)
def test_a_partition_has_one_name(written, name):
    assert GRAMMAR.canonical(written) == name
    assert GRAMMAR.partition_name(GRAMMAR.cuts_of(name)) == name


@pytest.mark.parametrize("written", ["", "coarse", "t0", "vfine", "d2.t2", "t2d2", "t2..d2", "t2.", "d100"])
def test_what_is_no_partition_is_refused(written):
    with pytest.raises(ValueError, match="no partition"):
        GRAMMAR.canonical(written)


def test_the_name_says_the_cut_of_each_group():
    assert GRAMMAR.cuts_of("tfine.d4") == {"text_encoder": HALVES, "denoiser": 4, "decoder": 1}


# Costs


def test_joined_blocks_cost_what_their_measured_parts_cost_but_one_latency_and_one_launch():
    device = analytic_device(
        99,
        loader=Loader(bandwidth_bytes_per_s=1.0, latency_s=1.0),
        executor=Executor(flops_per_s=1.0, launch_s=0.5),
        measured={"b": Measured(load_s=10, cold_load_s=13, exec_s=5), "c": Measured(load_s=4, exec_s=2)},
    )
    joined = like([part("b"), part("b"), part("c")], weight_bytes=12, flops=24)
    load = load_cost(joined, device, cold=False)
    assert (load.fixed_s, load.work_s) == (1, 9 + 9 + 3)
    assert load_cost(joined, device, cold=True).work_s == 12 + 12 + 3
    assert execute_cost(joined, device).seconds == 0.5 + 4.5 + 4.5 + 1.5
    assert load.measured
    assert load.derived


def test_half_a_block_costs_its_share_of_the_measured_whole_and_a_launch_and_latency_of_its_own():
    device = analytic_device(
        99,
        loader=Loader(bandwidth_bytes_per_s=1.0, latency_s=1.0),
        executor=Executor(flops_per_s=1.0, launch_s=0.5),
        measured={"b": Measured(load_s=9, exec_s=4.5)},
    )
    half = like([part("b")], weight_bytes=1, flops=4)
    assert load_cost(half, device, cold=False).seconds == 1 + 8 / 4
    assert execute_cost(half, device).seconds == 0.5 + 4 / 2


def test_a_measurement_of_its_own_comes_first_and_the_formula_last():
    parts = [part("b"), part("c")]
    own = uniform_device(99, 10, 5).model_copy(update={"measured": {"x": Measured(load_s=3, exec_s=2)}})
    assert load_cost(like(parts, weight_bytes=8), own, cold=False).seconds == 3
    formula = load_cost(like(parts, weight_bytes=8, flops=16), analytic_device(99), cold=False)
    assert formula.seconds == 8
    assert not formula.measured
    assert not formula.derived
    # A part without a measurement is flagged, though the other was measured.
    partly = load_cost(
        like(parts, weight_bytes=8), analytic_device(99, measured={"b": Measured(load_s=10)}), cold=False
    )
    assert partly.seconds == 10 + 4
    assert not partly.measured


def test_blocks_that_are_like_no_others_keep_their_hash():
    assert "like" not in part().model_dump()
    joined = like([part()], weight_bytes=4)
    assert Block.model_validate(joined.model_dump(mode="json")) == joined


# Which cut


def test_a_latency_for_each_load_is_a_reason_to_join_blocks():
    device = analytic_device(8, loader=Loader(bandwidth_bytes_per_s=1.0, latency_s=5.0))
    workload = uniform_workload(8, 3, flops=1)
    found = best_partition(workload, device, cut_choices(workload), time_limit_s=0)
    assert found.cut.partition == "denoiser4"
    assert found.is_unnamed
    assert found.store_command is None
    as_given = next(cut for cut in found.cuts if cut.partition == AS_GIVEN)
    assert found.cuts[0] is as_given
    assert found.planned.trace.makespan_s < as_given.makespan_s
    check_plan(found.cut.workload, device, found.planned.plan)
    assert found.planned.trace.makespan_s == makespan_s(found.cut.workload, device, found.planned.plan)


def test_without_such_costs_small_blocks_hide_loading_better_and_the_others_are_out_by_proof():
    device = analytic_device(20, executor=Executor(flops_per_s=1.0))
    workload = uniform_workload(8, 2, weight_bytes=2, flops=4)
    found = best_partition(workload, device, cut_choices(workload), time_limit_s=1)
    assert found.cut.partition == AS_GIVEN
    assert not found.is_unnamed
    out = [cut for cut in found.cuts if cut.remark.startswith("out")]
    assert out
    assert all(cut.lower_bound_s > found.planned.trace.makespan_s for cut in out)
    assert sum(row.chosen for row in found.rows) == 1


@settings(max_examples=15)
@given(cases())
def test_the_choice_is_never_worse_than_any_policy_on_the_cut_that_was_given(case):
    workload, device, _ = case
    found = best_partition(workload, device, cut_choices(workload), time_limit_s=0)
    given_s = min(s for s in baseline_makespans(workload, device).values() if s is not None)
    assert found.planned.trace.makespan_s <= given_s
    assert all(cut.lower_bound_s <= cut.makespan_s * (1 + 1e-9) for cut in found.cuts if cut.makespan_s is not None)


def test_with_a_policy_that_policys_plans_are_compared():
    device = analytic_device(8, loader=Loader(bandwidth_bytes_per_s=1.0, latency_s=5.0))
    workload = uniform_workload(8, 3, flops=1)
    found = best_partition(workload, device, cut_choices(workload), policy="sequential")
    assert found.planned.plan.policy == "sequential"
    # Nothing overlaps: 24 visits as they are, 6 where four are one block.
    assert found.cuts[0].makespan_s == 24 * (5 + 1 + 1)
    assert found.planned.trace.makespan_s == 6 * (5 + 4 + 4)


def test_weights_that_occur_twice_in_a_block_count_once():
    workload = uniform_workload(2, 2, weight_bytes=3, workspace_bytes=4, flops=5, bytes_moved=6)
    stage = workload.stages[0]
    twice = (stage.blocks[0], stage.blocks[1].model_copy(update={"weights": "b0"}))
    workload = workload.model_copy(update={"stages": (stage.model_copy(update={"blocks": twice}),)})
    (block,) = joined_workload(workload, {"denoiser": 2}, "denoiser2").stages[0].blocks
    assert (block.weight_bytes, block.workspace_bytes, block.flops, block.bytes_moved) == (3, 4, 10, 12)


def test_the_cuts_of_a_named_workload_are_named_workloads():
    family = cut_choices(find_workload(TINY))
    joined = (1, *JOINED)
    halved = (HALVES, *joined)
    assert family.choices == {"text_encoder": halved, "denoiser": halved, "decoder": joined}
    name, workload = family.cut({"text_encoder": 2, "denoiser": HALVES, "decoder": 4})
    assert workload == find_workload(f"{TINY}-t2.dfine.v4")
    command = "cidl model build opensora-tiny --store DIR --dtype fp32 --partition t2.dfine.v4"
    assert family.store_command(name) == command


def test_a_file_that_only_says_it_was_made_from_a_model_is_taken_by_its_blocks():
    named = find_workload(TINY)
    changed = named.model_copy(update={"stages": named.stages[:1]})
    assert set(cut_choices(changed).choices) == {"text_encoder"}


def test_where_the_given_cut_does_not_fit_a_finer_one_is_chosen():
    workload = find_workload(SMALL)
    device = analytic_device(largest(workload) - 1)
    found = best_partition(workload, device, few_cuts(workload, (1,), (HALVES, 1, 2), (1,)), policy="lru")
    assert found.cuts[0].makespan_s is None
    assert found.cuts[0].remark.startswith("does not fit: stdit.00 needs")
    assert found.cut.cuts["denoiser"] == HALVES


def largest(workload):
    return max(v.block.weight_bytes + v.block.workspace_bytes for v in workload.visits)


def test_the_formula_is_not_compared_with_measurements_of_the_same_layers():
    # Measured are the halves; of whole blocks only a formula tells, and it is far too fast.
    workload = find_workload(f"{TINY}-fine")
    kinds = {b.kind: b for s in workload.stages for b in s.blocks}
    measured = {kind: Measured(load_s=1, exec_s=1) for kind in kinds}
    device = analytic_device(
        10**9,
        loader=Loader(bandwidth_bytes_per_s=1e12),
        executor=Executor(flops_per_s=1e15),
        measured=measured,
    )
    cuts = few_cuts(workload, (HALVES, 1), (HALVES, 1), (1, 2))
    found = best_partition(workload, device, cuts, time_limit_s=0)
    whole = next(cut for cut in found.cuts if cut.partition == "reference")
    assert not whole.is_comparable
    assert "formula" in whole.remark
    # The decoder's parts are measured, so joining them can be compared.
    assert found.cut.cuts["denoiser"] == HALVES
    assert next(cut for cut in found.cuts if cut.partition == "tfine.dfine.v2").is_comparable


# What does not fit


def test_what_does_not_fit_names_the_largest_cut_that_would():
    workload = find_workload(SMALL)
    with pytest.raises(
        InfeasibleError, match=r"block 'stdit\.00' needs .* MB a block at most \(partition dfine\) it would fit"
    ):
        cuts = few_cuts(workload, (1,), (HALVES, 1, 2), (1,))
        check_fits(workload, analytic_device(largest(workload) - 1), cuts)


def test_where_no_cut_fits_the_layer_that_binds_is_named():
    workload = find_workload(TINY)
    cuts = few_cuts(workload, (HALVES, 1), (HALVES, 1), (1,))
    with pytest.raises(InfeasibleError, match=r"no cut fits: in the finest \(partition fine\) '\S+' needs"):
        check_fits(workload, analytic_device(1000), cuts)
    with pytest.raises(InfeasibleError, match="no cut fits"):
        best_partition(workload, analytic_device(1000), cuts)


def test_of_a_workload_without_known_layers_nothing_finer_is_promised():
    workload = uniform_workload(4, 2, weight_bytes=10)
    for call in (check_fits, best_partition):
        with pytest.raises(InfeasibleError, match="layers are not known"):
            call(workload, analytic_device(9), cut_choices(workload))
