"""What the quality experiments share: prompts, the trained model, videos in batches, scores with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from cidl_sim.models.config import VideoSettings
from cidl_sim.quality.attributes import ATTRIBUTES, attribute_scores, measure_clip
from cidl_sim.quality.generate import MergedPairs, Trajectory, WholeModel, no_pairs
from cidl_sim.quality.scores import STAND_INS, psnr, ssim
from cidl_sim.quality.shapes import Frames, Scene, caption, held_out_combinations, random_scene, seen_combinations
from cidl_sim.quality.summary import Estimate, estimate

SEEDS = (0, 1, 2)
BATCH = 24
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Asked:
    """One video to make: what is asked for, and the seed of its noise."""

    scene: Scene
    seed: int


def asked_for(prompts: int, *, seen: bool, seeds: Sequence[int] = SEEDS) -> list[Asked]:
    """Every prompt with every seed; half of the prompts with one object, half with two."""
    random = np.random.default_rng(20_000 + seen)
    combinations = seen_combinations() if seen else held_out_combinations()
    scenes = [random_scene(random, 1 + i // (prompts // 2), combinations) for i in range(2 * (prompts // 2))]
    return [Asked(scene, seed) for scene in scenes for seed in seeds]


@torch.inference_mode()
def trajectories(
    model: WholeModel, asked: Sequence[Asked], settings: VideoSettings, merged: MergedPairs = no_pairs
) -> Iterator[tuple[list[Asked], Trajectory]]:
    """Batches of videos whose prompts have equally many tokens."""
    by_length: dict[int, list[tuple[Asked, torch.Tensor]]] = {}
    for one in asked:
        text = model.text(caption(one.scene))
        by_length.setdefault(text.shape[1], []).append((one, text))
    groups = [same[i : i + BATCH] for same in by_length.values() for i in range(0, len(same), BATCH)]
    for group in track(groups, description="sampling", transient=True):
        texts = torch.cat([text for _, text in group])
        yield [one for one, _ in group], model.trajectory(texts, [one.seed for one, _ in group], settings, merged)


def accuracy(asked: Sequence[Asked], videos: Sequence[Frames]) -> dict[str, NDArray[np.float64]]:
    """Which part of each attribute is right in each video, and their mean as `attributes`."""
    rows = [attribute_scores(one.scene, measure_clip(video)) for one, video in zip(asked, videos, strict=True)]
    scores = {name: np.array([row[name] for row in rows]) for name in (*ATTRIBUTES, "objects")}
    scores["attributes"] = np.mean([scores[name] for name in ATTRIBUTES], axis=0)
    return scores


def likeness(videos: Sequence[Frames], references: Sequence[Frames]) -> dict[str, NDArray[np.float64]]:
    """SSIM and PSNR of each video against its reference; PSNR at most 60 dB, where videos are equal."""
    pairs = list(zip(videos, references, strict=True))
    return {
        "SSIM": np.array([ssim(video, reference) for video, reference in pairs]),
        "PSNR": np.array([min(60.0, psnr(video, reference)) for video, reference in pairs]),
    }


def stand_ins(videos: Sequence[Frames]) -> dict[str, NDArray[np.float64]]:
    """The scores that stand in for VBench's, of each video."""
    return {name: np.array([score(video) for video in videos]) for name, score in STAND_INS.items()}


def by_prompt(asked: Sequence[Asked], values: NDArray[np.float64]) -> Estimate:
    """The mean over prompts and seeds with its interval."""
    rows: dict[Scene, list[float]] = {}
    for one, value in zip(asked, values, strict=True):
        rows.setdefault(one.scene, []).append(value)
    return estimate(np.array(list(rows.values())))
