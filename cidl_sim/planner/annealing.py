"""Simulated annealing over who keeps weights and in which order the others are loaded, compiled.

With one loader and nothing that slows anything down (contention, first touch, heat) starting everything as early as
possible is a recurrence over the loads, some microseconds for a run of thirty rounds. Other devices take the compiled
engine. Import this module only where something is searched: it brings numba along.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from cidl_sim.core.timed import Bools, Floats, Ints, Timed
from cidl_sim.simulator import compiled
from cidl_sim.simulator.arrays import LOAD, Records, arrays_of


class Walked(NamedTuple):
    """What a walk reads of `Timed`, with durations as short as they can be; numba takes tuples, but no objects.

    The last three are what the compiled engine reads.
    """

    execute_s: Floats
    load_s: Floats
    weight_bytes: Ints
    workspace_bytes: Ints
    previous: Ints
    following: Ints
    room_bytes: int
    is_plain: bool
    devices: Records
    records: Records
    thermal: Records


def walked(priced: Timed) -> Walked:
    """The arrays for `anneal` and `makespan_s`. DeviceError where a cost is unknown."""
    return Walked(
        priced.least_execute_s,
        priced.least_load_s,
        priced.weight_bytes,
        priced.workspace_bytes,
        priced.previous,
        priced.following,
        priced.room_bytes,
        priced.is_plain,
        *arrays_of(priced).compiled,
    )


@njit(cache=True)
def makespan_s(visits: Walked, keep: Bools, order: Ints) -> float:
    """The makespan in s if the visits in `keep` keep their weights and the others' are loaded in `order`.

    `order` has every visit; those whose weights are kept for them are passed over. Infinite where the plan does not
    finish. No load starts before the one ahead of it in the order.
    """
    if visits.is_plain:
        return _recurrence_s(visits, keep, order)
    loads, nothing = np.zeros(len(order), LOAD), np.ones(len(order))
    count = 0
    for v in order:
        if visits.previous[v] < 0 or not keep[visits.previous[v]]:
            loads[count].visit = v
            count += 1
    return compiled.evaluate(visits.devices, visits.records, visits.thermal, loads[:count], keep, nothing, nothing)[0]


@njit(cache=True)
def _recurrence_s(visits: Walked, keep: Bools, order: Ints) -> float:
    count = len(keep)
    ready = np.full(count, np.inf)  # when the weights of a visit are there; those that are kept are at once
    for v in range(count):
        if keep[v] and visits.following[v] >= 0:
            ready[visits.following[v]] = 0.0
    ended, ended_s, loader_s, held = 0, 0.0, 0.0, 0
    for v in order:
        before = visits.previous[v]
        if before >= 0 and keep[before]:
            continue
        while True:
            workspace = 0
            for w in range(ended, v + 1):
                workspace = max(workspace, visits.workspace_bytes[w])
            if before < ended and held + visits.weight_bytes[v] + workspace <= visits.room_bytes:
                break
            # Memory, or the same weights, come free with the end of the next visit.
            if ended >= v or ready[ended] == np.inf or held + visits.workspace_bytes[ended] > visits.room_bytes:
                return np.inf
            ended_s = max(ended_s, ready[ended]) + visits.execute_s[ended]
            if not (keep[ended] and visits.following[ended] >= 0):
                held -= visits.weight_bytes[ended]
            ended += 1
        loader_s = max(loader_s, ended_s) + visits.load_s[v]
        ready[v] = loader_s
        held += visits.weight_bytes[v]
    while ended < count:
        if held + visits.workspace_bytes[ended] > visits.room_bytes:
            return np.inf
        ended_s = max(ended_s, ready[ended]) + visits.execute_s[ended]
        if not (keep[ended] and visits.following[ended] >= 0):
            held -= visits.weight_bytes[ended]
        ended += 1
    return ended_s


@njit(cache=True)
def anneal(
    visits: Walked, keep: Bools, order: Ints, steps: int, hot_s: float, cold_s: float, reorders: bool, seed: int
) -> tuple[float, Bools, Ints]:
    """The best makespan met on a random walk of so many `steps` from a plan, with its `keep` and `order`.

    A change that costs x seconds is made with probability exp(-x / t), t falling from `hot_s` to `cold_s`. One change:
    a visit's keep is flipped, or changes places with another one near it, in one round or in several that follow one
    another; where it `reorders`, also a load moves in the order.
    """
    np.random.seed(seed)
    revisited = np.flatnonzero(visits.following >= 0)
    keep, order = keep.copy(), order.copy()
    here_s = makespan_s(visits, keep, order)
    best_s, best_keep, best_order = here_s, keep.copy(), order.copy()
    if len(revisited) == 0:
        return best_s, best_keep, best_order
    new_keep, new_order = keep.copy(), order.copy()
    for step in range(steps):
        temperature_s = hot_s * (cold_s / hot_s) ** (step / steps)
        if reorders and np.random.random() < 0.3:
            _move_load(new_order)
        else:
            _change_keeps(visits, new_keep, revisited)
        new_s = makespan_s(visits, new_keep, new_order)
        if new_s <= here_s or np.random.random() < np.exp((here_s - new_s) / temperature_s):
            keep[:], order[:], here_s = new_keep, new_order, new_s
            if here_s < best_s:
                best_s, best_keep, best_order = here_s, keep.copy(), order.copy()
        else:
            new_keep[:], new_order[:] = keep, order
    return best_s, best_keep, best_order


@njit(cache=True)
def _move_load(order: Ints) -> None:
    """One load a few places later or earlier."""
    count = len(order)
    place = np.random.randint(count)
    other = min(count - 1, max(0, place + np.random.randint(-3, 4)))
    moved = order[place]
    if other > place:
        order[place:other] = order[place + 1 : other + 1]
    else:
        order[other + 1 : place + 1] = order[other:place].copy()
    order[other] = moved


@njit(cache=True)
def _change_keeps(visits: Walked, keep: Bools, revisited: Ints) -> None:
    """Flip a visit's keep, or exchange it with a neighbour's, along the visits of the same weights that follow."""
    v = revisited[np.random.randint(len(revisited))]
    rounds = 1 if np.random.random() < 0.5 else np.random.randint(1, len(keep))
    flips = np.random.random() < 0.3
    furthest = 3 if np.random.random() < 0.7 else 14
    offset = np.random.randint(1, furthest + 1)
    if np.random.random() < 0.5:
        offset = -offset
    value = not keep[v]
    while rounds > 0 and visits.following[v] >= 0:
        if flips:
            keep[v] = value
        elif 0 <= v + offset < len(keep) and visits.following[v + offset] >= 0:
            keep[v], keep[v + offset] = keep[v + offset], keep[v]
        v = visits.following[v]
        rounds -= 1
