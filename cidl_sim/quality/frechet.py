"""Fréchet distance of two sets of clips on the features of a small classifier of clips of moving shapes.

The distance is that of FVD (Unterthiner et al. 2018), the features are not: the classifier is trained by this project
on clips of its own generator, so figures compare with each other and with nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor, nn

from cidl_sim.quality.shapes import BACKGROUNDS, COLOURS, DIRECTIONS, DISTANCES, RADII, SHAPES, Frames, Scene

FEATURES = 64
SIDE = 48  # what clips are scaled to
_WIDTHS = (16, 32, 64, 64)
_LABELS = (*COLOURS, *SHAPES, *DIRECTIONS, *RADII, *DISTANCES, *BACKGROUNDS, "two objects")


class ClipClassifier(nn.Module):
    """Which colours, shapes, directions, sizes, speeds and background a clip holds, and whether two objects."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip((3, *_WIDTHS[:-1]), _WIDTHS, strict=True)):
            # Space is halved at once, time only later: slow motion shows in neighbouring frames.
            stride = (1, 2, 2) if i == 0 else (2, 2, 2)
            layers += [nn.Conv3d(a, b, 3, stride, padding=1), nn.GroupNorm(8, b), nn.SiLU()]
        self.convolutions = nn.Sequential(*layers)
        self.features = nn.Linear(2 * _WIDTHS[-1], FEATURES)
        self.heads = nn.Linear(FEATURES, len(_LABELS))

    def embed(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, F, H, W) in -1..1 -> features (B, FEATURES)."""
        x = F.interpolate(clips, size=(clips.shape[2], SIDE, SIDE), mode="trilinear", align_corners=False)
        x = self.convolutions(x).flatten(2)
        features: Tensor = self.features(torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1))
        return features

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, F, H, W) in -1..1 -> logits, one for each label (B, labels)."""
        logits: Tensor = self.heads(F.silu(self.embed(clips)))
        return logits


def labels_of(scene: Scene) -> Tensor:
    """What the classifier should say of a scene, ones and zeros (labels,)."""
    held = {scene.background} | ({"two objects"} if len(scene.objects) == 2 else set())
    for o in scene.objects:
        held |= {o.colour, o.shape, o.direction, o.size, o.speed}
    return torch.tensor([float(label in held) for label in _LABELS])


def load_classifier(file: Path) -> ClipClassifier:
    """The classifier in a safetensors file."""
    from safetensors.torch import load_file

    classifier = ClipClassifier()
    classifier.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def features_of(videos: Sequence[Frames], classifier: ClipClassifier) -> NDArray[np.float64]:
    """Features of videos (frames, height, width, 3): (number, FEATURES)."""
    made = [classifier.embed(as_clips(video[None])) for video in videos]
    return torch.cat(made).double().numpy()


def as_clips(videos: NDArray[np.uint8]) -> Tensor:
    """(B, F, H, W, 3) in 0..255 -> (B, 3, F, H, W) in -1..1."""
    return torch.from_numpy(videos).float().div(127.5).sub(1).permute(0, 4, 1, 2, 3).contiguous()


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """|mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)) for two sets of features, each (number, features).

    Biased upwards for small sets: compare sets of one size, beside the distance of two halves of the same.
    """
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(covariance_a @ covariance_b)
    difference = a.mean(axis=0) - b.mean(axis=0)
    return float(difference @ difference + np.trace(covariance_a + covariance_b - 2 * np.real(root)))
