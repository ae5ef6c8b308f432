"""What samplers of any kind begin with and mix."""

from __future__ import annotations

import torch
from torch import Tensor


def initial_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Seeded normal noise in fp32, the same on every machine."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def guided(conditioned: Tensor, unconditioned: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance u + s*(c - u) (arXiv 2207.12598)."""
    return unconditioned + scale * (conditioned - unconditioned)


def guided_batch(both: Tensor, scale: float) -> Tensor:
    """The same where both halves are one batch, the conditioned first: (2 B, ...) -> (B, ...)."""
    conditioned, unconditioned = both.chunk(2)
    return guided(conditioned, unconditioned, scale)
