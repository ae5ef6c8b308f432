"""What `cidl plan` says, as a record: its figures are the plan's, its keys those of the questions that were asked."""

from __future__ import annotations

import json

import jsonschema
import pytest

from cidl_sim.blocks.cuts import choices_of_blocks
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.plan import read_plan
from cidl_sim.core.reports import InfeasiblePlan, PlanReport, WhatIfReport
from cidl_sim.core.schemas import schema_file
from cidl_sim.planner.report import PlanQuestions, find_plan, infeasible_plan, plan_report
from cidl_sim.planner.what_if import what_if
from tests.conftest import analytic_device, uniform_workload

WORKLOAD = uniform_workload(4, 3, weight_bytes=10, flops=3)
DEVICE = analytic_device(25)
ALWAYS = [
    *("workload", "device", "policy", "makespan_s", "lower_bound_s", "gap", "proven_optimal", "proof_scope"),
    *("peak_resident_bytes", "memory_limit_bytes", "baselines", "first_run_s", "later_run_s", "fall_backs"),
    *("file", "explanation"),
]


def reported(asked: PlanQuestions) -> PlanReport:
    return plan_report(find_plan(WORKLOAD, DEVICE, asked, choices_of_blocks(WORKLOAD)), asked)


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        (PlanQuestions("spread"), []),
        (PlanQuestions("spread", target_s=100.0), ["target_s", "least"]),
        (PlanQuestions("spread", with_curve=True), ["curve_policy", "memory_points", "memory_curve"]),
        (
            PlanQuestions("sequential", chooses_partition=True, time_limit_s=0.0, target_s=100.0),
            ["partition", "partitions", "store_command", "target_s", "least"],
        ),
    ],
)
def test_the_keys_are_those_of_the_questions(asked, more):
    report = reported(asked)
    data = report.model_dump(mode="json")
    assert list(data) == ALWAYS + more
    jsonschema.validate(data, json.loads(schema_file("plan_report").read_text()))
    again = PlanReport.model_validate(json.loads(json.dumps(data)))
    assert again == report
    assert again.model_dump(mode="json") == data


def test_the_figures_are_those_of_the_plan_that_is_written(tmp_path):
    asked = PlanQuestions(time_limit_s=0.0)
    found = find_plan(WORKLOAD, DEVICE, asked, choices_of_blocks(WORKLOAD))
    found.write(tmp_path / "plan.json")
    plan, report = read_plan(tmp_path / "plan.json"), plan_report(found, asked, file=tmp_path / "plan.json")
    for name in ("policy", "makespan_s", "lower_bound_s", "gap", "peak_resident_bytes", "memory_limit_bytes"):
        assert getattr(report, name) == getattr(plan, name)
    assert report.makespan_s <= min(s for s in report.baselines.values() if s is not None)
    assert report.file == str(tmp_path / "plan.json")


def test_bytes_stay_whole_numbers_beside_rates():
    least = reported(PlanQuestions("spread", target_s=100.0)).least
    values = {row.parameter: row.value for row in least}
    assert isinstance(values["memory_limit_bytes"], int)
    assert isinstance(values["loader.bandwidth_bytes_per_s"], float)


def test_a_device_that_nothing_fits_says_why():
    with pytest.raises(InfeasibleError, match="block 'b0'") as problem:
        find_plan(WORKLOAD, analytic_device(9), PlanQuestions("spread"), choices_of_blocks(WORKLOAD))
    data = infeasible_plan(WORKLOAD, analytic_device(9), problem.value).model_dump(mode="json")
    assert list(data) == ["workload", "device", "makespan_s", "memory_limit_bytes", "infeasible"]
    assert data["makespan_s"] is None
    assert InfeasiblePlan.model_validate(data).infeasible == str(problem.value)


def test_what_if_is_valid_for_its_schema():
    report = what_if(WORKLOAD, DEVICE, "spread")
    data = report.model_dump(mode="json")
    jsonschema.validate(data, json.loads(schema_file("what_if").read_text()))
    assert WhatIfReport.model_validate(data) == report
