"""Two exact models of "which weights stay, and in which order are the others loaded".

Both know one loader, one executor, a fixed order of visits, and memory: a loaded block takes it from its load's start
to its visit's end, a kept one from the end of the visit before of the same weights. Durations are whole units,
rounded down where they are not, so a model's bound holds for the exact ones (and on devices with contention, first
touch, several channels or heat, which only add time; see `bounds`). What a model decides, keeps and an order of loads,
needs no times: the engine starts everything as early as it can, with the exact durations, and that makespan counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cidl_sim.core.plan import Load, Plan
from cidl_sim.core.timed import Timed
from cidl_sim.planner.rows import Rows
from cidl_sim.policies.build import build_plan
from cidl_sim.simulator.engine import simulate
from cidl_sim.simulator.quick import makespan_s

if TYPE_CHECKING:
    from scipy.optimize import LinearConstraint

# Units of progress in the interval model, the finest first; fewer make it smaller and its bound weaker.
UNITS_TRIED = (2000, 1000, 500, 250, 125)
MOST_COLUMNS = 400_000
# The constraint model does not grow with the number of units.
CONSTRAINT_UNITS = 1_000_000
# Durations in files are decimal; finer than that is rounding.
_FINEST = 10**7


@dataclass(frozen=True)
class Instance:
    """What is priced in whole units of time, by visit: what the models see of it."""

    priced: Timed
    unit_s: float
    is_exact: bool  # no duration was rounded
    executions: tuple[int, ...]
    loads: tuple[int, ...]

    @property
    def previous(self) -> tuple[int | None, ...]:
        """The visit of the same weights before each visit."""
        return self.priced.workload.previous_same_weights

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The bytes of each visit's weights."""
        return tuple(self.priced.weight_bytes.tolist())

    @cached_property
    def workspaces(self) -> tuple[int, ...]:
        """The bytes of each visit's workspace."""
        return tuple(self.priced.workspace_bytes.tolist())

    @property
    def room(self) -> int:
        """For weights and workspace, in bytes; no block has weights where there is none."""
        return max(1, self.priced.room_bytes)

    @property
    def has_equal_loads(self) -> bool:
        """Whether all loads are alike: in order of execution nothing is lost then, and none has to pass another."""
        return len(set(zip(self.sizes, self.loads, strict=True))) == 1

    @property
    def most_ahead(self) -> int:
        """How many visits ahead a load can start at most: in order of execution, all up to it lie in memory then.

        Loads being alike, and no weights coming twice within so many visits; otherwise no limit.
        """
        slots = (self.room - min(self.workspaces)) // max(1, self.sizes[0])
        distances = [v - before for v, before in enumerate(self.previous) if before is not None]
        count = len(self.loads)
        return slots - 1 if self.has_equal_loads and min(distances, default=count) >= slots else count


@dataclass(frozen=True)
class Solved:
    """What a model found: a bound in s, and a plan with its makespan in s where it found one.

    `model_s` is the makespan that the model itself gives the plan; on an exact instance the engine agrees.
    """

    bound_s: float
    plan: Plan | None = None
    makespan_s: float | None = None
    model_s: float | None = None


def instance_of(priced: Timed, most_units: int = UNITS_TRIED[0]) -> Instance:
    """The instance in the largest unit that divides all durations; rounded down beyond `most_units` of execution."""
    executions, loads = priced.least_execute_s, priced.least_load_s
    unit = _common_unit([*executions, *loads])
    total = float(executions.sum())
    is_exact = unit > 0 and total <= most_units * unit
    if not is_exact:
        unit = total / most_units or float(loads.max()) / most_units or 1.0
    to_units = round if is_exact else math.floor
    whole = [[to_units(seconds / unit) for seconds in kind] for kind in (executions, loads)]
    return Instance(priced, unit, is_exact, executions=tuple(whole[0]), loads=tuple(whole[1]))


