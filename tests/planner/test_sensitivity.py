"""Elasticities against formulas, and the reasons of those that are none."""

from __future__ import annotations

from math import log

import pytest

from cidl_sim.core.device import Executor, Loader, Measured
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.planner.reruns import Reruns
from cidl_sim.planner.sensitivity import STEP, sensitivities, sensitivity
from tests.conftest import analytic_device, uniform_workload

# 12 loads of 10 s and 12 executions of 3 s, one after the other under `sequential`.
WORKLOAD = uniform_workload(4, 3, weight_bytes=10, flops=3)


def rows(policy: str = "sequential", workload: Workload = WORKLOAD, **fields: object):
    reruns = Reruns(workload, analytic_device(40, **fields), policy)
    return {row.parameter: row for row in sensitivities(reruns)}


def test_elasticities_of_a_run_without_overlap_are_the_shares_of_its_two_sides():
    found = rows()
    below, above = 120 * STEP + 36, 120 / STEP + 36
    expected = log(above / below) / (2 * log(STEP))
    row = found["loader.bandwidth_bytes_per_s"]
    assert (row.makespan_below_s, row.makespan_above_s) == pytest.approx((below, above))
    assert row.elasticity == row.elasticity_plan_held == pytest.approx(expected)
    assert found["executor.flops_per_s"].elasticity == pytest.approx(-1 - expected, abs=1e-3)


def test_the_strongest_come_first():
    strengths = [abs(row.elasticity or 0.0) for row in rows().values()]
    assert strengths == sorted(strengths, reverse=True)


def test_a_new_plan_uses_memory_that_the_plan_held_cannot():
    # At 40 bytes everything stays; a tenth less has room for three of four blocks.
    row = rows("prefix")["memory_limit_bytes"]
    assert row.makespan_below_s > row.makespan_above_s
    assert row.elasticity < 0
    # The plan for the unchanged profile cannot run in less: one side alone, and memory beyond 40 buys nothing.
    assert row.elasticity_plan_held == 0


def test_figures_at_the_border_of_what_they_can_be_get_one_side():
    found = rows("next_block")
    assert found["executor.efficiency"].makespan_above_s is None
    assert found["executor.efficiency"].elasticity is not None
    assert found["loader.slowdown_while_executing"].makespan_below_s is None
    assert found["loader.slowdown_while_executing"].elasticity > 0
    assert found["loader.channels"].makespan_below_s is None


def test_a_figure_of_zero_says_what_a_millisecond_would_add():
    row = rows()["loader.latency_s"]
    assert row.elasticity is None
    assert row.makespan_above_s == pytest.approx(156.012)
    assert "1 ms would add 0.012 s" in row.remark


def test_figures_that_do_nothing_say_why():
    found = rows("next_block", executor=Executor(flops_per_s=1.0, memory_bandwidth_bytes_per_s=1e9))
    assert found["executor.memory_bandwidth_bytes_per_s"].remark.startswith("overridden: arithmetic takes longer")
    measured = {"b": Measured(load_s=10, exec_s=3, weight_bytes=10, flops=3)}
    executor = Executor(flops_per_s=1.0, memory_bandwidth_bytes_per_s=1e9)
    found = rows("next_block", measured=measured, executor=executor)
    assert "every execution is measured" in found["executor.memory_bandwidth_bytes_per_s"].remark
    assert found["memory_limit_bytes"].remark.startswith("a tenth more or less")
    assert rows()["executor.memory_bandwidth_bytes_per_s"].remark.startswith("not given")
    assert rows()["loader.channels"].remark.startswith("loads share the bandwidth")


def test_what_the_other_side_hides_is_called_hidden():
    blocks = [
        Block(name="big", kind="big", weight_bytes=10, flops=1),
        Block(name="slow", kind="slow", weight_bytes=1, flops=100),
        Block(name="last", kind="last", weight_bytes=2, flops=1),
    ]
    measured = {b.kind: Measured(load_s=b.weight_bytes, exec_s=b.flops) for b in blocks}
    found = rows("prefix:0", Workload(name="w", stages=[Stage(name="s", blocks=blocks)]), measured=measured)
    assert found["measured.last.load_s"].remark.startswith("hidden: these loads")
    assert found["measured.slow.exec_s"].remark == ""
    assert found["measured.slow.exec_s"].elasticity > 0.8


def test_measured_costs_stand_in_for_kinds_below_them_and_cold_loads_are_their_own_figure():
    measured = {"b": Measured(load_s=10, cold_load_s=20, exec_s=3)}
    workload = uniform_workload(4, 3, weight_bytes=10, flops=3)
    blocks = tuple(b.model_copy(update={"kind": "b.fp32"}) for b in workload.stages[0].blocks)
    workload = Workload(name="w", stages=[workload.stages[0].model_copy(update={"blocks": blocks})])
    found = rows("sequential", workload, measured=measured)
    # 4 cold loads of 20 s, 8 warm ones of 10 s, 12 executions of 3 s.
    assert found["measured.b.cold_load_s"].elasticity == pytest.approx(80 / 196, abs=2e-3)
    assert found["measured.b.load_s"].elasticity == pytest.approx(80 / 196, abs=2e-3)
    assert found["measured.b.exec_s"].elasticity == pytest.approx(36 / 196, abs=2e-3)


def test_a_value_at_which_nothing_fits_is_said():
    reruns = Reruns(WORKLOAD, analytic_device(10, loader=Loader(bandwidth_bytes_per_s=1.0)), "sequential")
    row = sensitivity("memory_limit_bytes", reruns)
    assert row.makespan_below_s is None
    assert row.remark == "nothing fits at 9"


def test_what_counts_but_hardly_is_not_called_hidden():
    blocks = [Block(name="tiny", kind="tiny", weight_bytes=1, flops=1), Block(name="b", kind="b", weight_bytes=9)]
    measured = {"tiny": Measured(load_s=1e-4, exec_s=1), "b": Measured(load_s=1, exec_s=9)}
    found = rows("sequential", Workload(name="w", stages=[Stage(name="s", blocks=blocks)]), measured=measured)
    assert 0 < found["measured.tiny.load_s"].elasticity < 1e-4
    assert found["measured.tiny.load_s"].remark == "counts, but too little to matter"
