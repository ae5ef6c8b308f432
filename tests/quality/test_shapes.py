"""The generator of captioned clips."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest

from cidl_sim.quality.shapes import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    RADII,
    SHAPES,
    MovingShape,
    Scene,
    caption,
    held_out_combinations,
    random_scene,
    render,
    seen_combinations,
)


def test_held_out_combinations_leave_every_value_and_every_pair_of_attributes_to_training():
    held_out = held_out_combinations()
    assert len(held_out) == 12
    assert set(Counter(c for c, _, _ in held_out).values()) == {2}
    assert set(Counter(s for _, s, _ in held_out).values()) == {3}
    assert set(Counter(d for _, _, d in held_out).values()) == {3}
    seen = seen_combinations()
    assert {(c, s) for c, s, _ in seen} == set(product(COLOURS, SHAPES))
    assert {(c, d) for c, _, d in seen} == set(product(COLOURS, DIRECTIONS))
    assert {(s, d) for _, s, d in seen} == set(product(SHAPES, DIRECTIONS))


@pytest.mark.parametrize("combinations", [seen_combinations(), held_out_combinations()])
@pytest.mark.parametrize("objects", [1, 2])
def test_scenes_only_hold_the_combinations_that_were_asked_for(objects, combinations):
    random = np.random.default_rng(0)
    for _ in range(200):
        scene = random_scene(random, objects, combinations)
        assert {o.combination for o in scene.objects} <= combinations
        assert len({o.colour for o in scene.objects}) == len(scene.objects) == objects


@pytest.mark.parametrize("side", [48, 64])
def test_everything_stays_inside_the_clip(side):
    random = np.random.default_rng(1)
    for i in range(60):
        scene = random_scene(random, 1 + i % 2, seen_combinations())
        video = render(scene, height=side, width=side)
        rim = np.concatenate([video[:, 0], video[:, -1], video[:, :, 0], video[:, :, -1]], axis=1)
        # A smooth edge may reach half a pixel over.
        assert np.abs(rim.astype(int) - BACKGROUNDS[scene.background]).max() <= 0.6 * 255


def test_a_seed_stands_for_one_clip():
    made = [render(random_scene(np.random.default_rng(7), 2, seen_combinations())) for _ in range(2)]
    assert np.array_equal(*made)


def test_a_caption_says_everything_but_where_things_start():
    first = MovingShape("small", "red", "circle", "left", "slowly", (0.8, 0.25))
    second = MovingShape("small", "blue", "cross", "right", "quickly", (0.2, 0.75))
    assert caption(Scene("gray", (first,))) == "a small red circle moves left slowly on a gray background"
    assert caption(Scene("black", (first, second))) == (
        "a small red circle moves left slowly and a small blue cross moves right quickly on a black background"
    )
    assert caption(Scene("gray", (first,)), size=False, speed=False, background=False) == "a red circle moves left"


def test_shapes_and_speeds_scale_with_the_resolution():
    scene = Scene("black", (MovingShape("large", "green", "square", "down", "quickly", (0.5, 0.25)),))
    small, large = render(scene, height=48, width=48), render(scene, height=96, width=96)
    halved = large.reshape(17, 48, 2, 48, 2, 3).mean(axis=(2, 4))
    # Only edges differ.
    assert np.abs(halved - small).mean() < 2


def test_a_radius_is_that_of_the_circle():
    scene = Scene("black", (MovingShape("large", "cyan", "circle", "up", "slowly", (0.5, 0.6)),))
    covered = (render(scene, height=64, width=64)[0][..., 1] > 100).sum()
    assert covered == pytest.approx(np.pi * (RADII["large"] * 64) ** 2, rel=0.03)


def test_of_two_objects_the_first_is_in_the_upper_or_left_lane():
    random = np.random.default_rng(3)
    for _ in range(50):
        first, second = random_scene(random, 2, seen_combinations()).objects
        across = 0 if DIRECTIONS[first.direction][0] == 0 else 1
        assert first.start[across] < 0.5 < second.start[across]
