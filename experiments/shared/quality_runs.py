"""What the quality experiments share: prompts, the trained model, videos in batches, scores with intervals, tables."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from bench_executor import processor
from numpy.typing import NDArray
from rich.progress import track

from cidl_sim.core.files import replacing
from cidl_sim.devices.catalog import find_device
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.pipelines.open_sora.pretrained import CLASSIFIER, FOLDER, pretrained_folders
from cidl_sim.pipelines.open_sora.settings import OPENSORA_SHAPES, VideoSettings
from cidl_sim.pipelines.open_sora.whole_model import MergedPairs, Trajectory, WholeModel, no_pairs
from cidl_sim.policies.catalog import make_plan
from cidl_sim.quality.attributes import ATTRIBUTES, attribute_scores, measure_clip
from cidl_sim.quality.frechet import ClipClassifier, features_of, frechet_distance, load_classifier
from cidl_sim.quality.networks import Networks, find_networks, i3d_features
from cidl_sim.quality.scores import STAND_INS, psnr, ssim
from cidl_sim.quality.shapes import Frames, Scene, caption, held_out_combinations, random_scene, seen_combinations
from cidl_sim.quality.summary import Estimate, estimate
from cidl_sim.simulator.engine import simulate

SEEDS = (0, 1, 2)
FRAMES = 17
BATCH = 24
RESULTS = Path(__file__).parent / "results"
NETWORK_COLUMNS = {"FVD": ".1f", "CLIP": ".3f"}
# Where PSNR would be infinite, of equal videos.
_HIGHEST_PSNR = 60.0


@dataclass(frozen=True)
class Asked:
    """One video to make: what is asked for, and the seed of its noise."""

    scene: Scene
    seed: int


@dataclass
class Made:
    """Videos of one setting in the order in which they were made, and the evaluations that each took."""

    asked: list[Asked] = field(default_factory=list)
    videos: list[Frames] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)

    def add(self, asked: Sequence[Asked], videos: Sequence[Frames], evaluations: Sequence[int]) -> None:
        """Some more videos."""
        self.asked += asked
        self.videos += videos
        self.evaluations += evaluations


@dataclass(frozen=True)
class Options:
    """What every quality experiment is asked for."""

    prompts: int
    side: int
    networks: Networks
    rounds: int


def options(description: str | None, rounds: int = 0) -> Options:
    """From the command line; `rounds` of runs for real where there are any."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--side", type=int, default=48, choices=(48, 64))
    parser.add_argument("--networks", type=Path, help="a folder with i3d_torchscript.pt and clip/: FVD and CLIP too")
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds)
    parser.set_defaults(rounds=rounds)
    args = parser.parse_args()
    torch.set_num_threads(1)  # operations this small gain nothing from a second
    networks = find_networks(args.networks) if args.networks else Networks()
    return Options(args.prompts, args.side, networks, args.rounds)


def load_trained() -> tuple[WholeModel, ClipClassifier]:
    """The model and the classifier that the package ships."""
    return WholeModel(OPENSORA_SHAPES, pretrained_folders()), load_classifier(FOLDER / CLASSIFIER)


def video_settings(side: int, **values: int | str) -> VideoSettings:
    """A run at one of the resolutions that the model was trained at."""
    return VideoSettings.model_validate({"height": side, "width": side, "frames": FRAMES, "steps": 30, **values})


def asked_for(prompts: int, *, seen: bool, seeds: Sequence[int] = SEEDS) -> list[Asked]:
    """Every prompt with every seed; half of the prompts with one object, half with two."""
    random = np.random.default_rng(20_000 + seen)
    combinations = seen_combinations() if seen else held_out_combinations()
    scenes = [random_scene(random, 1 + i % 2, combinations) for i in range(prompts)]
    return [Asked(scene, seed) for scene in scenes for seed in seeds]


@torch.no_grad()
def trajectories(
    model: WholeModel,
    asked: Sequence[Asked],
    settings: VideoSettings,
    merged: MergedPairs = no_pairs,
    *,
    ratio: float | None = None,
) -> Iterator[tuple[list[Asked], Trajectory]]:
    """Runs of the sampler, in batches of videos whose prompts have equally many tokens."""
    by_length: dict[int, list[tuple[Asked, torch.Tensor]]] = {}
    for one in asked:
        text = model.text(caption(one.scene))
        by_length.setdefault(text.shape[1], []).append((one, text))
    groups = [same[i : i + BATCH] for same in by_length.values() for i in range(0, len(same), BATCH)]
    for group in track(groups, description="sampling", transient=True):
        texts, seeds = torch.cat([text for _, text in group]), [one.seed for one, _ in group]
        yield [one for one, _ in group], model.trajectory(texts, seeds, settings, merged, ratio=ratio)


def attribute_accuracy(made: Made) -> dict[str, NDArray[np.float64]]:
    """Which part of each attribute is right in each video, and their mean as `attributes`."""
    rows = [
        attribute_scores(one.scene, measure_clip(video)) for one, video in zip(made.asked, made.videos, strict=True)
    ]
    scores = {name: np.array([row[name] for row in rows]) for name in (*ATTRIBUTES, "objects")}
    scores["attributes"] = np.mean([scores[name] for name in ATTRIBUTES], axis=0)
    return scores


def likeness(made: Made, reference: Made) -> dict[str, NDArray[np.float64]]:
    """SSIM and PSNR of each video against the reference's for the same prompt and seed."""
    there = dict(zip(reference.asked, reference.videos, strict=True))
    pairs = [(video, there[one]) for one, video in zip(made.asked, made.videos, strict=True)]
    return {
        "SSIM": np.array([ssim(a, b) for a, b in pairs]),
        "PSNR": np.array([min(_HIGHEST_PSNR, psnr(a, b)) for a, b in pairs]),
    }


