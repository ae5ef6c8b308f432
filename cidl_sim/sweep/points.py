"""The points of a sweep by number, each worked out from its number alone: no list of them ever exists."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cidl_sim.sweep.spec import MOST_POINTS, PATTERNS, RANDOM, Continuous, Sweep, SweepError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Words = NDArray[np.uint64]

# Neither retained number, lookahead nor seed: the policy decides, or loads go as deep as memory allows.
NONE = -1


@dataclass(frozen=True)
class Points:
    """Of consecutive points: places in the sweep's workloads, devices and policies, values of the device's axes.

    `device_values` has a column for each axis; `retained`, `lookahead` and `pattern_seed` are `NONE` without one.
    """

    index: Ints
    workload: Ints
    device: Ints
    device_values: Floats
    policy: Ints
    retained: Ints
    lookahead: Ints
    pattern_seed: Ints


def count_points(sweep: Sweep) -> int:
    """How many points the sweep has. SweepError for a grid that is endless or too large, or smaller than its sample."""
    endless = [name for name, values in sweep.device_axes.items() if isinstance(values, Continuous)]
    if endless and sweep.sample is None:
        raise SweepError(f"axis {endless[0]!r} is continuous: take a sample, or so many values with LOW..HIGH/COUNT")
    grid = math.inf if endless else _grid_points(sweep)
    if sweep.sample is None:
        if grid > MOST_POINTS:
            raise SweepError(f"the grid has {grid:,} points, at most {MOST_POINTS:,}: take a sample of it")
        return int(grid)
    if sweep.sample.points > grid:
        raise SweepError(
            f"a sample of {sweep.sample.points:,} points of a grid that has {grid:,}: leave the sample out"
        )
    return sweep.sample.points


def points(sweep: Sweep, first: int, last: int) -> Points:
    """The points from `first` to the one before `last`; the policy changes fastest, the workload slowest."""
    index = np.arange(first, last, dtype=np.int64)
    return _grid(sweep, index) if sweep.sample is None else _sample(sweep, index)


def _axis_sizes(sweep: Sweep) -> list[int]:
    return [len(values) for values in sweep.device_axes.values() if not isinstance(values, Continuous)]


def _grid_points(sweep: Sweep) -> int:
    choices = sum(_choices(sweep))
    return len(sweep.workloads) * len(sweep.devices) * math.prod(_axis_sizes(sweep)) * choices


def _choices(sweep: Sweep) -> list[int]:
    """How many points each policy has on one device: one where there is nothing to choose."""
    numbers = len(sweep.retained) * len(sweep.lookahead)
    seeds = len(sweep.pattern_seeds)
    return [1 if p not in PATTERNS else numbers * (seeds if p == RANDOM else 1) for p in sweep.policies]


def _grid(sweep: Sweep, index: Ints) -> Points:
    choices = _choices(sweep)
    sizes = [len(sweep.workloads), len(sweep.devices), *_axis_sizes(sweep), sum(choices)]
    workload, device, *places, choice = _digits(index, sizes)
    ends = np.cumsum(choices)
    policy = np.searchsorted(ends, choice, side="right").astype(np.int64)
    within = choice - (ends - choices)[policy]
    seeds = np.where(_is_random(sweep)[policy], len(sweep.pattern_seeds), 1)
    retained, rest = np.divmod(within, len(sweep.lookahead) * seeds)
    lookahead, seed = np.divmod(rest, seeds)
    values = np.empty((len(index), len(places)))
    for column, (axis, place) in enumerate(zip(sweep.device_axes.values(), places, strict=True)):
        values[:, column] = np.asarray(axis, np.float64)[place]
    return _points(sweep, index, workload, device, values, policy, retained, lookahead, seed)


def _digits(index: Ints, sizes: list[int]) -> Iterator[Ints]:
    rest, below = index, math.prod(sizes)
    for size in sizes:
        below //= size
        digit, rest = np.divmod(rest, below)
        yield digit


def _sample(sweep: Sweep, index: Ints) -> Points:
    numbers = iter(range(10_000))

    def places(count: int) -> Ints:
        # A share just below 1 times a large count may round up to it.
        return np.minimum(_shares(sweep, next(numbers), index) * count, count - 1).astype(np.int64)

    workload, device, policy = places(len(sweep.workloads)), places(len(sweep.devices)), places(len(sweep.policies))
    retained, lookahead = places(len(sweep.retained)), places(len(sweep.lookahead))
    seed = places(len(sweep.pattern_seeds))
    values = np.empty((len(index), len(sweep.device_axes)))
    for column, axis in enumerate(sweep.device_axes.values()):
        if isinstance(axis, Continuous):
            values[:, column] = _within(axis, _shares(sweep, next(numbers), index))
        else:
            values[:, column] = np.asarray(axis, np.float64)[places(len(axis))]
    return _points(sweep, index, workload, device, values, policy, retained, lookahead, seed)


def _within(axis: Continuous, share: Floats) -> Floats:
    if axis.scale == "log":
        return np.exp(math.log(axis.low) + share * math.log(axis.high / axis.low))
    return axis.low + share * (axis.high - axis.low)


def _is_random(sweep: Sweep) -> NDArray[np.bool_]:
    return np.array([policy == RANDOM for policy in sweep.policies])


def _points(
    sweep: Sweep,
    index: Ints,
    workload: Ints,
    device: Ints,
    values: Floats,
    policy: Ints,
    retained: Ints,
    lookahead: Ints,
    seed: Ints,
) -> Points:
    has_numbers = np.array([name in PATTERNS for name in sweep.policies])[policy]
    ahead = np.array([NONE if n is None else n for n in sweep.lookahead], np.int64)
    return Points(
        index=index,
        workload=workload,
        device=device,
        device_values=values,
        policy=policy,
        retained=np.where(has_numbers, np.asarray(sweep.retained, np.int64)[retained], NONE),
        lookahead=np.where(has_numbers, ahead[lookahead], NONE),
        pattern_seed=np.where(_is_random(sweep)[policy], np.asarray(sweep.pattern_seeds, np.int64)[seed], NONE),
    )


# Numbers that look random and depend on the seed, the axis and the point alone.


def _shares(sweep: Sweep, axis: int, index: Ints) -> Floats:
    """Where the points lie on an axis, in [0, 1). Of a Latin hypercube, one in each n-th part of it."""
    assert sweep.sample is not None
    seed = sweep.sample.seed
    if sweep.sample.method == "random":
        return _unit(hashed(seed, 2 * axis, index))
    part = _permuted(index, sweep.sample.points, seed, axis)
    return (part + _unit(hashed(seed, 2 * axis, index))) / sweep.sample.points


def hashed(seed: int, stream: int | Ints, number: Ints | Words) -> Words:
    """64 bits for each number, by the finaliser of SplitMix64 (Steele, Lea and Flood 2014) after each part."""
    with np.errstate(over="ignore"):
        words = _finalised(np.uint64(seed) + np.asarray(stream).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        return _finalised(words + np.asarray(number).astype(np.uint64) * np.uint64(0xD1B54A32D192ED03))


def _finalised(words: Words) -> Words:
    words = np.asarray(words, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _unit(words: Words) -> Floats:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _permuted(index: Ints, count: int, seed: int, axis: int) -> Ints:
    """A permutation of range(count) at some places: a Feistel network, run again where it leads beyond the range."""
    half = max(1, (max(1, count - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    words = index.astype(np.uint64)
    outside = np.ones(len(words), np.bool_)
    while outside.any():
        left, right = words[outside] >> np.uint64(half), words[outside] & mask
        for turn in range(4):
            left, right = right, left ^ (hashed(seed, 2 * (4 * axis + turn) + 1, right) & mask)
        words[outside] = (left << np.uint64(half)) | right
        outside[outside] = words[outside] >= count
    return words.astype(np.int64)
