"""What a clip shows, measured in its pixels, against what was asked for.

Made for clips as `cidl_sim.quality.shapes` draws them: shapes of even colour before an even background.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cidl_sim.quality.shapes import (
    BACKGROUNDS,
    CLIP_FRAMES,
    COLOURS,
    DIRECTIONS,
    DISTANCES,
    RADII,
    SHAPES,
    Frames,
    Rgb,
    Scene,
    depth_inside,
)

OBJECT_ATTRIBUTES = ("colour", "shape", "size", "direction", "speed")
ATTRIBUTES = (*OBJECT_ATTRIBUTES, "background")
_CONTRAST = 50.0  # RGB distance from the background; the palette's smallest is 97
_LEAST_AREA = 0.01  # of the frame; the smallest shape covers 0.027
_LEAST_PRESENCE = 0.6  # of the frames
_LEAST_DISTANCE = 0.06  # of the side; less is no motion


@dataclass(frozen=True)
class MeasuredShape:
    """One object as it was measured. `direction` and `speed` are None for one that does not move."""

    colour: str
    shape: str
    size: str
    direction: str | None
    speed: str | None
    area: float  # of the frame
    moved: tuple[float, float]  # of the sides, in CLIP_FRAMES frames


@dataclass(frozen=True)
class MeasuredClip:
    """Background and objects, the largest first."""

    background: str
    objects: tuple[MeasuredShape, ...]


def measure_clip(video: Frames) -> MeasuredClip:
    """Measure a clip (frames, height, width, 3) in 8-bit RGB."""
    pixels = video.astype(np.float32)
    rim = np.concatenate(
        [pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3), pixels[:, :, 0], pixels[:, :, -1]], axis=None
    )
    background = np.median(rim.reshape(-1, 3), axis=0)
    found: dict[str, list[_Spot]] = {}
    for number, frame in enumerate(pixels):
        for spot in _spots(number, frame, background):
            found.setdefault(spot.colour, []).append(spot)
    enough = _LEAST_PRESENCE * len(video)
    objects = [
        _measured(spots, video.shape[1:3]) for spots in found.values() if len({s.frame for s in spots}) >= enough
    ]
    objects.sort(key=lambda o: -o.area)
    return MeasuredClip(_nearest(background, BACKGROUNDS), tuple(objects))


def attribute_scores(scene: Scene, clip: MeasuredClip) -> dict[str, float]:
    """Which part of each attribute that a scene asks for is right, 0..1, and `objects`: 1 if there are as many.

    Objects are matched so that most is right; what is missing is wrong.
    """
    wanted = scene.objects
    best = max(
        (
            [
                [
                    getattr(o, a) == getattr(clip.objects[i], a) if i < len(clip.objects) else False
                    for a in OBJECT_ATTRIBUTES
                ]
                for o, i in zip(wanted, order, strict=False)
            ]
            for order in permutations(range(max(len(wanted), len(clip.objects))), len(wanted))
        ),
        key=lambda rows: sum(map(sum, rows)),
    )
    scores = {a: sum(row[i] for row in best) / len(wanted) for i, a in enumerate(OBJECT_ATTRIBUTES)}
    scores["background"] = float(scene.background == clip.background)
    scores["objects"] = float(len(wanted) == len(clip.objects))
    return scores


@dataclass(frozen=True)
class _Spot:
    """A connected patch of one frame: how much it covers each pixel."""

    frame: int
    colour: str
    cover: NDArray[np.float32]
    area: float  # pixels
    centre: tuple[float, float]  # x, y in pixels


def _spots(number: int, frame: NDArray[np.float32], background: NDArray[np.float32]) -> list[_Spot]:
    difference = frame - background
    labels, count = ndimage.label(np.linalg.norm(difference, axis=-1) > _CONTRAST, structure=np.ones((3, 3)))
    spots = []
    for label in range(1, count + 1):
        patch = labels == label
        if patch.sum() < _LEAST_AREA * patch.size:
            continue
        inside = ndimage.binary_erosion(patch)
        colour = np.median(frame[inside if inside.any() else patch], axis=0)
        # How far from the background towards the object's colour: its share of the pixel, at the edges too.
        towards = colour - background
        cover = np.clip(difference @ towards / (towards @ towards), 0, 1)
        cover = np.where(ndimage.binary_dilation(patch, structure=np.ones((3, 3))), cover, 0)
        area = float(cover.sum())
        y, x = np.mgrid[0 : frame.shape[0], 0 : frame.shape[1]] + 0.5
        centre = (float((cover * x).sum() / area), float((cover * y).sum() / area))
        spots.append(_Spot(number, _nearest(colour, COLOURS), cover, area, centre))
    return spots


def _measured(spots: list[_Spot], sides: tuple[int, ...]) -> MeasuredShape:
    height, width = sides
    area = float(np.median([spot.area for spot in spots]))
    fits = {shape: float(np.mean([_overlap(shape, spot) for spot in spots])) for shape in SHAPES}
    shape = max(fits, key=lambda s: fits[s])
    radius = np.sqrt(area / _unit(shape)[0]) / min(height, width)
    frames = np.array([spot.frame for spot in spots])
    # The slope of a line through the centres does not hang on the first and the last frame alone.
    moved_x, moved_y = (
        float(np.polyfit(frames, [spot.centre[axis] / side for spot in spots], 1)[0] * (CLIP_FRAMES - 1))
        for axis, side in ((0, width), (1, height))
    )
    distance = max(abs(moved_x), abs(moved_y))
    ahead = max(DIRECTIONS, key=lambda d: DIRECTIONS[d][0] * moved_x + DIRECTIONS[d][1] * moved_y)
    moves = distance >= _LEAST_DISTANCE
    return MeasuredShape(
        colour=spots[0].colour,
        shape=shape,
        size="small" if radius < sum(RADII.values()) / 2 else "large",
        direction=ahead if moves else None,
        speed=("slowly" if distance < sum(DISTANCES.values()) / 2 else "quickly") if moves else None,
        area=area / (height * width),
        moved=(moved_x, moved_y),
    )


def _overlap(shape: str, spot: _Spot) -> float:
    """Intersection over union of a patch and the shape of the same area and centre of gravity."""
    unit_area, offset = _unit(shape)
    radius = float(np.sqrt(spot.area / unit_area))
    y, x = np.mgrid[0 : spot.cover.shape[0], 0 : spot.cover.shape[1]].astype(np.float32) + 0.5
    inside = depth_inside(shape, x - spot.centre[0], y - spot.centre[1] + offset * radius, radius)
    ideal = np.clip(inside + 0.5, 0, 1)
    return float(np.minimum(ideal, spot.cover).sum() / np.maximum(ideal, spot.cover).sum())


@cache
def _unit(shape: str) -> tuple[float, float]:
    """Area of a shape of radius 1, and how far below its centre the centre of gravity is."""
    steps = np.linspace(-1, 1, 801, dtype=np.float32)
    x, y = np.meshgrid(steps, steps)
    inside = depth_inside(shape, x, y, 1.0) > 0
    return float(inside.mean() * 4), float(y[inside].mean())


def _nearest(colour: NDArray[np.float32], palette: dict[str, Rgb]) -> str:
    return min(palette, key=lambda name: float(np.linalg.norm(colour - np.array(palette[name]))))
