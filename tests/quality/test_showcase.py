"""The demo's section on the trained model: what it says of runs, here with clips as they are drawn."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from cidl_sim.executor.job import JobResult
from cidl_sim.quality.shapes import Scene, held_out_combinations, render, seen_combinations
from cidl_sim.quality.showcase import (
    ACCELERATED,
    FULL,
    SCENES,
    UNSEEN,
    Run,
    draw_sheet,
    read_frames,
    summary_of,
    words,
)

DRAWN = [render(scene, height=64, width=64) for scene in SCENES]


def runs(accelerated: list[np.ndarray]) -> dict[str, Run]:
    full = JobResult(makespan_s=20.0, evaluations=30 * len(SCENES))
    fast = JobResult(makespan_s=10.0, evaluations=16 * len(SCENES))
    return {FULL: Run(full, DRAWN), ACCELERATED: Run(fast, accelerated)}


def test_the_last_scenes_are_of_combinations_that_training_held_out():
    for i, scene in enumerate(SCENES):
        known = held_out_combinations() if i >= len(SCENES) - UNSEEN else seen_combinations()
        assert all(o.combination in known for o in scene.objects)


def test_drawn_clips_have_every_attribute_right_and_equal_ones_an_ssim_of_one():
    summary = summary_of(runs(DRAWN))
    assert summary.ssim_mean == pytest.approx(1)
    assert summary.settings[FULL].attributes_right == 1
    assert summary.settings[ACCELERATED].evaluations_mean == 16


def test_wrong_clips_are_counted_and_told():
    empty = [render(Scene(scene.background, ()), height=64, width=64) for scene in SCENES]
    summary = summary_of(runs(empty))
    # Of six attributes only the background is right.
    assert summary.settings[ACCELERATED].attributes_right == pytest.approx(1 / 6)
    told = " ".join(words(summary, Path("folder")))
    assert "100% of the attributes right in 20.0 s" in told
    assert "17% right in 10.0 s (16.0 of 30 evaluations" in told


def test_the_sheet_has_a_row_for_each_prompt(tmp_path):
    draw_sheet(runs(DRAWN), tmp_path / "sheet.png")
    height, width, _ = plt.imread(tmp_path / "sheet.png").shape
    assert 0.6 < height / width < 1.1


def test_frames_are_read_in_their_order(tmp_path):
    for i in (11, 2, 0):
        Image.fromarray(np.full((4, 6, 3), i, dtype=np.uint8)).save(tmp_path / f"frame-{i:04}.png")
    assert read_frames(tmp_path)[:, 0, 0, 0].tolist() == [0, 2, 11]
