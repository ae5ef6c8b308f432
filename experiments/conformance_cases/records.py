"""A conformance case as a validated record (file format `cidl-conformance/1`), its JSON Schema, and its layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InputError
from cidl_sim.core.files import Record, read_json, validated
from cidl_sim.core.plan import Plan
from cidl_sim.core.workload import Workload

FOLDER = Path(__file__).parents[2] / "conformance"
CASES = FOLDER / "cases"
SCHEMA = FOLDER / "case.schema.json"
WIDTH = 118

EventName = Literal[
    "load_started",
    "load_finished",
    "visit_started",
    "visit_finished",
    "released",
    "stage_ended_early",
    "limit_changed",
    "replanned",
]
Driver = Literal["batch", "runtime"]


class EarlyEnd(Record):
    """The stage numbered `stage`, and every one between it and the visit's, ends when `after_visit` has run."""

    after_visit: int = Field(ge=0)
    stage: int = Field(ge=0)


class LimitChange(Record):
    """The memory limit becomes another one; no case changes it at an instant at which anything else happens."""

    at_s: float = Field(gt=0)
    limit_bytes: int = Field(ge=0)


class Replan(Record):
    """An online policy's decision after `after_visit`: from then on the weights stay after the visits in `keep`."""

    after_visit: int = Field(ge=0)
    keep: tuple[int, ...]


class Scenario(Record):
    """What happens during the run that the plan does not know of."""

    early_ends: tuple[EarlyEnd, ...] = ()
    limit_changes: tuple[LimitChange, ...] = ()
    replans: tuple[Replan, ...] = ()


class Happening(Record):
    """One event of a run.

    `visit` is that of the load or the execution; of `released` the visit that the weights were held for; of
    `stage_ended_early` and `replanned` the visit after which they come. `cold`: the load is for the first visit of its
    weights. `resident_bytes`: baseline, weights resident or in flight, and workspace of the running visit after this
    event and all that stand before it in the file.
    """

    at_s: float = Field(ge=0)
    event: EventName
    visit: int | None = Field(default=None, ge=0)
    stage: int | None = Field(default=None, ge=0)
    limit_bytes: int | None = Field(default=None, ge=0)
    cold: bool = False
    resident_bytes: int = Field(ge=0)


class Completion(Record):
    """The run ends: its events in order, when its last visit ended, and the most bytes that it ever accounted for."""

    makespan_s: float = Field(ge=0)
    peak_resident_bytes: int = Field(ge=0)
    events: Annotated[tuple[Happening, ...], Field(min_length=1)]


class Refused(Record):
    """Why there is no run.

    `plan`: the plan breaks a rule at `visit` (None: as a whole). `infeasible`: `visit` can never run; where not even a
    block alone fits, it is the first visit of `block`. `device`: the profile has no cost for the kind of `block`.
    """

    kind: Literal["plan", "infeasible", "device"]
    visit: int | None = Field(default=None, ge=0)
    block: str | None = None


class Refusal(Record):
    """The run is refused, or stops for ever."""

    error: Refused


class Case(Record):
    """One plan for one workload on one device, and what has to come of it (file format `cidl-conformance/1`, JSON).

    `about` names the rule; `by_hand` derives the times, as the lines of a paragraph. `out_of_scope` says which of this
    project's drivers cannot be asked, and why: `batch` evaluates plans without events, `runtime` runs real threads.
    """

    format: Literal["cidl-conformance/1"] = "cidl-conformance/1"
    about: str = Field(min_length=1)
    by_hand: tuple[str, ...] = ()
    out_of_scope: dict[Driver, str] = Field(default_factory=dict)
    workload: Workload
    device: DeviceProfile
    plan: Plan
    scenario: Scenario = Scenario()
    expect: Completion | Refusal

    @model_validator(mode="after")
    def _names_only_visits_that_there_are(self) -> Case:
        visits = len(self.workload.visits)
        named = [event.visit for event in self.events if event.visit is not None]
        named += [end.after_visit for end in self.scenario.early_ends]
        named += [replan.after_visit for replan in self.scenario.replans]
        beyond = [visit for visit in named if visit >= visits]
        if beyond:
            raise ValueError(f"visit {beyond[0]}: the workload has only {visits} visits")
        return self

    @property
    def events(self) -> tuple[Happening, ...]:
        """What has to happen; nothing where the case is refused."""
        return self.expect.events if isinstance(self.expect, Completion) else ()

    def to_json(self) -> str:
        """The text of a case file: defaults left out, and as many things on a line as fit."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        _drop_names_given_twice(data["workload"])
        return _laid_out({"format": self.format, **data}) + "\n"


def read_case(path: Path) -> Case:
    """Read and validate a case file; InputError names the file and the field."""
    return validated(Case, read_json(path, InputError), str(path), InputError)


def schema_text() -> str:
    """The JSON Schema (2020-12) of a case file."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Case.model_json_schema()}
    return json.dumps(schema, indent=1) + "\n"


def _drop_names_given_twice(workload: dict[str, Any]) -> None:
    """A block's weights and a stage's group are called like the block and the stage unless a file says otherwise."""
    for stage in workload["stages"]:
        if stage.get("group") == stage["name"]:
            del stage["group"]
        for block in _blocks(stage["blocks"]):
            if block.get("weights") == block["name"]:
                del block["weights"]


def _blocks(blocks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for block in blocks:
        yield block
        yield from _blocks(block.get("like", []))


def _laid_out(value: Any, indent: int = 0, before: int = 0) -> str:
    """JSON in which a list or an object that fits on the rest of its line stays on it."""
    line = json.dumps(value)
    if not isinstance(value, (dict, list)) or not value or (indent and indent + before + len(line) <= WIDTH):
        return line
    inner = " " * (indent + 1)
    if isinstance(value, dict):
        keys = [f"{json.dumps(key)}: " for key in value]
        parts = [key + _laid_out(v, indent + 1, len(key) + 1) for key, v in zip(keys, value.values(), strict=True)]
        opening, closing = "{", "}"
    else:
        parts = [_laid_out(v, indent + 1, 1) for v in value]
        opening, closing = "[", "]"
    return opening + "\n" + ",\n".join(inner + part for part in parts) + "\n" + " " * indent + closing
