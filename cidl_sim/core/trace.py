"""What happened: spans and events of a run, simulated or real, in one form."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import Field, model_validator

from cidl_sim.core.errors import TraceError
from cidl_sim.core.files import Record, read_json, replacing, validated
from cidl_sim.core.plan import Plan
from cidl_sim.core.workload import Workload

Origin = Literal["simulated", "torch-cpu", "torch-cuda", "torch-mps", "mil", "coreml", "imported"]
EnforcedBy = Literal["none", "accounting", "cgroup-v1", "cgroup-v2", "systemd-scope"]
Operation = Literal["load", "execute", "wait", "unload"]
Label = TypeVar("Label", int, str)
# Of what is later sums and products would be no numbers any more.
LATEST_S = 1e150
# A compressed trace of more is none: a million visits take half as much.
MOST_UNPACKED_BYTES = 1 << 30


class Span(Record):
    """One piece of work or of waiting; times in seconds from the start of the run.

    `bytes` are the weights of a load or an unload and the workspace of an execution.
    `resident_bytes` is the accounted memory after the span: weights + workspace + baseline.
    """

    operation: Operation
    worker: str
    visit: int = Field(ge=0)
    start_s: float = Field(ge=0, le=LATEST_S)
    end_s: float = Field(ge=0, le=LATEST_S)
    bytes: int = Field(default=0, ge=0)
    cold: bool = False
    cause: str | None = None
    resident_bytes: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _time_does_not_run_backwards(self) -> Span:
        if self.end_s < self.start_s:
            raise ValueError(f"a negative duration: start_s {self.start_s}, end_s {self.end_s}")
        return self


class Event(Record):
    """Something that happened at one moment, such as a stage that ended early."""

    kind: str
    at_s: float = Field(ge=0, le=LATEST_S)
    values: dict[str, str | int | float | bool | None] = Field(default_factory=dict)


class Place(NamedTuple):
    """Where a visit belongs: the stage by its number, the round, and the block's position in it, all from 0."""

    stage: int
    round: int
    position: int


class StageOutline(Record):
    """A stage as the trace needs it to name its visits."""

    name: str
    group: str
    rounds: int = Field(ge=1)
    blocks: tuple[str, ...] = Field(min_length=1)
    kinds: tuple[str, ...]

    @model_validator(mode="after")
    def _every_block_has_a_kind(self) -> StageOutline:
        if len(self.kinds) != len(self.blocks):
            raise ValueError(f"stage {self.name!r}: {len(self.blocks)} blocks but {len(self.kinds)} kinds")
        return self


