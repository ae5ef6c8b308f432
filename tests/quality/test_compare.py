"""Scoring folders of videos, as a user does with those of real checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cidl_sim.core.errors import InputError
from cidl_sim.pipelines.outputs import write_video
from cidl_sim.quality.compare import compare_videos, pairs_of, read_prompts, read_video
from cidl_sim.quality.networks import Networks
from cidl_sim.quality.scores import STAND_INS
from cidl_sim.quality.shapes import random_scene, render, seen_combinations

RANDOM = np.random.default_rng(0)
CLIPS = [render(random_scene(RANDOM, 1, seen_combinations()), frames=9) for _ in range(3)]


class ClipStub:
    """CLIP's place: redness if asked for red, else nothing."""

    def similarity(self, video: np.ndarray, prompt: str) -> float:
        return float(video[..., 0].mean() / 255) if "red" in prompt else 0.0


def mean_colours(clip: torch.Tensor, **_: bool) -> torch.Tensor:
    return clip.mean(dim=(2, 3, 4))


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Three videos, and the same ones darker."""
    for name, factor in (("full", 1.0), ("fast", 0.7)):
        (tmp_path / name).mkdir()
        for i, clip in enumerate(CLIPS):
            frames = torch.from_numpy((clip * factor).astype(np.uint8))
            write_video(tmp_path / name / f"video-{i}.mp4", frames, 8)
    return tmp_path / "fast", tmp_path / "full"


def test_equal_folders_have_an_ssim_of_one_and_no_fvd_without_a_network(folders):
    scores = compare_videos(pairs_of(folders[1], folders[1]), Networks())
    assert scores["SSIM"][0].mean == pytest.approx(1)
    assert set(scores) == {"SSIM", "PSNR", *STAND_INS}
    for name in STAND_INS:
        assert scores[name][0] == scores[name][1]


def test_networks_add_fvd_and_clip(folders):
    networks = Networks(i3d=mean_colours, clip=ClipStub())
    scores = compare_videos(pairs_of(*folders), networks, ["red", "red", "blue"])
    ours, theirs = scores["CLIP"]
    assert theirs is not None
    assert 0 < ours.mean < theirs.mean
    assert scores["FVD"][0].mean > 1
    assert scores["FVD"][1] is None
    assert scores["SSIM"][0].mean < 1


def test_a_video_without_a_partner_is_named(folders):
    (folders[0] / "video-1.mp4").unlink()
    with pytest.raises(InputError, match=r"video-1.mp4: only in one of"):
        pairs_of(*folders)


def test_videos_of_other_shapes_are_named(folders):
    write_video(folders[0] / "video-2.mp4", torch.zeros(5, 48, 48, 3, dtype=torch.uint8), 8)
    with pytest.raises(InputError, match=r"video-2.mp4: \(5, 48, 48\) frames"):
        compare_videos(pairs_of(*folders), Networks())


def test_too_few_frames_for_i3d_are_one_clear_line(folders):
    for folder in folders:
        for i in range(3):
            write_video(folder / f"video-{i}.mp4", torch.zeros(5, 48, 48, 3, dtype=torch.uint8), 8)
    with pytest.raises(InputError, match="I3D needs 9 frames, the video has 5"):
        compare_videos(pairs_of(*folders), Networks(i3d=mean_colours))


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a.mp4: not a video"):
        read_video(tmp_path / "a.mp4")
    with pytest.raises(InputError, match="no mp4 files"):
        pairs_of(tmp_path / "none", tmp_path)


def test_prompts_must_be_as_many_as_the_videos(tmp_path):
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n")
    assert read_prompts(tmp_path / "prompts.txt", 2) == ["one", "two"]
    with pytest.raises(InputError, match="2 prompts for 3 videos"):
        read_prompts(tmp_path / "prompts.txt", 3)
