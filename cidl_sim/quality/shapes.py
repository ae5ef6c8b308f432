"""Captioned clips of moving shapes: what the small model is trained on, and what its prompts are about.

A scene says everything about a clip, a caption says all of that but where things start. Lengths are in units of
the clip's side, so a scene looks the same at every resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]  # (frames, height, width, 3), RGB
Rgb = tuple[int, int, int]
Plane = NDArray[np.floating]  # one number for each pixel

COLOURS: dict[str, Rgb] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 50),
    "purple": (160, 60, 190),
    "cyan": (60, 200, 210),
}
BACKGROUNDS: dict[str, Rgb] = {
    "black": (16, 16, 16),
    "white": (240, 240, 240),
    "gray": (128, 128, 128),
    "brown": (105, 65, 35),
}
SHAPES = ("circle", "square", "triangle", "cross")
RADII = {"small": 0.13, "large": 0.21}
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
DISTANCES = {"slowly": 0.18, "quickly": 0.5}  # travelled in CLIP_FRAMES frames
CLIP_FRAMES = 17
LANES = (0.25, 0.75)  # where two objects pass each other, across their direction
_LANE_WIDTH = 0.06


@dataclass(frozen=True)
class MovingShape:
    """One object: what a caption says of it, and the centre of its first frame (x, y)."""

    size: str
    colour: str
    shape: str
    direction: str
    speed: str
    start: tuple[float, float] = (0.5, 0.5)

    @property
    def combination(self) -> tuple[str, str, str]:
        """Colour, shape and direction: what training holds out together."""
        return self.colour, self.shape, self.direction


@dataclass(frozen=True)
class Scene:
    """A background and one or two objects."""

    background: str
    objects: tuple[MovingShape, ...]


def held_out_combinations() -> frozenset[tuple[str, str, str]]:
    """The combinations of colour, shape and direction that no training clip shows: 12 of 96.

    Each colour is in two of them, each shape and each direction in three, so every value and most pairs are trained on.
    """
    colours, directions = list(COLOURS), list(DIRECTIONS)
    return frozenset((colours[i % 6], SHAPES[i % 4], directions[(i + i // 4) % 4]) for i in range(12))


def seen_combinations() -> frozenset[tuple[str, str, str]]:
    """The combinations that training clips show."""
    return frozenset(product(COLOURS, SHAPES, DIRECTIONS)) - held_out_combinations()


def random_scene(random: np.random.Generator, objects: int, combinations: frozenset[tuple[str, str, str]]) -> Scene:
    """A scene of one or two objects, each of one of `combinations`.

    Two objects are small, of different colours, and move along the same axis in lanes of their own; the first is in
    the upper one, or the left one.
    """
    background = str(random.choice(list(BACKGROUNDS)))
    choices = sorted(combinations)
    if objects == 1:
        colour, shape, direction = choices[random.integers(len(choices))]
        return Scene(background, (_placed(random, _choice(random, RADII), colour, shape, direction, None),))
    first = choices[random.integers(len(choices))]
    axis = abs(DIRECTIONS[first[2]][0])
    others = [c for c in choices if c[0] != first[0] and abs(DIRECTIONS[c[2]][0]) == axis]
    lanes = random.permutation(LANES)
    both = (first, others[random.integers(len(others))])
    placed = [(float(lane), _placed(random, "small", *c, float(lane))) for c, lane in zip(both, lanes, strict=True)]
    return Scene(background, tuple(o for _, o in sorted(placed, key=lambda pair: pair[0])))


def _choice(random: np.random.Generator, values: dict[str, float]) -> str:
    return str(random.choice(list(values)))


def _placed(
    random: np.random.Generator, size: str, colour: str, shape: str, direction: str, lane: float | None
) -> MovingShape:
    """An object whose whole way is inside the clip; in a lane, if one is given."""
    speed = _choice(random, DISTANCES)
    radius, distance = RADII[size], DISTANCES[speed]
    along = random.uniform(radius, 1 - radius - distance)
    across = (
        random.uniform(radius, 1 - radius) if lane is None else lane + random.uniform(-_LANE_WIDTH / 2, _LANE_WIDTH / 2)
    )
    dx, dy = DIRECTIONS[direction]
    if dx + dy < 0:
        along = 1 - along
    return MovingShape(size, colour, shape, direction, speed, (along, across) if dx else (across, along))


def caption(scene: Scene, *, size: bool = True, speed: bool = True, background: bool = True) -> str:
    """What a scene shows, in words; without what is switched off."""

    def phrase(o: MovingShape) -> str:
        words = ["a", *([o.size] if size else []), o.colour, o.shape, "moves", o.direction]
        return " ".join([*words, *([o.speed] if speed else [])])

    text = " and ".join(phrase(o) for o in scene.objects)
    return f"{text} on a {scene.background} background" if background else text


def render(scene: Scene, frames: int = CLIP_FRAMES, height: int = 48, width: int = 48) -> Frames:
    """The clip of a scene, (frames, height, width, 3) in 8-bit RGB, with smooth edges; later objects are in front."""
    side = min(height, width)
    video = np.empty((frames, height, width, 3), dtype=np.float32)
    video[:] = BACKGROUNDS[scene.background]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    time = np.arange(frames, dtype=np.float32) / (CLIP_FRAMES - 1)
    for o in scene.objects:
        (dx, dy), distance = DIRECTIONS[o.direction], DISTANCES[o.speed]
        centre_x = (o.start[0] + dx * distance * time) * width
        centre_y = (o.start[1] + dy * distance * time) * height
        inside = depth_inside(
            o.shape, x[None] - centre_x[:, None, None], y[None] - centre_y[:, None, None], RADII[o.size] * side
        )
        covered = np.clip(inside + 0.5, 0, 1)[..., None]
        video += covered * (np.array(COLOURS[o.colour], dtype=np.float32) - video)
    return np.round(video).astype(np.uint8)


def depth_inside(shape: str, x: Plane, y: Plane, radius: float) -> Plane:
    """How far the points at (x, y) from the centre are inside a shape; negative outside. In the unit of `radius`."""
    arm = 0.34 * radius
    depth: Plane
    if shape == "circle":
        depth = radius - np.hypot(x, y)
    elif shape == "square":
        depth = 0.85 * radius - np.maximum(abs(x), abs(y))
    elif shape == "triangle":
        # An apex on top: two sloping sides, and the base at 0.7 of the radius below the centre.
        slope_x, slope_y = 1.7 / np.hypot(1.7, 0.95), 0.95 / np.hypot(1.7, 0.95)
        depth = np.minimum(radius * slope_y + y * slope_y - abs(x) * slope_x, 0.7 * radius - y)
    else:
        upright = np.minimum(arm - abs(x), radius - abs(y))
        depth = np.maximum(upright, np.minimum(radius - abs(x), arm - abs(y)))
    return depth
