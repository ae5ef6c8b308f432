"""What has to be run: blocks in stages, visited in a fixed order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from cidl_sim.core.errors import WorkloadError
from cidl_sim.core.files import Record, canonical_json, read_json, sha256_of, validated, write_text
from cidl_sim.core.quantities import MAX_BYTES

_WIDTHS = re.compile(r"\.w\d+(?:x\d+)*(?![\w.])")
MAX_VISITS = 5_000_000


class Block(Record):
    """What is loaded, executed and dropped as one.

    `kind` names what shares costs (it includes dtype, token count and variant). `weights` is the
    identity of the parameters: blocks that share it (a merged-token variant and its plain twin)
    share residency. `workspace_bytes` is everything beyond weights that is live while it runs. `like`: blocks
    whose costs together, scaled by bytes and arithmetic, stand in where `kind` has no measurement: the parts of
    blocks that were joined, the whole of which this one is half.
    """

    name: str = Field(min_length=1)
    kind: str = Field(min_length=1)
    weights: str = ""
    weight_bytes: int = Field(ge=0, le=MAX_BYTES)
    workspace_bytes: int = Field(default=0, ge=0, le=MAX_BYTES)
    flops: float = Field(default=0, ge=0)
    bytes_moved: float = Field(default=0, ge=0)
    like: tuple[Block, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _weights_default_to_the_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("weights"):
            return {**data, "weights": data.get("name", "")}
        return data

    @model_serializer(mode="wrap")
    def _without_empty_like(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Files and hashes of workloads without such blocks stay what they were.
        data: dict[str, Any] = handler(self)
        if not self.like:
            data.pop("like", None)
        return data


class Stage(Record):
    """Ordered blocks, run `rounds` times. Results are summed per `group`."""

    name: str = Field(min_length=1)
    group: str = ""
    rounds: int = Field(default=1, ge=1)
    blocks: tuple[Block, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _group_defaults_to_the_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("group"):
            return {**data, "group": data.get("name", "")}
        return data

    @model_validator(mode="after")
    def _block_names_are_unique(self) -> Stage:
        names = [block.name for block in self.blocks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"duplicate block name {name!r}")
        return self


@dataclass(frozen=True, slots=True)
class Visit:
    """One execution of one block; `number` counts through the whole workload from 0."""

    number: int
    stage: int
    round: int
    position: int
    block: Block


class Workload(Record):
    """Ordered stages. `settings` records how it was made, so that a run can make it again."""

    format: Literal["cidl-workload/1"] = "cidl-workload/1"
    name: str = Field(min_length=1)
    settings: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> Workload:
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"duplicate stage name {name!r}")
        sizes: dict[str, int] = {}
        for stage in self.stages:
            for block in stage.blocks:
                if sizes.setdefault(block.weights, block.weight_bytes) != block.weight_bytes:
                    raise ValueError(
                        f"weights {block.weights!r} have two sizes: {sizes[block.weights]} and "
                        f"{block.weight_bytes} bytes"
                    )
        count = sum(stage.rounds * len(stage.blocks) for stage in self.stages)
        if count > MAX_VISITS:
            raise ValueError(f"{count} visits; at most {MAX_VISITS} are supported")
        return self

    @cached_property
    def visits(self) -> tuple[Visit, ...]:
        """Every visit in execution order."""
        visits: list[Visit] = []
        for s, stage in enumerate(self.stages):
            for r in range(stage.rounds):
                for p, block in enumerate(stage.blocks):
                    visits.append(Visit(len(visits), s, r, p, block))
        return tuple(visits)

    @cached_property
    def first_visit_of_stage(self) -> tuple[int, ...]:
        """The number of each stage's first visit, and one past the last visit at the end."""
        firsts = [0]
        for stage in self.stages:
            firsts.append(firsts[-1] + stage.rounds * len(stage.blocks))
        return tuple(firsts)

    @cached_property
    def next_same_weights(self) -> tuple[int | None, ...]:
        """For each visit, the number of the next visit of the same weights, or None."""
        following: dict[str, int] = {}
        result: list[int | None] = [None] * len(self.visits)
        for visit in reversed(self.visits):
            result[visit.number] = following.get(visit.block.weights)
            following[visit.block.weights] = visit.number
        return tuple(result)

    @cached_property
    def previous_same_weights(self) -> tuple[int | None, ...]:
        """For each visit, the number of the previous visit of the same weights, or None."""
        last: dict[str, int] = {}
        result: list[int | None] = []
        for visit in self.visits:
            result.append(last.get(visit.block.weights))
            last[visit.block.weights] = visit.number
        return tuple(result)

    def label(self, visit: Visit) -> str:
        """How a message names a visit: by its number, stage, round and block."""
        return f"visit {visit.number} ({self.stages[visit.stage].name}, round {visit.round}, {visit.block.name})"

    @cached_property
    def weights_bytes(self) -> int:
        """Bytes of all distinct weights together."""
        return sum({b.weights: b.weight_bytes for s in self.stages for b in s.blocks}.values())

    @cached_property
    def sha256(self) -> str:
        """Identity of the workload: the SHA-256 of its canonical JSON."""
        return sha256_of(self.model_dump(mode="json"))

    @cached_property
    def identities(self) -> frozenset[str]:
        """The hashes that files know the workload by: its own, and that from before kinds knew widths."""
        earlier = self.model_dump(mode="json")
        earlier["settings"].pop("pipeline", None)
        for stage in earlier["stages"]:
            for block in stage["blocks"]:
                _forget_widths(block)
        return frozenset((self.sha256, sha256_of(earlier)))

    def to_json(self) -> str:
        """The workload as the text of a workload file."""
        return self.model_dump_json(indent=1) + "\n"

    def write(self, path: Path) -> None:
        """Write the workload file in one step."""
        write_text(path, self.to_json())


def joined_kind(kinds: Sequence[str]) -> str:
    """The kind of a block that was joined from blocks of these kinds, in this order."""
    runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
    return "joined." + "+".join(kind if count == 1 else f"{count}*{kind}" for kind, count in runs)


def widths(*figures: int) -> str:
    """The part of a kind that tells architectures apart: every figure that the block's cost depends on."""
    return "w" + "x".join(map(str, figures))


def kind_without_widths(kind: str) -> str:
    """A kind as it was written before kinds knew widths."""
    return _WIDTHS.sub("", kind)


def _forget_widths(block: dict[str, Any]) -> None:
    block["kind"] = kind_without_widths(block["kind"])
    for other in block.get("like", ()):
        _forget_widths(other)


def read_workload(path: Path) -> Workload:
    """Read and validate a workload file; WorkloadError names the file and the field."""
    return validated(Workload, read_json(path, WorkloadError), str(path), WorkloadError)


def describe_difference(ours: Workload, theirs_name: str, theirs_sha256: str) -> str:
    """A readable reason why a plan or a trace does not belong to `ours`."""
    settings = canonical_json(ours.settings) if ours.settings else "no settings"
    return (
        f"made for workload {theirs_name!r} (sha256 {theirs_sha256[:12]}), "
        f"not for {ours.name!r} (sha256 {ours.sha256[:12]}, {settings})"
    )
