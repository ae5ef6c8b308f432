"""Figures of a profile from measured values: a line through loads, a spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# With fewer samples a spread says more about chance than about the machine.
ENOUGH_FOR_SPREAD = 8


def load_line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Latency in s and bandwidth in bytes/s of the line through (bytes, seconds), neither below zero."""
    sizes, seconds = np.array([p[0] for p in points], float), np.array([p[1] for p in points], float)
    if len(points) > 1 and np.ptp(sizes) > 0:
        slope, intercept = np.polyfit(sizes, seconds, 1)
        if slope > 0 and intercept >= 0:
            return float(intercept), float(1.0 / slope)
    return 0.0, float(sizes.sum() / seconds.sum())


def spread_of(values: Sequence[float]) -> float | None:
    """Relative standard deviation by the interquartile range; None of too few values."""
    if len(values) < ENOUGH_FOR_SPREAD:
        return None
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float((high - low) / 1.349 / middle) if middle > 0 else 0.0
