"""Many plans on one device, without a trace: compiled, and equal to the engine.

`arrays_of` turns a priced workload into arrays once; after that a plan costs microseconds instead of milliseconds:
`evaluate` and `makespan_s` take any plan, `makespans` any number of policies as a matrix. Every feature of the engine
is there but what changes the plan or the limit during a run. A plan that cannot finish within the memory has the
makespan inf.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cidl_sim.core.plan import Plan
from cidl_sim.simulator.arrays import EVALUATION, Arrays, Bools, Evaluation, Floats, Ints, Records, encode
from cidl_sim.simulator.noise import Factors, cost_factors

# Policies that a core takes at a time; memory for them is that of their rows.
_CHUNK = 256

# One channel without contention, heat and first touch: whole durations, noise in them, and the room for weights beside
# the workspace. From `alike_from` on, costs and what is visited again are those of the round before.
_PLAIN_VISIT = np.dtype(
    [(name, np.int64) for name in ("weight_bytes", "room_bytes", "previous", "narrows")]
    + [(name, np.float64) for name in ("load_s", "execute_s")]
)


def evaluate(arrays: Arrays, plan: Plan, *, seed: int | None = None, factors: Factors | None = None) -> Evaluation:
    """Makespan, peak and busy times of `plan`; `seed` and `factors` as in `simulate`.

    Raises PlanError where the plan names unknown visits, DeviceError where it needs a load of unknown cost.
    """
    from cidl_sim.simulator import compiled  # numba takes a while to import

    decisions = encode(arrays, plan)
    _check_known(arrays, decisions.loads["visit"])
    found = compiled.evaluate(*arrays.compiled, *decisions, *_noise(arrays, seed, factors))
    makespan_s, peak_bytes, *seconds = found
    return Evaluation(makespan_s, arrays.baseline_bytes + peak_bytes, *seconds)


def makespan_s(arrays: Arrays, plan: Plan, *, seed: int | None = None, factors: Factors | None = None) -> float:
    """The makespan of `plan` in seconds, inf if it cannot finish; the rest as in `evaluate`."""
    return evaluate(arrays, plan, seed=seed, factors=factors).makespan_s


def _check_known(arrays: Arrays, loads: Iterable[int]) -> None:
    if arrays.unknown:
        for visit in loads:
            if visit in arrays.unknown:
                raise arrays.unknown[visit]


def _noise(arrays: Arrays, seed: int | None, factors: Factors | None = None) -> Factors:
    if seed is None and factors is None:
        return arrays.no_noise
    return cost_factors(arrays.noise, seed, len(arrays.visits), factors)


def keep_matrix(arrays: Arrays, patterns: Bools) -> Bools:
    """Patterns (policies, period, positions) as rows for `makespans`: round r of a stage retains pattern r % period.

    Weights stay from round to round and from stage to stage of a group, as in `policies.build.keep_positions`.
    """
    from cidl_sim.simulator import compiled_plain

    keep = np.empty((len(patterns), len(arrays.stays)), np.uint8)
    compiled_plain.fill_keep(arrays.stages, arrays.stays.view(np.uint8), patterns.view(np.uint8), keep)
    return keep.view(np.bool_)


def makespans(
    arrays: Arrays, keep: Bools, lookahead: Ints | int | None = None, seeds: Sequence[int] | None = None
) -> Floats:
    """Makespans in s, inf where a policy cannot finish, of the policies with deep prefetch that `keep` stands for.

    `keep` (policies, visits) says after which visits weights stay; loads are in order of execution, as early as memory
    allows. With a lookahead of n, for all policies or for each, a load also waits for the start of the visit n before
    its own, with 0 for the end of the visit before. The result has the shape (policies,), with seeds (policies, seeds).

    All cores are used. DeviceError where a policy needs a load of unknown cost.
    """
    keep = np.ascontiguousarray(keep)
    return _makespans(arrays, len(keep), partial(_rows_of, arrays, keep), lookahead, seeds)


def evaluate_many(
    arrays: Arrays, keep: Bools, lookahead: Ints | int | None = None, threads: int | None = None
) -> Records:
    """Of the policies of `makespans` records with the fields of `Evaluation`; rounds that come back are not skipped.

    `threads`: at the most so many, all cores if None.
    """
    keep = np.ascontiguousarray(keep)
    result = np.zeros((len(keep), 1), EVALUATION)
    run = _general_run(arrays, [_noise(arrays, None)])
    rows = partial(_rows_of, arrays, keep)
    _in_chunks(arrays, len(keep), rows, lookahead, result, run, threads)
    result["peak_resident_bytes"] += arrays.baseline_bytes
    return result[:, 0]


def pattern_makespans(
    arrays: Arrays, patterns: Bools, lookahead: Ints | int | None = None, seeds: Sequence[int] | None = None
) -> Floats:
    """`makespans` of `keep_matrix(arrays, patterns)`, of which only a part exists at a time."""
    return _makespans(arrays, len(patterns), lambda chunk: keep_matrix(arrays, patterns[chunk]), lookahead, seeds)


def _makespans(
    arrays: Arrays,
    policies: int,
    rows: Callable[[slice], Bools],
    lookahead: Ints | int | None,
    seeds: Sequence[int] | None,
) -> Floats:
    factors = [_noise(arrays, seed) for seed in ([None] if seeds is None else seeds)]
    result = np.empty((policies, len(factors)))
    run = _plain_run(arrays, factors) if _is_plain(arrays) else _makespans_of(_general_run(arrays, factors))
    _in_chunks(arrays, policies, rows, lookahead, result, run)
    return result[:, 0] if seeds is None else result


def _in_chunks(
    arrays: Arrays,
    policies: int,
    rows: Callable[[slice], Bools],
    lookahead: Ints | int | None,
    result: NDArray[Any],
    run: _Run,
    threads: int | None = None,
) -> None:
    count = len(arrays.visits)
    ahead = np.ascontiguousarray(np.broadcast_to(count if lookahead is None else lookahead, policies), np.int64)

    def evaluate_chunk(first: int) -> None:
        chunk = slice(first, first + _CHUNK)
        keep = rows(chunk)
        if arrays.unknown:
            previous = arrays.visits["previous"]
            _check_known(arrays, np.flatnonzero((~keep[:, previous] | (previous < 0)).any(axis=0)))
        run(keep, ahead[chunk], result[chunk])

    # A few policies are done before threads have started.
    several = policies > _CHUNK and threads != 1
    with ThreadPoolExecutor(threads or os.cpu_count()) if several else nullcontext() as pool:
        list((pool.map if pool else map)(evaluate_chunk, range(0, policies, _CHUNK)))


def _rows_of(arrays: Arrays, keep: Bools, chunk: slice) -> Bools:
    """Some rows without the keeps of weights that are not visited again, which mean nothing."""
    rows, never = keep[chunk], arrays.visits["following"] < 0
    return rows & ~never if rows[:, never].any() else rows


_Run = Callable[[Bools, Ints, NDArray[Any]], None]


def _is_plain(arrays: Arrays) -> bool:
    device = arrays.device[0]
    return not device["is_fluid"] and not device["first_touch_bytes_per_s"]


def _general_run(arrays: Arrays, factors: Sequence[Factors]) -> _Run:
    from cidl_sim.simulator import compiled

    load, execute = (np.array([pair[side] for pair in factors]) for side in (0, 1))
    return lambda keep, ahead, result: compiled.evaluate_many(*arrays.compiled, keep, ahead, load, execute, result)


def _makespans_of(general: _Run) -> _Run:
    def run(keep: Bools, ahead: Ints, result: Floats) -> None:
        evaluations = np.zeros(result.shape, EVALUATION)
        general(keep, ahead, evaluations)
        result[:] = evaluations["makespan_s"]

    return run


def _plain_run(arrays: Arrays, factors: Sequence[Factors]) -> _Run:
    from cidl_sim.simulator import compiled_plain

    tables = [_plain_tables(arrays, *pair) for pair in factors]

    def run(keep: Bools, ahead: Ints, result: Floats) -> None:
        for number, (visits, stages) in enumerate(tables):
            compiled_plain.makespans(visits, stages, keep.view(np.uint8), ahead, result[:, number])

    return run


def _plain_tables(arrays: Arrays, load_factors: Floats, execute_factors: Floats) -> tuple[Records, ...]:
    visits = arrays.visits
    plain = np.empty(len(visits), _PLAIN_VISIT)
    plain["weight_bytes"], plain["previous"] = visits["weight_bytes"], visits["previous"]
    # Without room there is no makespan; how little there is does not matter, and might overflow.
    available_bytes, workspace_bytes = arrays.device[0]["available_bytes"], visits["workspace_bytes"]
    plain["room_bytes"] = np.where(workspace_bytes <= available_bytes, available_bytes - workspace_bytes, -1)
    plain["narrows"][:-1] = plain["room_bytes"][:-1] < plain["room_bytes"][1:]
    plain["narrows"][-1:] = False
    plain["load_s"] = (visits["load_fixed_s"] + visits["load_work_s"]) * load_factors
    plain["execute_s"] = (visits["execute_fixed_s"] + visits["execute_work_s"]) * execute_factors
    stages = arrays.stages.copy()
    stages["alike_from"] = [
        _alike_from(plain, *(int(stage[n]) for n in ("first", "end", "blocks"))) for stage in stages
    ]
    return plain, stages


def _alike_from(visits: Records, first: int, end: int, blocks: int) -> int:
    """The first visit of a round from which on every round of the stage has the costs of the one before it."""
    later, earlier = visits[first + blocks : end], visits[first : end - blocks]
    alike = later["previous"] == earlier["previous"] + blocks
    for name in ("load_s", "execute_s"):
        alike &= later[name] == earlier[name]
    unlike = np.flatnonzero(~alike)
    rounds = 1 if not len(unlike) else 2 + int(unlike[-1]) // blocks
    return first + rounds * blocks
