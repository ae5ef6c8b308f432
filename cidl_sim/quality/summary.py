"""Means over prompts and seeds with their confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} ({self.low:{spec}}..{self.high:{spec}})"


def estimate(values: NDArray[np.float64], *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean of values (prompts, seeds), with a bootstrap interval that draws prompts.

    The seeds of one prompt are not independent of each other, so whole prompts are drawn. Values that are not finite
    are an error of the caller's: ValueError.
    """
    if not np.isfinite(values).all():
        raise ValueError("values must be finite")
    by_prompt = values.reshape(len(values), -1).mean(axis=1)
    random = np.random.default_rng(seed)
    means = by_prompt[random.integers(len(by_prompt), size=(resamples, len(by_prompt)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(by_prompt.mean()), float(low), float(high))
