"""Many videos at once are the pipeline's videos one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY, VideoSettings
from cidl_sim.pipelines.open_sora.whole_model import WholeModel
from tests.executor.tiny_runs import PROMPT, run_policy
from tests.pipelines.test_checkpoint import published

SETTINGS = VideoSettings(height=32, width=32, frames=17, steps=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> WholeModel:
    """The tiny model with the weights of the tiny store."""
    folder = tmp_path_factory.mktemp("published")
    for part in ("t5", "stdit", "vae"):
        (folder / part).mkdir()
        save_file(published(part), folder / part / "model.safetensors")
    return WholeModel(OPENSORA_TINY, {part: folder / part for part in ("t5", "stdit", "vae")})


def pipeline_video(tiny_store: Path, **changes: object) -> np.ndarray:
    program, _ = run_policy(tiny_store, "lru", SETTINGS.model_copy(update=changes))
    return program.frames.numpy()


@torch.no_grad()
def test_a_full_run_and_every_leap_of_it_are_the_pipelines(model, tiny_store):
    # The pipeline's run has seed 1; another video beside it must not matter.
    run = model.trajectory(model.text(PROMPT).expand(2, -1, -1), [5, 1], SETTINGS)
    assert_alike(model.decode(run.after(4), 17)[1], pipeline_video(tiny_store))
    for step in range(3):
        assert_alike(model.decode(run.leap(step), 17)[1], pipeline_video(tiny_store, lpl=str(step)))


@torch.no_grad()
def test_merged_steps_are_the_pipelines(model, tiny_store):
    every_pair = range(OPENSORA_TINY.stdit.depth)
    run = model.trajectory(model.text(PROMPT), [1], SETTINGS, lambda step: every_pair if step < 2 else ())
    assert_alike(model.decode(run.after(4), 17)[0], pipeline_video(tiny_store, tdtm=2))


@torch.no_grad()
def test_merging_in_some_pairs_lies_between_none_and_all(model):
    text = model.text(PROMPT)
    none, first, every = (
        model.trajectory(text, [1], SETTINGS, lambda step, pairs=pairs: pairs).after(4)
        for pairs in ((), (0,), (0, 1, 2))
    )
    assert not torch.equal(none, first)
    assert (first - none).norm() < (every - none).norm()


def assert_alike(video: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the rounding of another order of the same arithmetic."""
    assert np.abs(video.astype(int) - expected.astype(int)).max() <= 1