def solve_by_intervals(priced: Timed, *, time_limit_s: float = 10.0) -> Solved | None:
    """The progress-indexed interval model, by HiGHS; None if it is too large even in coarse units.

    Time is the executor's progress u, in units of work done, so nothing needs a big constant and the relaxation is
    strong. Visit v is either kept (r_v) or loaded over progress i..j (z_vij), between the end of the visit before of
    its weights and its own start, at the price of l_v - (j - i) units in which the executor stands still:

        minimise  sum z_vij (l_v - (j - i))      with, for every visit v and every unit u,
        sum_ij z_vij + r_v = 1,      sum of z that span u <= 1,
        sum of s_v over what is kept or loaded at u, or on its way  +  s + w of the visit that runs  <=  M

    and no load spans the point of progress at which another one is loaded while the executor stands still. A visit that
    takes no time has one unit of progress in which nothing is loaded, so that its memory counts too.
    """
    from scipy.optimize import Bounds, milp

    model = _model_of(priced)
    if model is None:
        return None
    instance, executions = model.instance, sum(model.instance.executions)
    found = milp(
        model.costs,
        constraints=[model.follow(), *model.pass_not()],
        bounds=Bounds(0, model.upper_bounds()),
        integrality=model.is_whole,
        options={"time_limit": time_limit_s},
    )
    bound_s = (executions + _whole(found.mip_dual_bound)) * instance.unit_s
    if found.x is None:
        return Solved(bound_s)
    kept, order = model.decisions(found.x)
    return _evaluated(priced, kept, order, bound_s, (executions + round(found.fun)) * instance.unit_s)


def interval_columns(priced: Timed) -> int | None:
    """About how many columns the interval model has; None if it is too large."""
    model = _model_of(priced)
    return None if model is None else len(model.costs)


def _model_of(priced: Timed) -> _IntervalModel | None:
    """The model in the finest units in which it is not too large."""
    for most_units in UNITS_TRIED:
        model = _IntervalModel(instance_of(priced, most_units))
        if not model.is_too_large:
            return model
    return None


def whole_units_s(instance: Instance, bound_s: float) -> float:
    """The bound in s, up to whole units of an exact instance; what adding up durations costs is far less than one."""
    return math.ceil(bound_s / instance.unit_s - 1e-6) * instance.unit_s


def _whole(bound: float | None) -> int:
    """A bound on stalls, which are whole units; what HiGHS tolerates adds up to far less than one."""
    if bound is None or not math.isfinite(bound):
        return 0
    return max(0, math.ceil(bound - max(1e-3, 1e-5 * abs(bound))))


