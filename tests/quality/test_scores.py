"""Scores without a download: each tells what it is for from what it is not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from cidl_sim.quality.scores import (
    STAND_INS,
    background_consistency,
    dynamic_degree,
    flicker,
    motion_smoothness,
    psnr,
    sharpness,
    ssim,
    subject_consistency,
)
from cidl_sim.quality.shapes import MovingShape, Scene, render


def clip(speed: str = "slowly", colour: str = "red") -> np.ndarray:
    return render(Scene("gray", (MovingShape("large", colour, "circle", "right", speed, (0.25, 0.5)),)))


def noisy(video: np.ndarray, scale: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(scale=scale, size=video.shape)
    return np.clip(video + noise, 0, 255).astype(np.uint8)


def test_equal_videos_are_equal_and_noise_takes_away_from_both_comparisons():
    video = clip()
    assert ssim(video, video) == pytest.approx(1)
    assert psnr(video, video) == float("inf")
    assert ssim(noisy(video, 20), video) < ssim(noisy(video, 5), video) < 1
    assert psnr(noisy(video, 10), video) == pytest.approx(20 * np.log10(255 / 10), abs=1)


def test_noise_that_changes_flickers_and_is_not_smooth():
    assert flicker(noisy(clip(), 20)) < flicker(clip())
    assert motion_smoothness(noisy(clip(), 20)) < motion_smoothness(clip())
    assert background_consistency(noisy(clip(), 20)) < background_consistency(clip())


def test_the_dynamic_degree_is_about_the_way_of_the_fastest():
    still = np.repeat(clip()[:1], 17, axis=0)
    assert dynamic_degree(still) == pytest.approx(0, abs=1e-6)
    assert dynamic_degree(clip("quickly")) > 1.5 * dynamic_degree(clip("slowly"))


def test_blur_takes_sharpness():
    blurred = ndimage.uniform_filter(clip(), size=(1, 3, 3, 1))
    assert sharpness(blurred) < 0.8 * sharpness(clip())


def test_an_object_that_changes_its_colour_is_not_consistent():
    changing = np.concatenate([clip()[:9], clip(colour="blue")[9:]])
    assert subject_consistency(clip()) > 0.95
    assert subject_consistency(changing) < subject_consistency(clip()) - 0.04


@pytest.mark.parametrize("name", STAND_INS)
def test_stand_ins_are_marked_as_such_and_are_numbers_for_any_video(name):
    assert name.endswith("*")
    assert 0 <= STAND_INS[name](np.zeros((17, 48, 48, 3), dtype=np.uint8)) <= 1
    assert np.isfinite(STAND_INS[name](np.random.default_rng(0).integers(0, 255, (17, 48, 48, 3), dtype=np.uint8)))
