"""One robust estimate over all loads, or all executions, of many runs.

    seconds = cost(key) * rate(stretch) * noise + lost * overlap

A key is what shares a cost (a kind), a stretch a piece of one run, short enough that the machine is the same all along.
Costs and rates come from medians in turn (Tukey's median polish, of logarithms), so that one odd run has an odd rate
and changes no cost. What an overlap costs is taken from neighbours alone: loads of one key and one stretch of which the
other side worked beside one and not beside the other, so that what drifts between runs does not pass for contention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

# Neighbours: at most so many samples of the same key apart, one of them under overlap for so much of its time, the
# other for at most half as long: that one of two takes longer, and is overlapped for longer, says nothing.
_NEIGHBOURS, _PIECE = 128, 32
# A few odd samples have many neighbours: so many different ones need more overlap than others, and so many less.
_LEAST_SAMPLES = 8
# Fewer pieces than this say nothing of how much they differ.
_LEAST_PIECES = 3
_LEAST_SHARE = 0.01
# What an overlap usually costs, and by how much machines and plans differ in that. Samples that say less than this are
# not asked; others are moved towards it by what they leave open.
_USUALLY_LOST, _DIFFERS_BY = 0.2, 0.3
# Beyond this share of an overlap nothing would get done: noise.
_MOST_LOST = 0.9
_RESAMPLES = 200
# Pairs of different pieces may share a sample: in seeded runs the plain bootstrap held the truth in 74 to 84 of 100
# cases, this one in nine of ten (tests/calibration/test_robust.py).
_WIDER = 1.5
# A hiccup counts as this many times the usual at the most.
_HICCUP = 3.0
_ROUNDS = 60
_NINE_IN_TEN = 1.645  # standard deviations
# By how much machines differ from run to run where little is known, and for how many runs that counts.
_USUAL_DRIFT, _USUAL_FREEDOM = 0.08, 3


@dataclass(frozen=True)
class Interval:
    """A figure, and between what it lies in nine of ten cases; the ends are None where nothing tells."""

    value: float
    low: float | None = None
    high: float | None = None

    def changed(self, by: Callable[[float], float]) -> Interval:
        """The same of a figure that grows with this one."""
        low, high = (None if end is None else by(end) for end in (self.low, self.high))
        return Interval(by(self.value), low, high)


@dataclass(frozen=True)
class Fit:
    """Costs by key at the rate that is expected next (NaN: no sample), and by how much each stretch differs from that.

    `spread`: relative standard deviation within keys and stretches. `drift`: that of the rates, as it has to be
    expected of the next run; 0 of fewer than two stretches. `change_from_run_to_run`: the root mean square of the
    relative change from one stretch to the next, what was known before as the first of them.
    """

    costs: Floats
    rates: Floats
    spread: float
    drift: float
    change_from_run_to_run: float


def lost_to_overlap(
    seconds: Floats, overlap: Floats, exposed: Floats, key: Numbers, stretch: Numbers
) -> Interval | None:
    """The share of an overlap in which nothing gets done: 0 without contention; 1 - 1/slowdown.

    The samples are in order of time; of each `exposed` seconds could have been overlapped. Of neighbours whose overlap
    differs: by how much longer the one with more of it takes, over how much more it has, in sums. Not a median: where
    both cores compute and one is taken away for the other side, an execution takes twice as long or no longer at all,
    and a run takes all of them. The interval is a bootstrap's over the groups of one key and stretch, in pieces. None
    where no neighbours differ, or too few, or not by enough to tell.
    """
    longer_by, more, pieces = [], [], []
    with_more, with_less = set[int](), set[int]()
    order = np.lexsort((np.arange(len(seconds)), key, stretch))
    share = np.divide(overlap, exposed, out=np.full(len(overlap), np.nan), where=exposed > 0)
    for apart in range(1, _NEIGHBOURS + 1):
        i, j = order[:-apart], order[apart:]
        run = overlap[i] - overlap[j]
        largest, of = np.maximum(overlap[i], overlap[j]), np.where(overlap[i] > overlap[j], seconds[i], seconds[j])
        near = (key[i] == key[j]) & (stretch[i] == stretch[j]) & (abs(run) >= largest / 2)
        near &= (largest > 0) & (largest >= _LEAST_SHARE * of)
        # Of two that lay under work all along the one that a hiccup made longer has more overlap because it is longer.
        near &= abs(share[i] - share[j]) >= np.maximum(share[i], share[j]) / 2
        i, j, run = i[near], j[near], run[near]
        with_more.update(np.where(run > 0, i, j).tolist())
        with_less.update(np.where(run > 0, j, i).tolist())
        most = _HICCUP * np.minimum(seconds[i], seconds[j])
        longer_by.append(np.sign(run) * np.clip(seconds[i] - seconds[j], -most, most))
        more.append(abs(run))
        # Pairs that share a sample are no independent witnesses: a piece is a few samples of a group.
        pieces.append(stretch[i] * 1_000_003 + key[i] * 1009 + np.flatnonzero(near) // _PIECE)
    if min(len(with_more), len(with_less)) < _LEAST_SAMPLES:
        return None
    _, piece = np.unique(np.concatenate(pieces), return_inverse=True)
    sums = np.stack([np.bincount(piece, np.concatenate(column)) for column in (longer_by, more)])
    count = sums.shape[1]
    if count < _LEAST_PIECES:
        return None
    found = float(sums[0].sum() / sums[1].sum())
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    again = [found, *(times @ sums[0] / (times @ sums[1]))]
    ends = found + _WIDER * (np.quantile(again, [0.05, 0.95]) - found)
    open_by = float(ends[1] - ends[0]) / (2 * _NINE_IN_TEN)
    # What is no share at all comes from two of the machine's paces beside each other.
    if open_by > _DIFFERS_BY or found > _MOST_LOST:
        return None
    told = _DIFFERS_BY**2 / (_DIFFERS_BY**2 + open_by**2)
    value, low, high = (
        float(np.clip(told * lost + (1 - told) * _USUALLY_LOST, 0.0, _MOST_LOST)) for lost in (found, *ends)
    )
    return Interval(value, min(low, value), max(high, value))


def fit_costs(seconds: Floats, key: Numbers, stretch: Numbers, weights: Sequence[float], prior: Floats) -> Fit:
    """Costs and rates of samples that are free of overlap, and of what was known before.

    `weights`, one for each stretch and a last one for what was known: by how much it counts for the rate that is
    expected next, and what was known before for what a key costs beside the others. `prior`: by key the cost known
    before, NaN of an unknown one.
    """
    keys, stretches = len(prior), len(weights)
    use = seconds > 0
    seconds, key, stretch = seconds[use], key[use], stretch[use]
    logs = np.log(seconds)
    costs, rates = np.full(keys, np.nan), np.full(stretches, np.nan)
    known = np.zeros(stretches)
    for _ in range(_ROUNDS):
        before = known.copy()
        costs = _medians(logs - known[stretch], key, keys)
        rates = _medians(logs - costs[key], stretch, stretches)
        known = np.nan_to_num(rates)
        if np.allclose(known, before, rtol=0, atol=1e-10):
            break
    residual = logs - costs[key] - known[stretch]
    usual = np.exp(logs - residual)
    # Medians leave out how much longer the long ones are; a run takes their sum.
    mean = np.minimum(seconds, _HICCUP * usual).sum() / usual.sum() if len(seconds) else 1.0
    costs = costs + math.log(mean)
    rates[-1] = _rate_before(costs, key, prior)
    known[-1] = np.nan_to_num(rates[-1])
    before_costs = np.log(prior) - known[-1]
    costs = np.where(np.isnan(before_costs), costs, _mix(before_costs, costs, 1 - weights[-1] / sum(weights)))
    weight = np.where(np.isnan(rates), 0.0, np.asarray(weights, float))
    # The next run takes the mean of such rates, not their geometric mean.
    expected = math.log((weight * np.exp(known)).sum() / weight.sum()) if weight.sum() > 0 else 0.0
    known = known - expected
    seen = ~np.isnan(rates[:-1])
    runs = known[:-1][seen]
    return Fit(
        np.exp(costs + expected),
        np.exp(np.where(np.isnan(rates), np.nan, known)),
        _spread(residual),
        _expected_drift(runs),
        _change(runs if np.isnan(rates[-1]) else np.append(known[-1], runs)),
    )


def _rate_before(costs: Floats, key: Numbers, prior: Floats) -> float:
    """The logarithm of how long what was seen would have taken before, over what it takes at rate 1.

    A ratio of sums: what takes a run's time decides, not how many kinds there are. NaN without a common key.
    """
    common = key[~np.isnan(prior[key])]
    return math.log(prior[common].sum() / np.exp(costs[common]).sum()) if len(common) else math.nan


def _mix(before: Floats, now: Floats, share: float) -> Floats:
    """Both, by their share; what is known of one alone where there is no other."""
    return np.where(np.isnan(now), before, (1 - share) * before + share * now)


def _change(logs: Floats) -> float:
    return float(np.sqrt(np.mean(np.diff(logs) ** 2))) if len(logs) > 1 else 0.0


def _expected_drift(logs: Floats) -> float:
    """The relative standard deviation of the next run's rate: what few runs showed, widened as Student's t says.

    With few runs what is usual counts as well, as a scaled inverse chi-squared prior of the variance.
    """
    count = len(logs)
    if count < 2 or np.ptp(logs) < 1e-9:
        return 0.0
    freedom = _USUAL_FREEDOM + count - 1
    variance = (_USUAL_FREEDOM * _USUAL_DRIFT**2 + (count - 1) * np.var(logs, ddof=1)) / freedom
    wider = special.stdtrit(freedom, 0.95) / special.ndtri(0.95)
    return float(np.sqrt(variance * (1 + 1 / count)) * wider)


def _spread(residual: Floats) -> float:
    if len(residual) < 8:
        return 0.0
    low, high = np.quantile(residual, [0.25, 0.75])
    return float((high - low) / 1.349)


def _medians(values: Floats, group: Numbers, groups: int) -> Floats:
    """The median of each group's values; NaN of an empty group."""
    result = np.full(groups, np.nan)
    order = np.lexsort((values, group))
    values, group = values[order], group[order]
    starts = np.searchsorted(group, np.arange(groups))
    ends = np.searchsorted(group, np.arange(groups), side="right")
    some = ends > starts
    low, high = (starts + (ends - starts - 1) // 2)[some], (starts + (ends - starts) // 2)[some]
    result[some] = (values[low] + values[high]) / 2
    return result
