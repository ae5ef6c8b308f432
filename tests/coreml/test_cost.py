"""What a workload costs before anything is planned, and that no later load passes for a cold one."""

from __future__ import annotations

import pytest

from cidl_sim.core.device import CoreML, DeviceProfile, Executor, Figure, Loader, Measured, Provenance
from cidl_sim.core.errors import InputError
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.coreml.cost import compile_s, compiled_on_disk, packages_on_disk
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.first_run import run_sentence, run_times
from tests.coreml.by_hand import PROGRAM_BYTES, TINY, manifest_by_hand, tiny
from tests.test_cli import answer_of, assert_refused, call_cidl


def workload() -> Workload:
    """Three rounds of two blocks of kind a and one of kind b."""
    blocks = [
        Block(name="0", kind="a", weights="0", weight_bytes=6),
        Block(name="1", kind="a", weights="1", weight_bytes=6),
        Block(name="2", kind="b", weights="2", weight_bytes=12),
    ]
    return Workload(name="w", stages=[Stage(name="s", rounds=3, blocks=blocks)])


def device(cold_of_b: float | None, **fields: object) -> DeviceProfile:
    return DeviceProfile(
        name="d",
        memory_limit_bytes=12,
        measured={
            "a": Measured(load_s=1.0, cold_load_s=10.0, exec_s=2.0),
            "b": Measured(load_s=3.0, cold_load_s=cold_of_b, exec_s=4.0),
        },
        **{"coreml": CoreML(), **fields},
    )


def times_on(profile: DeviceProfile):
    return run_times(workload(), profile, make_plan("sequential", workload(), profile))


def test_the_first_run_pays_each_cold_load_once_and_later_runs_none():
    times = times_on(device(20.0))
    later = 3 * (2 * (1.0 + 2.0) + 3.0 + 4.0)
    assert times.later_s == pytest.approx(later)
    assert times.first_s == pytest.approx(later + 2 * 9.0 + 17.0)
    assert times.unknown_kinds == ()
    assert "takes 74.0 s" in run_sentence(times)


def test_where_a_cold_load_is_unknown_so_is_the_first_run():
    times = times_on(device(None))
    assert times.first_s is None
    assert times.first_at_least_s == pytest.approx(times.later_s + 2 * 9.0)
    assert (times.unknown_kinds, times.unknown_share) == (("b",), 0.5)
    assert "unknown (no cold load in the profile for 50.0% of the weights), but at least 57.0 s" in run_sentence(times)


def test_the_mark_of_the_costs_is_the_weakest_of_those_that_were_used():
    def mark_of(measured, **marks):
        figures = {key.replace("__", "."): Figure(source="s", mark=mark) for key, mark in marks.items()}
        provenance = Provenance(mark="measured", figures=figures)
        loader, executor = Loader(bandwidth_bytes_per_s=1.0), Executor(flops_per_s=1.0)
        profile = device(20.0, loader=loader, executor=executor, provenance=provenance)
        return times_on(profile.model_copy(update={"measured": {**profile.measured, **measured}})).mark

    assert mark_of({}, loader__bandwidth_bytes_per_s="assumed") == "measured"
    assert mark_of({}, measured__b="derived", measured__c="assumed") == "derived"
    assert mark_of({}, measured__a__cold_load_s="published") == "published"
    without_load = {"b": Measured(exec_s=1.0)}
    assert mark_of(without_load, loader__bandwidth_bytes_per_s="assumed") == "assumed"
    assert times_on(device(20.0)).mark is None


def test_packages_are_measured_in_an_export_and_estimated_without_one():
    manifest = manifest_by_hand()
    weights = {block.weights: block.weight_bytes for stage in tiny().stages for block in stage.blocks}
    without, exported = packages_on_disk(tiny(), None), packages_on_disk(tiny(), manifest)
    assert (without.bytes, without.mark) == (sum(weights.values()), "estimated")
    assert (exported.bytes, exported.mark) == (sum(weights.values()) + PROGRAM_BYTES * len(weights), "measured")


