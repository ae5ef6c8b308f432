"""How much noise a latent has at each of the steps that a diffusion model was trained on, and what a network predicts.

A latent at step t is `signal * image + noise * e` with `signal`^2 + `noise`^2 = 1 and e normal (variance preserving).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cidl_sim.sampling.names import TRAINING_STEPS

# What a network was trained to predict: the noise e, or v = signal * e - noise * image (Salimans and Ho, 2202.00512).
Prediction = Literal["epsilon", "v"]


@dataclass(frozen=True)
class Level:
    """One amount of noise. `ratio` is what samplers in units of the image's own call sigma."""

    signal: float
    noise: float

    @property
    def ratio(self) -> float:
        """Noise over signal."""
        return self.noise / self.signal

    def image(self, z: Tensor, output: Tensor, prediction: Prediction) -> Tensor:
        """The clean latent that a network's output for `z` at this level stands for."""
        if prediction == "v":
            return self.signal * z - self.noise * output
        return (z - self.noise * output) / self.signal

    def noise_in(self, z: Tensor, output: Tensor, prediction: Prediction) -> Tensor:
        """The noise that a network's output for `z` at this level stands for."""
        return self.signal * output + self.noise * z if prediction == "v" else output

    def noised(self, image: Tensor, noise: Tensor) -> Tensor:
        """A clean latent with so much of `noise`."""
        return self.signal * image + self.noise * noise


CLEAN = Level(1.0, 0.0)


def scaled_linear(first: float = 0.00085, last: float = 0.012) -> tuple[Level, ...]:
    """The levels of Stable Diffusion's training steps: variances whose square roots are spaced evenly.

    The last step keeps a signal of 0.068: even there a latent is not quite noise alone.
    """
    # In fp32, as the libraries that checkpoints are sampled with work it out.
    variances = torch.linspace(first**0.5, last**0.5, TRAINING_STEPS, dtype=torch.float32) ** 2
    kept = torch.cumprod(1.0 - variances, dim=0).double()
    return tuple(Level(alpha**0.5, (1.0 - alpha) ** 0.5) for alpha in kept.tolist())


def leading(steps: int) -> list[int]:
    """`steps` training steps at even distances, the last one first, none of them the very last of the training.

    They are moved by one (`steps_offset`), so that no sampler asks about step 0.
    """
    return [i * (TRAINING_STEPS // steps) + 1 for i in reversed(range(steps))]


def evenly(steps: int) -> list[int]:
    """`steps` training steps from the last one down; step 0 would be the next."""
    return _rounded([(TRAINING_STEPS - 1) * i / steps for i in range(steps, 0, -1)])


def _rounded(values: Sequence[float]) -> list[int]:
    # Halves go to the even number, as numpy's do.
    return [round(value) for value in values]
