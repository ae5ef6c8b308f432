"""Means with confidence intervals."""

from __future__ import annotations

import numpy as np
import pytest

from cidl_sim.quality.summary import estimate


def test_an_interval_holds_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        prompts = random.normal(size=(60, 1))
        values = 5 + prompts + 0.3 * random.normal(size=(60, 3))
        found = estimate(values, resamples=400, seed=trial)
        held += found.low <= 5 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_more_seeds_of_the_same_prompts_do_not_make_it_narrower_than_prompts_allow():
    prompts = np.random.default_rng(1).normal(size=(40, 1))
    few, many = estimate(prompts.repeat(2, axis=1)), estimate(prompts.repeat(50, axis=1))
    assert many.high - many.low == pytest.approx(few.high - few.low)


def test_what_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        estimate(np.array([[1.0, float("inf")]]))


def test_it_prints_with_its_interval():
    assert f"{estimate(np.ones((4, 2))):.2f}" == "1.00 (1.00..1.00)"
