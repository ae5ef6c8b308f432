"""Many plans on one device, without a trace: compiled, and equal to the engine.

`compile_case` turns a workload and a device into arrays once; after that a plan costs microseconds instead of
milliseconds: `evaluate` and `makespan_s` take any plan, `makespans` any number of policies as a matrix. Every feature
of the engine is there but what changes the plan or the limit during a run. A plan that cannot finish within the memory
has the makespan inf.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cidl_sim.core.costs import Cost, execute_cost, load_cost
from cidl_sim.core.device import DeviceProfile, Noise
from cidl_sim.core.errors import DeviceError, PlanError
from cidl_sim.core.plan import Gate, Plan
from cidl_sim.core.workload import Workload
from cidl_sim.simulator.engine import Factors
from cidl_sim.simulator.noise import noise_factors, run_factor

# Policies that a core takes at a time; memory for them is that of their rows.
_CHUNK = 256

_RATES = ("slowdown_while_executing", "slowdown_while_loading", "first_touch_bytes_per_s")

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


# What the compiled code reads, in seconds and bytes. Weights are numbered; `previous` and `following` are the visits of
# the same weights before and after, or -1; loads cost what a cold one does for the first visit of its weights.
_VISIT = np.dtype(
    [(name, np.int64) for name in ("weights", "weight_bytes", "workspace_bytes", "previous", "following")]
    + [(name, np.float64) for name in ("load_fixed_s", "load_work_s", "execute_s")]
)
# `available_bytes` is the limit less the baseline; memory without a cost of its first touch has the rate 0.
_DEVICE = np.dtype(
    [(name, np.int64) for name in ("available_bytes", "channels", "is_fluid", "weights_count")]
    + [(name, np.float64) for name in _RATES]
)
_THERMAL = np.dtype([("after_s", np.float64), ("factor", np.float64)])
# One channel without contention, heat and first touch: whole durations, noise in them, and the room for weights beside
# the workspace. From `alike_from` on, costs and what is visited again are those of the round before.
_PLAIN_VISIT = np.dtype(
    [(name, np.int64) for name in ("weight_bytes", "room_bytes", "previous", "narrows")]
    + [(name, np.float64) for name in ("load_s", "execute_s")]
)
_STAGE = np.dtype([(name, np.int64) for name in ("first", "end", "blocks", "alike_from")])
# Of many policies, what `Evaluation` says of one.
EVALUATION = np.dtype(
    [("makespan_s", np.float64), ("peak_resident_bytes", np.int64)]
    + [(name, np.float64) for name in ("loader_busy_s", "executor_busy_s")]
)
# A load waits for a progress: 2v once visit v is the current one, 2v + 1 once it runs; 0 is no gate.
_LOAD = np.dtype([("visit", np.int64), ("gate", np.int64)])


class Arrays(NamedTuple):
    """A workload on a device as the compiled code reads it: one record, then records by visit and by thermal step."""

    device: NDArray[np.void]
    visits: NDArray[np.void]
    thermal: NDArray[np.void]


@dataclass(frozen=True)
class Case:
    """A workload on a device.

    `stays`: after which visits weights may stay for the next visit in the same group. `unknown`: the visits whose load
    the profile has no cost for, with the reason.
    """

    arrays: Arrays
    stages: NDArray[np.void]
    stays: Bools
    baseline_bytes: int
    noise: Noise
    unknown: dict[int, DeviceError] = field(default_factory=dict)


class Decisions(NamedTuple):
    """A plan as arrays: its loads in start order, and for each visit whether its weights stay."""

    loads: NDArray[np.void]
    keep: Bools


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `simulate` would have found: the makespan (inf if infeasible), the peak, and busy times."""

    makespan_s: float
    peak_resident_bytes: int
    loader_busy_s: float
    executor_busy_s: float


