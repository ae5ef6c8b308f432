"""The plan: which loads start in which order behind which gate, and which weights stay."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from cidl_sim.core.errors import PlanError
from cidl_sim.core.files import Record, read_json, sha256_of, validated, write_text
from cidl_sim.core.workload import Workload, describe_difference

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
        """PlanError if the plan was made for another workload, or names visits that it does not have."""
        if self.workload_sha256 != workload.sha256 and self.workload_sha256 not in workload.identities:
            raise PlanError("the plan was " + describe_difference(workload, self.workload_name, self.workload_sha256))
        gates = (load.gate.visit for load in self.loads if load.gate)
        last = max((*(load.visit for load in self.loads), *gates, *self.keep), default=0)
        if last >= len(workload.visits):
            raise PlanError(f"visit {last}: the workload has only {len(workload.visits)} visits")


def read_plan(path: Path) -> Plan:
    """Read and validate a plan file; PlanError names the file and the field."""
    return validated(Plan, read_json(path, PlanError), str(path), PlanError)
