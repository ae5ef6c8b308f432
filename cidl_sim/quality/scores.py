"""Scores of videos that need no download.

Two compare with a reference video (SSIM, PSNR). The others stand in for columns of VBench, which needs networks that
cannot be had everywhere: they measure something of the same kind, on another scale, and are never comparable with
VBench's figures.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.registration import optical_flow_ilk

from cidl_sim.quality.shapes import Frames

_SAME = 40.0  # RGB distance from the median frame's colour up to which a pixel is background


def ssim(video: Frames, reference: Frames) -> float:
    """Mean structural similarity of the frames, 1 is equal; see `frame_ssim`."""
    return float(np.mean(frame_ssim(video, reference)))


def frame_ssim(video: Frames, reference: Frames) -> list[float]:
    """Structural similarity of each frame (Wang et al. 2004), with their Gaussian window of 11x11."""
    return [
        float(
            structural_similarity(a, b, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        )
        for a, b in zip(video, reference, strict=True)
    ]


def psnr(video: Frames, reference: Frames) -> float:
    """Peak signal-to-noise ratio of the whole video in dB; infinite for equal ones."""
    if np.array_equal(video, reference):
        return float("inf")
    return float(peak_signal_noise_ratio(reference, video))


def flicker(video: Frames) -> float:
    """Stand-in for temporal flickering: 1 - mean absolute difference of neighbouring frames (0..1 scale)."""
    return 1 - float(np.abs(np.diff(video.astype(np.float32), axis=0)).mean() / 255)


def motion_smoothness(video: Frames) -> float:
    """Stand-in for motion smoothness: 1 - mean absolute difference of a frame and the mean of its neighbours."""
    v = video.astype(np.float32)
    return 1 - float(np.abs(v[1:-1] - (v[:-2] + v[2:]) / 2).mean() / 255)


def dynamic_degree(video: Frames) -> float:
    """Stand-in for the dynamic degree: what the fastest 5 % of the pixels move, in sides over the whole video."""
    gray = _gray(video)
    fastest = []
    for a, b in pairwise(gray):
        speed = np.hypot(*optical_flow_ilk(a, b, radius=4))
        fastest.append(np.sort(speed, axis=None)[-max(1, speed.size // 20) :].mean())
    side: int = min(video.shape[1:3])
    return float(np.sum(fastest)) / side


def sharpness(video: Frames) -> float:
    """Stand-in for imaging quality: mean gradient (0..1 a pixel) of the steepest 2 % of the pixels."""
    gray = _gray(video)
    slopes = np.hypot(ndimage.sobel(gray, axis=1), ndimage.sobel(gray, axis=2)) / 4
    return float(np.sort(slopes, axis=None)[-max(1, slopes.size // 50) :].mean())


def background_consistency(video: Frames) -> float:
    """Stand-in for background consistency: 1 - spread over time of pixels that look like the background (0..1)."""
    v = video.astype(np.float32)
    colour = np.median(v.reshape(-1, 3), axis=0)
    inside = np.linalg.norm(v - colour, axis=-1) < _SAME
    if not inside.any():
        return 0.0
    return 1 - float(np.abs(v[inside] - colour).mean() / 255)


def subject_consistency(video: Frames) -> float:
    """Stand-in for subject consistency: mean overlap of the colours of the objects in neighbouring frames.

    Histograms (4 levels a channel) of the pixels that do not look like the background; 1 is equal.
    """
    v = video.astype(np.float32)
    colour = np.median(v.reshape(-1, 3), axis=0)
    histograms = [_histogram(frame[np.linalg.norm(frame - colour, axis=-1) >= _SAME]) for frame in v]
    return float(np.mean([np.minimum(a, b).sum() for a, b in pairwise(histograms)]))


STAND_INS: dict[str, Callable[[Frames], float]] = {
    "subject consistency*": subject_consistency,
    "background consistency*": background_consistency,
    "flicker*": flicker,
    "motion smoothness*": motion_smoothness,
    "dynamic degree*": dynamic_degree,
    "sharpness*": sharpness,
}


def _gray(video: Frames) -> NDArray[np.float64]:
    gray: NDArray[np.float64] = video.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255
    return gray


def _histogram(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    levels = np.clip(pixels / 64, 0, 3).astype(int)
    counts = np.bincount(levels @ np.array([16, 4, 1]), minlength=64)
    shares: NDArray[np.float64] = counts / max(1, counts.sum())
    return shares
