"""What replanning on the way is worth: the fixed plan, the online one, and plans made by one who knows what comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cidl_sim.core.device import DeviceProfile, ThermalStep
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.feasibility import finish_without_clock
from cidl_sim.core.plan import Plan
from cidl_sim.core.refit import go_on_with, settled_copy
from cidl_sim.core.schedule import Schedule
from cidl_sim.core.workload import Visit, Workload
from cidl_sim.planner.bounds import lower_bound_s
from cidl_sim.planner.online import Replanning, slowed
from cidl_sim.planner.planner import best_plan
from cidl_sim.simulator.engine import Circumstances, makespan_s


@dataclass(frozen=True)
class Change:
    """What holds from a share of the run on; `loads` and `executions` take so many times as long as by the profile.

    Limit and executions change at that share of the undisturbed makespan, loads at that share of the visits.
    """

    after_share: float
    memory_limit_bytes: int
    loads: float = 1.0
    executions: float = 1.0


@dataclass(frozen=True)
class Compared:
    """Makespans in s under the changes; `undisturbed_s` without them.

    `hindsight_s`: the best of the fixed plan, the plan made for each stretch between changes, and those plans one after
    another. That is no optimum: another plan may be faster. None is faster than `bound_s`.
    """

    undisturbed_s: float
    fixed_s: float
    online_s: float
    hindsight_s: float
    bound_s: float
    replans: int
    adopted: int
    planning_s: tuple[float, ...]


def compare_online(workload: Workload, device: DeviceProfile, changes: Sequence[Change]) -> Compared:
    """Simulate the plan made for `device`, the same with replanning, and hindsight, all under the changes.

    Every plan here is the best policy's, so that equal input gives equal makespans. InfeasibleError where a limit is
    too small for any plan.
    """
    fixed = _plan_for(workload, device)
    undisturbed_s = makespan_s(workload, device, fixed)
    disturbed, circumstances = _disturbed(workload, device, changes, undisturbed_s)

    def under_changes(plan: Plan, **more: Replanning | _Switching) -> float:
        return makespan_s(workload, disturbed, plan, **circumstances, **more)

    online = Replanning(workload, device, fixed)
    online_s = under_changes(fixed, online=online)
    fixed_s = under_changes(fixed)
    stretches = [_during(device, change) for change in changes]
    plans = [_plan_for(workload, stretch) for stretch in stretches]
    tried = [fixed_s]
    for plan in plans:
        try:
            tried.append(under_changes(plan))
        except InfeasibleError:
            continue  # made for more memory than there is at first
    tried.append(under_changes(fixed, online=_Switching(workload, device, changes, plans, undisturbed_s)))
    return Compared(
        undisturbed_s=undisturbed_s,
        fixed_s=fixed_s,
        online_s=online_s,
        hindsight_s=min(tried),
        bound_s=lower_bound_s(workload, _most_favourable(device, changes)),
        replans=online.replans,
        adopted=online.adopted,
        planning_s=tuple(online.planning_s),
    )


def _plan_for(workload: Workload, device: DeviceProfile) -> Plan:
    return best_plan(workload, device, time_limit_s=0.0).plan


def _during(device: DeviceProfile, change: Change) -> DeviceProfile:
    rates = slowed(device, change.loads, change.executions)
    return rates.model_copy(update={"memory_limit_bytes": change.memory_limit_bytes})


def _most_favourable(device: DeviceProfile, changes: Sequence[Change]) -> DeviceProfile:
    """The most memory and the shortest durations that ever hold."""
    return _during(
        device,
        Change(
            after_share=0.0,
            memory_limit_bytes=max(device.memory_limit_bytes, *(change.memory_limit_bytes for change in changes)),
            loads=min(1.0, *(change.loads for change in changes)),
            executions=min(1.0, *(change.executions for change in changes)),
        ),
    )


def _disturbed(
    workload: Workload, device: DeviceProfile, changes: Sequence[Change], undisturbed_s: float
) -> tuple[DeviceProfile, Circumstances]:
    """The device with its heat, and the other changes as a simulation takes them."""
    load_factors = np.ones(len(workload.visits))
    for change in changes:
        load_factors[_first_visit(workload, change) :] = change.loads
    steps = [ThermalStep(after_s=c.after_share * undisturbed_s, factor=1 / c.executions) for c in changes]
    limits = [(change.after_share * undisturbed_s, change.memory_limit_bytes) for change in changes]
    heats = any(change.executions != 1 for change in changes)
    return device.model_copy(update={"thermal": tuple(steps) if heats else ()}), {
        "limit_changes": [
            change
            for before, change in zip([device.memory_limit_bytes, *(b for _, b in limits)], limits, strict=False)
            if change[1] != before
        ],
        "factors": (load_factors, np.ones(len(workload.visits))),
    }


def _first_visit(workload: Workload, change: Change) -> int:
    return round(change.after_share * len(workload.visits))


class _Switching:
    """Takes each stretch's plan at the first end of a visit after its change, unless it cannot end from there."""

    def __init__(
        self,
        workload: Workload,
        device: DeviceProfile,
        changes: Sequence[Change],
        plans: Sequence[Plan],
        undisturbed_s: float,
    ) -> None:
        self._workload = workload
        self._device = device
        self._undisturbed_s = undisturbed_s
        self._left = list(zip(changes, plans, strict=True))
        self._now_s = 0.0

    def load_finished(self, visit: Visit, cold: bool, start_s: float, end_s: float) -> None:
        """Nothing to learn."""

    def visit_finished(self, visit: Visit, start_s: float, end_s: float) -> None:
        """Tells the time."""
        self._now_s = end_s

    def replanned(self, schedule: Schedule) -> Plan | None:
        """The next plan once its change came."""
        if not self._left or not self._came(self._left[0][0], schedule):
            return None
        _, plan = self._left.pop(0)
        trial = settled_copy(schedule)
        go_on_with(trial, plan)
        return plan if finish_without_clock(trial) else None

    def _came(self, change: Change, schedule: Schedule) -> bool:
        by_visits = change.loads != 1 and schedule.current >= _first_visit(self._workload, change)
        limit_came = schedule.memory_limit_bytes == change.memory_limit_bytes
        return limit_came and (by_visits or self._now_s >= change.after_share * self._undisturbed_s)