class Header(Record):
    """Which plan, workload and device; who measured, with which clock, under which limit."""

    workload_name: str
    workload_sha256: str
    device_name: str
    device_sha256: str
    plan_sha256: str
    policy: str
    origin: Origin
    enforced_by: EnforcedBy
    clock: Literal["virtual", "perf_counter", "cuda_event", "mach_time", "unknown"]
    memory_limit_bytes: int = Field(gt=0)
    baseline_bytes: int = Field(ge=0)
    peak_resident_bytes: int | None = Field(default=None, ge=0)
    peak_kernel_bytes: int | None = Field(default=None, ge=0)
    seed: int | None = None
    fall_backs: tuple[str, ...] = ()
    machine: dict[str, str | int | float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    date: str | None = None
    settings: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    stages: tuple[StageOutline, ...] = Field(min_length=1)

    def place_of(self, visit: int) -> Place:
        """Where a visit belongs. IndexError beyond the last visit."""
        first = 0
        for stage, outline in enumerate(self.stages):
            count = outline.rounds * len(outline.blocks)
            if visit < first + count:
                return Place(stage, *divmod(visit - first, len(outline.blocks)))
            first += count
        raise IndexError(f"visit {visit} of {first}")


class Trace(Record):
    """A run as spans and events (file format `cidl-trace/1`, JSON, `.gz` if the name ends so)."""

    format: Literal["cidl-trace/1"] = "cidl-trace/1"
    header: Header
    spans: tuple[Span, ...]
    events: tuple[Event, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Trace:
        visits = sum(stage.rounds * len(stage.blocks) for stage in self.header.stages)
        for i, span in enumerate(self.spans):
            if span.visit >= visits:
                raise ValueError(f"spans.{i}.visit: {span.visit}, but the stages have only {visits} visits")
        for i, event in enumerate(self.events):
            limit = event.values.get("limit_bytes")
            if event.kind == "limit_changed" and not (isinstance(limit, int) and limit > 0):
                raise ValueError(f"events.{i}.values.limit_bytes: {limit!r} is not a positive number of bytes")
        return self

    def to_json(self) -> str:
        """The trace as text: equal traces give equal bytes."""
        return self.model_dump_json(exclude_defaults=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the trace file in one step."""
        with replacing(path) as temporary:
            data = self.to_json().encode()
            # A fixed time stamp keeps equal traces equal after compression too.
            temporary.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)

    # Figures

    def of(self, operation: Operation) -> list[Span]:
        """The spans of one operation, in order of their start."""
        return [span for span in self.spans if span.operation == operation]

    @cached_property
    def makespan_s(self) -> float:
        """The end of the last execution."""
        return max((span.end_s for span in self.of("execute")), default=0.0)

    @cached_property
    def executor_busy_s(self) -> float:
        """Seconds in which a visit ran."""
        return covered_s((s.start_s, s.end_s) for s in self.of("execute"))

    @cached_property
    def loader_busy_s(self) -> float:
        """Seconds in which at least one load was in flight."""
        return covered_s((s.start_s, s.end_s) for s in self.of("load"))

    @cached_property
    def overlap_s(self) -> float:
        """Seconds in which a visit ran while a load was in flight."""
        loads = _union((s.start_s, s.end_s) for s in self.of("load"))
        executions = _union((s.start_s, s.end_s) for s in self.of("execute"))
        return _length(_intersection(loads, executions))

    @cached_property
    def stalls_s(self) -> float:
        """Seconds in which the executor waits after its first visit began."""
        first_s = min((span.start_s for span in self.of("execute")), default=0.0)
        return self.makespan_s - self.executor_busy_s - first_s

    def loader_busy_within_s(self, start_s: float, end_s: float) -> float:
        """Seconds between two moments in which at least one load was in flight."""
        loads = _union((s.start_s, s.end_s) for s in self.of("load"))
        return _length(_intersection(loads, [(start_s, end_s)]))

    @cached_property
    def idle_s(self) -> dict[str, dict[str, float]]:
        """Idle seconds by worker and cause."""
        result: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for span in self.of("wait"):
            result[span.worker][span.cause or "unknown"] += span.end_s - span.start_s
        return {worker: dict(causes) for worker, causes in result.items()}

    @cached_property
    def peak_resident_bytes(self) -> int:
        """Peak of the accounted memory: weights + workspace + baseline.

        The driver's own count where it gave one; the curve cannot tell the order of changes at one instant.
        """
        if self.header.peak_resident_bytes is not None:
            return self.header.peak_resident_bytes
        return max((bytes_ for _, bytes_ in self.memory_curve), default=self.header.baseline_bytes)

    @cached_property
    def fresh_bytes(self) -> dict[int, int]:
        """For each load that raised the most that weights ever held, by how much; by visit."""
        changes = [(s.end_s, 0, s) for s in self.of("unload")] + [(s.start_s, 1, s) for s in self.of("load")]
        held = most = 0
        fresh = {}
        for _, is_load, span in sorted(changes, key=lambda change: (change[0], change[1], change[2].visit)):
            held += span.bytes if is_load else -span.bytes
            if held > most:
                fresh[span.visit] = held - most
                most = held
        return fresh

    @property
    def peak_weights_bytes(self) -> int:
        """The most that weights ever held, resident and in flight."""
        return sum(self.fresh_bytes.values())

    @cached_property
    def memory_curve(self) -> list[tuple[float, int]]:
        """Accounted memory as steps (time in s, bytes from then on), releases before starts."""
        changes: list[tuple[float, int, int]] = []
        for span in self.spans:
            if span.operation == "load":
                changes.append((span.start_s, 1, span.bytes))
            elif span.operation == "unload":
                changes.append((span.end_s, 0, -span.bytes))
            elif span.operation == "execute":
                # A visit of no length still needs its workspace: its end sorts after its own start.
                end_rank = 0 if span.end_s > span.start_s else 2
                changes += [(span.start_s, 1, span.bytes), (span.end_s, end_rank, -span.bytes)]
        held, curve = self.header.baseline_bytes, [(0.0, self.header.baseline_bytes)]
        for at_s, _, change in sorted(changes):
            held += change
            curve.append((at_s, held))
        return curve

    @cached_property
    def groups(self) -> dict[str, dict[str, float]]:
        """Per group: seconds until its last execution ended (`elapsed_s`, adding up to the makespan) and busy times."""
        return self._times_by([outline.group for outline in self.header.stages])

    @cached_property
    def stages(self) -> dict[int, dict[str, float]]:
        """The same per stage, by its number."""
        return self._times_by(list(range(len(self.header.stages))))

    def _times_by(self, label_of_stage: list[Label]) -> dict[Label, dict[str, float]]:
        result = {label: {"elapsed_s": 0.0, "executor_busy_s": 0.0, "loader_busy_s": 0.0} for label in label_of_stage}
        reached = 0.0
        for span in sorted(self.of("execute"), key=lambda s: s.visit):
            row = result[label_of_stage[self.header.place_of(span.visit).stage]]
            row["executor_busy_s"] += span.end_s - span.start_s
            row["elapsed_s"] += span.end_s - reached
            reached = span.end_s
        for span in self.of("load"):
            label = label_of_stage[self.header.place_of(span.visit).stage]
            result[label]["loader_busy_s"] += span.end_s - span.start_s
        return result

    @cached_property
    def stage_rounds(self) -> dict[int, int]:
        """Per stage, the rounds that really ran; what a replay needs."""
        runs: dict[int, int] = dict.fromkeys(range(len(self.header.stages)), 0)
        for span in self.of("execute"):
            runs[self.header.place_of(span.visit).stage] += 1
        return {s: runs[s] // len(outline.blocks) for s, outline in enumerate(self.header.stages)}

    @cached_property
    def limit_changes(self) -> tuple[tuple[float, int], ...]:
        """When the memory limit became another, and how many bytes it was from then on; what a replay needs."""
        changes = (event for event in self.events if event.kind == "limit_changed")
        return tuple((event.at_s, int(event.values["limit_bytes"] or 0)) for event in changes)

    def summary(self) -> dict[str, Any]:
        """The figures that every command prints about a trace."""
        return {
            "policy": self.header.policy,
            "origin": self.header.origin,
            "enforced_by": self.header.enforced_by,
            "makespan_s": self.makespan_s,
            "peak_resident_bytes": self.peak_resident_bytes,
            "peak_kernel_bytes": self.header.peak_kernel_bytes,
            "memory_limit_bytes": self.header.memory_limit_bytes,
            "executor_busy_s": self.executor_busy_s,
            "loader_busy_s": self.loader_busy_s,
            "overlap_s": self.overlap_s,
            "idle_s": self.idle_s,
            "groups": self.groups,
            "fall_backs": list(self.header.fall_backs),
        }


def outlines_of(workload: Workload) -> tuple[StageOutline, ...]:
    """The stages of a workload as a trace's header keeps them."""
    return tuple(
        StageOutline(
            name=stage.name,
            group=stage.group,
            rounds=stage.rounds,
            blocks=tuple(block.name for block in stage.blocks),
            kinds=tuple(block.kind for block in stage.blocks),
        )
        for stage in workload.stages
    )


def header_for(workload: Workload, plan: Plan, **rest: Any) -> Header:
    """A header with the identities filled in; `rest` are the remaining fields, and any that differ from the plan's."""
    fields: dict[str, Any] = {
        "workload_name": workload.name,
        "workload_sha256": workload.sha256,
        "device_name": plan.device_name,
        "device_sha256": plan.device_sha256,
        "plan_sha256": plan.sha256,
        "policy": plan.policy,
        "memory_limit_bytes": plan.memory_limit_bytes,
        "baseline_bytes": plan.baseline_bytes,
        "settings": dict(workload.settings),
        "stages": outlines_of(workload),
    }
    return Header(**{**fields, **rest})


def read_trace(path: Path) -> Trace:
    """Read and validate a trace file, compressed or not; TraceError names the file and the field."""
    if path.suffix != ".gz":
        return validated(Trace, read_json(path, TraceError), str(path), TraceError)
    try:
        with gzip.open(path) as packed:
            text = packed.read(MOST_UNPACKED_BYTES + 1)
        if len(text) > MOST_UNPACKED_BYTES:
            raise ValueError(f"more than {MOST_UNPACKED_BYTES >> 20} MiB unpacked")
        data = json.loads(text)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as problem:
        raise TraceError(f"{path}: cannot be read ({problem})") from None
    return validated(Trace, data, str(path), TraceError)


def covered_s(intervals: Iterable[tuple[float, float]]) -> float:
    """Seconds that at least one of some intervals covers."""
    return _length(_union(intervals))


def _union(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _intersection(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> list[tuple[float, float]]:
    result, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        start, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if start < end:
            result.append((start, end))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return result


def _length(intervals: list[tuple[float, float]]) -> float:
    return sum(end - start for start, end in intervals)
