"""A lower bound from prices of memory and of the loader's time: any prices give one, good prices a good one.

The program behind it is that of the interval model (`exact`), with exact durations and without whole numbers. Time is
the executor's progress u, in seconds of work done. Visit v's weights are kept from the end of the visit before of the
same weights to its own start, or loaded over the progress i to j at the price of l_v - (j - i) seconds in which the
executor stands still. Let memory cost p(u) for all of the room and the loader q(u), both at least 0, for each second
of progress. Then, by weak duality, the executor stands still in any plan for at least

    sum over v of min( kept:  s_v * (integral of p over the gap),
                       loaded, over all i <= j in the gap with j - i <= l_v:
                               l_v - (j - i) + s_v * (integral of p from i to v's start) + (integral of q from i to j) )
    - integral of p(u) (M - s - w of the visit that runs)  - integral of q(u)

Prices are constant on pieces of each visit, so the inner minimum lies where i or j is an end of a piece, or the load is
hidden entirely: nothing has to be rounded. Good prices come from `relaxation`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cidl_sim.core.timed import Floats, Timed


@dataclass(frozen=True)
class Prices:
    """Of memory (all of the room) and of the loader, per second of progress: (visits, equal pieces of each)."""

    memory: Floats
    loader: Floats


def price_bound_s(priced: Timed, prices: Prices) -> float:
    """The lower bound on any plan's makespan in seconds that `prices` give."""
    executions, loads = priced.least_execute_s, priced.least_load_s
    shares, capacity = shares_of(priced)
    pieces = prices.memory.shape[1]
    lengths = np.repeat(executions / pieces, pieces)
    memory, loader = prices.memory.ravel(), prices.loader.ravel()
    line = _Line(lengths, memory, loader)
    ends = np.cumsum(executions)
    starts = ends - executions
    stalls = 0.0
    for v, previous in enumerate(priced.workload.previous_same_weights):
        # Of visits that follow one another the difference may be off by rounding.
        begin = 0.0 if previous is None else min(float(ends[previous]), float(starts[v]))
        least = line.least_of_load(begin, float(starts[v]), float(loads[v]), float(shares[v]))
        if previous is not None:
            least = min(least, float(shares[v]) * line.memory_between(begin, float(starts[v])))
        stalls += least
    taken = float(np.sum(lengths * memory * np.repeat(capacity, pieces)) + np.sum(lengths * loader))
    return float(ends[-1]) + max(0.0, stalls - taken)


def shares_of(priced: Timed) -> tuple[Floats, Floats]:
    """Of each visit, its weights in shares of the room, and what can lie beside it."""
    room = max(1, priced.room_bytes)  # no block has weights where there is none
    sizes = priced.weight_bytes
    beside = room - sizes - priced.workspace_bytes
    # What lies beside a visit is a multiple of the sizes' common divisor.
    unit = math.gcd(*sizes.tolist()) or 1
    return sizes / room, np.maximum(0, beside // unit * unit) / room


class _Line:
    """The executor's progress, cut into pieces with their prices."""

    def __init__(self, lengths: Floats, memory: Floats, loader: Floats) -> None:
        self._points = np.concatenate([[0.0], np.cumsum(lengths)])
        self._memory = np.concatenate([[0.0], np.cumsum(lengths * memory)])
        self._loader = np.concatenate([[0.0], np.cumsum(lengths * loader)])
        # What it costs to end a load at a point rather than at 0, less what that hides; its least values by window.
        self._windows = [self._loader - self._points]
        while 1 << len(self._windows) <= len(self._points):
            last, half = self._windows[-1], 1 << (len(self._windows) - 1)
            self._windows.append(np.minimum(last[:-half], last[half:]))

    def memory_between(self, begin: float, end: float) -> float:
        """What all of the room costs over that stretch."""
        low, high = np.interp([begin, end], self._points, self._memory)
        return float(high - low)

    def least_of_load(self, begin: float, end: float, seconds: float, share: float) -> float:
        """The least cost of a load between `begin` and `end` whose weights take `share` of the room."""
        first, last = np.searchsorted(self._points, [begin, end + seconds], side="left")
        ends = self._points[first : last + 1]
        begins = np.concatenate([ends, ends - seconds, [begin, end]])
        begins = begins[(begins >= begin) & (begins <= end)]
        memory = np.interp(begins, self._points, self._memory)
        loader = np.interp(begins, self._points, self._loader)
        until = np.minimum(begins + seconds, end)
        best = np.minimum(loader - begins, np.interp(until, self._points, self._loader) - until)
        best = np.minimum(best, self._least_within(begins, until))
        until_start = float(np.interp(end, self._points, self._memory))
        costs = seconds + begins + best - loader + share * (until_start - memory)
        return float(costs.min())

    def _least_within(self, begins: Floats, ends: Floats) -> Floats:
        """The least of the first window row over the points in each [begin, end]; infinite where there is none."""
        low = np.searchsorted(self._points, begins, side="left")
        counts = np.searchsorted(self._points, ends, side="right") - low
        least = np.full(len(begins), np.inf)
        level = np.log2(np.maximum(1, counts)).astype(int)
        for number in np.unique(level[counts > 0]):
            rows = np.flatnonzero((level == number) & (counts > 0))
            window = self._windows[number]
            last = low[rows] + counts[rows] - (1 << int(number))
            least[rows] = np.minimum(window[low[rows]], window[last])
        return least
