"""The sampler: times, steps, guidance."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cidl_sim.sampling.latents import guided, initial_noise
from cidl_sim.sampling.rectified_flow import (
    TIMESTEPS,
    moved,
    step_length,
    time_ratio,
    timesteps,
    transformed,
)

# The first call of a library takes its time.
patiently = settings(deadline=None)


@patiently
@given(st.integers(1, 60), st.floats(0.1, 8.0), st.data())
def test_a_constant_drift_lands_on_noise_plus_drift_wherever_it_leaps(steps, ratio, data):
    leap = data.draw(st.integers(0, steps - 1), label="leap")
    times = timesteps(steps, ratio)
    noise, drift = initial_noise((1, 4, 2, 3, 3), seed=0), initial_noise((1, 4, 2, 3, 3), seed=1)
    z = noise
    for step in range(leap):
        z = moved(z, drift, step_length(times, step))
    z = moved(z, drift, times[leap])
    torch.testing.assert_close(z, noise + drift, rtol=0, atol=1e-5)


@patiently
@given(st.integers(1, 60), st.floats(0.1, 8.0))
def test_times_fall_from_one_thousand_and_stay_above_zero(steps, ratio):
    times = timesteps(steps, ratio)
    assert len(times) == steps
    assert times[0] == pytest.approx(TIMESTEPS)
    assert all(a > b for a, b in itertools.pairwise(times))
    assert times[-1] > 0


@patiently
@given(st.integers(1, 60), st.floats(0.1, 8.0))
def test_step_lengths_are_positive_and_add_up_to_the_whole_time(steps, ratio):
    times = timesteps(steps, ratio)
    lengths = [step_length(times, i) for i in range(steps)]
    assert min(lengths) > 0
    assert sum(lengths) == pytest.approx(TIMESTEPS)


@patiently
@given(st.floats(0.1, 8.0))
def test_the_transform_keeps_both_ends(ratio):
    assert transformed(0.0, ratio) == 0.0
    assert transformed(TIMESTEPS, ratio) == pytest.approx(TIMESTEPS)


@patiently
@given(st.floats(0.0, 1000.0))
def test_the_transform_with_ratio_one_changes_nothing(t):
    assert transformed(t, 1.0) == pytest.approx(t, abs=1e-9)


@patiently
@given(st.floats(1.0, 999.0), st.floats(1.01, 8.0))
def test_a_larger_ratio_spends_more_steps_in_the_noise(t, ratio):
    assert transformed(t, ratio) > t > transformed(t, 1 / ratio)


def test_the_transform_at_half_time():
    # 2 * 0.5 / (1 + 1 * 0.5) = 2/3
    assert transformed(500.0, 2.0) == pytest.approx(2000 / 3)


@pytest.mark.parametrize(
    ("height", "width", "frames", "expected"),
    [
        (512, 512, 1, 1.0),
        (256, 256, 1, 0.5),
        (512, 512, 17, math.sqrt(5)),
        (256, 256, 68, 0.5 * math.sqrt(20)),
        (512, 512, 8, 1.0),
    ],
)
def test_the_ratio_grows_with_the_roots_of_pixels_and_latent_frames(height, width, frames, expected):
    assert time_ratio(height, width, frames) == pytest.approx(expected)


def test_guidance_goes_beyond_the_conditioned_drift():
    conditioned, unconditioned = initial_noise((2, 4, 2, 3, 3), seed=0)
    mixed = guided(conditioned, unconditioned, 7.0)
    torch.testing.assert_close(mixed, unconditioned + 7.0 * (conditioned - unconditioned))
    torch.testing.assert_close(guided(conditioned, unconditioned, 1.0), conditioned)
    assert torch.equal(guided(conditioned, unconditioned, 0.0), unconditioned)


def test_noise_is_decided_by_its_seed():
    torch.manual_seed(5)
    first = initial_noise((4, 100), seed=1)
    torch.manual_seed(6)
    assert torch.equal(initial_noise((4, 100), seed=1), first)
    assert not torch.equal(initial_noise((4, 100), seed=2), first)
    assert first.dtype == torch.float32
    assert abs(first.mean()) < 0.2
    assert abs(first.std() - 1) < 0.2
