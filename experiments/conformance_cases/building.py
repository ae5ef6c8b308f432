"""What the definitions of cases are written with: blocks whose costs can be read off them, plans, drafts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

from cidl_sim.core.device import DeviceProfile, Executor, Loader
from cidl_sim.core.errors import DeviceError, InfeasibleError, PlanError
from cidl_sim.core.plan import Gate, Load, Plan
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.policies.build import build_plan
from conformance_cases.observing import check, observed, refusal_of
from conformance_cases.records import Case, Completion, Driver, EarlyEnd, LimitChange, Refusal, Replan, Scenario


@dataclass(frozen=True)
class Draft:
    """A case without what has to come of it."""

    about: str
    workload: Workload
    device: DeviceProfile
    plan: Plan
    scenario: Scenario = field(default_factory=Scenario)
    by_hand: str = ""

    def completed(self) -> Case:
        """The case with what the simulator makes of it, or with why that, or the check before it, refuses it."""
        try:
            check(self.workload, self.device, self.plan)
            expect: Completion | Refusal = observed(self.workload, self.device, self.plan, self.scenario)
        except (PlanError, InfeasibleError, DeviceError) as error:
            expect = Refusal(error=refusal_of(self.workload, self.device, self.plan, error))
        return Case(
            about=self.about,
            by_hand=tuple(wrap(" ".join(self.by_hand.split()), width=108, break_on_hyphens=False)),
            out_of_scope=_out_of_scope(self.scenario, expect),
            workload=self.workload,
            device=self.device,
            plan=self.plan,
            scenario=self.scenario,
            expect=expect,
        )


def _out_of_scope(scenario: Scenario, expect: Completion | Refusal) -> dict[Driver, str]:
    """Which drivers cannot be asked, and why."""
    reasons: dict[Driver, str] = {}
    if scenario.early_ends:
        reasons["batch"] = "it runs every visit: a stage cannot end early"
    elif scenario.limit_changes:
        reasons["batch"] = "it has one memory limit for the whole run"
    elif scenario.replans:
        reasons["batch"] = "it has one plan for the whole run"
        reasons["runtime"] = "it takes no other plan during a run"
    if isinstance(expect, Refusal):
        reasons["runtime"] = "a plan is checked, and its costs are known, before the runtime is given it"
        if expect.error.kind == "plan":
            reasons["batch"] = "it expects plans that were checked"
        if scenario.limit_changes:
            reasons["runtime"] = "the run is over before its end, so there are no events to compare"
    return reasons


def block(name: str, weight_bytes: int, flops: float, workspace_bytes: int = 0, **rest: Any) -> Block:
    """A block of a kind of its own, unless `rest` says otherwise."""
    fields = {"kind": name, **rest}
    return Block(name=name, weight_bytes=weight_bytes, flops=flops, workspace_bytes=workspace_bytes, **fields)


def chain(*blocks: Block, rounds: int = 1) -> Workload:
    """A workload of one stage."""
    return stages(Stage(name="s", rounds=rounds, blocks=blocks))


def stages(*of_workload: Stage) -> Workload:
    """A workload of some stages."""
    return Workload(name="case", stages=of_workload)


def stage(name: str, *blocks: Block, rounds: int = 1, group: str = "") -> Stage:
    """A stage of some blocks."""
    return Stage(name=name, group=group, rounds=rounds, blocks=blocks)


def device(limit_bytes: int, **fields: Any) -> DeviceProfile:
    """A device that loads a byte a second and does an operation a second, unless `fields` say otherwise.

    `loader` and `executor` are mappings of what differs from that.
    """
    loader = Loader(**{"bandwidth_bytes_per_s": 1.0, **fields.pop("loader", {})})
    executor = Executor(**{"flops_per_s": 1.0, **fields.pop("executor", {})})
    return DeviceProfile(name="case", memory_limit_bytes=limit_bytes, loader=loader, executor=executor, **fields)


def start_of(visit: int) -> Gate:
    """The gate that opens when a visit starts."""
    return Gate(visit=visit, edge="start")


def end_of(visit: int) -> Gate:
    """The gate that opens when a visit ends."""
    return Gate(visit=visit, edge="end")


def draft(
    about: str,
    workload: Workload,
    on: DeviceProfile,
    *,
    loads: Sequence[int] | None = None,
    gates: Mapping[int, Gate] | None = None,
    keep: Iterable[int] = (),
    by_hand: str = "",
    early_ends: Iterable[EarlyEnd] = (),
    limit_changes: Iterable[tuple[float, int]] = (),
    replans: Iterable[Replan] = (),
) -> Draft:
    """A case whose plan loads the visits in `loads` (None: all whose weights are not kept, in order)."""
    kept = set(keep)
    if loads is None:
        loads = [v.number for v in workload.visits if workload.previous_same_weights[v.number] not in kept]
    plan = build_plan("case", workload, on, [Load(visit=n, gate=(gates or {}).get(n)) for n in loads], kept)
    changes = tuple(LimitChange(at_s=at_s, limit_bytes=limit) for at_s, limit in limit_changes)
    scenario = Scenario(early_ends=tuple(early_ends), limit_changes=changes, replans=tuple(replans))
    # No rule depends on the identity of the device that a plan was made for.
    return Draft(about, workload, on, plan.model_copy(update={"device_sha256": ""}), scenario, by_hand)
