import json
from pathlib import Path

import pytest
from hypothesis import given

from cidl_sim.core.errors import InfeasibleError, PlanError
from cidl_sim.core.files import sha256_of
from cidl_sim.core.plan import Gate, Load, Plan, read_plan
from cidl_sim.core.trace import read_trace
from cidl_sim.policies.build import build_plan
from tests.conftest import analytic_device, uniform_device, uniform_workload
from tests.core.strategies import cases


def plan_of(loads: list[Load], keep: tuple[int, ...] = (), blocks: int = 2, rounds: int = 2) -> Plan:
    return build_plan("test", uniform_workload(blocks, rounds), uniform_device(2, 1, 1), loads, keep)


def every(*visits: int) -> list[Load]:
    return [Load(visit=v) for v in visits]


def check(plan: Plan, slots: int = 2, blocks: int = 2, rounds: int = 2) -> None:
    plan.check(uniform_workload(blocks, rounds), uniform_device(slots, 1, 1))


def test_a_plan_that_loads_every_visit_is_right():
    check(plan_of(every(0, 1, 2, 3)))


def test_a_kept_visit_needs_no_load():
    check(plan_of(every(0, 1, 3), keep=(0,)))


@pytest.mark.parametrize(
    ("loads", "keep", "complaint"),
    [
        (every(0, 1, 2), (), r"visit 3 .*neither loaded nor kept"),
        (every(0, 1, 2, 3), (0,), r"visit 2 .*loaded although visit 0 keeps"),
        (every(0, 1, 2, 3, 3), (), r"visit 3 .*loaded twice"),
        (every(0, 1, 2, 3), (3,), r"visit 3 .*not visited again"),
        (every(0, 1, 2, 3, 9), (), "only 4 visits"),
        (every(0, 1, 2, 3), (77,), "only 4 visits"),
        ([Load(visit=0, gate=Gate(visit=9, edge="end")), *every(1, 2, 3)], (), "only 4 visits"),
    ],
)
def test_the_first_visit_that_breaks_a_rule_is_named(loads, keep, complaint):
    with pytest.raises(PlanError, match=complaint):
        check(plan_of(loads, keep))


def test_a_plan_for_another_workload_is_refused():
    with pytest.raises(PlanError, match="made for workload 'uniform'"):
        plan_of(every(0, 1, 2, 3)).check(uniform_workload(2, 3), uniform_device(2, 1, 1))


def test_a_deadlock_is_found_without_a_clock():
    waits_for_itself = [Load(visit=0, gate=Gate(visit=0, edge="end")), *every(1, 2, 3)]
    with pytest.raises(InfeasibleError, match=r"visit 0 .*waits for ever \(gate\)"):
        check(plan_of(waits_for_itself))
    needs_the_other_block_first = every(1, 0, 2, 3)
    check(plan_of(needs_the_other_block_first), slots=2)
    with pytest.raises(InfeasibleError, match="memory limit is 1"):
        check(plan_of(needs_the_other_block_first), slots=1)


def test_keeping_more_than_fits_says_what_would_help():
    keep_both = plan_of(every(0, 1, 2, 5), keep=(0, 1), blocks=3)
    with pytest.raises(InfeasibleError, match="raise memory_limit_bytes to at least 3 or keep less"):
        keep_both.check(uniform_workload(3, 2), uniform_device(2, 1, 1))


def test_a_block_that_never_fits_is_named_with_what_it_needs():
    workload = uniform_workload(2, 2, workspace_bytes=3)
    plan = build_plan("test", workload, analytic_device(4), every(0, 1, 2, 3), ())
    with pytest.raises(InfeasibleError, match=r"block 'b0' needs 5 bytes .*at least 5"):
        plan.check(workload, analytic_device(4, baseline_bytes=1))


def test_a_plan_survives_its_file(tmp_path):
    plan = plan_of(every(0, 1, 3), keep=(0,))
    plan.write(tmp_path / "p.json")
    assert read_plan(tmp_path / "p.json") == plan


RECORDED = sorted((Path(__file__).parents[2] / "traces/validation").glob("*/plan.json"))


def in_version_1(plan: Plan) -> dict:
    fields = json.loads(plan.to_json())
    del fields["pipeline"]
    fields["lower_bound"] = fields.pop("lower_bound_s")
    return {**fields, "format": "cidl-plan/1"}


def test_a_plan_of_version_1_is_read_and_keeps_its_identity(tmp_path):
    plan = plan_of(every(0, 1, 3), keep=(0,)).model_copy(update={"lower_bound_s": 2.5, "makespan_s": 3.0})
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
    plan = plan_of(every(0, 1, 2, 3))
    assert plan.model_copy(update={"pipeline": "another"}).sha256 != plan.sha256


@pytest.mark.parametrize("change", [{"lower_bound_s": 1.0}, {"format": "cidl-plan/2"}])
def test_the_words_of_two_versions_do_not_mix(tmp_path, change):
    (tmp_path / "p.json").write_text(json.dumps({**in_version_1(plan_of(every(0, 1, 2, 3))), **change}))
    with pytest.raises(PlanError, match="lower_bound: Extra inputs"):
        read_plan(tmp_path / "p.json")


@pytest.mark.parametrize(
    "change", [{"format": "cidl-plan/0"}, {"loads": [{"visit": -1}]}, {"loads": [{"visit": 0, "gate": {"visit": 0}}]}]
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path, change):
    data = {**json.loads(plan_of(every(0, 1, 2, 3)).to_json()), **change}
    (tmp_path / "p.json").write_text(json.dumps(data))
    with pytest.raises(PlanError, match=r"p\.json"):
        read_plan(tmp_path / "p.json")


@given(cases())
def test_checking_never_fails_other_than_by_its_own_errors(case):
    workload, device, plan = case
    try:
        plan.check(workload, device)
    except (PlanError, InfeasibleError) as problem:
        assert "\n" not in str(problem)
