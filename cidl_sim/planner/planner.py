"""The best plan that is known for a workload on a device, and how good any plan can be at most.

Anytime: the policies come first, with the bounds that cost nothing. What they leave open goes to the relaxation, whose
bound often proves a policy's plan, then to an exact model where the case is small, and to the search.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.extras import missing_extra
from cidl_sim.core.feasibility import check_any_plan_fits
from cidl_sim.core.plan import Plan
from cidl_sim.core.progress import Progress, silent
from cidl_sim.core.timed import Timed, timed
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Workload
from cidl_sim.planner.bounds import best_bound_s
from cidl_sim.planner.evaluate import TOLERANCE, baseline, with_predictions
from cidl_sim.planner.exact import (
    Solved,
    instance_of,
    interval_columns,
    solve_by_constraints,
    solve_by_intervals,
    whole_units_s,
)
from cidl_sim.planner.relaxation import SOLVED_ROUNDS, columns_with, relaxed_bound_s, shortened, steady_bound_s
from cidl_sim.planner.search import search
from cidl_sim.policies.catalog import POLICIES

# Up to so many columns the interval model is solved within seconds; up to so many visits the constraint model.
INTERVAL_COLUMNS = 30_000
CONSTRAINT_VISITS = 40
# In how many pieces the bounds cut each visit, one after another: of a few rounds that stand for all, whose prices come
# from those rounds or from one that repeats for ever, and of the whole workload. Up to so many columns: some 5 seconds.
FEW_ROUNDS = partial(relaxed_bound_s, most_rounds=SOLVED_ROUNDS)
BOUNDS_OF_FEW = ((steady_bound_s, 1), (FEW_ROUNDS, 2), (steady_bound_s, 8), (FEW_ROUNDS, 4))
BOUNDS_OF_ALL = ((relaxed_bound_s, 1), (relaxed_bound_s, 2), (relaxed_bound_s, 4))
RELAXATION_COLUMNS = 120_000
# Of the time that is left: for bounds from a few rounds, and for the first search.
RELAXATION_SHARE = 0.6
SEARCH_SHARE = 0.6
# Policies from whose plans a search starts as well.
SPREADS = ("spread", "rotating")


@dataclass(frozen=True)
class Planned:
    """A plan with its predictions, its simulation, and the makespans in s of the policies beside it.

    `notes`: what was left out, a sentence each.
    """

    plan: Plan
    trace: Trace
    baselines: dict[str, float | None]
    notes: tuple[str, ...] = ()


def best_plan(
    workload: Workload,
    device: DeviceProfile,
    *,
    time_limit_s: float = 10.0,
    on_step: Progress = silent,
) -> Planned:
    """The best plan found within about `time_limit_s`, never worse than any policy's.

    InfeasibleError if no plan fits the device's memory.
    """
    on_step(0, 4, "policies")
    planning = _Planning(timed(workload, device), time.monotonic() + time_limit_s)
    on_step(1, 4, "relaxation")
    planning.relax(RELAXATION_SHARE * planning.left_s())
    on_step(2, 4, "exact model")
    with planning.noting_what_is_missing():
        planning.solve(planning.left_s())
    on_step(3, 4, "search")
    planning.search(SEARCH_SHARE * planning.left_s())
    planning.relax(planning.left_s(), whole=True)
    planning.search(planning.left_s())
    on_step(4, 4, "")
    planning.say_what_was_left_out()
    found = with_predictions(planning.plan, workload, device, planning.bound_s)
    return Planned(*found, planning.baselines, tuple(planning.notes))


class _Planning:
    """What is known so far: a plan, its makespan, a bound, and until when there is time."""

    def __init__(self, priced: Timed, deadline_s: float) -> None:
        self._priced = priced
        self._deadline_s = deadline_s
        self._searches = 0
        self.notes: list[str] = []
        check_any_plan_fits(priced.workload, priced.device.memory_limit_bytes, priced.device.baseline_bytes)
        self.baselines: dict[str, float | None] = {}
        self._spreads: list[Plan] = []
        best: tuple[float, str, Plan] | None = None
        for policy in POLICIES:
            found = baseline(priced, policy)
            self.baselines[policy] = None if found is None else found[0]
            if found is not None:
                row = found[0], policy, found[1]
                best = row if best is None or row[:2] < best[:2] else best
                self._spreads += [found[1]] if policy in SPREADS else []
        assert best is not None  # without a look ahead and keeps every workload fits whose blocks do
        self.best_s, _, self.plan = best
        self.bound_s = best_bound_s(priced, self.best_s)
        self._instance = instance = instance_of(priced)
        # The models load one block after another; with several channels a small block could pass a large one.
        self._in_one_line = priced.device.loader.channels == 1 or instance.has_equal_loads

    def left_s(self) -> float:
        """Seconds left; none once the plan is proven optimal."""
        return 0.0 if self._is_proven else max(0.0, self._deadline_s - time.monotonic())

    @property
    def _is_proven(self) -> bool:
        return self.best_s <= self.bound_s * (1 + TOLERANCE)

    def relax(self, seconds: float, *, whole: bool = False) -> None:
        """Bounds from prices: of a few rounds that stand for the others, or of the whole workload."""
        deadline_s = time.monotonic() + min(seconds, self.left_s())
        if seconds <= 0:
            return
        if not self._in_one_line:
            self.notes = ["several channels and blocks that differ: only the simple bounds hold"]
            return
        whole = whole or columns_with(self._priced, 2) <= RELAXATION_COLUMNS
        solved = self._priced if whole else shortened(self._priced, SOLVED_ROUNDS)
        if not whole and columns_with(solved, 1) > RELAXATION_COLUMNS:
            visits = len(solved.workload.visits)
            self.notes = [f"{visits} visits in {SOLVED_ROUNDS} rounds: too many for the better bounds"]
        for bound_s, pieces in BOUNDS_OF_ALL if whole else BOUNDS_OF_FEW:
            # Of a repeating round the ends are solved in two pieces at most.
            columns = columns_with(solved, min(2, pieces) if bound_s is steady_bound_s else pieces)
            if self.left_s() > 0 and time.monotonic() < deadline_s and columns <= RELAXATION_COLUMNS:
                self._note(Solved(bound_s(self._priced, pieces=pieces, deadline_s=deadline_s)))

    def solve(self, seconds: float) -> None:
        """The exact model that suits the case, if one does."""
        if seconds <= 0 or not self._in_one_line:
            return
        if self._instance.is_exact:
            columns = interval_columns(self._priced)
            if columns is not None and columns <= INTERVAL_COLUMNS:
                self._note(solve_by_intervals(self._priced, time_limit_s=seconds))
                return
        if len(self._priced.workload.visits) <= CONSTRAINT_VISITS:
            self._note(solve_by_constraints(self._priced, time_limit_s=seconds, known=self.plan))

    def search(self, seconds: float) -> None:
        """Annealing from the plan known, an even spread, and one that rotates; each time with other chances."""
        if seconds <= 0:
            return
        found, found_s = search(
            self._priced,
            [self.plan, *self._spreads],
            known_s=self.best_s,
            deadline_s=time.monotonic() + seconds,
            bound_s=self.bound_s,
            seed=self._searches,
        )
        self._searches += 1
        if found is not None:
            self.plan, self.best_s = found, found_s

    def say_what_was_left_out(self) -> None:
        """Add to the notes what a longer time limit would have tried."""
        if not self._is_proven and not self._searches:
            self.notes.append("the time limit was up before anything but the policies was tried")

    @contextmanager
    def noting_what_is_missing(self) -> Iterator[None]:
        """Go on without a model whose solver is not installed, and say so."""
        try:
            yield
        except ModuleNotFoundError as problem:
            missing = missing_extra(problem)
            if missing is None:
                raise
            self.notes.append(f"the exact model of small workloads was left out: {missing}")

    def _note(self, solved: Solved | None) -> None:
        if solved is None:
            return
        self.bound_s = max(self.bound_s, self._in_units(solved.bound_s))
        if solved.plan is not None and solved.makespan_s is not None and solved.makespan_s < self.best_s:
            self.plan, self.best_s = solved.plan, solved.makespan_s

    def _in_units(self, bound_s: float) -> float:
        """Where all durations are whole units, so is every makespan that the bounds are about."""
        return whole_units_s(self._instance, bound_s) if self._instance.is_exact else bound_s
