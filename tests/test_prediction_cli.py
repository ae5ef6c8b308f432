"""Runs that say beforehand how long they will take, and teach the profile of this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cidl_sim.core.device import read_device
from cidl_sim.core.forecast import NOTED_SHARES
from cidl_sim.core.trace import read_trace
from cidl_sim.devices.catalog import THIS_MACHINE, this_machine_file
from tests.conftest import analytic_device
from tests.in_process import run_jobs_here
from tests.test_cli import ROOM_FOR_THE_PROCESS, TINY, answer_of, assert_refused, call_cidl


@pytest.fixture(scope="module")
def folder(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one plan, the first without a profile of this machine, and what they said."""
    folder = tmp_path_factory.mktemp("predicted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        run_jobs_here(patch)
        device = analytic_device(ROOM_FOR_THE_PROCESS + 10_000_000, baseline_bytes=ROOM_FOR_THE_PROCESS)
        device.write(folder / "device.toml")
        answer_of("plan", TINY, folder / "device.toml", "--policy", "next_block", "-o", folder / "plan.json")
        for number in (1, 2):
            files = ["--trace", folder / f"{number}.json", "-o", folder / f"{number}.mp4"]
            run = call_cidl(
                "run", "--plan", folder / "plan.json", "--store", tiny_store, "--prompt", "a fox", *files, "--json"
            )
            (folder / f"{number}.said").write_text(run.err)
            (folder / f"{number}.answer").write_text(run.out)
        shutil.copyfile(this_machine_file(), folder / "known.toml")
    return folder


def answer(folder: Path, number: int) -> dict:
    return json.loads((folder / f"{number}.answer").read_text())


def test_the_first_run_is_not_predicted_and_makes_the_profile(folder):
    first = answer(folder, 1)
    assert first["predicted"] is None
    assert first["learned"] == f"{THIS_MACHINE} is known from this run now"
    assert "not predicted: this machine has not been measured" in (folder / "1.said").read_text()
    assert not [event for event in read_trace(folder / "1.json").events if event.kind in ("predicted", "time_left")]


def test_the_second_run_is_predicted_and_teaches(folder):
    second = answer(folder, 2)
    predicted = second["predicted"]
    assert 0 < predicted["low_s"] <= predicted["makespan_s"] <= predicted["high_s"]
    assert "ends_s" not in predicted
    assert second["learned"].startswith(f"{THIS_MACHINE} learned from this run: loads ")
    said = (folder / "2.said").read_text()
    assert f"predicted: {predicted['makespan_s']:.2f} s" in said
    assert "; learned from 1 runs, last next_block of " in read_device(folder / "known.toml").provenance.source


def test_the_trace_holds_what_was_predicted_and_estimated_on_the_way(folder):
    trace = read_trace(folder / "2.json")
    events = {kind: [e for e in trace.events if e.kind == kind] for kind in ("predicted", "time_left")}
    predicted = answer(folder, 2)["predicted"]
    assert [event.values for event in events["predicted"]] == [predicted]
    assert [event.values["share"] for event in events["time_left"]] == list(NOTED_SHARES)
    assert all(0 <= event.values["left_s"] < 60 for event in events["time_left"])


def test_a_profile_learns_from_recorded_runs(folder, tmp_path):
    traces = ["--from-trace", folder / "1.json", "--from-trace", folder / "2.json"]
    new = answer_of("calibrate", *traces, "-o", tmp_path / "new.toml")
    known = answer_of("calibrate", *traces, "--device", tmp_path / "new.toml", "-o", tmp_path / "known.toml")
    assert new["kinds"] == known["kinds"] == len(read_device(tmp_path / "new.toml").measured)
    source = read_device(tmp_path / "known.toml").provenance.source
    assert "; learned from 2 runs, last next_block of " in source


def test_a_trace_whose_workload_has_no_name_here_is_learned_from_as_far_as_it_tells(folder, tmp_path):
    trace = read_trace(folder / "1.json")
    header = trace.header.model_copy(update={"workload_name": "of-somebody", "workload_sha256": "0" * 64})
    trace.model_copy(update={"header": header}).write(tmp_path / "t.json")
    answer_of("calibrate", "--from-trace", tmp_path / "t.json", "-o", tmp_path / "d.toml")
    named = tmp_path / "named.toml"
    answer_of("calibrate", "--from-trace", folder / "1.json", "-o", named)
    kinds = read_device(tmp_path / "d.toml").measured
    assert {kind: m.exec_s for kind, m in kinds.items()} == pytest.approx(
        {kind: m.exec_s for kind, m in read_device(named).measured.items()}
    )


def test_a_simulated_run_teaches_nothing(folder, tmp_path):
    simulated = tmp_path / "simulated.json"
    answer_of("simulate", TINY, folder / "device.toml", "--policy", "sequential", "--trace", simulated)
    assert_refused(
        call_cidl("calibrate", "--from-trace", simulated, "-o", tmp_path / "d.toml"),
        2,
        "it is no run of a machine",
    )
    assert not (tmp_path / "d.toml").exists()


@pytest.mark.parametrize("arguments", [[], ["--store", "a", "--from-trace", "b"]])
def test_runs_are_made_or_read(arguments, tmp_path):
    refused = call_cidl("calibrate", *arguments, "-o", tmp_path / "d.toml")
    assert_refused(refused, 2, "give either --store", "--from-trace")


def test_a_profile_that_cannot_be_kept_takes_nothing_away_from_a_run(folder, tiny_store, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run_jobs_here(monkeypatch)
    arguments = ["--store", tiny_store, "--prompt", "a fox", "-o", tmp_path / "v.mp4", "--json"]
    run = call_cidl("run", "--plan", folder / "plan.json", *arguments)
    assert run.code == 0, run.err
    assert json.loads(run.out)["learned"].startswith("nothing was learned from this run (")
    assert (tmp_path / "v.mp4").is_file()
