"""The comparison on synthetic runs: what is measured is a simulation with other rates."""

from __future__ import annotations

import json

import jsonschema
import pytest

from cidl_sim.core.device import DeviceProfile, Executor, Loader, Measured, Noise, Provenance
from cidl_sim.core.reports import ValidationReport
from cidl_sim.core.schemas import schema_file
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate
from cidl_sim.validation.compare import CAUSES, MeasuredCase, kendall_tau, mismatches, own_costs, report
from cidl_sim.validation.memory import memory_of

POLICIES = ("sequential", "next_block", "prefix:1", "spread:2")


def workload() -> Workload:
    blocks = [Block(name=f"b{i}", kind=f"k{i}", weight_bytes=10, flops=5 + i, workspace_bytes=2) for i in range(5)]
    return Workload(name="w", stages=[Stage(name="s", rounds=4, blocks=blocks)])


def device(bandwidth: float = 1.0, flops: float = 1.0, **rest: object) -> DeviceProfile:
    return DeviceProfile(
        name="d",
        memory_limit_bytes=52,
        loader=Loader(bandwidth_bytes_per_s=bandwidth, slowdown_while_executing=1.3),
        executor=Executor(flops_per_s=flops, slowdown_while_loading=1.2),
        **rest,
    )


def case(policy: str, *, truth: DeviceProfile, believed: DeviceProfile | None = None, runs: int = 1) -> MeasuredCase:
    """A policy planned for the profile that is believed in, and run on the true one."""
    believed = believed or device()
    plan = make_plan(policy, workload(), believed)
    traces = []
    for run in range(runs):
        trace = simulate(workload(), truth, plan, seed=run if any(truth.noise.model_dump().values()) else None)
        peak = trace.peak_resident_bytes
        header = trace.header.model_copy(update={"peak_kernel_bytes": peak, "machine": {"touched_bytes": peak - 2}})
        traces.append(trace.model_copy(update={"header": header}))
    return MeasuredCase(policy, workload(), plan, believed, traces)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_device_with_other_rates_is_a_prediction_error_but_no_structure_error(policy):
    row = case(policy, truth=device(0.5, 0.8))
    assert row.prediction_error < -0.1
    assert row.replay_errors == [pytest.approx(0, abs=1e-9)]


@pytest.mark.parametrize(
    ("truth", "cause"),
    [(device(0.5), "load_costs"), (device(1.0, 0.5), "execution_costs")],
    ids=["loads", "executions"],
)
def test_the_error_is_put_down_to_what_differs(truth, cause):
    row = case("next_block", truth=truth)
    shares = row.shares()
    assert sum(shares.values()) == pytest.approx(row.prediction_error)
    assert shares.pop(cause) == pytest.approx(row.prediction_error)
    assert list(shares.values()) == pytest.approx([0, 0, 0], abs=1e-9)


def test_noise_within_kinds_is_told_from_the_models_own_error():
    shares = case("next_block", truth=device(noise=Noise(load=0.4, execute=0.3)), runs=4).shares()
    assert abs(shares["model"]) < 1e-9
    assert abs(shares["variation_within_kinds"]) > 1e-4


def test_a_contention_that_the_profile_has_wrong_is_an_error_of_the_model():
    truth = device()
    wrong = with_value(
        with_value(truth, "loader.slowdown_while_executing", 3.0), "executor.slowdown_while_loading", 2.0
    )
    right, believed = case("spread:2", truth=truth), case("spread:2", truth=truth, believed=wrong)
    assert right.replay_errors == [pytest.approx(0, abs=1e-9)]
    assert believed.prediction_error > 0.1


def test_own_costs_are_free_of_contention_and_keep_the_profiles():
    truth = device(0.7, 0.9)
    row = case("spread:2", truth=truth)
    own = own_costs(row.measured[0], device())
    assert own.loader.slowdown_while_executing == 1.3
    assert own.measured["k3"].exec_s == pytest.approx(8 / 0.9)
    assert own.measured["k3"].load_s == pytest.approx(10 / 0.7)


def test_cold_loads_have_a_mean_of_their_own():
    cold = device(measured={f"k{i}": Measured(load_s=2.0, cold_load_s=6.0, exec_s=3.0) for i in range(5)})
    row = case("sequential", truth=cold)
    assert own_costs(row.measured[0], device()).measured["k1"].cold_load_s == pytest.approx(6.0)
    assert row.replay_errors == [pytest.approx(0, abs=1e-9)]


