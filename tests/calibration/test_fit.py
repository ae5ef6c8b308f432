"""The fit recovers what synthetic traces were made with."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cidl_sim.calibration.fit import BASELINE_MARGIN_BYTES, drift, fit_device, load_line, relative_spread, slowdown
from cidl_sim.calibration.microbenchmark import EXECUTIONS, LOADS, OVERLAP, ROTATING, Observation
from cidl_sim.core.device import DeviceProfile, Executor, Loader, Measured, Noise
from cidl_sim.core.samples import Conditions, samples_of
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.executor.job import JobResult
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate

MACHINE = {"processor": "p", "cores": 2, "compute_threads": 1, "system": "s", "release": "r"}


def workload() -> Workload:
    blocks = [
        Block(name=f"b{i}", kind=f"k{i % 2}", weights=f"b{i}", weight_bytes=10 + 10 * (i % 2), flops=20)
        for i in range(4)
    ]
    return Workload(name="w", stages=[Stage(name="s", rounds=20, blocks=blocks)])


def observations(device: DeviceProfile, seed: int | None = None, repeats: int = 1) -> list[Observation]:
    result = []
    for repeat in range(repeats):
        for policy in (LOADS, EXECUTIONS, OVERLAP):
            run_seed = None if seed is None else seed + 100 * repeat + len(policy)
            # Runs that rotate find all memory touched.
            touched = device.loader.model_copy(update={"first_touch_bytes_per_s": None})
            actual = device.model_copy(update={"loader": touched}) if policy in ROTATING else device
            trace = simulate(workload(), actual, make_plan(policy, workload(), device), seed=run_seed)
            header = trace.header.model_copy(
                update={"machine": MACHINE, "date": "2026-01-01", "versions": {"torch": "1"}}
            )
            reported = JobResult(baseline_bytes=1000, excess_bytes=50, workspace_bytes={"k0": 7})
            result.append(Observation(workload(), trace.model_copy(update={"header": header}), reported))
    return result


@settings(deadline=None, max_examples=25)
@given(
    bandwidth=st.floats(1, 100),
    flops=st.floats(1, 100),
    latency=st.floats(0, 1),
    while_executing=st.floats(1, 3),
    while_loading=st.floats(1, 3),
    first_touch=st.none() | st.floats(1, 100),
)
def test_known_parameters_are_recovered_from_quiet_traces(
    bandwidth, flops, latency, while_executing, while_loading, first_touch
):
    truth = DeviceProfile(
        name="truth",
        memory_limit_bytes=10**6,
        loader=Loader(
            latency_s=latency,
            bandwidth_bytes_per_s=bandwidth,
            slowdown_while_executing=while_executing,
            first_touch_bytes_per_s=first_touch,
        ),
        executor=Executor(flops_per_s=flops, slowdown_while_loading=while_loading),
    )
    fitted = fit_device("fitted", observations(truth))
    if first_touch is None or latency < 0.99 * 20 / flops:
        found = fitted.loader.first_touch_bytes_per_s
        assert (1 / found if found else 0.0) == pytest.approx(1 / first_touch if first_touch else 0.0, abs=1e-6)
    assert fitted.loader.bandwidth_bytes_per_s == pytest.approx(bandwidth, rel=1e-6)
    assert fitted.loader.latency_s == pytest.approx(latency, abs=1e-6)
    assert fitted.executor.flops_per_s == pytest.approx(flops, rel=1e-6)
    assert fitted.measured["k0"].load_s == pytest.approx(latency + 10 / bandwidth)
    assert fitted.measured["k1"].exec_s == pytest.approx(20 / flops)
    assert fitted.measured["k1"].samples >= 38  # the first round is executed while loads come in
    assert fitted.executor.slowdown_while_loading == pytest.approx(while_loading, rel=1e-6)
    if latency < 0.99 * 20 / flops:  # else executions end before a transfer begins, and nothing shows
        assert fitted.loader.slowdown_while_executing == pytest.approx(while_executing, rel=1e-4)
    assert max(fitted.noise.load, fitted.noise.execute) < 1e-9


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    bandwidth=st.floats(5, 20),
    flops=st.floats(5, 20),
    load_noise=st.floats(0, 0.15),
    execute_noise=st.floats(0, 0.1),
    while_executing=st.floats(1, 2),
    while_loading=st.floats(1, 1.5),
)
def test_known_parameters_are_recovered_from_noisy_traces(
    seed, bandwidth, flops, load_noise, execute_noise, while_executing, while_loading
):
    truth = DeviceProfile(
        name="truth",
        memory_limit_bytes=10**6,
        loader=Loader(bandwidth_bytes_per_s=bandwidth, slowdown_while_executing=while_executing),
        executor=Executor(flops_per_s=flops, slowdown_while_loading=while_loading),
        noise=Noise(load=load_noise, execute=execute_noise),
    )
    fitted = fit_device("fitted", observations(truth, seed, repeats=5))
    # 200 samples a kind: a median is off by a tenth of the noise at the most.
    assert fitted.measured["k0"].load_s == pytest.approx(10 / bandwidth, rel=0.005 + 0.35 * load_noise)
    assert fitted.measured["k1"].exec_s == pytest.approx(20 / flops, rel=0.005 + 0.35 * execute_noise)
    assert fitted.noise.load == pytest.approx(load_noise, abs=0.01 + 0.35 * load_noise)
    assert fitted.noise.execute == pytest.approx(execute_noise, abs=0.01 + 0.35 * execute_noise)
    noise = load_noise + execute_noise
    assert fitted.loader.slowdown_while_executing == pytest.approx(while_executing, rel=0.01 + noise)
    assert fitted.executor.slowdown_while_loading == pytest.approx(while_loading, rel=0.01 + noise)


def test_what_a_run_shares_is_drift_and_no_noise():
    truth = DeviceProfile(
        name="truth",
        memory_limit_bytes=10**6,
        loader=Loader(bandwidth_bytes_per_s=10),
        executor=Executor(flops_per_s=10),
        noise=Noise(load_drift=0.2, execute_drift=0.05),
    )
    fitted = fit_device("fitted", observations(truth, seed=3, repeats=15))
    assert fitted.noise.load < 1e-9
    assert fitted.noise.execute < 1e-9
    assert fitted.noise.load_drift == pytest.approx(0.2, rel=0.4)
    assert fitted.noise.execute_drift == pytest.approx(0.05, rel=0.4)


def test_two_runs_say_nothing_about_drift():
    truth = DeviceProfile(
        name="t", memory_limit_bytes=10**6, loader=Loader(bandwidth_bytes_per_s=1), executor=Executor(flops_per_s=1),
        noise=Noise(load_drift=0.5),
    )  # fmt: skip
    assert drift(observations(truth, seed=1)[:2], "load", Conditions()) == 0.0


def test_drift_between_runs_does_not_pass_for_contention():
    quick = DeviceProfile(
        name="t", memory_limit_bytes=10**6, loader=Loader(bandwidth_bytes_per_s=10), executor=Executor(flops_per_s=10)
    )
    slow = with_value(quick, "loader.bandwidth_bytes_per_s", 5)
    fitted = fit_device("f", [*observations(quick), *observations(slow), *observations(quick)])
    assert fitted.loader.slowdown_while_executing == pytest.approx(1)
    assert fitted.noise.load_drift > 0.1


def test_kinds_with_the_same_weights_have_one_load_cost():
    quick = DeviceProfile(
        name="t", memory_limit_bytes=10**6, loader=Loader(bandwidth_bytes_per_s=10), executor=Executor(flops_per_s=10)
    )
    slow = with_value(quick, "loader.bandwidth_bytes_per_s", 5)
    elsewhere = Workload(
        name="larger",
        stages=[
            Stage(
                name="s",
                rounds=20,
                blocks=[b.model_copy(update={"kind": f"{b.kind}.large"}) for b in workload().stages[0].blocks],
            )
        ],
    )
    seen = []
    for device, load in ((quick, workload()), (slow, elsewhere)):
        trace = simulate(load, device, make_plan(LOADS, load, device))
        header = trace.header.model_copy(update={"machine": MACHINE})
        seen.append(Observation(load, trace.model_copy(update={"header": header}), JobResult()))
    measured = fit_device("f", seen).measured
    assert measured["k0"].load_s == measured["k0.large"].load_s == pytest.approx(1.5)
    assert measured["k1"].load_s == measured["k1.large"].load_s == pytest.approx(3)


def test_cold_loads_are_told_apart_where_they_differ():
    blocks = [Block(name=f"b{i}", kind="k", weight_bytes=10, flops=20) for i in range(4)]
    cold = DeviceProfile(
        name="t", memory_limit_bytes=10**6, loader=Loader(bandwidth_bytes_per_s=1), executor=Executor(flops_per_s=10),
        measured={"k": Measured(load_s=2.0, cold_load_s=5.0)},
    )  # fmt: skip
    load = Workload(name="w", stages=[Stage(name="s", rounds=5, blocks=blocks)])
    trace = simulate(load, cold, make_plan("sequential", load, cold))
    header = trace.header.model_copy(update={"machine": MACHINE})
    seen = Observation(load, trace.model_copy(update={"header": header}), JobResult())
    found = fit_device("f", [seen]).measured["k"]
    assert (found.load_s, found.cold_load_s) == (pytest.approx(2.0), pytest.approx(5.0))


def test_the_baseline_is_what_was_charged_and_a_margin():
    truth = DeviceProfile(
        name="t", memory_limit_bytes=10**6, loader=Loader(bandwidth_bytes_per_s=1), executor=Executor(flops_per_s=1)
    )
    fitted = fit_device("fitted", observations(truth))
    assert fitted.baseline_bytes == 1050 + BASELINE_MARGIN_BYTES
    assert fitted.provenance.process_bytes == 1000
    assert fitted.measured["k0"].workspace_bytes == 7
    assert fitted.measured["k1"].workspace_bytes is None
    assert fitted.memory_limit_bytes == fitted.baseline_bytes + workload().weights_bytes
    assert fit_device("f", observations(truth), 77).memory_limit_bytes == 77


def test_a_line_that_would_cross_below_zero_goes_through_it():
    assert load_line([(10, 1.0), (20, 4.0)]) == (0.0, 6.0)
    assert load_line([(10, 1.0)]) == (0.0, 10.0)


def test_without_overlap_there_is_no_slowdown_to_be_seen():
    assert slowdown([], {}) == 1.0
    truth = DeviceProfile(
        name="t", memory_limit_bytes=10**6, loader=Loader(bandwidth_bytes_per_s=1), executor=Executor(flops_per_s=1)
    )
    fitted = fit_device("f", observations(truth)[:1])
    assert (fitted.loader.slowdown_while_executing, fitted.executor.slowdown_while_loading) == (1.0, 1.0)


def test_few_samples_say_nothing_about_spread():
    truth = DeviceProfile(
        name="t", memory_limit_bytes=10**6, loader=Loader(bandwidth_bytes_per_s=1), executor=Executor(flops_per_s=1)
    )
    few = Workload(name="w", stages=[Stage(name="s", rounds=2, blocks=workload().stages[0].blocks)])
    trace = simulate(few, truth, make_plan("sequential", few, truth))
    assert relative_spread([samples_of(trace)], "load") == 0.0
