"""Search for what is too large for the exact models: annealing from good plans, then the engine's word.

A walk (`annealing`) decides who keeps weights, and the order of loads where that matters. What it finds is timed by
the engine, and only that counts. Where loads and executions slow each other down, shorter lookaheads are tried.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cidl_sim.core.plan import Gate, Load, Plan
from cidl_sim.core.timed import Timed
from cidl_sim.planner.packing import packed_keeps
from cidl_sim.policies.build import build_plan, deep_prefetch
from cidl_sim.simulator.quick import makespan_s

LOOKAHEADS = (1, 2, 3, 5, 8)
# Changes that cost such a share of the makespan are still made, at a walk's beginning and at its end.
HOT, COLD = 1e-3, 3e-4
FIRST_STEPS, WALK_S = 2_000, 0.7
# Of the walks every so many-th also moves loads, where their order matters.
REORDERS_EVERY = 3


# What a second in which the loader rests may count in a packing; of more loads than these a packing takes too long.
RESTS = (1.0, 1.5, 2.0, 3.0)
MOST_PACKED = 3_000


class _Point(NamedTuple):
    """A plan on a walk: its makespan in s as the walk judges it, who keeps, and the order of loads."""

    seconds: float
    keep: NDArray[np.bool_]
    order: NDArray[np.int64]


def search(
    priced: Timed,
    starts: Sequence[Plan],
    *,
    known_s: float,
    deadline_s: float,
    bound_s: float = 0.0,
    seed: int = 0,
) -> tuple[Plan | None, float]:
    """The best plan found before `deadline_s` (of `time.monotonic`) if it is faster than `known_s`, and its makespan.

    Walks begin at the plans in `starts` in turn, and go on where they were best. Stops early at `bound_s`.
    """
    found = _Search(priced, known_s, bound_s, deadline_s)
    if found.goes_on():
        found.try_lookaheads(starts[0])
        found.walk([*starts, *found.packed(starts)], seed)
    return found.plan, found.makespan_s


class _Search:
    def __init__(self, priced: Timed, known_s: float, bound_s: float, deadline_s: float) -> None:
        self._priced = priced
        self._workload = priced.workload
        self._device = priced.device
        self._bound_s = bound_s
        self._deadline_s = deadline_s
        self.plan: Plan | None = None
        self.makespan_s = known_s

    def goes_on(self) -> bool:
        """There is time left, and something to be found."""
        has_choice = any(following is not None for following in self._workload.next_same_weights)
        return has_choice and time.monotonic() < self._deadline_s and self.makespan_s > self._bound_s * (1 + 1e-9)

    def packed(self, plans: Sequence[Plan]) -> list[Plan]:
        """The best packing near each plan, where it is faster than that plan."""
        found = []
        for plan in plans:
            timed = []
            for rest in RESTS if len(plan.loads) <= MOST_PACKED else ():
                keep = packed_keeps(self._priced, set(plan.keep), rest) if self.goes_on() else None
                if keep is not None:
                    packed = deep_prefetch("planned", self._workload, self._device, keep)
                    timed.append((self._timed_s(packed), rest, packed))
            if timed and min(timed)[0] < self._timed_s(plan):
                found.append(min(timed)[2])
        return found

    def walk(self, starts: Sequence[Plan], seed: int) -> None:
        """Walk after walk, until nothing is left to be found or no time."""
        from cidl_sim.planner import annealing  # numba takes a while to import

        visits = annealing.walked(self._priced)
        points = []
        for plan in starts:
            keep, order = self._decisions(plan)
            points.append(_Point(annealing.makespan_s(visits, keep, order), keep, order))
        best_s = min(point.seconds for point in points)
        has_orders = len(set(zip(visits.load_s, visits.weight_bytes, strict=True))) > 1
        steps, number = FIRST_STEPS, 0
        while np.isfinite(best_s) and self.goes_on():
            place = number % len(points)
            began = time.monotonic()
            reorders = has_orders and number % REORDERS_EVERY == REORDERS_EVERY - 1
            _, keep, order = points[place]
            found = annealing.anneal(
                visits, keep, order, steps, HOT * best_s, COLD * best_s, reorders, 1000 * seed + number
            )
            points[place] = point = _Point(*found)
            if point.seconds < best_s * (1 - 1e-9):
                best_s = point.seconds
                self._time(self._plan(point))
            # The first walk may have waited for the compiler.
            now = time.monotonic()
            if number > 0:
                steps = max(FIRST_STEPS, int(steps / (now - began) * min(WALK_S, (self._deadline_s - now) / 2)))
            number += 1

    def try_lookaheads(self, plan: Plan) -> None:
        """Under contention, loading later may be better."""
        loader, executor = self._device.loader, self._device.executor
        if loader.slowdown_while_executing == executor.slowdown_while_loading == 1:
            return
        for ahead in LOOKAHEADS:
            if self.goes_on():
                gates = [(load.visit, load.visit - ahead) for load in plan.loads]
                loads = [Load(visit=v, gate=Gate(visit=g, edge="start") if g >= 0 else None) for v, g in gates]
                self._note(build_plan("planned", self._workload, self._device, loads, plan.keep))

    def _time(self, plan: Plan) -> None:
        """Time a plan, and where it is the best so far, what is close to it."""
        if self._note(plan):
            self.try_lookaheads(plan)

    def _note(self, plan: Plan) -> bool:
        before_s = self.makespan_s
        return self._timed_s(plan) < before_s

    def _timed_s(self, plan: Plan) -> float:
        """The makespan of a plan, inf if it cannot finish; it is kept if it is the best so far."""
        seconds = makespan_s(self._priced, plan)
        if seconds < self.makespan_s:
            self.plan, self.makespan_s = plan, seconds
        return seconds

    def _decisions(self, plan: Plan) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Who keeps, and all visits in the order of their loads; those without one where execution has them."""
        keep = np.zeros(len(self._workload.visits), np.bool_)
        keep[list(plan.keep)] = True
        loaded = [load.visit for load in plan.loads]
        order = np.arange(len(keep))
        order[np.sort(loaded)] = loaded
        return keep, order

    def _plan(self, point: _Point) -> Plan:
        previous, following = self._workload.previous_same_weights, self._workload.next_same_weights
        keep = {int(v) for v in np.flatnonzero(point.keep) if following[v] is not None}
        loads = [Load(visit=int(v)) for v in point.order if previous[v] not in keep]
        return build_plan("planned", self._workload, self._device, loads, keep)