def test_an_export_without_a_block_or_a_kind_of_the_workload_is_refused():
    with pytest.raises(InputError, match=r"t5\.00 is not exported yet"):
        packages_on_disk(tiny(), manifest_by_hand(missing=("t5.00",)))
    with pytest.raises(InputError, match=r"-fp32-tdtm3 is in fp32, the export in fp16"):
        packages_on_disk(find_workload(TINY.replace("fp16", "fp32")), manifest_by_hand())
    other = workload().model_copy(update={"name": "other"})
    with pytest.raises(InputError, match=r"0 has no function for a \(it was made for .*--workload other"):
        packages_on_disk(other, manifest_by_hand())


def test_compiled_models_are_what_was_measured_of_every_kind_or_as_large_as_the_packages():
    packages = packages_on_disk(workload(), None)
    known = CoreML(compiled_bytes={"a": 7, "b": 13}, compile_s={"a": 0.5, "b": 2.0})
    found = compiled_on_disk(workload(), device(None, coreml=known), packages)
    assert (found.bytes, found.mark) == (7 + 7 + 13, "measured")
    assert compile_s(workload(), device(None, coreml=known)) == 3.0
    for partly in (CoreML(compiled_bytes={"a": 7}, compile_s={"a": 0.5}), None):
        found = compiled_on_disk(workload(), device(None, coreml=partly), packages)
        assert (found.bytes, found.mark) == (24, "estimated")
        assert compile_s(workload(), device(None, coreml=partly)) is None


def test_the_command_says_every_figure_with_its_mark(tmp_path):
    manifest_by_hand().write(tmp_path)
    device(20.0).write(tmp_path / "d.toml")
    workload().write(tmp_path / "w.json")
    call = ("coreml", "cost", tmp_path / "w.json", tmp_path / "d.toml")
    answer = answer_of(*call, "--policy", "sequential")
    assert (answer["packages_bytes"], answer["disk_bytes"], answer["compile_s"]) == (24, 48, None)
    assert (answer["first_run_s"], answer["later_run_s"]) == pytest.approx((74.0, 39.0))
    assert answer["marks"] == {"packages_bytes": "estimated", "compiled_bytes": "estimated", "costs": None}
    plan = tmp_path / "plan.json"
    assert answer_of("plan", *call[2:], "--time-limit", "0", "-o", plan)["later_run_s"] <= 39.0
    assert answer_of(*call, "--plan", plan)["policy"] != "sequential"
    assert_refused(call_cidl(*call, "--plan", plan, "--policy", "lru"), 2, "--policy or --plan")
    assert_refused(call_cidl(*call, "--packages", tmp_path), 2, "has no function for a")
    shown = call_cidl(*call).out
    assert "first run" in shown
    assert "unknown" in shown


def test_a_phone_with_figures_that_others_published_does_not_claim_a_first_run():
    answer = answer_of("coreml", "cost", "opensora-v1.2-256x256-68f", "iphone-15-pro", "--policy", "on_device_sora")
    assert answer["first_run_s"] is None
    assert answer["first_run_at_least_s"] > answer["later_run_s"] > 0
    assert answer["marks"]["costs"] == "derived"
    assert "unknown" in answer["sentence"]


def test_a_machine_without_core_ml_is_not_said_to_have_a_first_run(tmp_path):
    device(20.0, coreml=None).write(tmp_path / "d.toml")
    workload().write(tmp_path / "w.json")
    planned = answer_of("plan", tmp_path / "w.json", tmp_path / "d.toml", "--policy", "sequential")
    assert (planned["first_run_s"], planned["later_run_s"]) == (None, None)


def test_the_page_of_a_plan_says_what_the_first_and_later_runs_take(tmp_path):
    device(20.0).write(tmp_path / "d.toml")
    workload().write(tmp_path / "w.json")
    files = tmp_path / "w.json", tmp_path / "d.toml"
    answer_of("plan", *files, "--policy", "sequential", "-o", tmp_path / "plan.json")
    answer_of("report", tmp_path / "plan.json", *files, "-o", tmp_path)
    assert "The first run on the device takes 74.0 s" in (tmp_path / "report.html").read_text()
