"""The fit recovers what synthetic traces were made with."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cidl_sim.calibration.fit import BASELINE_MARGIN_BYTES, fit_device, load_line, relative_spread, slowdown
from cidl_sim.calibration.microbenchmark import Observation
from cidl_sim.core.device import DeviceProfile, Executor, Loader, Noise
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.diffusion.job import JobResult
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate

MACHINE = {"processor": "p", "cores": 2, "compute_threads": 1, "system": "s", "release": "r"}


def workload() -> Workload:
    blocks = [
        Block(name=f"b{i}", kind=f"k{i % 2}", weights=f"b{i}", weight_bytes=10 + 10 * (i % 2), flops=20)
        for i in range(4)
    ]
    return Workload(name="w", stages=[Stage(name="s", rounds=20, blocks=blocks)])


def observations(device: DeviceProfile, seed: int | None = None) -> dict[str, Observation]:
    result = {}
    for policy in ("sequential", "next_block"):
        trace = simulate(workload(), device, make_plan(policy, workload(), device), seed=seed)
        header = trace.header.model_copy(update={"machine": MACHINE, "date": "2026-01-01"})
        reported = JobResult(baseline_bytes=1000, excess_bytes=50)
        result[policy] = Observation(workload(), trace.model_copy(update={"header": header}), reported)
    return result


@settings(deadline=None, max_examples=25)
@given(
    bandwidth=st.floats(1, 100),
    flops=st.floats(1, 100),
    latency=st.floats(0, 1),
    while_executing=st.floats(1, 3),
    while_loading=st.floats(1, 3),
)
def test_known_parameters_are_recovered_from_quiet_traces(bandwidth, flops, latency, while_executing, while_loading):
    truth = DeviceProfile(
        name="truth",
        memory_limit_bytes=10**6,
        loader=Loader(latency_s=latency, bandwidth_bytes_per_s=bandwidth, slowdown_while_executing=while_executing),
        executor=Executor(flops_per_s=flops, slowdown_while_loading=while_loading),
    )
    seen = observations(truth)
    fitted = fit_device("fitted", seen["sequential"], seen["next_block"])
    assert fitted.loader.bandwidth_bytes_per_s == pytest.approx(bandwidth, rel=1e-6)
    assert fitted.loader.latency_s == pytest.approx(latency, abs=1e-6)
    assert fitted.executor.flops_per_s == pytest.approx(flops, rel=1e-6)
    assert fitted.measured["k0"].load_s == pytest.approx(latency + 10 / bandwidth)
    assert fitted.measured["k1"].exec_s == pytest.approx(20 / flops)
    assert fitted.measured["k1"].samples == 40
    assert fitted.executor.slowdown_while_loading == pytest.approx(while_loading, rel=1e-6)
    if latency == 0:
        assert fitted.loader.slowdown_while_executing == pytest.approx(while_executing, rel=1e-6)
    assert max(fitted.noise.load, fitted.noise.execute) < 1e-9


def test_the_noise_is_recovered_roughly():
    truth = DeviceProfile(
        name="truth",
        memory_limit_bytes=10**6,
        loader=Loader(bandwidth_bytes_per_s=10),
        executor=Executor(flops_per_s=10),
        noise=Noise(load=0.2, execute=0.05),
    )
    seen = observations(truth, seed=3)
    fitted = fit_device("fitted", seen["sequential"], seen["next_block"])
    assert fitted.noise.load == pytest.approx(0.2, abs=0.08)
    assert fitted.noise.execute == pytest.approx(0.05, abs=0.02)


def test_the_baseline_is_what_was_charged_and_a_margin():
    truth = DeviceProfile(
        name="t", memory_limit_bytes=10**6, loader=Loader(bandwidth_bytes_per_s=1), executor=Executor(flops_per_s=1)
    )
    seen = observations(truth)
    fitted = fit_device("fitted", seen["sequential"], seen["next_block"])
    assert fitted.baseline_bytes == 1050 + BASELINE_MARGIN_BYTES
    assert fitted.memory_limit_bytes == fitted.baseline_bytes + workload().weights_bytes
    assert fit_device("f", seen["sequential"], seen["next_block"], 77).memory_limit_bytes == 77


def test_a_line_that_would_cross_below_zero_goes_through_it():
    assert load_line([(10, 1.0), (20, 4.0)]) == (0.0, 6.0)
    assert load_line([(10, 1.0)]) == (0.0, 10.0)


def test_without_overlap_there_is_no_slowdown_to_be_seen():
    truth = DeviceProfile(
        name="t", memory_limit_bytes=10**6, loader=Loader(bandwidth_bytes_per_s=1), executor=Executor(flops_per_s=1)
    )
    seen = observations(truth)["sequential"]
    fitted = fit_device("f", seen, seen)
    blocks = {v.number: v.block for v in seen.workload.visits}
    assert slowdown(seen.trace, "load", fitted.measured, blocks) == 1.0


def test_few_samples_say_nothing_about_spread():
    assert relative_spread({"k": [1.0, 2.0]}) == 0.0
