"""`cidl whatif`: what it prints, draws and refuses."""

from __future__ import annotations

import matplotlib.image
import pytest

from tests.conftest import analytic_device, uniform_workload
from tests.test_cli import answer_of, assert_refused, call_cidl


@pytest.fixture
def files(tmp_path):
    """Four blocks of 10 bytes, loaded in 10 s and run in 3 s, three rounds, room for two."""
    workload, device = tmp_path / "workload.json", tmp_path / "device.toml"
    uniform_workload(4, 3, weight_bytes=10, workspace_bytes=2, flops=3).write(workload)
    analytic_device(30, baseline_bytes=5).write(device)
    return workload, device


def test_whatif_answers_with_sensitivities_break_points_and_a_curve(files):
    figures = answer_of("whatif", *files)
    # The best policy here.
    assert figures["policy"] == "rotating"
    assert figures["makespan_s"] == answer_of("simulate", *files, "--policy", "rotating")["makespan_s"]
    rows = {row["parameter"]: row for row in figures["sensitivities"]}
    assert {"memory_limit_bytes", "loader.bandwidth_bytes_per_s", "executor.flops_per_s"} < set(rows)
    assert rows["loader.bandwidth_bytes_per_s"]["elasticity"] < -0.5
    names = [point["name"] for point in figures["break_points"]]
    assert names == ["feasible", "enough_memory", "hidden_loading", "binding_loader"]
    assert figures["break_points"][0]["value"] == 17
    assert figures["memory_curve"][0]["memory_limit_bytes"] == 17
    assert figures["file"] is None
    assert answer_of("whatif", *files) == figures


def test_whatif_takes_a_policy_and_settings(files):
    figures = answer_of("whatif", *files, "--policy", "sequential", "--set", "executor.flops_per_s=3")
    assert (figures["policy"], figures["makespan_s"]) == ("sequential", 12 * (10 + 1))


def test_without_json_people_get_a_table_and_sentences(files, tmp_path):
    picture = tmp_path / "deep" / "whatif.png"
    outcome = call_cidl("whatif", *files, "-o", picture)
    assert outcome.code == 0, outcome.err
    for words in ("elasticity", "loader.bandwidth_bytes_per_s", "feasible from 17 bytes on", "stops paying above"):
        assert words in outcome.out
    height, width, _ = matplotlib.image.imread(picture).shape
    assert width > height > 500


def test_a_workload_that_nothing_changes_can_be_drawn(tmp_path):
    workload, device, picture = tmp_path / "w.json", tmp_path / "d.toml", tmp_path / "p.png"
    uniform_workload(2, 2, weight_bytes=0).write(workload)
    analytic_device(1).write(device)
    assert answer_of("whatif", workload, device, "-o", picture)["makespan_s"] == 0
    assert picture.stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("--policy nonsense", 2, ["unknown policy 'nonsense'"]),
        ("--set loader.bandwidth_bytes_per_s=-1", 2, ["loader.bandwidth_bytes_per_s"]),
        ("--set loader.bandwidth_bytes_per_s=null", 2, ["kind 'b'", "loader.bandwidth_bytes_per_s"]),
        ("--set memory_limit_bytes=16", 3, ["'b0'", "17 bytes", "16 bytes", "raise the limit"]),
        ("--policy prefix:3", 3, ["prefix:3 does not fit"]),
    ],
)
def test_what_cannot_be_varied_is_refused_in_one_line(options, code, words, files):
    assert_refused(call_cidl("whatif", *files, *options.split()), code, *words)


def test_a_picture_that_cannot_be_written_is_the_environments_fault(files, tmp_path):
    (tmp_path / "file").write_text("in the way")
    outcome = call_cidl("whatif", *files, "-o", tmp_path / "file" / "x.png")
    assert (outcome.code, outcome.out) == (4, "")
    assert "cannot be written" in outcome.err.splitlines()[-1]
