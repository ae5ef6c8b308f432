"""A plan as data: its identity, the workload it belongs to, its file."""

from __future__ import annotations

import json

import pytest

from cidl_sim.core.errors import PlanError
from cidl_sim.core.plan import Load, read_plan
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


@pytest.mark.parametrize(
    "change", [{"format": "cidl-plan/0"}, {"loads": [{"visit": -1}]}, {"loads": [{"visit": 0, "gate": {"visit": 0}}]}]
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path, change):
    data = {**json.loads(PLAN.to_json()), **change}
    (tmp_path / "p.json").write_text(json.dumps(data))
    with pytest.raises(PlanError, match=r"p\.json"):
        read_plan(tmp_path / "p.json")
