"""Latents and captions of many clips, made once: encoding a clip costs more than a step of training on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch import Tensor
from train_vae import spatial_latents, to_unit

from cidl_sim.diffusion.prompt import AESTHETIC_SUFFIX
from cidl_sim.models.vae import TemporalVAE
from cidl_sim.quality.shapes import Scene, caption, random_scene, render, seen_combinations

END = 1
# What a caption leaves out: nothing, or one of these; users do not say everything.
FULL = (True, True, True)
SHORTER = ((False, True, True), (True, False, True), (True, True, False), (False, False, False))


@dataclass(frozen=True)
class Clips:
    """Latents (N, 4, T, H, W) in fp16 and the scenes that they show; one resolution and number of objects."""

    side: int
    latents: Tensor
    scenes: list[Scene]


def scenes_for(seed: int, side: int, objects: int, count: int) -> list[Scene]:
    """The same scenes for the same numbers; none of a combination that is held out."""
    random = np.random.default_rng([seed, side, objects])
    return [random_scene(random, objects, seen_combinations()) for _ in range(count)]


@torch.no_grad()
def encoded(spatial: torch.nn.Module, temporal: TemporalVAE, scenes: list[Scene], side: int) -> Iterator[Tensor]:
    """The means of the latents, sixteen clips at a time, as the temporal decoder takes them."""
    for start in range(0, len(scenes), 16):
        video = np.stack([render(scene, height=side, width=side) for scene in scenes[start : start + 16]])
        mean = temporal.moments(spatial_latents(spatial, to_unit(video))).chunk(2, dim=1)[0]
        yield mean.half()


def load_clips(folder: Path, seed: int) -> list[Clips]:
    """All clips of `latents-SIDE-OBJECTS.pt` in a folder."""
    clips = []
    for file in sorted(folder.glob("latents-*-*.pt")):
        side, objects = map(int, file.stem.split("-")[1:])
        latents: Tensor = torch.load(file, weights_only=True)
        clips.append(Clips(side, latents, scenes_for(seed, side, objects, len(latents))))
    return clips


class Captions:
    """Token ids of captions, word by word: as the pipeline's tokenizer gives them, a hundred times faster."""

    def __init__(self, tokenizer: Path) -> None:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "spiece.model"))
        names = {i: pieces.id_to_piece(i) for i in range(pieces.vocab_size())}
        self._id = {name[1:]: i for i, name in names.items() if name.startswith("\u2581")}

    def ids(self, scenes: list[Scene], template: tuple[bool, bool, bool]) -> Tensor:
        """(B, L): one template has the same number of words for every scene with as many objects."""
        size, speed, background = template
        texts = [caption(s, size=size, speed=speed, background=background) + AESTHETIC_SUFFIX for s in scenes]
        return torch.tensor([[*(self._id[word] for word in text.split()), END] for text in texts])


def batches(
    clips: list[Clips], captions: Captions, batch: int, seed: int, first: int = 0
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Endless, from step `first` on: side, latents (B, 4, T, H, W) and token ids (B, L).

    Each batch is of one group, which is drawn by its number of clips.
    """
    sizes = np.array([len(c.scenes) for c in clips], dtype=float)
    for step in itertools.count(first):
        random = np.random.default_rng([seed, step])
        group = clips[random.choice(len(clips), p=sizes / sizes.sum())]
        template = FULL if random.random() < 0.7 else SHORTER[random.integers(len(SHORTER))]
        chosen = random.integers(len(group.scenes), size=batch)
        ids = captions.ids([group.scenes[i] for i in chosen], template)
        yield group.side, group.latents[torch.from_numpy(chosen)].float(), ids
