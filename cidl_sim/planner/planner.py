"""The best plan that is known for a workload on a device, and how good any plan can be at most.

Anytime: the policies come first, with the bounds that cost nothing. What they leave open goes to the interval model
where that is small, else to a local search, to the model's relaxation for a better bound, and to the search again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import Plan, check_any_plan_fits
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Workload
from cidl_sim.planner.bounds import execution_s, lower_bound_s
from cidl_sim.planner.evaluate import TOLERANCE, baseline_makespans, with_predictions
from cidl_sim.planner.exact import Solved, instance_of, interval_columns, solve_by_intervals
from cidl_sim.planner.search import positions_of, search
from cidl_sim.policies.catalog import make_plan

# Up to so many columns the interval model comes before the search.
QUICK_COLUMNS = 30_000
# Of the time that is left, for the first search.
SEARCH_SHARE = 0.3
OnStep = Callable[[int, int, str], None]  # done, total, what


@dataclass(frozen=True)
class Planned:
    """A plan with its predictions, its simulation, and the makespans in s of the policies beside it."""

    plan: Plan
    trace: Trace
    baselines: dict[str, float | None]


def best_plan(
    workload: Workload,
    device: DeviceProfile,
    *,
    time_limit_s: float = 10.0,
    on_step: OnStep = lambda done, total, what: None,
) -> Planned:
    """The best plan found within about `time_limit_s`, never worse than any policy's.

    InfeasibleError if no plan fits the device's memory.
    """
    on_step(0, 4, "policies")
    planning = _Planning(workload, device, time.monotonic() + time_limit_s)
    columns = interval_columns(workload, device) if planning.left_s() > 0 and planning.exact_may_help() else None
    if columns is not None and columns <= QUICK_COLUMNS:
        # Solved in less time than a search takes.
        on_step(1, 4, "interval model")
        planning.relax(planning.left_s())
        planning.solve(planning.left_s())
    on_step(2, 4, "search")
    planning.search(SEARCH_SHARE * planning.left_s())
    if columns is not None and columns > QUICK_COLUMNS:
        on_step(3, 4, "relaxation")
        planning.relax(planning.left_s())
    planning.search(planning.left_s())
    on_step(4, 4, "")
    return Planned(*with_predictions(planning.plan, workload, device, planning.bound_s), planning.baselines)


class _Planning:
    """What is known so far: a plan, its makespan, a bound, and until when there is time."""

    def __init__(self, workload: Workload, device: DeviceProfile, deadline_s: float) -> None:
        self._workload = workload
        self._device = device
        self._deadline_s = deadline_s
        self._searches = 0
        check_any_plan_fits(workload, device.memory_limit_bytes, device.baseline_bytes)
        self.baselines = baseline_makespans(workload, device)
        best = min((s, policy) for policy, s in self.baselines.items() if s is not None)
        self.best_s, self.plan = best[0], make_plan(best[1], workload, device)
        self.bound_s = lower_bound_s(workload, device)

    def left_s(self) -> float:
        """Seconds left; none once the plan is proven optimal."""
        proven = self.best_s <= self.bound_s * (1 + TOLERANCE)
        return 0.0 if proven else max(0.0, self._deadline_s - time.monotonic())

    def exact_may_help(self) -> bool:
        """Whether the interval model, whose units may be coarser than the durations, can see the gap that is left."""
        instance = instance_of(self._workload, self._device)
        lost_s = float(execution_s(self._workload, self._device).sum()) - sum(instance.executions) * instance.unit_s
        return instance.is_exact or lost_s < self.best_s - self.bound_s

    def relax(self, seconds: float) -> None:
        """The bound of the interval model's relaxation."""
        if seconds > 0:
            self._note(solve_by_intervals(self._workload, self._device, time_limit_s=seconds, relaxed=True))

    def solve(self, seconds: float) -> None:
        """The interval model itself."""
        if seconds > 0:
            self._note(solve_by_intervals(self._workload, self._device, time_limit_s=seconds))

    def search(self, seconds: float) -> None:
        """Local search, from the plan known and from the even spread; each time with other chances."""
        if seconds <= 0:
            return
        plans = [self.plan, make_plan("spread", self._workload, self._device)]
        found, found_s = search(
            self._workload,
            self._device,
            [positions_of(plan, self._workload) for plan in plans],
            known_s=self.best_s,
            deadline_s=time.monotonic() + seconds,
            bound_s=self.bound_s,
            seed=self._searches,
        )
        self._searches += 1
        if found is not None:
            self.plan, self.best_s = found, found_s

    def _note(self, solved: Solved | None) -> None:
        if solved is None:
            return
        self.bound_s = max(self.bound_s, solved.bound_s)
        if solved.plan is not None and solved.makespan_s is not None and solved.makespan_s < self.best_s:
            self.plan, self.best_s = solved.plan, solved.makespan_s
