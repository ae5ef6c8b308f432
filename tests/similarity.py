"""How alike two pictures are (SSIM)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

_WINDOW = 7


def structural_similarity(a: NDArray[Any], b: NDArray[Any]) -> float:
    """SSIM of two pictures (H, W, 3) in 8 bits, the mean over channels and places; 1 if they are the same.

    Wang et al. 2004, equation 13, with windows of 7x7, sample covariances, and no windows over the border: what
    scikit-image computes by default.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    size = (_WINDOW, _WINDOW, 1)
    mean_x, mean_y = uniform_filter(x, size), uniform_filter(y, size)
    unbiased = _WINDOW**2 / (_WINDOW**2 - 1)
    variance_x = unbiased * (uniform_filter(x * x, size) - mean_x**2)
    variance_y = unbiased * (uniform_filter(y * y, size) - mean_y**2)
    covariance = unbiased * (uniform_filter(x * y, size) - mean_x * mean_y)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    border = _WINDOW // 2
    return float(similarity[border:-border, border:-border].mean())


def video_similarity(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The least SSIM of two videos' frames, both (F, H, W, 3)."""
    return min(structural_similarity(one, other) for one, other in zip(a, b, strict=True))
