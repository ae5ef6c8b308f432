"""The Fréchet distance and the classifier whose features it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cidl_sim.quality.frechet import (
    FEATURES,
    ClipClassifier,
    as_clips,
    features_of,
    frechet_distance,
    labels_of,
    load_classifier,
)
from cidl_sim.quality.shapes import MovingShape, Scene, random_scene, render, seen_combinations


def test_the_distance_of_normal_sets_is_that_of_their_means_and_covariances():
    random = np.random.default_rng(0)
    a = random.normal(size=(20_000, 3))
    b = random.normal(loc=(2, 0, 0), scale=(1, 3, 1), size=(20_000, 3))
    # Independent axes: squared difference of the means plus that of the standard deviations.
    assert frechet_distance(a, b) == pytest.approx(2**2 + (3 - 1) ** 2, rel=0.03)


def test_equal_sets_have_none_and_order_does_not_matter():
    a = np.random.default_rng(1).normal(size=(200, 8))
    b = np.random.default_rng(2).normal(loc=0.5, size=(200, 8))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a, b[::-1]) == pytest.approx(frechet_distance(a, b))


def test_labels_say_what_a_scene_holds():
    one = Scene("gray", (MovingShape("large", "purple", "triangle", "right", "quickly"),))
    two = Scene("gray", (one.objects[0], MovingShape("small", "red", "triangle", "left", "quickly")))
    # Background, size, colour, shape, direction, speed; of the second what is new, and that there are two.
    assert labels_of(one).sum() == 6
    assert labels_of(two).sum() == 6 + 3 + 1
    assert bool((labels_of(two) >= labels_of(one)).all())


def test_a_saved_classifier_gives_the_same_features_at_either_resolution(tmp_path):
    torch.manual_seed(0)
    classifier = ClipClassifier().eval()
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors")
    scene = random_scene(np.random.default_rng(0), 2, seen_combinations())
    videos = [render(scene, height=48, width=48), render(scene, height=64, width=64)]
    small, large = features_of(videos, load_classifier(tmp_path / "classifier.safetensors"))
    assert small.shape == (FEATURES,)
    with torch.no_grad():
        assert np.allclose(small, classifier.embed(as_clips(videos[0][None]))[0].numpy())
    # Scaled to one size first, so only edges differ.
    assert np.linalg.norm(large - small) < 0.2 * np.linalg.norm(small)
