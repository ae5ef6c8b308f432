"""Score the videos of one folder against those of another: any model's, with whatever networks the user has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from cidl_sim.core.errors import InputError
from cidl_sim.core.files import read_text
from cidl_sim.quality.frechet import frechet_distance
from cidl_sim.quality.networks import Networks, i3d_features
from cidl_sim.quality.scores import STAND_INS, psnr, ssim
from cidl_sim.quality.shapes import Frames
from cidl_sim.quality.summary import Estimate, estimate

LEAST_FOR_FVD = 2  # a covariance needs two; a figure that means anything needs hundreds


def read_video(file: Path) -> Frames:
    """The frames of a video, (frames, height, width, 3) in 8-bit RGB. InputError if it cannot be decoded."""
    try:
        with av.open(str(file)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as problem:
        raise InputError(f"{file}: not a video that can be read ({problem})") from None
    if not frames:
        raise InputError(f"{file}: no frames")
    return np.stack(frames)


def pairs_of(folder: Path, reference: Path) -> list[tuple[Path, Path]]:
    """Videos of the same name in both folders, in the order of their names. InputError if any lacks its partner."""
    ours, theirs = ({file.name: file for file in sorted(f.glob("*.mp4"))} for f in (folder, reference))
    if not ours:
        raise InputError(f"{folder}: no mp4 files")
    if ours.keys() != theirs.keys():
        lacking = sorted(ours.keys() ^ theirs.keys())[0]
        raise InputError(f"{lacking}: only in one of {folder} and {reference}")
    return [(ours[name], theirs[name]) for name in ours]


def read_prompts(file: Path, count: int) -> list[str]:
    """A prompt a line, as many as there are videos. InputError otherwise."""
    prompts = [line.strip() for line in read_text(file, InputError).splitlines() if line.strip()]
    if len(prompts) != count:
        raise InputError(f"{file}: {len(prompts)} prompts for {count} videos")
    return prompts


def compare_videos(
    pairs: Sequence[tuple[Path, Path]], networks: Networks, prompts: Sequence[str] = ()
) -> Mapping[str, tuple[Estimate, Estimate | None]]:
    """Each score of the first videos and, where it has one of its own, of the second.

    SSIM and PSNR always; CLIP with prompts and its network, FVD with I3D and two videos or more. Intervals are
    bootstraps over videos; FVD has none. InputError for videos that differ in shape.
    """
    ours, theirs = ([read_video(pair[side]) for pair in pairs] for side in (0, 1))
    for (file, _), one, other in zip(pairs, ours, theirs, strict=True):
        if one.shape != other.shape:
            raise InputError(f"{file}: {one.shape[:3]} frames, height and width, its reference {other.shape[:3]}")
    alike = {
        "SSIM": [ssim(a, b) for a, b in zip(ours, theirs, strict=True)],
        "PSNR": [min(99.0, psnr(a, b)) for a, b in zip(ours, theirs, strict=True)],
    }
    found: dict[str, tuple[Estimate, Estimate | None]] = {
        name: (_estimate(values), None) for name, values in alike.items()
    }
    for name, score in STAND_INS.items():
        found[name] = (_estimate([score(v) for v in ours]), _estimate([score(v) for v in theirs]))
    if networks.clip and prompts:
        clip = networks.clip
        values = [[clip.similarity(v, p) for v, p in zip(videos, prompts, strict=True)] for videos in (ours, theirs)]
        found["CLIP"] = (_estimate(values[0]), _estimate(values[1]))
    if networks.i3d and len(pairs) >= LEAST_FOR_FVD:
        distance = frechet_distance(*(_features(videos, networks) for videos in (ours, theirs)))
        found["FVD"] = (Estimate(distance, distance, distance), None)
    return found


def _features(videos: Sequence[Frames], networks: Networks) -> NDArray[np.float64]:
    try:
        return i3d_features(videos, networks.i3d)
    except ValueError as problem:
        raise InputError(str(problem)) from None


def _estimate(values: Sequence[float]) -> Estimate:
    return estimate(np.array(values)[:, None])
