"""Many plans on one device, without a trace: compiled, and equal to the engine.

`compile_case` turns a workload and a device into arrays once; after that a plan costs microseconds instead of
milliseconds. Every feature of the engine is there but early ends of stages and limits that change during a run. A plan
that cannot finish within the memory has the makespan inf.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cidl_sim.core.costs import Cost, execute_cost, load_cost
from cidl_sim.core.device import DeviceProfile, Noise
from cidl_sim.core.errors import DeviceError, PlanError
from cidl_sim.core.plan import Gate, Plan
from cidl_sim.core.workload import Workload
from cidl_sim.simulator.engine import Factors
from cidl_sim.simulator.noise import noise_factors, run_factor

_RATES = ("slowdown_while_executing", "slowdown_while_loading", "first_touch_bytes_per_s")

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


# What the compiled code reads, in seconds and bytes. Weights are numbered; `following` is the next visit of the same
# weights or -1; loads cost what a cold one does for the first visit of its weights.
_VISIT = np.dtype(
    [(name, np.int64) for name in ("weights", "weight_bytes", "workspace_bytes", "following")]
    + [(name, np.float64) for name in ("load_fixed_s", "load_work_s", "execute_s")]
)
# `available_bytes` is the limit less the baseline; memory without a cost of its first touch has the rate 0.
_DEVICE = np.dtype(
    [(name, np.int64) for name in ("available_bytes", "channels", "is_fluid", "weights_count")]
    + [(name, np.float64) for name in _RATES]
)
_THERMAL = np.dtype([("after_s", np.float64), ("factor", np.float64)])
# A load waits for a progress: 2v once visit v is the current one, 2v + 1 once it runs; 0 is no gate.
_LOAD = np.dtype([("visit", np.int64), ("gate", np.int64)])


class Arrays(NamedTuple):
    """A workload on a device as the compiled code reads it: one record, then records by visit and by thermal step."""

    device: NDArray[np.void]
    visits: NDArray[np.void]
    thermal: NDArray[np.void]


@dataclass(frozen=True)
class Case:
    """A workload on a device. `unknown` holds the visits whose load the profile has no cost for, with the reason."""

    arrays: Arrays
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
                -1 if following is None else following,
                cost.fixed_s,
                cost.work_s,
                execute_s[id(visit.block)],
            )
            for visit, following, cost in zip(workload.visits, workload.next_same_weights, loads, strict=True)
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
    return Case(Arrays(np.array([figures], _DEVICE), visits, thermal), device.baseline_bytes, device.noise, unknown)


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
