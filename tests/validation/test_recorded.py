"""The committed runs: their comparison can be repeated anywhere, and says what the committed result says."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from cidl_sim.validation.compare import MeasuredCase
from cidl_sim.validation.runs import read_runs

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def cases() -> list[MeasuredCase]:
    return read_runs(ROOT / "traces/validation")


@pytest.fixture(scope="module")
def committed() -> dict[str, dict[str, object]]:
    figures = json.loads((ROOT / "experiments/results/validation.json").read_text())
    return {row["policy"]: row for row in figures["policies"]}


def test_the_recorded_runs_give_the_committed_figures(cases, committed):
    assert {case.name for case in cases} == set(committed)
    for case in cases:
        row = committed[case.name]
        assert case.prediction_error == pytest.approx(row["difference"], abs=1e-9)
        assert max(case.replay_errors, key=abs) == pytest.approx(row["replay_error"], abs=1e-9)


def test_the_model_of_loading_and_executing_holds(cases):
    """What is measured, not a hope: with a run's own rates the simulator is this close to every recorded run."""
    errors = [abs(error) for case in cases for error in case.replay_errors]
    assert statistics.fmean(errors) <= 0.01
    assert max(errors) <= 0.025


def test_the_policies_are_what_a_validation_needs(cases):
    bounds = [case.bound_by for case in cases]
    makespans = [case.measured_makespan_s for case in cases]
    assert len(cases) >= 8
    assert bounds.count("loader") >= 3
    assert max(makespans) / min(makespans) >= 1.5
    assert not {case.plan.policy for case in cases} & {"sequential", "next_block", "prefix:999"}
    assert len({case.workload.name for case in cases}) >= 4


def test_no_recorded_run_claims_core_ml(cases):
    assert {trace.header.origin for case in cases for trace in case.measured} == {"torch-cpu"}