def test_errors_that_cancel_in_the_total_are_seen_by_group_and_by_span():
    row = case("sequential", truth=device(0.5))
    assert row.group_errors()["s"].prediction == pytest.approx(row.prediction_error)
    assert row.group_errors()["s"].replay == pytest.approx(0, abs=1e-9)
    assert row.span_errors().start_max < 1e-9
    noisy = case("sequential", truth=device(noise=Noise(load=0.3)))
    assert noisy.span_errors().start_max > noisy.span_errors().start_mean > 1e-4


def test_the_report_has_the_figures_of_the_contract():
    truth = device(0.5, noise=Noise(load_drift=0.05))
    figures = report([case(p, truth=truth, runs=3) for p in POLICIES])
    assert set(figures.model_dump(mode="json")["prediction_error"]) == {"mean", "max"}
    assert figures.prediction_error.max >= figures.prediction_error.mean > 0
    assert 0 < figures.run_to_run_spread < 0.3
    assert figures.kendall_tau == pytest.approx(1)
    assert set(figures.shares) == set(CAUSES)
    assert figures.coverage is None  # a profile without noise has no quantiles
    assert [row.policy for row in figures.policies] == list(POLICIES)
    data = figures.model_dump(mode="json")
    jsonschema.validate(data, json.loads(schema_file("validation").read_text()))
    assert ValidationReport.model_validate(data) == figures


def test_what_one_run_cannot_tell_is_left_open():
    figures = report([case("sequential", truth=device())])
    assert figures.run_to_run_spread is None
    assert figures.kendall_tau is None


def test_runs_on_the_profiles_own_noise_fall_inside_its_quantiles_as_often_as_they_should():
    noisy = device(noise=Noise(load=0.1, execute=0.1, load_drift=0.1, execute_drift=0.05))
    cases = [case(p, truth=noisy, believed=noisy, runs=30) for p in ("sequential", "spread:2")]
    assert 0.75 <= report(cases).coverage <= 1.0


def test_memory_is_predicted_by_kind():
    believed = device(
        measured={f"k{i}": Measured(load_s=1.0, exec_s=1.0, workspace_bytes=4) for i in range(5)},
        provenance=Provenance(process_bytes=100),
    )
    run = case("next_block", truth=device(), believed=believed)
    figures = memory_of(run.simulated, believed, run.measured)
    assert figures.predicted_touched_bytes == 20
    assert figures.accounting_error == pytest.approx(0.0)
    assert figures.touched_error == pytest.approx(0.0)
    assert figures.predicted_kernel_bytes == 124


def test_what_the_process_needed_counts_before_the_peak_with_page_cache():
    run = case("next_block", truth=device(), runs=2)
    header = run.measured[0].header
    machine = {**header.machine, "needed_bytes": 25}
    run.measured[0] = run.measured[0].model_copy(update={"header": header.model_copy(update={"machine": machine})})
    figures = memory_of(run.simulated, run.device, run.measured)
    assert figures.needed_bytes == (25 + header.peak_kernel_bytes) / 2
    assert figures.kernel_error is None  # the profile says nothing of the process


def test_kendalls_tau_leaves_out_pairs_within_the_spread():
    assert kendall_tau([1, 2, 3], [1, 2, 3], 0.0) == 1
    assert kendall_tau([1, 3, 2], [1.0, 2.0, 2.05], 0.0) == pytest.approx(1 / 3)
    assert kendall_tau([1, 3, 2], [1.0, 2.0, 2.05], 0.1) == 1
    assert kendall_tau([1, 2], [1.0, 1.01], 0.1) is None


def test_another_version_or_machine_is_flagged():
    provenance = Provenance(device="A, 1 of 2 cores compute", mark="measured", versions={"torch": "1"})
    row = case("sequential", truth=device(), believed=device(provenance=provenance))
    assert mismatches([row]) == []
    header = row.measured[0].header.model_copy(update={"versions": {"torch": "2"}, "machine": {"processor": "B"}})
    row.measured = [row.measured[0].model_copy(update={"header": header})]
    assert len(mismatches([row])) == 2
