"""The plan: which loads start in which order behind which gate, and which weights stay."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from cidl_sim.core.errors import InfeasibleError, PlanError
from cidl_sim.core.files import Record, read_json, sha256_of, validated, write_text
from cidl_sim.core.workload import Visit, Workload, describe_difference

if TYPE_CHECKING:
    from cidl_sim.core.device import DeviceProfile

FORMAT_1 = "cidl-plan/1"
# The family that every workload was of before plans named one.
FIRST_PIPELINE = "open_sora"


class Gate(Record):
    """An edge of a visit that has to be passed before a load may start."""

    visit: int = Field(ge=0)
    edge: Literal["start", "end"]


class Load(Record):
    """Load the weights of `visit`, not before `gate` (None: as early as memory allows)."""

    visit: int = Field(ge=0)
    gate: Gate | None = None


class Plan(Record):
    """What both drivers interpret (file format `cidl-plan/2`, JSON; version 1 is read as well).

    `loads` are in start order. `keep` holds the visits after which the weights stay until the next
    visit of the same weights. `compute_threads` is what the device computes fastest with beside its loader (None:
    every core but one for each channel). `pipeline` is the family of models that the workload is of. The figures are
    predictions for the device that the plan was made for.
    """

    format: Literal["cidl-plan/2"] = "cidl-plan/2"
    pipeline: str = Field(default=FIRST_PIPELINE, min_length=1)
    policy: str = Field(min_length=1)
    workload_name: str
    workload_sha256: str
    workload_settings: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    device_name: str
    device_sha256: str
    memory_limit_bytes: int = Field(gt=0)
    baseline_bytes: int = Field(default=0, ge=0)
    channels: int = Field(default=1, ge=1)
    compute_threads: int | None = Field(default=None, ge=1)
    loads: tuple[Load, ...]
    keep: tuple[int, ...]
    makespan_s: float | None = Field(default=None, ge=0)
    lower_bound_s: float | None = Field(default=None, ge=0)
    gap: float | None = Field(default=None, ge=0)
    proven_optimal: bool = False
    proof_scope: str = ""
    peak_resident_bytes: int | None = Field(default=None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _upgrade_version_1(cls, data: Any) -> Any:
        """Version 1 knew one pipeline and left the unit out of the bound's name; the rest is the same."""
        if not isinstance(data, dict) or data.get("format") != FORMAT_1:
            return data
        upgraded = {**data, "format": "cidl-plan/2"}
        if "lower_bound" in upgraded and "lower_bound_s" not in upgraded:
            upgraded["lower_bound_s"] = upgraded.pop("lower_bound")
        return upgraded

    @cached_property
    def sha256(self) -> str:
        """Identity of the plan: the SHA-256 of its canonical JSON as version 1 would have written it.

        Traces record it, so a plan keeps it when its file is written anew in a later version. What version 1 could
        not say (another pipeline than the first) is part of the identity only where it is said.
        """
        fields = self.model_dump(mode="json")
        fields |= {"format": FORMAT_1, "lower_bound": fields.pop("lower_bound_s")}
        if self.pipeline == FIRST_PIPELINE:
            del fields["pipeline"]
        return sha256_of(fields)

    def to_json(self) -> str:
        """The plan as the text of a plan file."""
        return self.model_dump_json(indent=1) + "\n"

    def write(self, path: Path) -> None:
        """Write the plan file in one step."""
        write_text(path, self.to_json())

    def check_workload(self, workload: Workload) -> None:
        """PlanError if the plan was made for another workload."""
        if self.workload_sha256 != workload.sha256:
            raise PlanError("the plan was " + describe_difference(workload, self.workload_name, self.workload_sha256))

    def check(self, workload: Workload, device: DeviceProfile) -> None:
        """Raise at the first visit that breaks a rule of execution.

        PlanError: another workload, a load or a keep that does not fit the order of visits.
        InfeasibleError: some visit can never run within the device's limit (deadlock included;
        whether one occurs does not depend on durations, see docs/design.md).
        """
        limit, baseline = device.memory_limit_bytes, device.baseline_bytes
        self.check_within(workload, memory_limit_bytes=limit, baseline_bytes=baseline)

    def check_within(self, workload: Workload, *, memory_limit_bytes: int, baseline_bytes: int) -> None:
        """`check` against a limit and a baseline that are not a profile's."""
        self.check_workload(workload)
        self._check_visits(workload)
        check_any_plan_fits(workload, memory_limit_bytes, baseline_bytes)
        run_without_clock(workload, self, memory_limit_bytes, baseline_bytes)

    def _check_visits(self, workload: Workload) -> None:
        visits = workload.visits
        loaded: set[int] = set()
        for load in self.loads:
            for number in (load.visit, load.gate.visit if load.gate else 0):
                if number >= len(visits):
                    raise PlanError(f"visit {number}: the workload has only {len(visits)} visits")
            if load.visit in loaded:
                raise PlanError(f"{_named(workload, visits[load.visit])}: loaded twice")
            loaded.add(load.visit)
        kept = set(self.keep)
        for number in sorted(kept):
            if number >= len(visits):
                raise PlanError(f"visit {number}: the workload has only {len(visits)} visits")
        for visit in visits:
            named = _named(workload, visit)
            previous = workload.previous_same_weights[visit.number]
            is_kept = previous is not None and previous in kept
            if is_kept and visit.number in loaded:
                raise PlanError(f"{named}: loaded although visit {previous} keeps its weights")
            if not is_kept and visit.number not in loaded:
                raise PlanError(f"{named}: neither loaded nor kept")
            if visit.number in kept and workload.next_same_weights[visit.number] is None:
                raise PlanError(f"{named}: kept, but its weights are not visited again")


def _named(workload: Workload, visit: Visit) -> str:
    stage = workload.stages[visit.stage]
    return f"visit {visit.number} ({stage.name}, round {visit.round}, {visit.block.name})"


def run_without_clock(workload: Workload, plan: Plan, memory_limit_bytes: int, baseline_bytes: int) -> int:
    """Run the schedule with every duration zero and return its peak of accounted bytes.

    InfeasibleError names the visit at which nothing can go on, and what would have to fit.
    """
    from cidl_sim.core.schedule import Schedule  # the schedule needs the plan's nouns

    schedule = Schedule(workload, plan, memory_limit_bytes=memory_limit_bytes, baseline_bytes=baseline_bytes)
    if not schedule.finish_without_clock():
        raise InfeasibleError(schedule.explain_deadlock())
    return schedule.peak_resident_bytes


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


def read_plan(path: Path) -> Plan:
    """Read and validate a plan file; PlanError names the file and the field."""
    return validated(Plan, read_json(path, PlanError), str(path), PlanError)