def stand_ins(made: Made) -> dict[str, NDArray[np.float64]]:
    """The scores that stand in for VBench's, of each video."""
    return {name: np.array([score(video) for video in made.videos]) for name, score in STAND_INS.items()}


def by_prompt(made: Made, values: NDArray[np.float64]) -> Estimate:
    """The mean over prompts and seeds with its interval."""
    rows: dict[Scene, list[float]] = {}
    for one, value in zip(made.asked, values, strict=True):
        rows.setdefault(one.scene, []).append(float(value))
    return estimate(np.array(list(rows.values())))


def scored(
    settings: Mapping[str, Made],
    reference: str,
    classifier: ClipClassifier,
    networks: Networks,
    *,
    with_stand_ins: bool = False,
) -> dict[str, dict[str, Estimate]]:
    """The scores of every setting; SSIM, PSNR and distances are against `reference`, which has none of its own."""
    results = {}
    for name, made in track(settings.items(), description="scoring", transient=True):
        scores = attribute_accuracy(made)
        scores |= stand_ins(made) if with_stand_ins else {}
        scores |= likeness(made, settings[reference]) if name != reference else {}
        scores["evaluations"] = np.array(made.evaluations, dtype=float)
        if networks.clip:
            pairs = zip(made.asked, made.videos, strict=True)
            scores["CLIP"] = np.array([networks.clip.similarity(v, caption(one.scene)) for one, v in pairs])
        results[name] = {key: by_prompt(made, values) for key, values in scores.items()}
        if name == reference:
            continue
        distance = frechet_distance(
            features_of(made.videos, classifier), features_of(settings[reference].videos, classifier)
        )
        results[name]["Fréchet distance"] = Estimate(distance, distance, distance)
        if networks.i3d:
            fvd = frechet_distance(
                i3d_features(made.videos, networks.i3d), i3d_features(settings[reference].videos, networks.i3d)
            )
            results[name]["FVD"] = Estimate(fvd, fvd, fvd)
    return results


def seed_floor(made: Made, classifier: ClipClassifier) -> dict[str, float]:
    """How much the unmodified model differs from itself by seed alone: the largest difference of two seeds' means.

    Of the Fréchet distance: the largest between two seeds.
    """
    parts = {
        seed: Made(
            [a for a in made.asked if a.seed == seed],
            [v for a, v in zip(made.asked, made.videos, strict=True) if a.seed == seed],
            [e for a, e in zip(made.asked, made.evaluations, strict=True) if a.seed == seed],
        )
        for seed in SEEDS
    }
    scores = [{**attribute_accuracy(part), **stand_ins(part)} for part in parts.values()]
    floor = {name: float(np.ptp([s[name].mean() for s in scores])) for name in scores[0]}
    features = [features_of(part.videos, classifier) for part in parts.values()]
    pairs = [(a, b) for i, a in enumerate(features) for b in features[i + 1 :]]
    floor["Fréchet distance"] = max(frechet_distance(a, b) for a, b in pairs)
    return floor


@cache
def phone_denoiser_s(techniques: str = "") -> float:
    """Simulated seconds of STDiT on the phone, nothing overlapped: 256x256, 68 frames, 30 steps.

    `techniques` ends the workload's name: "-lpl15", "-tdtm10".
    """
    workload, device = find_workload(f"opensora-v1.2-256x256-68f{techniques}"), find_device("iphone-15-pro")
    seconds: float = simulate(workload, device, make_plan("sequential", workload, device)).groups["denoiser"][
        "elapsed_s"
    ]
    return seconds


def score_table(results: Mapping[str, Mapping[str, Estimate]], columns: Mapping[str, str], first: str) -> list[str]:
    """A Markdown table: a row for each setting, a column for each score with its format; intervals in brackets.

    FVD and CLIP get columns where they were measured.
    """
    measured = {name for scores in results.values() for name in scores}
    columns = {**columns, **{name: spec for name, spec in NETWORK_COLUMNS.items() if name in measured}}
    lines = [f"| {first} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, scores in results.items():
        cells = [_cell(scores.get(column), spec) for column, spec in columns.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _cell(value: Estimate | None, spec: str) -> str:
    if value is None:
        return "-"
    if value.low == value.high:
        return f"{value.mean:{spec}}"
    return f"{value.mean:{spec}} ({value.low:{spec}} to {value.high:{spec}})"


def frames_sheet(path: Path, rows: Sequence[tuple[str, Sequence[Frames]]], shown: Sequence[int] = (0, 8, 16)) -> None:
    """Some frames of some videos: a row for each setting, under each other so that they can be compared."""
    count = len(rows[0][1])
    figure, axes = plt.subplots(len(rows), count, figsize=(2.1 * count + 1.5, 0.85 * len(rows) + 0.4), squeeze=False)
    for line, (name, videos) in zip(axes, rows, strict=True):
        for axis, video in zip(line, videos, strict=True):
            axis.imshow(np.concatenate([video[i] for i in shown], axis=1), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.tight_layout(pad=0.4)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=130)
    plt.close(figure)


def provenance(command: str) -> str:
    """Command, date, machine and versions."""
    return (
        f"Command: `.venv/bin/python {command}`. Date: {datetime.now(UTC).date()}. Machine: {processor()}, "
        f"{os.cpu_count()} cores; torch {version('torch')}."
    )
