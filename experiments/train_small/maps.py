"""What tokens are about: easier targets beside the flow, for the denoiser's middle and for the text encoder.

The generator knows where every object is, so the middle of the network can be asked what each token of the video shows,
as REPA (Yu et al. 2024) asks for features of another network. And it knows which words go together, so the text encoder
can be asked at each word for all that its phrase says. The heads that answer are left out of the published weights.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cidl_sim.quality.shapes import (
    BACKGROUNDS,
    CLIP_FRAMES,
    COLOURS,
    DIRECTIONS,
    DISTANCES,
    RADII,
    SHAPES,
    MovingShape,
    Scene,
)

TOKEN = 16  # pixels of a token's side
# The frames that a latent frame is about, by their middle: the first alone, then groups of four.
_MIDDLES = np.array([0.0, *(np.arange(1, CLIP_FRAMES, 4) + 1.5)]) / (CLIP_FRAMES - 1)
_POINTS = 4  # looked at along each side of a token
_WORDS = (*COLOURS, *SHAPES, *RADII, *DIRECTIONS, *DISTANCES)
CHANNELS = 1 + len(_WORDS) + len(BACKGROUNDS)
# Of a word of the caption: what its phrase says, and whether that is of the first object, the second or the background.
_SAID = (*_WORDS, *BACKGROUNDS)
WORD_CHANNELS = len(_SAID) + 3


def token_maps(scenes: list[Scene], side: int) -> Tensor:
    """Maps of scenes with equally many objects, (N, tokens, CHANNELS) in fp16.

    Of each token the part that objects cover, the same for each of their attributes, and the rest for the background.
    """
    cells = side // TOKEN
    at = (np.arange(cells * _POINTS) + 0.5) / (cells * _POINTS)
    covered = np.zeros((len(scenes), len(_MIDDLES), cells * cells))
    words = np.zeros((*covered.shape, len(_WORDS)))
    for number in range(len(scenes[0].objects)):
        objects = [scene.objects[number] for scene in scenes]
        cover = _cover(objects, at, cells)
        held = np.array([[float(word in _attributes(o)) for word in _WORDS] for o in objects])
        words += cover[..., None] * held[:, None, None]
        covered += cover
    grounds = np.array([[float(scene.background == name) for name in BACKGROUNDS] for scene in scenes])
    rest = (1 - covered.clip(0, 1))[..., None] * grounds[:, None, None]
    maps = np.concatenate([covered[..., None], words, rest], axis=-1)
    return torch.from_numpy(maps).flatten(1, 2).half()


def word_maps(texts: list[str]) -> Tensor:
    """Maps of captions that differ in their attributes only, (B, words, WORD_CHANNELS)."""
    maps = torch.zeros(len(texts), len(texts[0].split()), WORD_CHANNELS)
    for row, text in zip(maps, texts, strict=True):
        words = text.split()
        second = words.index("and") if "and" in words else len(words)
        rest = words.index("on") if "on" in words else len(words)
        starts = (0, min(second, rest), rest, len(words))
        for part, (start, end) in enumerate(pairwise(starts)):
            said = [_SAID.index(word) for word in words[start:end] if word in _SAID]
            row[start:end, said] = 1.0
            row[start:end, len(_SAID) + part] = 1.0
    return maps


def _attributes(o: MovingShape) -> tuple[str, ...]:
    return o.colour, o.shape, o.size, o.direction, o.speed


def _cover(objects: list[MovingShape], at: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
    """How much of each token a disc as large as each object covers, (N, latent frames, cells * cells)."""
    moved = np.array([np.multiply(DIRECTIONS[o.direction], DISTANCES[o.speed]) for o in objects])
    centres = np.array([o.start for o in objects])[:, None] + moved[:, None] * _MIDDLES[None, :, None]
    radii = np.array([0.9 * RADII[o.size] for o in objects])[:, None, None, None]
    x = at[None, None, None, :] - centres[..., 0, None, None]
    y = at[None, None, :, None] - centres[..., 1, None, None]
    inside = (np.hypot(x, y) < radii).astype(float)
    tokens = inside.reshape(len(objects), len(_MIDDLES), cells, _POINTS, cells, _POINTS).mean(axis=(3, 5))
    return tokens.reshape(len(objects), len(_MIDDLES), cells * cells)
