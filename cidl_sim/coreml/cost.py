"""What a workload costs on a device with Core ML before anything is planned: disk, the first run, the later runs.

Every figure has a mark: measured (here or on the device), estimated (from other figures), or a time that was simulated
from costs whose weakest mark is given. What is not known is None; a later load never stands for a cold one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InputError
from cidl_sim.core.plan import Plan
from cidl_sim.core.reports import CoreMLCost, CostMarks, CostSources
from cidl_sim.core.workload import Block, Workload
from cidl_sim.coreml.manifest import Manifest
from cidl_sim.simulator.first_run import run_sentence, run_times


@dataclass(frozen=True)
class DiskFigure:
    """Bytes on a device's disk and whether they were measured; `source` says how."""

    bytes: int
    mark: Literal["measured", "estimated"]
    source: str


def coreml_cost(workload: Workload, device: DeviceProfile, plan: Plan, manifest: Manifest | None) -> CoreMLCost:
    """Disk, first run and later runs under `plan`; errors as of `packages_on_disk` and `run_times`."""
    on_disk = packages_on_disk(workload, manifest)
    compiled = compiled_on_disk(workload, device, on_disk)
    times = run_times(workload, device, plan)
    return CoreMLCost(
        workload=workload.name,
        device=device.name,
        policy=plan.policy,
        packages_bytes=on_disk.bytes,
        compiled_bytes=compiled.bytes,
        disk_bytes=on_disk.bytes + compiled.bytes,
        compile_s=compile_s(workload, device),
        first_run_s=times.first_s,
        first_run_at_least_s=times.first_at_least_s,
        later_run_s=times.later_s,
        kinds_without_cold_load=times.unknown_kinds,
        share_without_cold_load=times.unknown_share,
        marks=CostMarks(packages_bytes=on_disk.mark, compiled_bytes=compiled.mark, costs=times.mark),
        sources=CostSources(packages_bytes=on_disk.source, compiled_bytes=compiled.source),
        sentence=run_sentence(times),
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
