"""A plan as data: its identity, the workload it belongs to, its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cidl_sim.core.errors import PlanError
from cidl_sim.core.files import sha256_of
from cidl_sim.core.plan import Load, Plan, read_plan
from cidl_sim.core.trace import read_trace
from cidl_sim.policies.build import build_plan
from tests.conftest import uniform_device, uniform_workload

PLAN = build_plan(
    "test", uniform_workload(2, 2), uniform_device(2, 1, 1), [Load(visit=0), Load(visit=1), Load(visit=3)], keep=(0,)
)


def test_a_plan_for_another_workload_is_refused():
    with pytest.raises(PlanError, match="made for workload 'uniform'"):
        PLAN.check_workload(uniform_workload(2, 3))


def test_a_plan_survives_its_file(tmp_path):
    PLAN.write(tmp_path / "p.json")
    assert read_plan(tmp_path / "p.json") == PLAN


RECORDED = sorted((Path(__file__).parents[2] / "traces/validation").glob("*/plan.json"))


def in_version_1(plan: Plan) -> dict:
    fields = json.loads(plan.to_json())
    del fields["pipeline"]
    fields["lower_bound"] = fields.pop("lower_bound_s")
    return {**fields, "format": "cidl-plan/1"}


def test_a_plan_of_version_1_is_read_and_keeps_its_identity(tmp_path):
    plan = PLAN.model_copy(update={"lower_bound_s": 2.5, "makespan_s": 3.0})
    old = in_version_1(plan)
    (tmp_path / "old.json").write_text(json.dumps(old))
    read = read_plan(tmp_path / "old.json")
    assert (read.format, read.pipeline, read.lower_bound_s) == ("cidl-plan/2", "open_sora", 2.5)
    assert read == plan
    assert read.sha256 == sha256_of(old)
    read.write(tmp_path / "new.json")
    assert json.loads((tmp_path / "new.json").read_text())["format"] == "cidl-plan/2"
    assert read_plan(tmp_path / "new.json").sha256 == sha256_of(old)


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.parent.name)
def test_recorded_runs_still_belong_to_their_plans_of_version_1(file):
    assert json.loads(file.read_text())["format"] == "cidl-plan/1"
    assert read_trace(file.with_name("run-1.json.gz")).header.plan_sha256 == read_plan(file).sha256


def test_a_plan_for_another_family_has_another_identity():
    plan = PLAN
    assert plan.model_copy(update={"pipeline": "another"}).sha256 != plan.sha256


@pytest.mark.parametrize("change", [{"lower_bound_s": 1.0}, {"format": "cidl-plan/2"}])
def test_the_words_of_two_versions_do_not_mix(tmp_path, change):
    (tmp_path / "p.json").write_text(json.dumps({**in_version_1(PLAN), **change}))
    with pytest.raises(PlanError, match="lower_bound: Extra inputs"):
        read_plan(tmp_path / "p.json")


@pytest.mark.parametrize(
    "change", [{"format": "cidl-plan/0"}, {"loads": [{"visit": -1}]}, {"loads": [{"visit": 0, "gate": {"visit": 0}}]}]
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path, change):
    data = {**json.loads(PLAN.to_json()), **change}
    (tmp_path / "p.json").write_text(json.dumps(data))
    with pytest.raises(PlanError, match=r"p\.json"):
        read_plan(tmp_path / "p.json")
