"""Recorded loads and predictions of Core ML packages -> a device profile. Needs no Mac: `measuring.py` records.

Samples are in milliseconds, as the benchmarker of coremltools gives them. A cold load is the first of a compiled
model at a path where none was before; a later one is of the same compiled model, in another process.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cidl_sim.core.device import CoreML, DeviceProfile, Executor, Figure, Loader, Measured, Noise, Provenance
from cidl_sim.core.errors import InputError
from cidl_sim.core.estimates import load_line, spread_of
from cidl_sim.core.files import Record, read_json, validated, write_text
from cidl_sim.core.quantities import MAX_BYTES

# No load and no prediction takes no time: the runner on a phone answers so where it has the model already.
Milliseconds = tuple[Annotated[float, Field(gt=0)], ...]
_MS = 1e-3


class BlockSamples(Record):
    """What was measured of one function of one package; `problem` says why nothing was.

    `kind`, `weight_bytes`, `flops` and `workspace_bytes` are those of the block in the export's workload.
    """

    kind: str = Field(min_length=1)
    weights: str
    function: str
    package_bytes: int = Field(gt=0, le=MAX_BYTES)
    weight_bytes: int = Field(ge=0, le=MAX_BYTES)
    flops: float = Field(ge=0)
    workspace_bytes: int = Field(default=0, ge=0, le=MAX_BYTES)
    compiled_bytes: int | None = Field(default=None, gt=0, le=MAX_BYTES)
    compile_ms: Milliseconds = ()
    cold_load_ms: Milliseconds = ()
    warm_load_ms: Milliseconds = ()
    predict_ms: Milliseconds = ()
    problem: str | None = None


class CostRecording(Record):
    """Samples of the blocks of an export on one device (file format `cidl-coreml-samples/1`, JSON).

    `measured_by`: "coremltools" on the Mac itself, "remote benchmarker" on a connected device, which gives no later
    loads. `packages_bytes`: all packages of the export, measured or not.
    """

    format: Literal["cidl-coreml-samples/1"] = "cidl-coreml-samples/1"
    measured_by: Literal["coremltools", "remote benchmarker"]
    device: str
    os: str
    date: str
    versions: dict[str, str]
    compute_units: str
    model: str
    dtype: str
    compression: str
    workloads: tuple[str, ...]
    packages_bytes: int = Field(ge=0, le=MAX_BYTES)
    blocks: tuple[BlockSamples, ...]

    def write(self, path: Path) -> None:
        """Write the file in one step. MachineError if the disk does not take it."""
        write_text(path, self.model_dump_json(indent=1) + "\n")


def read_recording(path: Path) -> CostRecording:
    """Read and validate recorded samples. InputError names the file and the field."""
    return validated(CostRecording, read_json(path, InputError), str(path), InputError)


def build_profile(
    recording: CostRecording,
    name: str,
    *,
    memory_limit_bytes: int | None = None,
    later_bytes_per_s: float | None = None,
) -> DeviceProfile:
    """A profile with the medians of the samples for each kind of block.

    Without `memory_limit_bytes` everything fits. `later_bytes_per_s`: the rate to assume of later loads where none was
    measured. InputError if nothing was measured, or no later load and no rate is given.
    """
    blocks = [block for block in recording.blocks if block.problem is None]
    if not blocks:
        reason = next((block.problem for block in recording.blocks), "there are no samples")
        raise InputError(f"nothing was measured on {recording.device}: {reason}")
    by_kind: dict[str, list[BlockSamples]] = defaultdict(list)
    for block in blocks:
        by_kind[block.kind].append(block)
    # The line goes through what is read: of the token embedding that is the whole table.
    points = [(block.package_bytes, ms * _MS) for block in blocks for ms in block.warm_load_ms]
    if not points and later_bytes_per_s is None:
        raise InputError(
            f"no later load was measured on {recording.device}; give --later-load-rate BYTES_PER_S, which the profile "
            "will call assumed"
        )
    latency_s, bandwidth = load_line(points) if points else (0.0, later_bytes_per_s)
    measured = {kind: _measured(found) for kind, found in by_kind.items()}
    return DeviceProfile(
        name=name,
        memory_limit_bytes=memory_limit_bytes or _room_for_all(recording),
        loader=Loader(latency_s=latency_s, bandwidth_bytes_per_s=bandwidth),
        executor=Executor(flops_per_s=_flops_per_s(measured.values())),
        measured=measured,
        noise=Noise(
            load=_typical(m.load_spread for m in measured.values()),
            execute=_typical(m.exec_spread for m in measured.values()),
        ),
        coreml=CoreML(
            compute_units=recording.compute_units,
            compile_s=_by_kind(by_kind, lambda block: [ms * _MS for ms in block.compile_ms]),
            compiled_bytes={
                kind: round(size)
                for kind, size in _by_kind(
                    by_kind, lambda block: [] if block.compiled_bytes is None else [block.compiled_bytes]
                ).items()
            },
        ),
        provenance=_provenance(recording, has_later_loads=bool(points), has_limit=memory_limit_bytes is not None),
    )


def _measured(blocks: Sequence[BlockSamples]) -> Measured:
    warm, cold, predictions = (
        [ms * _MS for block in blocks for ms in getattr(block, name)]
        for name in ("warm_load_ms", "cold_load_ms", "predict_ms")
    )
    return Measured(
        load_s=statistics.median(warm) if warm else None,
        cold_load_s=statistics.median(cold) if cold else None,
        exec_s=statistics.median(predictions) if predictions else None,
        weight_bytes=blocks[0].weight_bytes,
        flops=blocks[0].flops,
        samples=len(predictions),
        load_spread=spread_of(warm),
        exec_spread=spread_of(predictions),
    )


def _by_kind(
    by_kind: Mapping[str, Sequence[BlockSamples]], values: Callable[[BlockSamples], Sequence[float]]
) -> dict[str, float]:
    """The median of some figure of each kind, of the kinds that have it."""
    found = {kind: [value for block in blocks for value in values(block)] for kind, blocks in by_kind.items()}
    return {kind: statistics.median(of_kind) for kind, of_kind in found.items() if of_kind}


def _typical(spreads: Iterable[float | None]) -> float:
    known = [spread for spread in spreads if spread is not None]
    return statistics.median(known) if known else 0.0


def _flops_per_s(measured: Iterable[Measured]) -> float | None:
    executed = [(m.flops, m.exec_s) for m in measured if m.flops and m.exec_s]
    return sum(flops for flops, _ in executed) / sum(seconds for _, seconds in executed) if executed else None


def _room_for_all(recording: CostRecording) -> int:
    return recording.packages_bytes + max(block.workspace_bytes for block in recording.blocks)


def _provenance(recording: CostRecording, *, has_later_loads: bool, has_limit: bool) -> Provenance:
    figures = {
        "memory_limit_bytes": Figure(
            source="chosen" if has_limit else "room for everything; set it to what the app may use", mark="assumed"
        ),
        "baseline_bytes": Figure(source="nothing here measures memory", mark="assumed"),
        "loader.slowdown_while_executing": Figure(source="no load was measured beside a prediction", mark="assumed"),
        "executor.slowdown_while_loading": Figure(source="no prediction was measured beside a load", mark="assumed"),
        "executor.flops_per_s": Figure(source="arithmetic of the measured kinds over their time", mark="derived"),
        "loader.bandwidth_bytes_per_s": (
            Figure(source="line through the later loads of all packages", mark="derived")
            if has_later_loads
            else Figure(source="chosen: no later load was measured", mark="assumed")
        ),
    }
    return Provenance(
        device=recording.device,
        os=recording.os,
        source=f"cidl coreml profile, {recording.measured_by}, {recording.compute_units}, "
        f"{recording.model} in {recording.dtype}"
        + ("" if recording.compression == "none" else f", weights {recording.compression}"),
        mark="measured",
        date=recording.date,
        versions=recording.versions,
        figures=figures,
    )
