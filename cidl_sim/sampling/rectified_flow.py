"""The rectified-flow sampler of Open-Sora v1.2: times, guidance, steps.

The drift is v = x0 - noise and time runs from 1000 (noise) to 0, so z moves by +v * dt / 1000.
"""

from __future__ import annotations

import math

from torch import Tensor

TIMESTEPS = 1000
BASE_PIXELS = 512 * 512


def time_ratio(height: int, width: int, frames: int) -> float:
    """How much later the timestep transform starts: sqrt of the relative pixels times sqrt of the latent frames.

    One frame counts as one; below 17 frames the reference's formula gives zero, here it counts as one.
    """
    latent_frames = 1 if frames == 1 else max(1, frames // 17 * 5)
    return math.sqrt(height * width / BASE_PIXELS) * math.sqrt(latent_frames)


def transformed(t: float, ratio: float) -> float:
    """The timestep transform r*t / (1 + (r-1)*t) on t in 0..1000."""
    u = t / TIMESTEPS
    return ratio * u / (1 + (ratio - 1) * u) * TIMESTEPS


def timesteps(steps: int, ratio: float, *, rounded: bool = False) -> list[float]:
    """The times t_0 > t_1 > ... of `steps` evaluations, transformed; `rounded` to whole numbers before that.

    Open-Sora v1.2 samples with continuous times; the rounded ones are its `use_discrete_timesteps`.
    """
    times = [(1 - i / steps) * TIMESTEPS for i in range(steps)]
    return [transformed(round(t) if rounded else t, ratio) for t in times]


def step_length(times: list[float], i: int) -> float:
    """t_i - t_(i+1); the last step goes all the way to 0."""
    return times[i] - times[i + 1] if i + 1 < len(times) else times[i]


def moved(z: Tensor, drift: Tensor, dt: float) -> Tensor:
    """One Euler step of length `dt` (in 0..1000) along the drift."""
    return z + drift * (dt / TIMESTEPS)
