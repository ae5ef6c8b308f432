"""Temporal Dimension Token Merging (TDTM), On-device Sora section 3.2 (arXiv 2502.04363v2).

Around each attention, and only there, two adjacent frames become one (their mean); after it each result
stands for both. ceil(T/2) frames are attended to; with an odd number the last frame stays alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def merge_frames(x: Tensor) -> Tensor:
    """Mean of each two adjacent frames. x: (B, T, S, C) -> (B, ceil(T/2), S, C)."""
    frames = x.shape[1]
    pairs = (x[:, 0 : frames - 1 : 2] + x[:, 1::2]) / 2
    return pairs if frames % 2 == 0 else torch.cat([pairs, x[:, -1:]], dim=1)


def unmerge_frames(x: Tensor, frames: int) -> Tensor:
    """Give each merged frame back to both of its frames. x: (B, ceil(T/2), S, C) -> (B, T, S, C), T = `frames`."""
    return x.repeat_interleave(2, dim=1)[:, :frames]
