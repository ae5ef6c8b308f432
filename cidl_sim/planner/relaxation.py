"""Bounds from `prices` that come from the dual of the linear relaxation: of a workload, or of its rounds and ends.

The relaxation has every keep and load that can be the cheapest one under prices that are constant on the pieces, so
its dual gives the best such prices. Of a stage with many rounds the repeating round is solved first, as if it went on
for ever, which takes one round's columns; then, with its prices in the middle, the rounds at both ends of all stages.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cidl_sim.core.timed import Floats, Ints, Timed, timed
from cidl_sim.core.workload import Stage, Workload
from cidl_sim.planner.prices import Prices, price_bound_s, shares_of
from cidl_sim.planner.rows import Rows

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult
    from scipy.sparse import csc_array

# Of a stage with more rounds so many are solved; the middle one stands for all that are left out.
SOLVED_ROUNDS = 5


def relaxed_bound_s(priced: Timed, *, pieces: int, deadline_s: float, most_rounds: int | None = None) -> float:
    """The lower bound in s from the relaxation's prices; 0 if it is not solved before `deadline_s`.

    `pieces`: in how many each visit is cut. `deadline_s`: of `time.monotonic`. With `most_rounds` (odd) only so many
    rounds of a stage are solved, and the prices of the middle one stand for those that are left out.
    """
    short = priced if most_rounds is None else shortened(priced, most_rounds)
    prices = _Program(short, pieces).solved(deadline_s)
    return 0.0 if prices is None else price_bound_s(priced, _extended(prices, short.workload, priced.workload))


def steady_bound_s(priced: Timed, *, pieces: int, deadline_s: float) -> float:
    """The lower bound in s from prices of repeating rounds and of ends that suit them; see `relaxed_bound_s`.

    One round is cheap, so its visits are cut into `pieces`, those of the ends in two at most.
    """
    workload = priced.workload
    short, at_ends = shortened(priced, SOLVED_ROUNDS), 1 if pieces % 2 else 2
    known: list[Prices | None] = []
    for stage in workload.stages:
        is_long = stage.rounds > SOLVED_ROUNDS
        known.append(_repeating_prices(stage, priced, pieces, deadline_s) if is_long else None)
    middle = _in_the_middle(short.workload, known, pieces)
    ends = _Program(short, at_ends, _coarser(middle, at_ends)).solved(deadline_s)
    if ends is None:
        return 0.0
    finer = Prices(*(np.repeat(prices, pieces // at_ends, axis=1) for prices in (ends.memory, ends.loader)))
    is_known = ~np.isnan(middle.memory)
    prices = Prices(np.where(is_known, middle.memory, finer.memory), np.where(is_known, middle.loader, finer.loader))
    return price_bound_s(priced, _extended(prices, short.workload, workload))


def columns_with(priced: Timed, pieces: int) -> int:
    """About how many columns the relaxation has if each visit is cut into so many pieces."""
    executions, loads = priced.least_execute_s, priced.least_load_s
    mean_s = float(executions.mean()) or 1.0
    gaps = (np.arange(len(loads)) - np.maximum(0, priced.previous)) * pieces
    steps = np.minimum(gaps, loads * pieces / mean_s)
    return int(np.sum((gaps + 1) * (np.minimum(steps, 8 + 1.7 * np.log2(np.maximum(1, steps / 8))) + 3)))


def shortened(priced: Timed, most_rounds: int) -> Timed:
    """The workload with at most so many rounds of every stage, on the same device."""
    workload = priced.workload
    stages = [stage.model_copy(update={"rounds": min(stage.rounds, most_rounds)}) for stage in workload.stages]
    return timed(workload.model_copy(update={"stages": tuple(stages)}), priced.device)


def _steps(most: int) -> list[int]:
    """0, 1, 2 ... below `most`; beyond 8 each half as large again as the one before."""
    steps = list(range(min(most, 9)))
    while steps and steps[-1] * 3 // 2 < most and len(steps) >= 9:
        steps.append(steps[-1] * 3 // 2)
    return steps


def _repeating_prices(stage: Stage, priced: Timed, pieces: int, deadline_s: float) -> Prices | None:
    """Prices of one round of a stage that is followed and preceded by the same round."""
    twice = stage.model_copy(update={"rounds": 2})
    alone = timed(priced.workload.model_copy(update={"stages": (twice,)}), priced.device)
    return _Program(alone, pieces, repeats=True).solved(deadline_s)


def _in_the_middle(short: Workload, known: list[Prices | None], pieces: int) -> Prices:
    """The known prices of a stage in its middle round, nan everywhere else."""
    free = np.full((2, len(short.visits), pieces), np.nan)
    for stage, prices in enumerate(known):
        if prices is not None:
            count = len(short.stages[stage].blocks)
            first = short.first_visit_of_stage[stage]
            middle = slice(first + SOLVED_ROUNDS // 2 * count, first + (SOLVED_ROUNDS // 2 + 1) * count)
            free[:, middle] = prices.memory, prices.loader
    return Prices(free[0], free[1])


def _coarser(prices: Prices, pieces: int) -> Prices:
    """Means over so many equal pieces of each visit."""
    visits = len(prices.memory)
    return Prices(*(found.reshape(visits, pieces, -1).mean(axis=2) for found in (prices.memory, prices.loader)))


def _extended(prices: Prices, short: Workload, workload: Workload) -> Prices:
    """The prices of the middle rounds also for all rounds that `short` leaves out."""
    visits: list[int] = []
    for stage, shorter, first in zip(workload.stages, short.stages, short.first_visit_of_stage, strict=False):
        left_out = stage.rounds - shorter.rounds
        for number in range(stage.rounds):
            same = min(number, max(shorter.rounds // 2, number - left_out))
            visits += range(first + same * len(stage.blocks), first + (same + 1) * len(stage.blocks))
    return Prices(prices.memory[visits], prices.loader[visits])


@dataclass(frozen=True)
class _Columns:
    """Loads that can be the cheapest ones: of which visit, over which progress in s, and for how long that stalls."""

    visits: Ints
    begins: Floats
    ends: Floats
    stalls: Floats


class _Program:
    """Columns: r of every visit, its loads, then the shares of the room taken, and of the loader, in each piece.

    Shares are means over the piece. Where `fixed` has prices they are paid instead of keeping below the capacity. With
    `repeats` the workload is a round twice: only the second one's visits have columns, and what they take counts in
    both together.
    """

    def __init__(
        self,
        priced: Timed,
        pieces: int,
        fixed: Prices | None = None,
        *,
        repeats: bool = False,
    ) -> None:
        self._pieces = pieces
        self._repeats = repeats
        self._executions, self._loads = priced.least_execute_s, priced.least_load_s
        self._sizes, capacity = shares_of(priced)
        self._cut = np.flatnonzero(self._executions > 0)  # a visit without length has no pieces
        self._lengths = np.repeat(self._executions[self._cut] / pieces, pieces)
        self._points = np.concatenate([[0.0], np.cumsum(self._lengths)])
        places = np.concatenate([[0], np.cumsum(np.where(self._executions > 0, pieces, 0))])
        previous = priced.workload.previous_same_weights
        self._gap_begins = np.array([0 if before is None else places[before + 1] for before in previous])
        self._gap_ends = places[:-1]
        self._can_keep = np.array([before is not None for before in previous])
        self._chosen = np.arange(len(previous) // 2 if repeats else 0, len(previous))
        self._columns = self._loads_of_visits()
        self._capacity = np.concatenate([np.repeat(capacity[self._cut], pieces), np.ones(len(self._lengths))])
        free = np.full((2, len(previous), pieces), np.nan) if fixed is None else np.stack([fixed.memory, fixed.loader])
        self._fixed = free[:, self._cut].reshape(2, -1)

    def solved(self, deadline_s: float) -> Prices | None:
        """The best prices; None if the program is not solved before `deadline_s` of `time.monotonic`."""
        from scipy.optimize import linprog

        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not len(self._lengths):
            return None
        count, z, levels = len(self._chosen), len(self._columns.visits), 2 * len(self._lengths)
        fixed = self._fixed.ravel()
        is_free = np.isnan(fixed) & (not self._repeats)
        paid = np.where(np.isnan(fixed), 0.0, fixed) * np.tile(self._lengths, 2)
        upper = [self._can_keep[self._chosen].astype(float), np.ones(z), np.where(is_free, self._capacity, np.inf)]
        matrix = self._balance()
        folded = self._folded(count + z) if self._repeats else None
        found = linprog(
            np.concatenate([np.zeros(count), self._columns.stalls, paid]),
            A_eq=matrix,
            b_eq=np.concatenate([np.ones(count), np.zeros(levels)]),
            A_ub=folded,
            b_ub=None if folded is None else self._capacity.reshape(2, 2, -1)[:, 0].ravel(),
            bounds=np.stack([np.zeros(count + z + levels), np.concatenate(upper)], axis=1),
            method="highs-ipm",
            options={"time_limit": left_s},
        )
        return self._prices(found) if found.status == 0 else None

    def _loads_of_visits(self) -> _Columns:
        found = [self._places(int(v)) for v in self._chosen]
        begins, ends = (np.concatenate(part) for part in zip(*found, strict=True))
        visits = np.repeat(np.arange(len(self._chosen)), [len(places) for places, _ in found])
        stalls = np.maximum(0.0, self._loads[self._chosen][visits] - (ends - begins))
        return _Columns(visits, begins, ends, stalls)

    def _places(self, v: int) -> tuple[Floats, Floats]:
        """Begins and ends of the loads of visit v that begin or end where a piece does, the hidden ones included.

        Of those that are hidden in part over many pieces only some: the others add columns, and hardly anything to the
        bound.
        """
        points, seconds = self._points[self._gap_begins[v] : self._gap_ends[v] + 1], self._loads[v]
        places = np.arange(len(points))
        most = np.searchsorted(points, points + seconds, side="right") - 1 - places
        found = [(places, places + most)]
        for step in _steps(int(most.max())):
            shorter = places[step < most]
            found.append((shorter, shorter + step))
        i, j = (np.concatenate(part) for part in zip(*found, strict=True))
        before, after = points[points + seconds <= points[-1]], points[points - seconds >= points[0]]
        return (
            np.concatenate([points[i], before, after - seconds]),
            np.concatenate([points[j], before + seconds, after]),
        )

    def _balance(self) -> csc_array:
        """Each visit is kept or loaded once, and the levels follow from that."""
        count, pieces = len(self._chosen), len(self._lengths)
        loads, z = self._columns, count + np.arange(len(self._columns.visits))
        rows = Rows(count + len(z) + 2 * pieces)
        rows.add(np.arange(count), np.arange(count), 1.0)
        rows.add(loads.visits, z, 1.0)
        sizes, starts = self._sizes[self._chosen], self._points[self._gap_ends[self._chosen]]
        kept = np.flatnonzero(self._can_keep[self._chosen])
        kept_from = self._points[self._gap_begins[self._chosen][kept]]
        for level, columns, begins, ends, weights in (
            (0, kept, kept_from, starts[kept], sizes[kept]),
            (1, z, loads.begins, starts[loads.visits], sizes[loads.visits]),
            (2, z, loads.begins, loads.ends, np.ones(len(z))),
        ):
            first = count + (pieces if level == 2 else 0)
            self._step(rows, first, columns, begins, -weights)
            self._step(rows, first, columns, ends, weights)
        for first in (count, count + pieces):
            levels = len(z) + first + np.arange(pieces)
            rows.add(first + np.arange(pieces), levels, 1.0)
            rows.add(first + np.arange(1, pieces), levels[:-1], -1.0)
        return rows.matrix(count + 2 * pieces)

    def _step(self, rows: Rows, first: int, columns: Ints, moments: Floats, weights: Floats) -> None:
        """A level changes by `weights` at `moments`: in the mean of the piece around it partly, then wholly."""
        piece = np.searchsorted(self._points, moments, side="right") - 1
        inside = piece < len(self._lengths)
        piece, columns, moments, weights = piece[inside], columns[inside], moments[inside], weights[inside]
        share = (self._points[piece + 1] - moments) / self._lengths[piece]
        rows.add(first + piece, columns, weights * share)
        rest = (share < 1) & (piece + 1 < len(self._lengths))
        rows.add(first + piece[rest] + 1, columns[rest], (weights * (1 - share))[rest])

    def _folded(self, before: int) -> csc_array:
        """Rows that add up both rounds' levels, after `before` columns."""
        from scipy.sparse import csc_array, hstack, identity, vstack

        half = identity(len(self._lengths) // 2)
        nothing = 0 * half
        levels = hstack([half, half, nothing, nothing]), hstack([nothing, nothing, half, half])
        left = csc_array((2 * half.shape[0], before))
        return csc_array(hstack([left, csc_array(vstack(levels))]))

    def _prices(self, found: OptimizeResult) -> Prices:
        """What a little more of each piece's capacity is worth, per second of progress."""
        if self._repeats:
            levels = -found.ineqlin.marginals.reshape(2, -1) / self._lengths[: len(self._lengths) // 2]
        else:
            levels = -found.upper.marginals[-2 * len(self._lengths) :].reshape(2, -1) / self._lengths
            levels = np.where(np.isnan(self._fixed), levels, self._fixed)
        visits = len(self._chosen)
        cut = self._cut[self._cut < visits]
        prices = np.zeros((2, visits, self._pieces))
        prices[:, cut] = np.maximum(0.0, levels).reshape(2, -1, self._pieces)
        return Prices(prices[0], prices[1])