def compile_case(workload: Workload, device: DeviceProfile) -> Case:
    """The arrays for `evaluate` and `makespans`. DeviceError if the profile has no cost for an execution."""
    loader, loads, unknown = device.loader, *_load_costs(workload, device)
    blocks = {id(visit.block): visit.block for visit in workload.visits}
    execute_s = {key: execute_cost(block, device).seconds for key, block in blocks.items()}
    numbers: dict[str, int] = {}
    visits = np.array(
        [
            (
                numbers.setdefault(visit.block.weights, len(numbers)),
                visit.block.weight_bytes,
                visit.block.workspace_bytes,
                -1 if previous is None else previous,
                -1 if following is None else following,
                cost.fixed_s,
                cost.work_s,
                execute_s[id(visit.block)],
            )
            for visit, previous, following, cost in zip(
                workload.visits, workload.previous_same_weights, workload.next_same_weights, loads, strict=True
            )
        ],
        _VISIT,
    )
    is_fluid = (
        loader.slowdown_while_executing != 1
        or device.executor.slowdown_while_loading != 1
        or loader.channels > 1
        or bool(device.thermal)
    )
    figures = (
        device.memory_limit_bytes - device.baseline_bytes,
        loader.channels,
        is_fluid,
        len(numbers),
        loader.slowdown_while_executing,
        device.executor.slowdown_while_loading,
        loader.first_touch_bytes_per_s or 0.0,
    )
    thermal = np.array([(step.after_s, step.factor) for step in device.thermal], _THERMAL)
    arrays = Arrays(np.array([figures], _DEVICE), visits, thermal)
    return Case(arrays, _stages(workload), _staying(workload), device.baseline_bytes, device.noise, unknown)


def _staying(workload: Workload) -> Bools:
    group = [workload.stages[visit.stage].group for visit in workload.visits]
    following = zip(workload.next_same_weights, group, strict=True)
    return np.array([v is not None and group[v] == ours for v, ours in following])


def _stages(workload: Workload) -> NDArray[np.void]:
    firsts = workload.first_visit_of_stage
    rows = [(firsts[s], firsts[s + 1], len(stage.blocks), 0) for s, stage in enumerate(workload.stages)]
    return np.array(rows, _STAGE)


def _load_costs(workload: Workload, device: DeviceProfile) -> tuple[list[Cost], dict[int, DeviceError]]:
    known: dict[tuple[int, bool], Cost | DeviceError] = {}
    costs, unknown = [], {}
    for visit, previous in zip(workload.visits, workload.previous_same_weights, strict=True):
        key = id(visit.block), previous is None
        if key not in known:
            try:
                known[key] = load_cost(visit.block, device, cold=previous is None)
            except DeviceError as problem:
                known[key] = problem
        cost = known[key]
        if isinstance(cost, DeviceError):
            unknown[visit.number] = cost
            cost = Cost(0.0, 0.0, measured=False)
        costs.append(cost)
    return costs, unknown


def encode(case: Case, plan: Plan) -> Decisions:
    """`plan` as arrays. PlanError where it names visits that the workload does not have."""
    count = len(case.arrays.visits)
    named = [load.visit for load in plan.loads] + [load.gate.visit for load in plan.loads if load.gate]
    beyond = [number for number in (*named, *plan.keep) if number >= count]
    if beyond:
        raise PlanError(f"visit {beyond[0]}: the workload has only {count} visits")
    keep = np.zeros(count, np.bool_)
    keep[list(plan.keep)] = True
    return Decisions(np.array([(load.visit, _progress(load.gate)) for load in plan.loads], _LOAD), keep)


def _progress(gate: Gate | None) -> int:
    if gate is None:
        return 0
    return 2 * gate.visit + (1 if gate.edge == "start" else 2)


def evaluate(case: Case, plan: Plan, *, seed: int | None = None, factors: Factors | None = None) -> Evaluation:
    """Makespan, peak and busy times of `plan`; `seed` and `factors` as in `simulate`.

    Raises PlanError where the plan names unknown visits, DeviceError where it needs a load of unknown cost.
    """
    from cidl_sim.simulator import compiled  # numba takes a while to import

    decisions = encode(case, plan)
    _check_known(case, decisions.loads["visit"])
    makespan_s, peak, loader_s, executor_s = compiled.evaluate(*case.arrays, *decisions, *_noise(case, seed, factors))
    return Evaluation(makespan_s, case.baseline_bytes + peak, loader_s, executor_s)


