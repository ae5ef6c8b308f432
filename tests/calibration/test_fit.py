"""The fit recovers what synthetic traces were made with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cidl_sim.calibration.fit import Seen, fit_machine
from cidl_sim.calibration.microbenchmark import ALTERNATING, PURPOSES, RETAINED, alternating, unsettled, visits_in_a_row
from cidl_sim.calibration.prediction import learned_from_traces
from cidl_sim.calibration.profile import BASELINE_MARGIN_BYTES, RECENT, Observation, fit_device, learned
from cidl_sim.calibration.robust import lost_to_overlap
from cidl_sim.core.device import DeviceProfile, Executor, Loader, Measured, Noise
from cidl_sim.core.errors import DeviceError
from cidl_sim.core.estimates import load_line
from cidl_sim.core.plan import Plan
from cidl_sim.core.trace import Trace
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.executor.job import JobResult
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import makespan_s, simulate

MACHINE = {"processor": "p", "cores": 2, "compute_threads": 1, "system": "s", "release": "r"}


def workload() -> Workload:
    blocks = [
        Block(name=f"b{i}", kind=f"k{i % 2}", weights=f"b{i}", weight_bytes=10 + 10 * (i % 2), flops=20)
        for i in range(6)
    ]
    return Workload(name="w", stages=[Stage(name="s", rounds=20, blocks=blocks)])


def plan_of(purpose: str, device: DeviceProfile) -> Plan:
    if purpose == ALTERNATING:
        return alternating(workload(), with_value(device, "memory_limit_bytes", 45), visits_in_a_row(workload()))
    return make_plan(purpose, workload(), device)


def seen(device: DeviceProfile, policy: str, seed: int | None = None) -> Seen:
    trace = simulate(workload(), device, plan_of(policy, device), seed=seed)
    header = trace.header.model_copy(update={"machine": MACHINE, "date": "2026-01-01", "versions": {"torch": "1"}})
    return Seen(workload(), trace.model_copy(update={"header": header}))


def observations(device: DeviceProfile, seed: int | None = None, repeats: int = 1) -> list[Observation]:
    result = []
    for repeat in range(repeats):
        for policy in PURPOSES:
            run_seed = None if seed is None else seed + 100 * repeat + len(policy)
            reported = JobResult(baseline_bytes=1000, excess_bytes=50, workspace_bytes={"k0": 7})
            result.append(Observation(seen(device, policy, run_seed), reported))
    return result


@settings(deadline=None, max_examples=12)
@given(
    bandwidth=st.floats(1, 100),
    execution_share=st.floats(0.2, 5),
    latency_share=st.floats(0, 0.7),
    while_executing=st.floats(1, 3),
    while_loading=st.floats(1, 3),
    first_touch=st.none() | st.floats(1, 100),
)
def test_known_parameters_are_recovered_from_quiet_traces(
    bandwidth, execution_share, latency_share, while_executing, while_loading, first_touch
):
    # Of a load of 15 bytes, and of an execution: overlaps are long enough to show.
    flops = 20 * bandwidth / (15 * execution_share)
    latency = latency_share * 20 / flops
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
    found = fitted.loader.first_touch_bytes_per_s
    assert (1 / found if found else 0.0) == pytest.approx(1 / first_touch if first_touch else 0.0, abs=1e-6)
    assert fitted.loader.bandwidth_bytes_per_s == pytest.approx(bandwidth, rel=1e-6)
    assert fitted.loader.latency_s == pytest.approx(latency, abs=1e-6)
    assert fitted.executor.flops_per_s == pytest.approx(flops, rel=1e-6)
    assert fitted.measured["k0"].load_s == pytest.approx(latency + 10 / bandwidth)
    assert fitted.measured["k1"].exec_s == pytest.approx(20 / flops)
    assert fitted.measured["k1"].samples == 2 * 60
    assert fitted.executor.slowdown_while_loading == pytest.approx(while_loading, rel=1e-6)
    assert fitted.loader.slowdown_while_executing == pytest.approx(while_executing, rel=1e-4)
    assert max(fitted.noise.load, fitted.noise.execute) < 1e-9


@settings(deadline=None, max_examples=6)
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


def test_one_run_says_nothing_about_drift():
    truth = DeviceProfile(
        name="t", memory_limit_bytes=10**6, loader=Loader(bandwidth_bytes_per_s=10), executor=Executor(flops_per_s=10),
        noise=Noise(load_drift=0.5),
    )  # fmt: skip
    assert fit_device("f", observations(truth, seed=1)[1:]).noise.load_drift == 0.0


def test_the_drift_of_few_runs_is_widened():
    truth = DeviceProfile(
        name="t",
        memory_limit_bytes=10**6,
        loader=Loader(bandwidth_bytes_per_s=100),
        executor=Executor(flops_per_s=1000),
    )
    runs = [seen(with_value(truth, "loader.bandwidth_bytes_per_s", rate), ALTERNATING) for rate in (90.0, 100.0, 110.0)]
    found = fit_machine(runs).load_fit
    assert np.std(np.log(found.rates[:3]), ddof=1) == pytest.approx(0.1, rel=0.05)
    usual_and_seen = ((3 * 0.08**2 + 2 * 0.1**2) / 5) ** 0.5
    assert found.drift == pytest.approx(usual_and_seen * (4 / 3) ** 0.5 * 2.015 / 1.645, rel=0.05)


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
    runs = []
    for device, load in ((quick, workload()), (slow, elsewhere)):
        trace = simulate(load, device, make_plan("sequential", load, device))
        header = trace.header.model_copy(update={"machine": MACHINE})
        runs.append(Observation(Seen(load, trace.model_copy(update={"header": header})), JobResult()))
    measured = fit_device("f", runs).measured
    # The mean of two runs that count alike, one twice as slow as the other.
    assert measured["k0"].load_s == measured["k0.large"].load_s == pytest.approx(1.5)
    assert measured["k1"].load_s == measured["k1.large"].load_s == pytest.approx(3.0)


def test_cold_loads_are_told_apart_where_they_differ():
    blocks = [Block(name=f"b{i}", kind="k", weight_bytes=10, flops=20) for i in range(4)]
    cold = DeviceProfile(
        name="t", memory_limit_bytes=10**6, loader=Loader(bandwidth_bytes_per_s=1), executor=Executor(flops_per_s=10),
        measured={"k": Measured(load_s=2.0, cold_load_s=5.0)},
    )  # fmt: skip
    load = Workload(name="w", stages=[Stage(name="s", rounds=5, blocks=blocks)])
    trace = simulate(load, cold, make_plan("sequential", load, cold))
    header = trace.header.model_copy(update={"machine": MACHINE})
    found = fit_device("f", [Observation(Seen(load, trace.model_copy(update={"header": header})), JobResult())])
    assert found.measured["k"].load_s == pytest.approx(2.0)
    assert found.measured["k"].cold_load_s == pytest.approx(5.0)


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
    truth = DeviceProfile(
        name="t", memory_limit_bytes=10**6, loader=Loader(bandwidth_bytes_per_s=1, slowdown_while_executing=2),
        executor=Executor(flops_per_s=1, slowdown_while_loading=2),
    )  # fmt: skip
    alone = fit_machine([seen(truth, "sequential")])
    assert (alone.load_slowdown, alone.execution_slowdown) == (None, None)


def test_a_run_that_is_slow_all_along_shows_no_contention():
    """What the former fit took for a slowdown of 3.84: an overlapped run beside a quicker one without."""
    quick = DeviceProfile(
        name="t", memory_limit_bytes=10**6, loader=Loader(bandwidth_bytes_per_s=10), executor=Executor(flops_per_s=4)
    )
    slow = with_value(quick, "loader.bandwidth_bytes_per_s", 6)
    found = fit_machine([seen(quick, RETAINED), seen(slow, ALTERNATING), seen(quick, "sequential")])
    assert found.load_slowdown.value == pytest.approx(1)
    assert found.execution_slowdown.value == pytest.approx(1)


def test_an_interval_holds_the_slowdown_under_noise():
    truth = DeviceProfile(
        name="t", memory_limit_bytes=10**6,
        loader=Loader(bandwidth_bytes_per_s=10, slowdown_while_executing=1.5),
        executor=Executor(flops_per_s=10, slowdown_while_loading=1.2), noise=Noise(load=0.1, execute=0.1),
    )  # fmt: skip
    held = 0
    for seed in range(10):
        found = fit_machine([seen(truth, ALTERNATING, 10 * seed + i) for i in range(2)]).load_slowdown
        held += found.low <= 1.5 <= found.high
        assert found.low < found.value < found.high
    assert held >= 7


def test_hiccups_do_not_pass_for_contention():
    chance = np.random.default_rng(1)
    overlapped = np.arange(400) % 2 == 0
    seconds = np.where(chance.random(400) < 0.1, 3.0, 1.0) * chance.normal(1, 0.05, 400)
    overlap = np.where(overlapped, np.minimum(seconds, 0.9), 0.0)
    found = lost_to_overlap(seconds, overlap, seconds, np.zeros(400, int), np.zeros(400, int))
    assert found.value < 0.03


# Learning from runs


QUICK = DeviceProfile(
    name="this", memory_limit_bytes=10**6, loader=Loader(bandwidth_bytes_per_s=10), executor=Executor(flops_per_s=10),
    noise=Noise(load=0.05, execute=0.05, load_drift=0.1, execute_drift=0.1),
)  # fmt: skip


def known() -> DeviceProfile:
    return fit_device("this", observations(QUICK), 45)


def test_a_run_teaches_the_rates_of_now():
    slow = with_value(QUICK, "loader.bandwidth_bytes_per_s", 5)
    before = known()
    once = learned(before, [seen(slow, "next_block")])
    # A run counts two fifths, all before it the rest: it loads at half the rate.
    assert once.measured["k0"].load_s == pytest.approx(before.measured["k0"].load_s * (2 - RECENT), rel=1e-6)
    thrice = learned(before, [seen(slow, "next_block")] * 3)
    assert thrice.measured["k0"].load_s == pytest.approx(before.measured["k0"].load_s * (2 - RECENT**3), rel=1e-6)
    assert thrice.measured["k1"].exec_s == pytest.approx(before.measured["k1"].exec_s, rel=1e-6)
    assert thrice.noise.load_drift > before.noise.load_drift
    assert (thrice.memory_limit_bytes, thrice.baseline_bytes) == (45, before.baseline_bytes)
    assert thrice.provenance.source == (
        "cidl calibrate, 2 runs of w; learned from 3 runs, last next_block of w, next_block of w, next_block of w"
    )
    assert "learned from 4 runs" in learned(thrice, [seen(slow, "next_block")]).provenance.source


def test_a_kind_that_no_run_had_follows_the_rates_of_now():
    slow = with_value(QUICK, "loader.bandwidth_bytes_per_s", 5)
    other = Measured(load_s=7.0, exec_s=3.0)
    before = known()
    before = before.model_copy(update={"measured": {**before.measured, "other": other}})
    after = learned(before, [seen(slow, "next_block")])
    assert after.measured["other"].load_s == pytest.approx(7 * (2 - RECENT), rel=1e-6)
    assert after.measured["other"].exec_s == pytest.approx(3.0, rel=1e-6)


def test_a_kind_that_only_runs_had_is_added():
    before = known()
    before = before.model_copy(update={"measured": {"k0": before.measured["k0"]}})
    after = learned(before, [seen(QUICK, "next_block")])
    assert after.measured["k1"].load_s == pytest.approx(2.0, rel=1e-6)
    assert after.measured["k1"].exec_s == pytest.approx(2.0, rel=1e-6)
    assert after.measured["k1"].weight_bytes == 20


def test_many_rare_kinds_that_changed_leave_the_cost_of_the_one_that_takes_the_time():
    rare = [Block(name=f"r{i}", kind=f"r{i}", weight_bytes=1, flops=2) for i in range(9)]
    often = Block(name="often", kind="often", weight_bytes=100, flops=200)
    rounds = Workload(
        name="w", stages=[Stage(name="a", rounds=1, blocks=rare), Stage(name="b", rounds=30, blocks=[often])]
    )
    trace = simulate(rounds, QUICK, make_plan("sequential", rounds, QUICK))
    header = trace.header.model_copy(update={"machine": MACHINE, "date": "2026-01-01", "versions": {}})
    run = Seen(rounds, trace.model_copy(update={"header": header}))
    known_before = {block.kind: Measured(load_s=0.2, exec_s=0.4) for block in rare}
    before = QUICK.model_copy(update={"measured": {**known_before, "often": Measured(load_s=10.0, exec_s=20.0)}})
    after = learned(before, [run])
    assert after.measured["often"].exec_s == pytest.approx(20.0, rel=0.01)
    assert after.measured["often"].load_s == pytest.approx(10.0, rel=0.01)
    assert all(0.2 <= after.measured[block.kind].exec_s <= 0.4 for block in rare)


def test_the_same_skewed_run_again_and_again_does_not_add_up():
    noisy = with_value(QUICK, "noise.execute", 0.4)
    run = seen(noisy, "sequential", 3)
    took_s = sum(span.end_s - span.start_s for span in run.trace.of("execute"))
    device = known()
    for _ in range(12):
        device = learned(device, [run])
    costs_s = sum(device.measured[visit.block.kind].exec_s for visit in workload().visits)
    assert costs_s == pytest.approx(took_s, rel=0.04)


def test_contention_that_a_run_does_not_show_stays_as_it_was():
    before = with_value(known(), "loader.slowdown_while_executing", 1.7)
    after = learned(before, [seen(QUICK, "sequential")])
    assert after.loader.slowdown_while_executing == 1.7


@pytest.mark.parametrize("policy", ["next_block", ALTERNATING])
@pytest.mark.parametrize(
    "now",
    [
        {"loader.slowdown_while_executing": 3.0},
        {"executor.slowdown_while_loading": 2.0},
        {"loader.slowdown_while_executing": 2.0, "executor.flops_per_s": 8.0},
        {"loader.slowdown_while_executing": 1.0, "loader.bandwidth_bytes_per_s": 12.0},
    ],
)
def test_what_runs_teach_brings_the_prediction_of_such_a_run_nearer(policy, now):
    truth = with_value(QUICK, "loader.slowdown_while_executing", 1.3)
    before = fit_device("this", observations(truth), 45)
    for name, value in now.items():
        truth = with_value(truth, name, value)
    took, plan = seen(truth, policy), plan_of(policy, truth)
    off = []
    for _ in range(12):
        limited = before.model_copy(update={"memory_limit_bytes": truth.memory_limit_bytes, "baseline_bytes": 0})
        off.append(float(makespan_s(workload(), limited, plan) - took.trace.makespan_s))
        before = learned(before, [took])
    assert all(abs(later) <= abs(off[0]) for later in off)
    assert abs(off[-1]) < 0.04 * took.trace.makespan_s


def test_recorded_runs_teach_only_the_number_of_threads_that_they_computed_with():
    def recorded(device: DeviceProfile, threads: int) -> Trace:
        trace = seen(device, "sequential").trace
        header = trace.header.model_copy(
            update={"origin": "torch-cpu", "machine": {**MACHINE, "compute_threads": threads}}
        )
        return trace.model_copy(update={"header": header})

    twice_as_fast = with_value(QUICK, "executor.flops_per_s", 20)
    two = fit_device("two", observations(twice_as_fast)).thread_choice.model_copy(update={"threads": 2})
    before = known().model_copy(update={"other_threads": (two,)})
    after = learned_from_traces(before, [recorded(QUICK, 1), recorded(twice_as_fast, 2)], workload())
    for threads in (1, 2):
        was, now = (device.with_threads(threads).measured["k0"].exec_s for device in (before, after))
        assert now == pytest.approx(was, rel=1e-6)
    with pytest.raises(DeviceError, match="not measured with 3 compute threads"):
        learned_from_traces(before, [recorded(QUICK, 3)], workload())


def test_the_first_second_of_each_row_but_the_first_says_nothing():
    device = DeviceProfile(
        name="d",
        memory_limit_bytes=10**6,
        loader=Loader(bandwidth_bytes_per_s=1e6),
        executor=Executor(flops_per_s=90.0),
    )
    # A visit takes 0.22 s, so a row of 30 lasts seven seconds and one of 8 two.
    trace = simulate(workload(), device, alternating(workload(), with_value(device, "memory_limit_bytes", 45), 30))
    assert unsettled(trace, 30) == frozenset(visit for first in (30, 60, 90) for visit in range(first, first + 5))
    assert unsettled(trace, 8) == frozenset(visit for first in range(8, 120, 8) for visit in range(first, first + 4))
    assert unsettled(trace, 0) == frozenset()


def test_what_had_just_changed_is_left_out():
    run = seen(QUICK, ALTERNATING)
    assert fit_machine([run]).samples == {"k0": 60, "k1": 60}
    assert fit_machine([Seen(run.workload, run.trace, unsettled=frozenset(range(10)))]).samples == {"k0": 55, "k1": 55}
