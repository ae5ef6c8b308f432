"""Latents and captions of many clips, made once: encoding a clip costs more than a step of training on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from checkpoints import mean_state
from maps import token_maps, word_maps
from torch import Tensor

from cidl_sim.models.autoencoder_kl import AutoencoderKL
from cidl_sim.models.sizes import VAESizes
from cidl_sim.models.vae import SPATIAL_SCALE, TemporalVAE
from cidl_sim.pipelines.open_sora.prompt import AESTHETIC_SUFFIX
from cidl_sim.quality.shapes import Scene, caption, random_scene, render, seen_combinations

END = 1
# What a caption leaves out: nothing, or one of these; users do not say everything.
FULL = (True, True, True)
SHORTER = ((False, True, True), (True, False, True), (True, True, False), (False, False, False))
# Three clips in four are of the smaller resolution, three in five have one object.
RESOLUTIONS = ((48, 0.75), (64, 0.25))
OBJECTS = ((1, 0.6), (2, 0.4))
_AT_A_TIME = 16
_HARDER = 4.0  # two objects are learned long after one


@dataclass(frozen=True)
class Batch:
    """Some clips of one resolution and number of objects, with captions of one length.

    Latents (B, 4, T, H, W), token ids (B, L), what each token of the denoiser shows (B, tokens, channels), and what the
    phrase of each word says (B, words, channels).
    """

    side: int
    latents: Tensor
    ids: Tensor
    maps: Tensor
    words: Tensor


@dataclass(frozen=True)
class Clips:
    """Latents (N, 4, T, H, W) and the scenes that they show; one resolution and number of objects."""

    side: int
    latents: Tensor
    scenes: list[Scene]

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.side, self.side


def scenes_for(seed: int, side: int, objects: int, count: int) -> list[Scene]:
    """The same scenes for the same numbers; none of a combination that is held out."""
    random = np.random.default_rng([seed, side, objects])
    return [random_scene(random, objects, seen_combinations()) for _ in range(count)]


def load_spatial(folder: Path, sizes: VAESizes) -> AutoencoderKL:
    """The trained spatial autoencoder."""
    spatial = AutoencoderKL(sizes)
    spatial.load_state_dict(mean_state(folder / "spatial.pt"))
    return spatial.eval().requires_grad_(False)


@torch.no_grad()
def make_spatial_latents(folder: Path, count: int, seed: int, sizes: VAESizes) -> None:
    """Encode the frames of `count` clips, in fp16, as the temporal half takes them. What is there is kept."""
    spatial = load_spatial(folder, sizes)
    for (side, part), (objects, share) in itertools.product(RESOLUTIONS, OBJECTS):
        file = folder / f"frames-{side}-{objects}.pt"
        if file.is_file():
            continue
        scenes, made = scenes_for(seed, side, objects, round(count * part * share)), []
        for start in range(0, len(scenes), _AT_A_TIME):
            videos = [render(scene, height=side, width=side) for scene in scenes[start : start + _AT_A_TIME]]
            video = to_unit(np.stack(videos))
            mean = spatial.moments(video.flatten(0, 1))[0] * SPATIAL_SCALE
            made.append(mean.unflatten(0, video.shape[:2]).transpose(1, 2).half())
        torch.save(torch.cat(made), file)
        print(f"{file}: {len(scenes)} clips", flush=True)


def load_spatial_latents(folder: Path, seed: int) -> list[Clips]:
    """All clips of `make_spatial_latents`, (N, 4, frames, H, W) in fp16."""
    groups = []
    for file in sorted(folder.glob("frames-*-*.pt")):
        side, objects = map(int, file.stem.split("-")[1:])
        latents: Tensor = torch.load(file, weights_only=True)
        groups.append(Clips(side, latents, scenes_for(seed, side, objects, len(latents))))
    return groups


@torch.no_grad()
def load_clips(folder: Path, seed: int, sizes: VAESizes) -> list[Clips]:
    """The same clips through the trained temporal encoder: the means of the latents, (N, 4, T, H, W) in fp32."""
    temporal = TemporalVAE(sizes)
    temporal.load_state_dict(mean_state(folder / "temporal.pt"))
    temporal.eval()
    return [
        Clips(
            group.side,
            torch.cat([temporal.moments(x.float()).chunk(2, dim=1)[0] for x in group.latents.split(64)]),
            group.scenes,
        )
        for group in load_spatial_latents(folder, seed)
    ]


def to_unit(frames: np.ndarray) -> Tensor:
    """(..., H, W, 3) in 0..255 -> (..., 3, H, W) in -1..1."""
    return torch.from_numpy(frames).float().div(127.5).sub(1).movedim(-1, -3)


def captions(scenes: list[Scene], template: tuple[bool, bool, bool]) -> list[str]:
    """Of each scene, with size, speed and background as `template` says."""
    size, speed, background = template
    return [caption(scene, size=size, speed=speed, background=background) for scene in scenes]


class Captions:
    """Token ids of captions, word by word: as the pipeline's tokenizer gives them, a hundred times faster."""

    def __init__(self, tokenizer: Path) -> None:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "spiece.model"))
        names = {i: pieces.id_to_piece(i) for i in range(pieces.vocab_size())}
        self._id = {name[1:]: i for i, name in names.items() if name.startswith("\u2581")}

    def ids(self, scenes: list[Scene], template: tuple[bool, bool, bool]) -> Tensor:
        """(B, L): one template has the same number of words for every scene with as many objects."""
        texts = [text + AESTHETIC_SUFFIX for text in captions(scenes, template)]
        return torch.tensor([[*(self._id[word] for word in text.split()), END] for text in texts])


def batches(
    clips: list[Clips], tokens: Captions, batch: int, seed: int, first: int = 0, *, rank: int = 0
) -> Iterator[Batch]:
    """Endless, from step `first` on.

    Each batch is of one group, which is drawn by its number of clips, times `_HARDER` for two objects. Processes that
    train together draw the same group, so that none waits for another, and clips of their own.
    """
    weights = np.array([len(c.scenes) * (_HARDER if len(c.scenes[0].objects) == 2 else 1) for c in clips])
    maps = [token_maps(c.scenes, c.side) for c in clips]
    for step in itertools.count(first):
        random = np.random.default_rng([seed, step])
        number = random.choice(len(clips), p=weights / weights.sum())
        group = clips[number]
        template = FULL if random.random() < 0.7 else SHORTER[random.integers(len(SHORTER))]
        chosen = np.random.default_rng([seed, step, rank]).integers(len(group.scenes), size=batch)
        scenes = [group.scenes[i] for i in chosen]
        rows = torch.from_numpy(chosen)
        ids, words = tokens.ids(scenes, template), word_maps(captions(scenes, template))
        yield Batch(group.side, group.latents[rows], ids, maps[number][rows].float(), words)