def makespan_s(case: Case, plan: Plan, *, seed: int | None = None, factors: Factors | None = None) -> float:
    """The makespan of `plan` in seconds, inf if it cannot finish; the rest as in `evaluate`."""
    return evaluate(case, plan, seed=seed, factors=factors).makespan_s


def _check_known(case: Case, loads: Iterable[int]) -> None:
    if case.unknown:
        for visit in loads:
            if visit in case.unknown:
                raise case.unknown[visit]


def _noise(case: Case, seed: int | None, factors: Factors | None = None) -> Factors:
    """The factors of loads and executions, formed as the engine forms them."""
    count, noise = len(case.arrays.visits), case.noise if seed is not None else Noise()
    load = noise_factors(seed or 0, count, "load", noise.load)
    load *= run_factor(seed or 0, "load_drift", noise.load_drift)
    execute = noise_factors(seed or 0, count, "execute", noise.execute)
    execute *= run_factor(seed or 0, "execute_drift", noise.execute_drift)
    return (load, execute) if factors is None else (load * factors[0], execute * factors[1])


def keep_matrix(case: Case, patterns: Bools) -> Bools:
    """Patterns (policies, period, positions) as rows for `makespans`: round r of a stage retains pattern r % period.

    Weights stay from round to round and from stage to stage of a group, as in `policies.build.keep_positions`.
    """
    from cidl_sim.simulator import compiled_plain

    keep = np.empty((len(patterns), len(case.stays)), np.uint8)
    compiled_plain.fill_keep(case.stages, case.stays.view(np.uint8), patterns.view(np.uint8), keep)
    return keep.view(np.bool_)


def makespans(
    case: Case, keep: Bools, lookahead: Ints | int | None = None, seeds: Sequence[int] | None = None
) -> Floats:
    """Makespans in s, inf where a policy cannot finish, of the policies with deep prefetch that `keep` stands for.

    `keep` (policies, visits) says after which visits weights stay; loads are in order of execution, as early as memory
    allows. With a lookahead of n, for all policies or for each, a load also waits for the start of the visit n before
    its own, with 0 for the end of the visit before. The result has the shape (policies,), with seeds (policies, seeds).

    All cores are used. DeviceError where a policy needs a load of unknown cost.
    """
    keep = np.ascontiguousarray(keep)
    return _makespans(case, len(keep), lambda chunk: _kept_for_something(case, keep[chunk]), lookahead, seeds)


def evaluate_many(
    case: Case, keep: Bools, lookahead: Ints | int | None = None, threads: int | None = None
) -> NDArray[np.void]:
    """Of the policies of `makespans` records with the fields of `Evaluation`; rounds that come back are not skipped.

    `threads`: at the most so many, all cores if None.
    """
    keep = np.ascontiguousarray(keep)
    result = np.zeros((len(keep), 1), EVALUATION)
    run = _general_run(case, [_noise(case, None)])
    _in_chunks(case, len(keep), lambda chunk: _kept_for_something(case, keep[chunk]), lookahead, result, run, threads)
    result["peak_resident_bytes"] += case.baseline_bytes
    return result[:, 0]


def pattern_makespans(
    case: Case, patterns: Bools, lookahead: Ints | int | None = None, seeds: Sequence[int] | None = None
) -> Floats:
    """`makespans` of `keep_matrix(case, patterns)`, of which only a part exists at a time."""
    return _makespans(case, len(patterns), lambda chunk: keep_matrix(case, patterns[chunk]), lookahead, seeds)


def _makespans(
    case: Case,
    policies: int,
    rows: Callable[[slice], Bools],
    lookahead: Ints | int | None,
    seeds: Sequence[int] | None,
) -> Floats:
    factors = [_noise(case, seed) for seed in ([None] if seeds is None else seeds)]
    result = np.empty((policies, len(factors)))
    run = _plain_run(case, factors) if _is_plain(case) else _makespans_of(_general_run(case, factors))
    _in_chunks(case, policies, rows, lookahead, result, run)
    return result[:, 0] if seeds is None else result


