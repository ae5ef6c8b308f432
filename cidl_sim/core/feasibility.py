"""Whether a plan can run at all, found without a clock.

Whether a run can end does not depend on how long anything takes (see docs/background/design.md), so a schedule in
which every load and visit ends at once tells.
"""

from __future__ import annotations

from collections.abc import Sequence

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError, PlanError
from cidl_sim.core.plan import Plan
from cidl_sim.core.schedule import Schedule
from cidl_sim.core.workload import Visit, Workload

# Of a plan


def check_plan(workload: Workload, device: DeviceProfile, plan: Plan) -> None:
    """Raise at the first visit that breaks a rule of execution.

    PlanError: another workload, a load or a keep that does not fit the order of visits.
    InfeasibleError: some visit can never run within the device's limit (deadlock included).
    """
    limit, baseline = device.memory_limit_bytes, device.baseline_bytes
    check_plan_within(workload, plan, memory_limit_bytes=limit, baseline_bytes=baseline)


def check_plan_within(workload: Workload, plan: Plan, *, memory_limit_bytes: int, baseline_bytes: int) -> None:
    """`check_plan` against a limit and a baseline that are not a profile's."""
    plan.check_workload(workload)
    _check_visits(workload, plan)
    check_any_plan_fits(workload, memory_limit_bytes, baseline_bytes)
    run_without_clock(workload, plan, memory_limit_bytes, baseline_bytes)


def _check_visits(workload: Workload, plan: Plan) -> None:
    visits = workload.visits
    loaded: set[int] = set()
    for load in plan.loads:
        if load.visit in loaded:
            raise PlanError(f"{workload.label(visits[load.visit])}: loaded twice")
        loaded.add(load.visit)
    kept = set(plan.keep)
    for visit in visits:
        previous = workload.previous_same_weights[visit.number]
        is_kept = previous is not None and previous in kept
        if is_kept and visit.number in loaded:
            raise PlanError(f"{workload.label(visit)}: loaded although visit {previous} keeps its weights")
        if not is_kept and visit.number not in loaded:
            raise PlanError(f"{workload.label(visit)}: neither loaded nor kept")
        if visit.number in kept and workload.next_same_weights[visit.number] is None:
            raise PlanError(f"{workload.label(visit)}: kept, but its weights are not visited again")


def run_without_clock(workload: Workload, plan: Plan, memory_limit_bytes: int, baseline_bytes: int) -> int:
    """Run the schedule with every duration zero and return its peak of accounted bytes.

    InfeasibleError names the visit at which nothing can go on, and what would have to fit.
    """
    schedule = Schedule(workload, plan, memory_limit_bytes=memory_limit_bytes, baseline_bytes=baseline_bytes)
    if not finish_without_clock(schedule):
        raise InfeasibleError(explain_deadlock(schedule))
    return schedule.peak_resident_bytes


# Of a schedule in any state


def finish_without_clock(schedule: Schedule) -> bool:
    """Run `schedule` to its end with every duration zero; False where nothing can go on. No load may be in flight."""
    while not schedule.is_done:
        progressed = _load_without_clock(schedule)
        if (visit := schedule.next_visit()) is not None:
            schedule.start_visit(visit)
            # Gates on a visit's start open here, before its end gives memory back.
            _load_without_clock(schedule)
            schedule.finish_visit(visit)
            progressed = True
        if not progressed:
            return False
    return True


def _load_without_clock(schedule: Schedule) -> bool:
    progressed = False
    while (load := schedule.next_load()) is not None:
        schedule.start_load(load)
        schedule.finish_load(load.visit)
        progressed = True
    return progressed


def explain_deadlock(schedule: Schedule) -> str:
    """One line: which visit can never run, which limit binds and what would make it feasible."""
    workload, limit = schedule.workload, schedule.memory_limit_bytes
    visit = workload.visits[schedule.current]
    where = workload.label(visit)
    if schedule.executor_cause() == "memory":
        need = schedule.baseline_bytes + schedule.weights_held + visit.block.workspace_bytes
        return f"{where} never fits: {need} bytes are needed, the memory limit is {limit}"
    load, cause = schedule.pending_load, schedule.loader_cause()
    if load is None:
        return f"{where}: its weights are never loaded"
    if cause == "memory":
        need, block = schedule.needed_to_load(load), workload.visits[load.visit].block
        return (
            f"{where} never runs: loading {block.name!r} for visit {load.visit} needs "
            f"{need} bytes (it weighs {block.weight_bytes}, "
            f"{schedule.weights_held} are held), the memory limit is {limit}; "
            f"raise memory_limit_bytes to at least {need} or keep less"
        )
    return f"{where} never runs: the load for visit {load.visit} waits for ever ({cause})"


# Of a workload, whatever the plan


def largest_need(workload: Workload) -> tuple[int, Visit]:
    """The largest `weight_bytes + workspace_bytes` of a single visit, and that visit."""
    visit = max(workload.visits, key=lambda v: v.block.weight_bytes + v.block.workspace_bytes)
    return visit.block.weight_bytes + visit.block.workspace_bytes, visit


def resident_need(workload: Workload) -> int:
    """The bytes of all weights beside the largest workspace."""
    return workload.weights_bytes + max(visit.block.workspace_bytes for visit in workload.visits)


def check_any_plan_fits(workload: Workload, memory_limit_bytes: int, baseline_bytes: int) -> None:
    """InfeasibleError if a single block with its workspace exceeds the limit."""
    check_block_fits(workload.visits, memory_limit_bytes, baseline_bytes)


def check_block_fits(visits: Sequence[Visit], memory_limit_bytes: int, baseline_bytes: int) -> None:
    """`check_any_plan_fits` for some visits."""
    if not visits:
        return
    block = max((v.block for v in visits), key=lambda b: b.weight_bytes + b.workspace_bytes)
    least = block.weight_bytes + block.workspace_bytes + baseline_bytes
    if least > memory_limit_bytes:
        raise InfeasibleError(
            f"memory limit {memory_limit_bytes} bytes is too small for any plan: block {block.name!r} needs "
            f"{least} bytes (weights {block.weight_bytes} + workspace {block.workspace_bytes} + baseline "
            f"{baseline_bytes}); raise the limit to at least {least} or cut the block finer"
        )
