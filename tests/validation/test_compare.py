"""The comparison on synthetic runs: what is measured is a simulation with other rates."""

from __future__ import annotations

import pytest

from cidl_sim.core.device import DeviceProfile, Executor, Loader
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.diffusion.job import JobResult
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate
from cidl_sim.validation.compare import Comparison, own_rates, report


def workload() -> Workload:
    blocks = [Block(name=f"b{i}", kind="k", weight_bytes=10, flops=5 + i) for i in range(5)]
    return Workload(name="w", stages=[Stage(name="s", rounds=4, blocks=blocks)])


def device(bandwidth: float) -> DeviceProfile:
    return DeviceProfile(
        name="d",
        memory_limit_bytes=30,
        loader=Loader(bandwidth_bytes_per_s=bandwidth),
        executor=Executor(flops_per_s=1.0),
    )


def comparison(policy: str, *, real_bandwidth: float = 0.5, runs: int = 1) -> Comparison:
    believed = device(1.0)
    plan = make_plan(policy, workload(), believed)
    result = Comparison(policy, plan, simulate(workload(), believed, plan))
    for run in range(runs):
        real = device(real_bandwidth * (1 + 0.1 * run))
        trace = simulate(workload(), real, plan)
        result.measured.append(trace)
        result.results.append(JobResult(peak_kernel_bytes=trace.peak_resident_bytes + 1))
        own = own_rates(trace, workload(), believed)
        result.replayed_s.append(simulate(workload(), own, plan).makespan_s)
    return result


def test_a_device_with_other_rates_is_a_prediction_error_but_no_replay_error():
    row = comparison("sequential")
    assert row.prediction_error < -0.2
    assert row.replay_error == pytest.approx(0, abs=1e-9)


def test_the_report_has_the_figures_of_the_contract():
    figures = report([comparison(p, runs=2) for p in ("sequential", "next_block", "spread")])
    assert set(figures["prediction_error"]) == {"mean", "max"}
    assert figures["prediction_error"]["max"] >= figures["prediction_error"]["mean"] > 0
    assert figures["run_to_run_spread"] > 0
    assert figures["kendall_tau"] == pytest.approx(1)
    assert figures["peak_memory_error"] == pytest.approx(1 / 21, abs=0.05)
    assert [row["policy"] for row in figures["policies"]] == ["sequential", "next_block", "spread"]


def test_what_one_run_cannot_tell_is_left_open():
    figures = report([comparison("sequential")])
    assert figures["run_to_run_spread"] is None
    assert figures["kendall_tau"] is None
