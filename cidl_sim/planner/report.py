"""What `cidl plan` says: the plan that was asked for, and the answers to the questions about it, as a `PlanReport`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cidl_sim.blocks.cuts import CutChoices
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.plan import Plan
from cidl_sim.core.progress import StepProgress, silent
from cidl_sim.core.reports import InfeasiblePlan, PlanReport
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Workload
from cidl_sim.planner.break_points import memory_curve, memory_points
from cidl_sim.planner.evaluate import baseline_makespans, evaluated_plan
from cidl_sim.planner.explain import explain
from cidl_sim.planner.inverse import least_for
from cidl_sim.planner.partitions import ChosenPartition, best_partition, check_fits
from cidl_sim.planner.planner import Planned, best_plan
from cidl_sim.planner.reruns import Reruns, best_policy
from cidl_sim.policies.catalog import make_plan
from cidl_sim.policies.on_device_sora import REFERENCE
from cidl_sim.simulator.engine import simulate
from cidl_sim.simulator.first_run import run_sentence, run_times


@dataclass(frozen=True)
class PlanQuestions:
    """What is asked: which policy (None: the best plan that is found), and what else beside the plan.

    `chooses_partition`: the cut into blocks too. `target_s`: the least figures that meet it. `with_curve`: the makespan
    against the memory limit.
    """

    policy: str | None = None
    time_limit_s: float = 10.0
    chooses_partition: bool = False
    target_s: float | None = None
    with_curve: bool = False


@dataclass(frozen=True)
class FoundPlan:
    """A plan for a workload on a device, with its simulation; `chosen` if the cut was chosen with it."""

    workload: Workload
    device: DeviceProfile
    planned: Planned
    chosen: ChosenPartition | None = None

    def write(self, file: Path) -> None:
        """Write the plan, and beside it the workload where that has no name by which to find it."""
        self.planned.plan.write(file)
        if self.chosen is not None and self.chosen.is_unnamed:
            self.workload.write(file.with_suffix(".workload.json"))

    def beside_the_reference(self) -> tuple[list[tuple[str, Trace]], str]:
        """The simulations of the plan and, where it fits and is another, of the reference app's policy; a title."""
        plan, title = self.planned.plan, f"{self.workload.name} on {self.device.name}"
        traces = [(plan.policy, self.planned.trace)]
        if plan.policy != REFERENCE:
            try:
                reference: Plan = make_plan(REFERENCE, self.workload, self.device)
                traces.append((REFERENCE, simulate(self.workload, self.device, reference)))
            except InfeasibleError:
                title += f" ({REFERENCE} does not fit)"
        return traces, title


def find_plan(
    workload: Workload,
    device: DeviceProfile,
    asked: PlanQuestions,
    choices: CutChoices,
    on_step: StepProgress = silent,
) -> FoundPlan:
    """The plan that was asked for; `choices`: the cuts that there are of the workload.

    Where the profile knows several numbers of compute threads, with the one that makes it fastest. InfeasibleError if
    none fits, PolicyError, DeviceError where a cost is unknown.
    """
    numbers = sorted(device.thread_numbers, key=lambda number: number or 0)
    if len(numbers) == 1:
        return _find_plan(workload, device, asked, choices, on_step)
    share = replace(asked, time_limit_s=asked.time_limit_s / len(numbers))
    found = [_find_plan(workload, device.with_threads(n), share, choices, on_step) for n in numbers]
    best = min(found, key=lambda one: one.planned.plan.makespan_s or math.inf)
    others = (one.planned.plan for one in found if one is not best)
    slower = ", ".join(f"{plan.makespan_s:.2f} s with {plan.compute_threads}" for plan in others)
    note = f"compute threads: {best.planned.plan.compute_threads}; the plan found for others takes {slower}"
    return replace(best, planned=replace(best.planned, notes=(*best.planned.notes, note)))


def _find_plan(
    workload: Workload, device: DeviceProfile, asked: PlanQuestions, choices: CutChoices, on_step: StepProgress
) -> FoundPlan:
    if asked.chooses_partition:
        chosen = best_partition(
            workload,
            device,
            choices,
            policy=asked.policy,
            time_limit_s=asked.time_limit_s,
            on_step=partial(on_step, "cut"),
        )
        check_fits(chosen.cut.workload, device, choices)
        return FoundPlan(chosen.cut.workload, device, chosen.planned, chosen)
    check_fits(workload, device, choices)
    if asked.policy is not None:
        plan, trace = evaluated_plan(asked.policy, workload, device)
        return FoundPlan(workload, device, Planned(plan, trace, baseline_makespans(workload, device)))
    found = best_plan(workload, device, time_limit_s=asked.time_limit_s, on_step=partial(on_step, "plan"))
    return FoundPlan(workload, device, found)


def plan_report(
    found: FoundPlan, asked: PlanQuestions, *, file: Path | None = None, on_step: StepProgress = silent
) -> PlanReport:
    """The figures of a plan, what limits it, and the answers; `file`: where the plan was written.

    Raises InfeasibleError, DeviceError where a cost is unknown, and InputError for a target that is no positive time.
    """
    workload, device, planned = found.workload, found.device, found.planned
    plan, trace, baselines = planned.plan, planned.trace, planned.baselines
    times = run_times(workload, device, plan) if device.coreml is not None else None
    sentences = [*explain(workload, device, plan, trace, baselines), *planned.notes]
    answers: dict[str, object] = {}
    if found.chosen is not None:
        chosen = found.chosen
        answers |= {"partition": chosen.cut.partition, "partitions": chosen.rows, "store_command": chosen.store_command}
    if asked.target_s is not None:
        least = least_for(workload, device, asked.target_s, on_step)
        answers |= {"target_s": asked.target_s, "least": tuple(least)}
    if asked.with_curve:
        reruns = Reruns(workload, device, asked.policy or best_policy(workload, device))
        points = memory_points(reruns, on_step)
        curve = memory_curve(reruns, points, on_step)
        answers |= {"curve_policy": reruns.policy, "memory_points": tuple(points), "memory_curve": tuple(curve)}
    return PlanReport.model_validate(
        {
            "workload": workload.name,
            "device": device.name,
            "policy": plan.policy,
            "makespan_s": plan.makespan_s,
            "lower_bound_s": plan.lower_bound_s,
            "gap": plan.gap,
            "proven_optimal": plan.proven_optimal,
            "proof_scope": plan.proof_scope,
            "peak_resident_bytes": plan.peak_resident_bytes,
            "memory_limit_bytes": plan.memory_limit_bytes,
            "baselines": baselines,
            "first_run_s": times.first_s if times else None,
            "later_run_s": times.later_s if times else None,
            "fall_backs": trace.header.fall_backs,
            "file": None if file is None else str(file),
            "explanation": (*sentences, run_sentence(times)) if times else tuple(sentences),
            **answers,
        }
    )


def infeasible_plan(workload: Workload, device: DeviceProfile, problem: InfeasibleError) -> InfeasiblePlan:
    """What is said of a device, one of several, that no plan fits."""
    return InfeasiblePlan(
        workload=workload.name,
        device=device.name,
        memory_limit_bytes=device.memory_limit_bytes,
        infeasible=str(problem),
    )