def _in_chunks(
    case: Case,
    policies: int,
    rows: Callable[[slice], Bools],
    lookahead: Ints | int | None,
    result: NDArray[Any],
    run: _Run,
    threads: int | None = None,
) -> None:
    count = len(case.arrays.visits)
    ahead = np.ascontiguousarray(np.broadcast_to(count if lookahead is None else lookahead, policies), np.int64)

    def evaluate_chunk(first: int) -> None:
        chunk = slice(first, first + _CHUNK)
        keep = rows(chunk)
        if case.unknown:
            previous = case.arrays.visits["previous"]
            _check_known(case, np.flatnonzero((~keep[:, previous] | (previous < 0)).any(axis=0)))
        run(keep, ahead[chunk], result[chunk])

    # A few policies are done before threads have started.
    several = policies > _CHUNK and threads != 1
    with ThreadPoolExecutor(threads or os.cpu_count()) if several else nullcontext() as pool:
        list((pool.map if pool else map)(evaluate_chunk, range(0, policies, _CHUNK)))


def _kept_for_something(case: Case, keep: Bools) -> Bools:
    """Without the keeps of weights that are not visited again, which mean nothing."""
    never = case.arrays.visits["following"] < 0
    return keep & ~never if keep[:, never].any() else keep


_Run = Callable[[Bools, Ints, NDArray[Any]], None]


def _is_plain(case: Case) -> bool:
    device = case.arrays.device[0]
    return not device["is_fluid"] and not device["first_touch_bytes_per_s"]


def _general_run(case: Case, factors: Sequence[Factors]) -> _Run:
    from cidl_sim.simulator import compiled

    load, execute = (np.array([pair[side] for pair in factors]) for side in (0, 1))
    return lambda keep, ahead, result: compiled.evaluate_many(*case.arrays, keep, ahead, load, execute, result)


def _makespans_of(general: _Run) -> _Run:
    def run(keep: Bools, ahead: Ints, result: Floats) -> None:
        evaluations = np.zeros(result.shape, EVALUATION)
        general(keep, ahead, evaluations)
        result[:] = evaluations["makespan_s"]

    return run


def _plain_run(case: Case, factors: Sequence[Factors]) -> _Run:
    from cidl_sim.simulator import compiled_plain

    tables = [_plain_tables(case, *pair) for pair in factors]

    def run(keep: Bools, ahead: Ints, result: Floats) -> None:
        for number, (visits, stages) in enumerate(tables):
            compiled_plain.makespans(visits, stages, keep.view(np.uint8), ahead, result[:, number])

    return run


def _plain_tables(case: Case, load_factors: Floats, execute_factors: Floats) -> tuple[NDArray[np.void], ...]:
    visits = case.arrays.visits
    plain = np.empty(len(visits), _PLAIN_VISIT)
    plain["weight_bytes"], plain["previous"] = visits["weight_bytes"], visits["previous"]
    # Without room there is no makespan; how little there is does not matter, and might overflow.
    available_bytes, workspace_bytes = case.arrays.device[0]["available_bytes"], visits["workspace_bytes"]
    plain["room_bytes"] = np.where(workspace_bytes <= available_bytes, available_bytes - workspace_bytes, -1)
    plain["narrows"][:-1] = plain["room_bytes"][:-1] < plain["room_bytes"][1:]
    plain["narrows"][-1:] = False
    plain["load_s"] = (visits["load_fixed_s"] + visits["load_work_s"]) * load_factors
    plain["execute_s"] = visits["execute_s"] * execute_factors
    stages = case.stages.copy()
    stages["alike_from"] = [
        _alike_from(plain, *(int(stage[n]) for n in ("first", "end", "blocks"))) for stage in stages
    ]
    return plain, stages


def _alike_from(visits: NDArray[np.void], first: int, end: int, blocks: int) -> int:
    """The first visit of a round from which on every round of the stage has the costs of the one before it."""
    later, earlier = visits[first + blocks : end], visits[first : end - blocks]
    alike = later["previous"] == earlier["previous"] + blocks
    for name in ("load_s", "execute_s"):
        alike &= later[name] == earlier[name]
    unlike = np.flatnonzero(~alike)
    rounds = 1 if not len(unlike) else 2 + int(unlike[-1]) // blocks
    return first + rounds * blocks
