"""What the compiled evaluators read: a workload priced on a device, and a plan, as records in arrays.

Importing this brings no numba along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from cidl_sim.core.device import Noise
from cidl_sim.core.errors import DeviceError, PlanError
from cidl_sim.core.plan import Gate, Plan
from cidl_sim.core.timed import Bools, Floats, Ints, Timed
from cidl_sim.core.trace import Trace
from cidl_sim.simulator.noise import Factors, cost_factors

__all__ = ["Bools", "Floats", "Ints"]

Element = Any  # one element of an array of one of the types below, as compiled code sees it
Records = NDArray[np.void]

# In seconds and bytes. Weights are numbered; `previous` and `following` are the visits of the same weights before and
# after, or -1; loads cost what a cold one does for the first visit of its weights.
_VISIT = np.dtype(
    [(name, np.int64) for name in ("weights", "weight_bytes", "workspace_bytes", "previous", "following")]
    + [(name, np.float64) for name in ("load_fixed_s", "load_work_s", "execute_fixed_s", "execute_work_s")]
)
# `available_bytes` is the limit less the baseline; memory without a cost of its first touch has the rate 0.
_RATES = ("slowdown_while_executing", "slowdown_while_loading", "first_touch_bytes_per_s")
_DEVICE = np.dtype(
    [(name, np.int64) for name in ("available_bytes", "channels", "is_fluid", "weights_count")]
    + [(name, np.float64) for name in _RATES]
)
_THERMAL = np.dtype([("after_s", np.float64), ("factor", np.float64)])
STAGE = np.dtype([(name, np.int64) for name in ("first", "end", "blocks", "alike_from")])
# A load waits for a progress: 2v once visit v is the current one, 2v + 1 once it runs; 0 is no gate.
LOAD = np.dtype([("visit", np.int64), ("gate", np.int64)])
# Of many policies, what `Evaluation` says of one.
EVALUATION = np.dtype(
    [("makespan_s", np.float64), ("peak_resident_bytes", np.int64)]
    + [(name, np.float64) for name in ("loader_busy_s", "executor_busy_s", "first_start_s")]
)


@dataclass(frozen=True)
class Arrays:
    """A workload on a device: one record in `device`, then records by visit, by thermal step and by stage.

    `stays`: after which visits weights may stay for the next visit in the same group. `unknown`: the visits whose load
    the profile has no cost for, with the reason.
    """

    device: Records
    visits: Records
    thermal: Records
    stages: Records
    stays: Bools
    baseline_bytes: int
    noise: Noise
    unknown: Mapping[int, DeviceError] = field(default_factory=dict)

    @cached_property
    def no_noise(self) -> Factors:
        """The factors of costs without a seed."""
        return cost_factors(self.noise, None, len(self.visits))

    @property
    def compiled(self) -> tuple[Records, Records, Records]:
        """Device, visits and thermal steps, as the compiled code takes them."""
        return self.device, self.visits, self.thermal


class Decisions(NamedTuple):
    """A plan as arrays: its loads in start order, and for each visit whether its weights stay."""

    loads: Records
    keep: Bools


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `simulate` would have found: the makespan (inf if infeasible), the peak, and busy times.

    `first_start_s`: when the first visit started.
    """

    makespan_s: float
    peak_resident_bytes: int
    loader_busy_s: float
    executor_busy_s: float
    first_start_s: float

    @property
    def stalls_s(self) -> float:
        """Seconds in which the executor waits after its first visit began."""
        return self.makespan_s - self.executor_busy_s - self.first_start_s


def evaluation_of(trace: Trace) -> Evaluation:
    """The figures of a simulation that is at hand."""
    return Evaluation(
        trace.makespan_s,
        trace.peak_resident_bytes,
        trace.loader_busy_s,
        trace.executor_busy_s,
        min((span.start_s for span in trace.of("execute")), default=0.0),
    )


_KNOWN: WeakKeyDictionary[Timed, Arrays] = WeakKeyDictionary()


def arrays_of(priced: Timed) -> Arrays:
    """The arrays for `evaluate` and `makespans`. DeviceError if the profile has no cost for an execution."""
    if priced not in _KNOWN:
        _KNOWN[priced] = _arrays_of(priced)
    return _KNOWN[priced]


def _arrays_of(priced: Timed) -> Arrays:
    workload, device = priced.workload, priced.device
    visits = np.empty(len(workload.visits), _VISIT)
    for name in visits.dtype.names or ():
        visits[name] = getattr(priced, name)
    figures = (
        priced.room_bytes,
        device.loader.channels,
        priced.is_fluid,
        int(priced.weights.max()) + 1,
        device.loader.slowdown_while_executing,
        device.executor.slowdown_while_loading,
        device.loader.first_touch_bytes_per_s or 0.0,
    )
    firsts = workload.first_visit_of_stage
    stages = [(firsts[s], firsts[s + 1], len(stage.blocks), 0) for s, stage in enumerate(workload.stages)]
    return Arrays(
        device=np.array([figures], _DEVICE),
        visits=visits,
        thermal=np.array([(step.after_s, step.factor) for step in device.thermal], _THERMAL),
        stages=np.array(stages, STAGE),
        stays=priced.stays,
        baseline_bytes=device.baseline_bytes,
        noise=device.noise,
        unknown=priced.unknown_loads,
    )


def encode(arrays: Arrays, plan: Plan) -> Decisions:
    """`plan` as arrays. PlanError where it names visits that the workload does not have."""
    count = len(arrays.visits)
    loads = loads_of(plan, count)
    keep = np.zeros(count, np.bool_)
    keep[list(plan.keep)] = True
    return Decisions(np.array(loads, LOAD), keep)


def loads_of(plan: Plan, visits: int) -> list[tuple[int, int]]:
    """The loads of `plan`: visit, and the progress that it waits for. PlanError for what is beyond so many `visits`."""
    named = [load.visit for load in plan.loads] + [load.gate.visit for load in plan.loads if load.gate]
    beyond = [number for number in (*named, *plan.keep) if number >= visits]
    if beyond:
        raise PlanError(f"visit {beyond[0]}: the workload has only {visits} visits")
    return [(load.visit, _progress(load.gate)) for load in plan.loads]


def _progress(gate: Gate | None) -> int:
    if gate is None:
        return 0
    return 2 * gate.visit + (1 if gate.edge == "start" else 2)
