"""Makespans without contention, heat and first touch on one loader channel: two recurrences instead of events.

With loads in order of execution a load starts once the one before has ended, its gate is open, and as many visits have
ended as memory wants; a visit starts once the one before has ended and its load has. All of these are known when their
turn comes, so a run is one pass over the visits. Where a stage has come back to a state that it had some rounds
ago, only later, and the policy does the same from there on, what follows is the same again: those rounds are skipped.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cidl_sim.simulator.arrays import Element, Floats, Ints, Records

Bytes = NDArray[np.uint8]

# As in `compiled`: without references, quotients as in numpy.
_kernel = njit(cache=True, error_model="numpy", _nrt=False)
_inlined = njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)

# Rounds after which a state may come back; rotating policies of a longer period are computed round by round.
_LONGEST_PERIOD = 8
# Of the time passed. Sums of some thousand durations differ by less, and what it hides stays below 1e-9.
_SAME = 1e-13

# Visits whose end makes room, in order: weights leave, or a larger workspace than the next visit's does.
_LEAVING = np.dtype([("visit", np.int64), ("freed_bytes", np.int64)])
# `pattern` tells rounds apart in which the policy keeps other visits (most of them: it is a hash).
_STATE = np.dtype(
    [(name, np.int64) for name in ("visit", "held", "retained", "ended", "narrowest", "listed", "left", "pattern")]
    + [(name, np.float64) for name in ("loader_s", "executor_s")]
)


@njit(cache=True, nogil=True)
def makespans(visits: Records, stages: Records, keep: Bytes, lookahead: Ints, result: Floats) -> None:
    """Fill `result`, one makespan in s for each row of `keep` (see `batch.makespans`)."""
    count = len(visits)
    starts_s, ends_s = np.zeros(count), np.zeros(count + 1)  # the first end is that of no visit, at 0
    leaving = np.zeros(count + 1, _LEAVING)
    now, history = np.zeros(1, _STATE), np.zeros(_LONGEST_PERIOD, _STATE)
    for policy in range(len(keep)):
        ahead = lookahead[policy] if lookahead[policy] < count else -1
        result[policy] = _makespan_s(visits, stages, keep[policy], ahead, leaving, starts_s, ends_s, now[0], history)


@njit(cache=True, nogil=True)
def fill_keep(stages: Records, stays: Bytes, patterns: Bytes, keep: Bytes) -> None:
    """Fill the rows of `keep` with the patterns, round by round (see `batch.keep_matrix`)."""
    for policy in range(len(patterns)):
        for number in range(len(stages)):
            _fill_stage(stages[number], stays, patterns[policy], keep[policy])


@_kernel
def _fill_stage(stage: Element, stays: Bytes, pattern: Bytes, keep: Bytes) -> None:
    period, positions = pattern.shape
    for turn in range((stage.end - stage.first) // stage.blocks):
        retained = pattern[turn % period]
        first = stage.first + turn * stage.blocks
        may, row = stays[first : first + stage.blocks], keep[first : first + stage.blocks]
        for position in range(stage.blocks):
            row[position] = may[position] & retained[position] if position < positions else 0


@_kernel
def _makespan_s(
    visits: Records,
    stages: Records,
    keep: Bytes,
    lookahead: int,
    leaving: Records,
    starts_s: Floats,
    ends_s: Floats,
    state: Element,
    history: Records,
) -> float:
    """The makespan of one policy; a lookahead of -1 is none."""
    state.listed = state.left = 0
    state.visit = state.held = state.retained = state.ended = state.narrowest = 0
    state.loader_s = state.executor_s = 0.0
    for number in range(len(stages)):
        stage = stages[number]
        recorded = 0
        while state.visit < stage.end:
            if state.visit >= stage.alike_from - stage.blocks:
                recorded = _skip(stage, keep, lookahead, leaving, starts_s, ends_s, state, history, recorded)
            is_left = state.visit < stage.end
            if is_left and not _run_round(visits, keep, lookahead, leaving, starts_s, ends_s, state, stage.blocks):
                return np.inf
    return state.executor_s


@_inlined
def _run_round(
    visits: Records,
    keep: Bytes,
    lookahead: int,
    leaving: Records,
    starts_s: Floats,
    ends_s: Floats,
    state: Element,
    blocks: int,
) -> bool:
    """The next `blocks` visits; False where memory lets one of them never run.

    Whether a visit loads or waits for memory is as good as random, so both are selected, not branched to, where that
    is possible: the processor has met none of these policies before.
    """
    held, retained, ended, narrowest = state.held, state.retained, state.ended, state.narrowest
    listed, left = state.listed, state.left
    loader_s, executor_s = state.loader_s, state.executor_s
    first, pattern = state.visit, 0
    for number in range(first, first + blocks):
        visit = visits[number]
        is_loaded = visit.previous < 0 or not keep[visit.previous]
        weight_bytes = visit.weight_bytes if is_loaded else 0
        # What is in memory when all before has left: if that is too much, no time helps; otherwise the rest finds room.
        retained += weight_bytes
        if retained > visit.room_bytes:
            return False
        stays = int(keep[number])
        pattern = (pattern << 1) ^ (pattern >> 62) ^ stays
        freed = 0 if stays else visit.weight_bytes
        retained -= freed
        leaving[listed].visit, leaving[listed].freed_bytes = number, freed
        if visit.room_bytes <= visits[narrowest].room_bytes:
            narrowest = number
        must_have_ended = visit.previous + 1 if is_loaded else 0
        has_to_wait = (ended < must_have_ended) | (weight_bytes > visits[narrowest].room_bytes - held)
        held -= leaving[left].freed_bytes if has_to_wait else 0
        ended = leaving[left].visit + 1 if has_to_wait else ended
        left += 1 if has_to_wait else 0
        listed += 1 if not stays or visit.narrows else 0
        while True:
            if narrowest < ended:
                narrowest = _narrowest(visits, ended, number)
            if ended >= must_have_ended and weight_bytes <= visits[narrowest].room_bytes - held:
                break
            held -= leaving[left].freed_bytes
            ended = leaving[left].visit + 1
            left += 1
        held += weight_bytes
        opens_s = max(loader_s, ends_s[ended])
        if lookahead == 0:
            opens_s = max(opens_s, executor_s)
        elif 0 < lookahead <= number:
            opens_s = max(opens_s, starts_s[number - lookahead])
        opens_s += visit.load_s
        loader_s = opens_s if is_loaded else loader_s
        start_s = max(executor_s, opens_s if is_loaded else executor_s)
        executor_s = start_s + visit.execute_s
        starts_s[number], ends_s[number + 1] = start_s, executor_s
    state.visit = first + blocks
    state.held, state.retained, state.ended, state.narrowest = held, retained, ended, narrowest
    state.listed, state.left = listed, left
    state.loader_s, state.executor_s, state.pattern = loader_s, executor_s, pattern
    return True


@_inlined
def _narrowest(visits: Records, first: int, last: int) -> int:
    narrowest = first
    for number in range(first + 1, last + 1):
        if visits[number].room_bytes <= visits[narrowest].room_bytes:
            narrowest = number
    return narrowest


@_inlined
def _skip(
    stage: Element,
    keep: Bytes,
    lookahead: int,
    leaving: Records,
    starts_s: Floats,
    ends_s: Floats,
    state: Element,
    history: Records,
    recorded: int,
) -> int:
    """Go on to the last time that the state of a round before comes back, if it has come back now.

    `history` holds the states of the last `recorded` rounds, which is returned anew.
    """
    for back in range(1, min(recorded, _LONGEST_PERIOD) + 1):
        before = history[(recorded - back) % _LONGEST_PERIOD]
        if not _is_same(lookahead, starts_s, ends_s, before, state):
            continue
        times = _repeats(stage, keep, before, state)
        if times > 0:
            _advance(times, lookahead, leaving, starts_s, ends_s, before, state)
            # The rounds that were skipped have left no states.
            recorded = 0
            break
    history[recorded % _LONGEST_PERIOD] = state
    return recorded + 1


@_inlined
def _is_same(lookahead: int, starts_s: Floats, ends_s: Floats, before: Element, state: Element) -> bool:
    """Whether everything that what follows depends on is as it was, only later."""
    shift = state.visit - before.visit
    if lookahead > before.visit or state.ended - before.ended != shift:
        return False
    if state.pattern != before.pattern or state.held != before.held or state.retained != before.retained:
        return False
    period_s = state.executor_s - before.executor_s
    tolerance_s = _SAME * state.executor_s
    if abs(state.loader_s - before.loader_s - period_s) > tolerance_s:
        return False
    for number in range(state.ended, state.visit + 1):
        if abs(ends_s[number] - ends_s[number - shift] - period_s) > tolerance_s:
            return False
    for number in range(state.visit - max(lookahead, 0), state.visit):
        if abs(starts_s[number] - starts_s[number - shift] - period_s) > tolerance_s:
            return False
    return True


@_inlined
def _repeats(stage: Element, keep: Bytes, before: Element, state: Element) -> int:
    """How often what happened since `before` happens again, as far as costs and the policy say."""
    shift = state.visit - before.visit
    first = min(state.ended, state.visit - stage.blocks)
    if first - shift < stage.first or _differ(keep, first, state.visit, shift):
        return 0
    most = (stage.end - state.visit) // shift
    # Mostly the policy changes in the last round alone, where nothing has to stay any more.
    if most > 1 and not _differ(keep, state.visit, state.visit + (most - 1) * shift, shift):
        last = state.visit + most * shift
        return most - 1 if _differ(keep, last - shift, last, shift) else most
    times = 0
    while times < most and not _differ(keep, state.visit + times * shift, state.visit + (times + 1) * shift, shift):
        times += 1
    return times


@_inlined
def _differ(keep: Bytes, first: int, end: int, shift: int) -> bool:
    # Without an early exit, and with indices from 0 on, it is one pass of wide instructions.
    here, before = keep[first:end], keep[first - shift : end - shift]
    difference = np.uint8(0)
    for number in range(len(here)):
        difference = np.uint8(difference | (here[number] ^ before[number]))
    return difference != 0


@_inlined
def _advance(
    times: int, lookahead: int, leaving: Records, starts_s: Floats, ends_s: Floats, before: Element, state: Element
) -> None:
    shift = times * (state.visit - before.visit)
    later_s = times * (state.executor_s - before.executor_s)
    first = min(state.ended, state.visit - max(lookahead, 0))
    for number in range(state.visit, first - 1, -1):
        ends_s[number + shift] = ends_s[number] + later_s
    for number in range(state.visit - 1, first - 1, -1):
        starts_s[number + shift] = starts_s[number] + later_s
    for entry in range(state.left, state.listed):
        leaving[entry].visit += shift
    state.visit += shift
    state.ended += shift
    state.narrowest += shift
    state.loader_s += later_s
    state.executor_s += later_s
