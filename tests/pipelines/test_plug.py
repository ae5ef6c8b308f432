"""A family that the package has never heard of goes through every verb: one file and one line put it in the catalog."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from cidl_sim.core.plan import read_plan
from cidl_sim.core.trace import read_trace
from cidl_sim.core.workload import read_workload
from cidl_sim.executor.memory_limit import can_enforce
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import VARIABLE
from cidl_sim.sweep.results import scan
from tests.in_process import run_jobs_here
from tests.killed_runs import kill_once_saved
from tests.test_cli import ROOM_FOR_THE_PROCESS, answer_of, assert_refused, call_cidl

ROOT = Path(__file__).parents[2]
NAME = "toy-16r-6s-fp32"
LAYER_BYTES = (768 * 768 + 768) * 4


@pytest.fixture(scope="module", autouse=True)
def in_the_catalog() -> Iterator[None]:
    """The one line; child processes read it too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "tests.pipelines.toy_family:TOY")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(scope="module")
def store(in_the_catalog: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "store"
    assert answer_of("model", "build", "toy", "--store", root)["blocks"] == 2
    return root


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Room for the process and one and a half of the two layers."""
    from tests.conftest import analytic_device

    file = tmp_path_factory.mktemp("device") / "device.toml"
    limit = ROOM_FOR_THE_PROCESS + 3 * LAYER_BYTES // 2
    analytic_device(limit, baseline_bytes=ROOM_FOR_THE_PROCESS).write(file)
    return file


def plan_of(workload: object, device: Path, folder: Path, *options: object) -> Path:
    answer_of("plan", workload, device, "--time-limit", 0, "-o", folder / "plan.json", *options)
    return folder / "plan.json"


def run(plan: Path, store: Path, out: Path, *options: object) -> dict[str, object]:
    arguments = ("run", "--plan", plan, "--store", store, "--prompt", "two layers", "-o", out)
    answer: dict[str, object] = answer_of(*arguments, *options)
    return answer


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_it_is_among_the_workloads_and_a_wrong_name_is_refused():
    assert answer_of("workloads", NAME)["settings"]["pipeline"] == "toy"
    assert_refused(call_cidl("workloads", "toy-7x"), 2, "cannot read '7x'")


def test_stores_plans_and_runs_carry_its_name(store, device, tmp_path):
    assert BlockStore.open(store).index.pipeline == "toy"
    plan = read_plan(plan_of(NAME, device, tmp_path))
    assert plan.workload_settings["pipeline"] == "toy"


def test_a_checkpoint_is_imported_and_its_family_found(store, tmp_path):
    published = {
        f"{layer}.{name}": tensor
        for layer in ("first", "second")
        for name, tensor in load_file(store / f"{layer}.safetensors").items()
    }
    (tmp_path / "published").mkdir()
    save_file(published, tmp_path / "published" / "model.safetensors")
    assert answer_of("model", "import", tmp_path / "published", "--store", tmp_path / "store")["model"] == "toy"
    imported, built = (BlockStore.open(root).index.blocks for root in (tmp_path / "store", store))
    assert {w: entry.sha256 for w, entry in imported.items()} == {w: entry.sha256 for w, entry in built.items()}
    save_file({"first.linear.weight": published["first.linear.weight"]}, tmp_path / "published" / "model.safetensors")
    refused = call_cidl("model", "import", tmp_path / "published", "--store", tmp_path / "other")
    assert_refused(refused, 2, "3 missing: first.linear.bias")


def test_a_sweep_has_its_settings_as_axes_and_columns(tmp_path):
    axes = ("--axis", "rows=8,16", "--axis", "policy=lru,sequential")
    answer_of("sweep", "toy", "iphone-15-pro", *axes, "-o", tmp_path / "rows.parquet")
    rows = scan(tmp_path / "rows.parquet").collect()
    assert rows["workload"].unique(maintain_order=True).to_list() == ["toy-8r-4s-fp32", "toy-16r-4s-fp32"]
    assert "height" not in rows.columns
    refused = call_cidl("sweep", "toy", "iphone-15-pro", "--axis", "tdtm=1,2", "-o", tmp_path / "other.parquet")
    assert_refused(refused, 2, "axis 'tdtm': toy has no such setting")


def test_a_run_under_the_kernels_limit_makes_the_image_and_its_trace_is_validated(store, device, tmp_path):
    plan, folder = plan_of(NAME, device, tmp_path), tmp_path / "runs" / "lru"
    answer = run(plan, store, tmp_path / "image.png", "--trace", tmp_path / "trace.json")
    assert (answer["output"], answer["evaluations"]) == (str(tmp_path / "image.png"), 6)
    assert pixels(tmp_path / "image.png").shape == (16, 256, 3)
    assert (answer["enforced_by"] != "accounting") == can_enforce()
    assert answer_of("trace", "show", tmp_path / "trace.json")["policy"] == read_plan(plan).policy
    folder.mkdir(parents=True)
    read_trace(tmp_path / "trace.json").write(folder / "run-1.json.gz")
    for file, target in ((plan, folder / "plan.json"), (device, tmp_path / "runs" / "device.toml")):
        target.write_bytes(file.read_bytes())
    answer_of("workloads", NAME, "-o", folder / "workload.json")
    figures = answer_of("validate", "--traces", tmp_path / "runs", "-o", tmp_path / "out")
    assert [row["policy"] for row in figures["policies"]] == ["lru"]
    assert figures["replay_error"]["max"] < 1


def test_what_a_run_cannot_be_told_is_refused(store, device, tmp_path):
    plan = plan_of(NAME, device, tmp_path)
    arguments = ("run", "--plan", plan, "--store", store, "--prompt", "a", "-o")
    assert_refused(call_cidl(*arguments, tmp_path / "v.mp4"), 2, "the image is written as .png")
    assert_refused(call_cidl(*arguments, tmp_path / "v.png", "--lpl-rule", "paper"), 2, "no such option", "none")


def test_a_killed_run_goes_on_and_makes_the_same_image(store, device, tmp_path, monkeypatch):
    plan = plan_of("toy-16r-120s", device, tmp_path)
    whole, killed = tmp_path / "whole.png", tmp_path / "killed.png"
    run_jobs_here(monkeypatch)
    run(plan, store, whole)
    arguments = ["run", "--plan", plan, "--store", store, "--prompt", "two layers", "-o", killed]
    saved = tmp_path / "killed.png.resume"
    kill_once_saved(arguments, saved)
    assert not killed.exists()
    assert run(plan, store, killed, "--resume")["evaluations"] == 120
    assert (pixels(whole) == pixels(killed)).all()
    assert not saved.exists()


@pytest.mark.slow
def test_its_packages_are_exported_checked_and_interpreted(store, device, tmp_path, monkeypatch):
    run_jobs_here(monkeypatch)
    packages, workload = tmp_path / "packages", tmp_path / "w.json"
    # In a process, which has to find the family as well.
    answer_of("coreml", "export", "--store", store, "--out", packages, "--dtype", "fp32", "--workload", NAME)
    assert json.loads((packages / "manifest.json").read_text())["pipeline"] == "toy"
    checked = answer_of("coreml", "check", "--store", store, "--packages", packages)["functions"]
    assert [row["passed"] for row in checked] == [True, True]
    answer_of("coreml", "workload", "--packages", packages, "-o", workload)
    assert read_workload(workload).settings["pipeline"] == "toy"
    plan = plan_of(workload, device, tmp_path, "--set", "memory_limit_bytes=2000000000")
    run(plan, packages, tmp_path / "mil.png", "--backend", "mil")
    own = plan_of(NAME, device, tmp_path)
    run(own, store, tmp_path / "torch.png")
    difference = pixels(tmp_path / "mil.png").astype(int) - pixels(tmp_path / "torch.png").astype(int)
    assert np.abs(difference).max() <= 1
