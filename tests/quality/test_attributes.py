"""Measuring what a clip shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cidl_sim.quality.attributes import ATTRIBUTES, attribute_scores, measure_clip
from cidl_sim.quality.shapes import MovingShape, Scene, held_out_combinations, random_scene, render, seen_combinations

ONE = Scene("gray", (MovingShape("large", "purple", "triangle", "right", "quickly", (0.25, 0.5)),))


@pytest.mark.parametrize("side", [48, 64])
def test_all_attributes_of_drawn_clips_are_found(side):
    random = np.random.default_rng(side)
    for i in range(40):
        scene = random_scene(random, 1 + i % 2, seen_combinations() | held_out_combinations())
        scores = attribute_scores(scene, measure_clip(render(scene, height=side, width=side)))
        assert scores == dict.fromkeys((*ATTRIBUTES, "objects"), 1.0), scene


def test_they_are_found_under_noise_and_blur():
    random = np.random.default_rng(3)
    for i in range(20):
        scene = random_scene(random, 1 + i % 2, seen_combinations())
        video = render(scene, height=64, width=64).astype(float)
        blurred = (video + np.roll(video, 1, axis=1) + np.roll(video, 1, axis=2)) / 3
        noisy = np.clip(blurred + random.normal(scale=8, size=video.shape), 0, 255).astype(np.uint8)
        scores = attribute_scores(scene, measure_clip(noisy))
        assert np.mean([scores[name] for name in ATTRIBUTES]) > 0.9, scene


@pytest.mark.parametrize(
    ("attribute", "other"),
    [("colour", "red"), ("shape", "cross"), ("size", "small"), ("direction", "left"), ("speed", "slowly")],
)
def test_what_is_wrong_is_what_differs(attribute, other):
    asked = Scene("gray", (replace(ONE.objects[0], **{attribute: other}),))
    scores = attribute_scores(asked, measure_clip(render(ONE)))
    assert {name for name, score in scores.items() if score < 1} == {attribute}


def test_another_background_is_wrong():
    assert attribute_scores(replace(ONE, background="white"), measure_clip(render(ONE)))["background"] == 0


def test_an_empty_clip_has_no_object_and_a_still_one_no_direction():
    empty = np.full((17, 48, 48, 3), 128, dtype=np.uint8)
    assert measure_clip(empty).objects == ()
    scores = attribute_scores(ONE, measure_clip(empty))
    assert scores.pop("background") == 1
    assert set(scores.values()) == {0.0}
    still = measure_clip(np.repeat(render(ONE)[:1], 17, axis=0)).objects[0]
    assert (still.direction, still.speed) == (None, None)


def test_a_missing_object_costs_half_and_objects_may_come_in_any_order():
    a = MovingShape("small", "red", "circle", "left", "slowly", (0.8, 0.25))
    b = MovingShape("small", "blue", "cross", "right", "quickly", (0.2, 0.75))
    both = Scene("black", (a, b))
    alone = attribute_scores(both, measure_clip(render(Scene("black", (b,)))))
    assert (alone["colour"], alone["shape"], alone["objects"]) == (0.5, 0.5, 0.0)
    swapped = attribute_scores(Scene("black", (b, a)), measure_clip(render(both)))
    assert set(swapped.values()) == {1.0}


def test_something_that_shows_in_a_few_frames_is_no_object():
    video = render(ONE)
    video[6:] = 128
    assert measure_clip(video).objects == ()
