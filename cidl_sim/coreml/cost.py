"""What a workload costs on a device with Core ML before anything is planned: disk, the first run, the later runs.

Every figure has a mark: measured (here or on the device), estimated (from other figures), or a time that was simulated
from costs whose weakest mark is given. What is not known is None; a later load never stands for a cold one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from cidl_sim.core.costs import knows_cold_load, measured_kind
from cidl_sim.core.device import DeviceProfile, Mark, Measured
from cidl_sim.core.errors import InputError
from cidl_sim.core.plan import Plan
from cidl_sim.core.timed import timed
from cidl_sim.core.workload import Block, Workload
from cidl_sim.coreml.manifest import Manifest
from cidl_sim.simulator.quick import checked_makespan_s

_WEAKER: tuple[Mark, ...] = ("measured", "published", "derived", "assumed")


@dataclass(frozen=True)
class DiskFigure:
    """Bytes on a device's disk and whether they were measured; `source` says how."""

    bytes: int
    mark: Literal["measured", "estimated"]
    source: str


@dataclass(frozen=True)
class RunTimes:
    """Makespans of a plan in seconds, when everything is loaded for the first time on the device and afterwards.

    `first_s` is None where some kinds, `unknown_kinds` with `unknown_share` of the weights, have no cold load in the
    profile; `first_at_least_s` counts later loads for these. `mark`: the weakest of the profile's figures that were
    used, None if it has no marks.
    """

    first_s: float | None
    first_at_least_s: float
    later_s: float
    unknown_kinds: tuple[str, ...]
    unknown_share: float
    mark: Mark | None


def run_times(workload: Workload, device: DeviceProfile, plan: Plan) -> RunTimes:
    """Simulate the first run and a later one under `plan`. Errors as of `simulate`."""
    plan.check_workload(workload)
    first_s = checked_makespan_s(timed(workload, device), plan)
    blocks = list(_blocks(workload))
    unknown = [block for block in blocks if not knows_cold_load(block, device)]
    unknown_bytes = sum({block.weights: block.weight_bytes for block in unknown}.values())
    return RunTimes(
        first_s=None if unknown else first_s,
        first_at_least_s=first_s,
        later_s=checked_makespan_s(timed(workload, device.without_cold_loads()), plan),
        unknown_kinds=tuple(dict.fromkeys(block.kind for block in unknown)),
        unknown_share=unknown_bytes / workload.weights_bytes if unknown_bytes else 0.0,
        mark=_weakest_mark(blocks, device),
    )


def packages_on_disk(workload: Workload, manifest: Manifest | None) -> DiskFigure:
    """The packages of the workload's blocks: those of an export, or what their weights suggest.

    InputError if the export is in another dtype, or lacks a block or a kind of the workload.
    """
    if manifest is None:
        return DiskFigure(
            sum(_weights(workload).values()), "estimated", "bytes of the weights, a prompt's rows of an embedding"
        )
    dtype = workload.settings.get("dtype", manifest.dtype)
    if dtype != manifest.dtype:
        raise InputError(
            f"{workload.name} is in {dtype}, the export in {manifest.dtype}: name the workload in that dtype"
        )
    for block in _blocks(workload):
        package = manifest.packages.get(block.weights)
        if package is None or all(function.kind != block.kind for function in package.functions.values()):
            what = "is not exported yet" if block.weights in manifest.missing else f"has no function for {block.kind}"
            raise InputError(
                f"the export of {manifest.model} in {manifest.dtype}: {block.weights} {what} (it was made for "
                f"{', '.join(manifest.workloads)}; 'cidl coreml export --workload {workload.name}')"
            )
    names = _weights(workload)
    return DiskFigure(sum(manifest.packages[name].bytes for name in names), "measured", "sizes in manifest.json")


def compiled_on_disk(workload: Workload, device: DeviceProfile, packages: DiskFigure) -> DiskFigure:
    """The compiled models, which hold a copy of the weights: as they were measured, or as large as the packages."""
    known = _per_weights(workload, device.coreml.compiled_bytes if device.coreml else {})
    if known.keys() == _weights(workload).keys():
        return DiskFigure(round(sum(known.values())), "measured", f"a model of each kind, {device.name}")
    return DiskFigure(packages.bytes, "estimated", "as large as the packages: they hold a copy of the weights")


def compile_s(workload: Workload, device: DeviceProfile) -> float | None:
    """Seconds to compile every package once; None unless all kinds were measured."""
    known = _per_weights(workload, device.coreml.compile_s if device.coreml else {})
    return sum(known.values()) if known.keys() == _weights(workload).keys() else None


def run_sentence(times: RunTimes) -> str:
    """First and later runs in a sentence."""
    later = f"later ones {times.later_s:,.1f} s, until the system throws away what it prepared"
    if times.first_s is not None:
        return f"The first run on the device takes {times.first_s:,.1f} s with the loads that prepare models, {later}."
    unknown = f"no cold load in the profile for {times.unknown_share:.1%} of the weights"
    return (
        f"How long the first run takes is unknown ({unknown}), but at least {times.first_at_least_s:,.1f} s; {later}."
    )


def _blocks(workload: Workload) -> Iterable[Block]:
    return (block for stage in workload.stages for block in stage.blocks)


def _weights(workload: Workload) -> dict[str, int]:
    return {block.weights: block.weight_bytes for block in _blocks(workload)}


def _per_weights(workload: Workload, by_kind: Mapping[str, float]) -> dict[str, float]:
    """A figure of the blocks' kinds for each package; of several kinds with the same weights the largest."""
    found: dict[str, float] = {}
    for block in _blocks(workload):
        if block.kind in by_kind:
            found[block.weights] = max(found.get(block.weights, 0.0), by_kind[block.kind])
    return found


def _weakest_mark(blocks: Iterable[Block], device: DeviceProfile) -> Mark | None:
    provenance = device.provenance
    marks = set() if provenance.mark is None else {provenance.mark}
    for kind in {measured_kind(block.kind, device) for block in blocks}:
        measured = Measured() if kind is None else device.measured[kind]
        stems = [f"measured.{kind}"]
        # The formulas stand in for what was not measured.
        stems += ["loader.bandwidth", "loader.latency"] if measured.load_s is None else []
        stems += ["executor.flops", "executor.efficiency"] if measured.exec_s is None else []
        marks |= {figure.mark for key, figure in provenance.figures.items() if key.startswith(tuple(stems))}
    return max(marks, key=_WEAKER.index, default=None)
