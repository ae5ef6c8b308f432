"""Makespans without a trace, by the evaluator that is done first: they agree to the last bit.

Compiled code has to wait for numba. It is worth that wait once whatever has been evaluated without it took as long.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.plan import Load, Plan
from cidl_sim.core.timed import Timed
from cidl_sim.simulator import batch, engine, plain
from cidl_sim.simulator.arrays import Evaluation, arrays_of, evaluation_of

# On two common cores: a visit in plain Python and in the engine, and numba until its first result.
PLAIN_S, ENGINE_S, COMPILED_S = 3e-6, 1e-4, 0.6


class _Patience:
    """Knows what evaluating has taken in this process so far without compiled code, by the number of visits."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def is_over(self, priced: Timed, plans: int) -> bool:
        """Whether so many more plans are for compiled code; if not, they count as evaluated from now on."""
        visit_s = PLAIN_S if priced.is_plain else ENGINE_S
        self._seconds += visit_s * plans * len(priced.workload.visits)
        return self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether compiled code is there already, or worth its wait."""
        return self._seconds > COMPILED_S


_PATIENCE = _Patience()


def expect(priced: Timed, plans: int) -> None:
    """Say that so many plans are going to be evaluated: compiled code is then there from the first one on."""
    _PATIENCE.is_over(priced, plans)


def evaluate(priced: Timed, plan: Plan) -> Evaluation:
    """Makespan, peak and busy times of `plan` without noise; the makespan is inf where it cannot finish.

    Raises PlanError where the plan names unknown visits, DeviceError where a cost is unknown.
    """
    if _PATIENCE.is_over(priced, 1):
        return batch.evaluate(arrays_of(priced), plan)
    if priced.is_plain:
        return plain.evaluate(priced, plan)
    try:
        trace = engine.simulate(priced.workload, priced.device, plan)
    except InfeasibleError:
        return Evaluation(math.inf, priced.device.baseline_bytes, 0.0, 0.0, 0.0)
    return evaluation_of(trace)


def makespan_s(priced: Timed, plan: Plan, seed: int | None = None) -> float:
    """The makespan of `plan` in seconds, inf where it cannot finish; without a seed that without noise.

    The rest as in `evaluate`.
    """
    if _PATIENCE.is_over(priced, 1):
        return batch.makespan_s(arrays_of(priced), plan, seed=seed)
    if priced.is_plain and seed is None:
        return plain.evaluate(priced, plan).makespan_s
    try:
        return engine.makespan_s(priced.workload, priced.device, plan, seed=seed)
    except InfeasibleError:
        return math.inf


def checked_makespan_s(priced: Timed, plan: Plan) -> float:
    """`makespan_s`, but InfeasibleError, which names the visit, where the plan cannot finish."""
    seconds = makespan_s(priced, plan)
    return seconds if seconds < math.inf else engine.makespan_s(priced.workload, priced.device, plan)


def deep_makespan_s(priced: Timed, keep: Collection[int]) -> float:
    """The makespan with loads in order and as early as memory allows, if the visits in `keep` keep their weights.

    inf where that does not fit. DeviceError where a cost is unknown.
    """
    if priced.is_plain and not _PATIENCE.has_ended:
        return plain.deep_makespan_s(priced, keep)
    if _PATIENCE.is_over(priced, 1):
        row = np.zeros((1, len(priced.workload.visits)), np.bool_)
        row[0, list(keep)] = True
        return float(batch.evaluate_many(arrays_of(priced), row)["makespan_s"][0])
    try:
        return engine.makespan_s(priced.workload, priced.device, _deep_plan(priced, set(keep)))
    except InfeasibleError:
        return math.inf


def _deep_plan(priced: Timed, keep: set[int]) -> Plan:
    workload, device = priced.workload, priced.device
    previous = workload.previous_same_weights
    return Plan(
        policy="tried",
        workload_name=workload.name,
        workload_sha256=workload.sha256,
        device_name=device.name,
        device_sha256=device.sha256,
        memory_limit_bytes=device.memory_limit_bytes,
        loads=tuple(Load(visit=visit.number) for visit in workload.visits if previous[visit.number] not in keep),
        keep=tuple(sorted(keep)),
    )
