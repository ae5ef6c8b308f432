"""What an overlap costs, found in samples of a machine that drifts and takes cores away now and then."""

from __future__ import annotations

import numpy as np
import pytest

from cidl_sim.calibration.robust import Interval, lost_to_overlap

TRUTH = 0.3


def found(seed: int, *, all_or_nothing: bool) -> Interval:
    """Of executions of some 40 ms in two runs, half of them with loads of 20 ms beside them, in rows of 48.

    The machine's speed changes by a tenth every 60 visits. With `all_or_nothing` an overlap costs twice `TRUTH` or
    nothing, as chance wills.
    """
    chance = np.random.default_rng(seed)
    seconds, overlap, key, stretch = [], [], [], []
    for run in range(2):
        speed = 1.0
        for visit in range(240):
            if visit % 60 == 0:
                speed = np.exp(0.1 * chance.normal())
            kind = visit // 120
            alone_s = 0.04 * (1 + 0.1 * kind) * speed * np.exp(0.1 * chance.normal())
            beside_s = 0.02 * np.exp(0.1 * chance.normal()) if visit // 48 % 2 else 0.0
            share = TRUTH * (2 * (chance.random() < 0.5) if all_or_nothing else 1)
            seconds.append(alone_s + share * beside_s)
            overlap.append(beside_s)
            key.append(kind)
            stretch.append(run)
    interval = lost_to_overlap(*(np.array(column) for column in (seconds, overlap, seconds, key, stretch)))
    assert interval is not None
    return interval


@pytest.mark.parametrize("all_or_nothing", [False, True])
def test_contention_is_found_without_a_bias_and_its_interval_holds_it_nine_times_in_ten(all_or_nothing):
    intervals = [found(seed, all_or_nothing=all_or_nothing) for seed in range(100)]
    assert np.mean([interval.value for interval in intervals]) == pytest.approx(TRUTH, abs=0.01)
    assert 85 <= sum(interval.low <= TRUTH <= interval.high for interval in intervals) <= 98


def of_one_kind(seconds: np.ndarray, overlap: np.ndarray, exposed: np.ndarray) -> Interval | None:
    alike = np.zeros(len(seconds), int)
    return lost_to_overlap(seconds, overlap, exposed, alike, alike)


def test_hiccups_under_work_all_along_tell_nothing():
    # Those that took longer were overlapped for longer because they took longer.
    chance = np.random.default_rng(2)
    seconds = np.where(chance.random(400) < 0.2, 0.03, 0.01) * np.exp(0.1 * chance.normal(size=400))
    assert of_one_kind(seconds, 0.95 * seconds, seconds) is None


def test_hiccups_of_what_is_over_within_the_latency_tell_nothing():
    chance = np.random.default_rng(3)
    seconds = np.where(chance.random(400) < 0.2, 0.004, 0.0005) * np.exp(0.1 * chance.normal(size=400))
    beyond = np.maximum(0.0, seconds - 0.0016)
    assert of_one_kind(seconds, beyond, beyond) is None


@pytest.mark.parametrize("odd", [1, 4])
def test_a_few_odd_ones_tell_nothing_however_many_neighbours_they_have(odd):
    seconds = np.full(400, 0.01)
    overlap = seconds.copy()
    places = np.linspace(50, 350, odd).astype(int)
    seconds[places], overlap[places] = 0.002, 0.0
    assert of_one_kind(seconds, overlap, seconds) is None


def test_more_than_an_overlap_can_cost_is_no_contention():
    # Those beside work take four times as long as they have work beside them: the machine has two paces.
    seconds, overlap = np.tile([0.01, 0.05], 200), np.tile([0.0, 0.01], 200)
    assert of_one_kind(seconds, overlap, seconds) is None
