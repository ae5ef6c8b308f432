"""Text to image through the verbs: build, plan, run, several prompts, other cuts, Core ML's packages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cidl_sim.core.plan import read_plan
from cidl_sim.core.trace import read_trace
from tests.in_process import run_jobs_here
from tests.killed_runs import kill_once_saved
from tests.test_cli import ROOM_FOR_THE_PROCESS, answer_of, assert_refused, call_cidl

PROMPT = ("--prompt", "a red circle", "--negative-prompt", "blue")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("stores")
    for name, partition in (("reference", "reference"), ("cut", "dfine.v2")):
        answer_of("model", "build", "sd-tiny", "--store", root / name, "--partition", partition)
    return {name: root / name for name in ("reference", "cut")}


@pytest.fixture
def device(tmp_path: Path) -> Path:
    from tests.conftest import analytic_device

    file = tmp_path / "device.toml"
    analytic_device(ROOM_FOR_THE_PROCESS + 4_000_000, baseline_bytes=ROOM_FOR_THE_PROCESS).write(file)
    return file


def made(folder: Path, device: Path, store: Path, workload: str, *options: object, name: str = "image") -> np.ndarray:
    plan = folder / f"{name}.json"
    answer_of("plan", workload, device, "--time-limit", 0, "--policy", "spread", "-o", plan)
    out = folder / f"{name}.png"
    answer_of("run", "--plan", plan, "--store", store, *PROMPT, "-o", out, *options)
    return np.asarray(Image.open(out))


def test_an_image_is_made_under_the_kernels_limit_and_again_in_another_cut(stores, device, tmp_path, monkeypatch):
    first = made(tmp_path, device, stores["reference"], "sd-tiny", "--trace", tmp_path / "trace.json")
    assert first.shape == (64, 64, 3)
    assert first.std() > 5
    trace = read_trace(tmp_path / "trace.json")
    assert list(trace.groups) == ["text_encoder", "denoiser", "decoder"]
    assert read_plan(tmp_path / "image.json").pipeline == "stable_diffusion"
    run_jobs_here(monkeypatch)
    cut = made(tmp_path, device, stores["cut"], "sd-tiny-dfine.v2", name="cut")
    split = made(tmp_path, device, stores["reference"], "sd-tiny-cfgsplit", name="split")
    assert np.array_equal(first, cut)
    assert np.abs(first.astype(int) - split.astype(int)).max() <= 1


def test_a_killed_run_goes_on_between_two_steps_and_makes_the_same_image(stores, device, tmp_path, monkeypatch):
    plan, arguments = tmp_path / "whole.json", ("--store", stores["reference"], *PROMPT, "-o", tmp_path / "killed.png")
    with pytest.MonkeyPatch.context() as patch:
        run_jobs_here(patch)
        whole = made(tmp_path, device, stores["reference"], "sd-tiny-60s-pndm-cfgsplit", name="whole")
    kill_once_saved(["run", "--plan", plan, *arguments], tmp_path / "killed.png.resume")
    assert not (tmp_path / "killed.png").exists()
    run_jobs_here(monkeypatch)
    assert answer_of("run", "--plan", plan, *arguments, "--resume")["evaluations"] == 61
    assert np.array_equal(whole, np.asarray(Image.open(tmp_path / "killed.png")))


def test_several_prompts_and_options_of_the_family(stores, device, tmp_path, monkeypatch):
    run_jobs_here(monkeypatch)
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    plan = tmp_path / "plan.json"
    answer_of("plan", "sd-tiny-2p", device, "--policy", "next_block", "-o", plan)
    arguments = ("run", "--plan", plan, "--store", stores["reference"], "-o", tmp_path / "x.png")
    answer_of(*arguments, "--prompts", tmp_path / "prompts.txt", "--guidance", 3, "--sampler", "dpm")
    first, second = (np.asarray(Image.open(tmp_path / f"x-{i}.png")) for i in (1, 2))
    assert not np.array_equal(first, second)
    assert_refused(
        call_cidl(*arguments, "--prompts", tmp_path / "prompts.txt", "--sampler", "pndm"),
        2,
        "asks the denoiser 5 times",
    )
    assert_refused(call_cidl(*arguments, "--prompts", tmp_path / "prompts.txt", "--guidance", "x"), 2, "--guidance")
    assert_refused(call_cidl(*arguments, "--prompts", tmp_path / "prompts.txt", "--lpl-rule", "paper"), 2, "--sampler")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sd-v1.5-500x512", "multiples of 64"),
        ("sd-v1.5-51s-lcm", "50 at most"),
        ("sd-v1.5-tile10", "tile"),
        ("sd-v1.5-dchunks1", "'dchunks1' is no partition: write reference, fine, whole, chunks2"),
        ("sd-v1.5-vfine", "no partition"),
        ("sd-v1.6", "sd-v1.5"),
        ("sdxl-lpl15", "cannot read 'lpl15'"),
    ],
)
def test_a_wrong_name_is_refused_in_one_line(name: str, said: str) -> None:
    assert_refused(call_cidl("workloads", name), 2, said)


def test_the_planner_chooses_among_the_cuts(device, tmp_path):
    answer = answer_of("plan", "sd-tiny", device, "--partition", "auto", "--time-limit", 1)
    looked_at = {row["partition"] for row in answer["partitions"]}
    assert {"reference", "fine", "whole"} <= looked_at
    assert any("dchunks2" in partition for partition in looked_at)


def test_a_sweep_has_the_familys_axes(tmp_path):
    axes = ("--axis", "guidance=batch,split", "--axis", "policy=lru,whole_model", "--axis", "steps=2,4")
    answer_of("sweep", "sd-tiny", "iphone-15-pro", *axes, "-o", tmp_path / "rows.parquet")
    from cidl_sim.sweep.results import scan

    rows = scan(tmp_path / "rows.parquet").collect()
    assert len(rows) == 8
    assert set(rows["guidance"]) == {"batch", "split"}