def solve_by_constraints(priced: Timed, *, time_limit_s: float = 10.0, known: Plan | None = None) -> Solved:
    """The same decisions over wall time, by CP-SAT: good up to some 40 visits, and however fine the units are.

    Executions in order, optional intervals for loads that must not overlap, intervals for what is in memory, whose
    sizes together never exceed it. Two cuts speed it up: memory while a visit runs, and the loader's own total.
    The solver starts from the plan that is `known`.
    """
    from ortools.sat.python import cp_model

    instance = instance_of(priced, CONSTRAINT_UNITS)
    count = len(instance.loads)
    model = cp_model.CpModel()
    # Where visits take no time, they take one tick of so many that all of them together are less than a unit.
    ticks = count + 1 if 0 in instance.executions else 1
    executions = [max(1, ticks * length) if ticks > 1 else length for length in instance.executions]
    lengths = [ticks * length for length in instance.loads]
    # The least workspace is always reserved, whether a visit runs or the executor waits.
    reserved = min(instance.workspaces)
    horizon = sum(executions) + sum(lengths)
    starts = [model.new_int_var(0, horizon, f"start{v}") for v in range(count)]
    ends = [start + length for start, length in zip(starts, executions, strict=True)]
    for v in range(1, count):
        model.add(starts[v] >= ends[v - 1])
    kept = [model.new_bool_var(f"kept{v}") for v in range(count)]
    begins = [model.new_int_var(0, horizon, f"load{v}") for v in range(count)]
    loads, held, sizes = [], [], []
    for v, before in enumerate(instance.previous):
        loaded = kept[v].negated()
        loads.append(model.new_optional_interval_var(begins[v], lengths[v], begins[v] + lengths[v], loaded, ""))
        model.add(begins[v] + lengths[v] <= starts[v]).only_enforce_if(loaded)
        since = model.new_int_var(0, horizon, f"since{v}")
        if before is None:
            model.add(kept[v] == 0)
        else:
            model.add(begins[v] >= ends[before])
            model.add(since == ends[before]).only_enforce_if(kept[v])
        model.add(since == begins[v]).only_enforce_if(loaded)
        length = model.new_int_var(0, horizon, f"length{v}")
        held.append(model.new_interval_var(since, length, ends[v], ""))
        sizes.append(instance.sizes[v])
        held.append(model.new_interval_var(starts[v], executions[v], ends[v], ""))
        sizes.append(instance.workspaces[v] - reserved)
    model.add_no_overlap(loads)
    model.add_cumulative(held, sizes, instance.room - reserved)
    for p in range(count):
        beside = instance.room - instance.sizes[p] - instance.workspaces[p]
        model.add(sum(instance.sizes[v] * kept[v] for v in _kept_across(instance, p)) <= beside)
    model.add(ends[-1] >= sum(length * (1 - kept[v]) for v, length in enumerate(lengths)) + executions[-1])
    model.minimize(ends[-1])
    if known is not None:
        for v, before in enumerate(instance.previous):
            model.add_hint(kept[v], int(before in known.keep))
        for span in simulate(priced.workload, priced.device, known).spans:
            if span.operation in ("load", "execute"):
                variables = begins if span.operation == "load" else starts
                model.add_hint(variables[span.visit], math.ceil(span.start_s / instance.unit_s * ticks))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds, solver.parameters.num_workers = time_limit_s, 2
    status = solver.solve(model)
    bound_s = solver.best_objective_bound // ticks * instance.unit_s
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Solved(max(0.0, bound_s))
    chosen = [v for v in range(count) if solver.value(kept[v])]
    loaded_visits = [v for v in range(count) if v not in set(chosen)]
    order = sorted(loaded_visits, key=lambda v: (solver.value(begins[v]), v))
    return _evaluated(priced, chosen, order, bound_s, solver.value(ends[-1]) // ticks * instance.unit_s)


def _kept_across(instance: Instance, p: int) -> list[int]:
    """The visits whose weights, if kept, lie in memory while visit p runs."""
    return [v for v, before in enumerate(instance.previous) if before is not None and before < p < v]


def _evaluated(priced: Timed, kept: Sequence[int], order: Sequence[int], bound_s: float, model_s: float) -> Solved:
    """What the engine makes of a model's decisions; without a plan where the engine's rules are stricter."""
    keep = {before for v in kept if (before := priced.workload.previous_same_weights[v]) is not None}
    plan = build_plan("planned", priced.workload, priced.device, [Load(visit=v) for v in order], keep)
    seconds = makespan_s(priced, plan)
    return Solved(bound_s) if seconds == math.inf else Solved(bound_s, plan, seconds, model_s)


class _IntervalModel:
    """Columns and rows of `solve_by_intervals`.

    Columns: r of every visit, all z, then what is kept, loaded or on its way at each unit, and whether the loader is
    busy there: every z and r changes these two at its ends alone, so the matrix stays sparse.
    """

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._count = len(instance.loads)
        self._most_ahead = instance.most_ahead
        lengths = np.maximum(1, instance.executions)
        self._ends = np.cumsum(lengths)
        self._starts = self._ends - lengths
        self._units = int(self._ends[-1])
        # Units of work done before each point of progress: a visit without length has a unit, but does no work.
        work = np.repeat(np.minimum(1, instance.executions), lengths)
        self._done = np.concatenate([[0], np.cumsum(work)])
        gaps = [int(self._starts[v]) - self._first_place(v) for v in range(self._count)]
        size = sum((gap + 1) * (min(gap, length) + 1) for gap, length in zip(gaps, instance.loads, strict=True))
        self.is_too_large = size > MOST_COLUMNS
        if self.is_too_large:
            return
        found = [self._places(v) for v in range(self._count)]
        self._visits = np.repeat(np.arange(self._count), [len(i) for i, _ in found])
        self._from = np.concatenate([i for i, _ in found])
        self._to = np.concatenate([j for _, j in found])
        stalls = np.array(instance.loads)[self._visits] - (self._done[self._to] - self._done[self._from])
        self.costs = np.concatenate([np.zeros(self._count), stalls, np.zeros(2 * self._units)])
        self.is_whole = np.concatenate([np.ones(self._count + len(stalls)), np.zeros(2 * self._units)])

    def _first_place(self, v: int) -> int:
        """The progress from which on visit v can be loaded."""
        before = self.instance.previous[v]
        first = 0 if before is None else int(self._ends[before])
        return max(first, int(self._starts[max(0, v - self._most_ahead)]))

    def _places(self, v: int) -> tuple[NDArray[np.int64], ...]:
        """All (i, j) of visit v: within its gap, with no more work done in between than its load takes."""
        last, length = int(self._starts[v]), self.instance.loads[v]
        begins = np.arange(self._first_place(v), last + 1)
        if length == 0:
            return begins, begins
        furthest = np.searchsorted(self._done[: last + 1], self._done[begins] + length, side="right") - 1
        counts = furthest - begins + 1
        i = np.repeat(begins, counts)
        within = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
        return i, i + within

    def upper_bounds(self) -> NDArray[np.float64]:
        """Of r, z, memory in shares of the room, and the loader."""
        instance = self.instance
        can_keep = [float(before is not None) for before in instance.previous]
        beside = instance.room - np.array(instance.sizes) - np.array(instance.workspaces)
        memory = np.repeat(beside / instance.room, np.maximum(1, instance.executions))
        return np.concatenate([can_keep, np.ones(len(self._from)), np.maximum(0.0, memory), np.ones(self._units)])

    def follow(self) -> LinearConstraint:
        """Each visit is kept or loaded once, and memory and the loader follow from that."""
        from scipy.optimize import LinearConstraint

        count, units, z = self._count, self._units, self._count + np.arange(len(self._from))
        sizes = np.array(self.instance.sizes) / self.instance.room
        memory, loader = count + len(z) + np.arange(units), count + len(z) + units + np.arange(units)
        kept = np.array([v for v, before in enumerate(self.instance.previous) if before is not None], dtype=int)
        kept_from = self._ends[[self.instance.previous[v] or 0 for v in kept]] if len(kept) else kept
        rows = Rows(count + len(z) + 2 * units)
        rows.add(np.arange(count), np.arange(count), 1.0)
        rows.add(self._visits, z, 1.0)
        # memory[u] - memory[u - 1] = what comes at u - what is executed from u on; the same for the loader.
        for level, columns, came, left, weights in (
            (memory, kept, kept_from, self._starts[kept], sizes[kept]),
            (memory, z, self._from, self._starts[self._visits], sizes[self._visits]),
            (loader, z, self._from, self._to, np.ones(len(z))),
        ):
            first_row = count + (units if level is loader else 0)
            moves = came < left
            inside = moves & (left < units)
            rows.add(first_row + came[moves], columns[moves], -weights[moves])
            rows.add(first_row + left[inside], columns[inside], weights[inside])
        for level, first_row in ((memory, count), (loader, count + units)):
            rows.add(first_row + np.arange(units), level, 1.0)
            rows.add(first_row + np.arange(1, units), level[:-1], -1.0)
        equal = np.concatenate([np.ones(count), np.zeros(2 * units)])
        return LinearConstraint(rows.matrix(len(equal)), equal, equal)

    def pass_not(self) -> list[LinearConstraint]:
        """No load spans a point at which another load passes entirely while the executor stands still."""
        from scipy.optimize import LinearConstraint

        z = self._count + np.arange(len(self._from))
        rows, number = Rows(len(self.costs)), 0
        if not self.instance.has_equal_loads:
            order = np.argsort(self._from, kind="stable")
            for stood in np.flatnonzero((self._from == self._to) & (self.costs[z] > 0)):
                point = self._from[stood]
                begun = order[: np.searchsorted(self._from[order], point)]
                spanning = begun[self._to[begun] > point]
                if len(spanning):
                    rows.add(np.full(len(spanning), number), z[spanning], 1.0)
                    rows.add(np.array([number]), z[[stood]], 1.0)
                    number += 1
        return [LinearConstraint(rows.matrix(number), -np.inf, 1.0)] if number else []

    def decisions(self, x: NDArray[np.float64]) -> tuple[list[int], list[int]]:
        """The visits that find their weights kept, and the others in the order of their loads' starts."""
        kept = [v for v in range(self._count) if x[v] > 0.5]
        taken = np.flatnonzero(x[self._count : self._count + len(self._from)] > 0.5)
        order = sorted((int(self._from[c]), int(self._to[c]), int(self._visits[c])) for c in taken)
        loaded = [v for _, _, v in order]
        return kept, sorted(loaded) if self.instance.has_equal_loads else loaded


def _common_unit(seconds: Sequence[float]) -> float:
    """The largest unit that all durations are multiples of; 0 if they are no short decimals or all zero."""
    positive = [s for s in seconds if s > 0]
    fractions = [Fraction(s).limit_denominator(_FINEST) for s in positive]
    if not positive or any(abs(float(f) - s) > 1e-9 * s for f, s in zip(fractions, positive, strict=True)):
        return 0.0
    denominator = math.lcm(*(f.denominator for f in fractions))
    return math.gcd(*(f.numerator * (denominator // f.denominator) for f in fractions)) / denominator
