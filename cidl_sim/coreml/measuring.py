"""Record loads and predictions of an export's packages with Core ML: on this Mac, or on a device connected to it.

Only macOS can run this. On the Mac each package is compiled to a path where nothing was before and loaded from there,
which is a cold load; another process then loads it from the same path, again and again, and predicts. A connected
device is measured by coremltools' remote benchmarker, which sends every load to a new path: it knows cold loads only.
"""

from __future__ import annotations

import asyncio
import gc
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cidl_sim.blocks.variants import Variants, of_kind
from cidl_sim.core.errors import InputError, MachineError
from cidl_sim.core.temporary import temporary_folder
from cidl_sim.core.workload import Block
from cidl_sim.coreml.check_export import example_input, vocabulary_of
from cidl_sim.coreml.macos import check_macos
from cidl_sim.coreml.manifest import Manifest, Package, PackageFunction
from cidl_sim.coreml.profile import BlockSamples, CostRecording
from cidl_sim.coreml.quiet import quiet

COMPUTE_UNITS = ("all", "cpu_only", "cpu_and_gpu", "cpu_and_ne")
_NUMPY = {"fp32": np.float32, "fp16": np.float16, "int32": np.int32}

Inputs = dict[str, NDArray[Any]]
OnBlock = Callable[[CostRecording, int], None]


@dataclass(frozen=True)
class Target:
    """One function of one package to measure, and the block of the workload that it computes.

    `length`: of the inputs' flexible axes; `vocabulary`: token ids are below it.
    """

    weights: str
    name: str
    function: PackageFunction
    package: Package
    block: Block
    length: int
    vocabulary: int

    @property
    def function_name(self) -> str | None:
        """What Core ML is to be asked for; None where the package has only one function."""
        return self.name if len(self.package.functions) > 1 else None

    def inputs(self) -> Inputs:
        """Inputs at the number of text tokens that the workload's arithmetic is counted for."""
        inputs: Inputs = {}
        for spec in self.function.inputs:
            shape = tuple(
                min(size, self.length) if axis in spec.flexible else size for axis, size in enumerate(spec.shape)
            )
            made = example_input(spec.model_copy(update={"shape": shape}), self.vocabulary)
            inputs[spec.name] = made.numpy().astype(_NUMPY[spec.dtype])
        return inputs

    def samples(self, **measured: Any) -> BlockSamples:
        """The record of this target with what was measured."""
        return BlockSamples(
            kind=self.function.kind,
            weights=self.weights,
            function=self.name,
            package_bytes=self.package.bytes,
            weight_bytes=self.block.weight_bytes,
            flops=self.block.flops,
            workspace_bytes=self.block.workspace_bytes,
            **measured,
        )


def targets_in(manifest: Manifest, blocks: Mapping[str, Block], variants: Variants, per_kind: int = 1) -> list[Target]:
    """Of each kind of block in an export the functions of its first `per_kind` packages.

    `blocks`: one of each kind with the figures of its workload; `variants`: their definitions.
    """
    counts, targets = Counter[str](), list[Target]()
    length, vocabulary = nominal_length(variants), vocabulary_of(variants)
    for weights, package in manifest.packages.items():
        for name, function in package.functions.items():
            counts[function.kind] += 1
            if counts[function.kind] <= per_kind:
                block = of_kind(blocks, function.kind)
                targets.append(Target(weights, name, function, package, block, length, vocabulary))
    if not targets:
        raise InputError("the export holds no packages yet; go on with 'cidl coreml export'")
    return targets


def nominal_length(variants: Variants) -> int:
    """How long the axes are that differ from prompt to prompt, where arithmetic is counted; 1 if there are none."""
    for variant in (variant for kinds in variants.values() for variant in kinds.values()):
        examples = (variant.longest.example(), variant.shortest.example(), variant.nominal.example())
        for longest, shortest, nominal in zip(*examples, strict=True):
            for axis in range(longest.dim()):
                if longest.shape[axis] != shortest.shape[axis]:
                    return nominal.shape[axis]
    return 1


def require_macos() -> None:
    """MachineError anywhere else."""
    check_macos("recorded samples become a profile anywhere, with --from-samples FILE")


# This Mac


def record_this_mac(
    folder: Path, manifest: Manifest, targets: Sequence[Target], compute_units: str, repeats: int, on_block: OnBlock
) -> CostRecording:
    """Measure on this Mac, each target once cold and `repeats` times later; what could not be measured says why.

    `on_block` is given all there is so far, after each block. MachineError off macOS.
    """
    require_macos()
    device = f"{_sysctl('hw.model')}, {_sysctl('machdep.cpu.brand_string')}"
    recording = _begun(manifest, "coremltools", device, f"macOS {platform.mac_ver()[0]}", compute_units)
    for target in targets:
        try:
            with temporary_folder("profile") as scratch:
                compiled = scratch / "block.mlmodelc"
                measured = measure_here(folder / target.package.folder, compiled, target, compute_units, repeats)
        except Exception as problem:  # the library raises all kinds, and one block should not cost the others
            measured = target.samples(problem=_line(problem))
        recording = _with(recording, measured)
        on_block(recording, len(targets))
    return recording


def measure_here(package: Path, compiled: Path, target: Target, compute_units: str, repeats: int) -> BlockSamples:
    """One target on this Mac: its first load in one process, later loads and predictions in another."""
    asked = (compiled, target.function_name, compute_units)
    compile_ms, cold_ms = _in_new_process(first_load, package, *asked)
    warm_ms, predict_ms = _in_new_process(later_loads, *asked, target.inputs(), repeats)
    return target.samples(
        compiled_bytes=sum(path.stat().st_size for path in compiled.rglob("*") if path.is_file()),
        compile_ms=(compile_ms,),
        cold_load_ms=(cold_ms,),
        warm_load_ms=warm_ms,
        predict_ms=predict_ms,
    )


def first_load(package: Path, compiled: Path, function: str | None, compute_units: str) -> tuple[float, float]:
    """Milliseconds to compile a package to `compiled`, and to load it from there for the first time."""
    ct = _coremltools()
    begun = time.perf_counter()
    ct.models.utils.compile_model(str(package), str(compiled))
    compile_ms = _ms_since(begun)
    _, load_ms = _loaded(compiled, function, compute_units)
    return compile_ms, load_ms


def later_loads(
    compiled: Path, function: str | None, compute_units: str, inputs: Inputs, repeats: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of loads, each after the model before it was dropped, and of predictions after a first one."""
    loads, predictions = [], []
    model: Any = None
    for _ in range(repeats):
        model = None
        gc.collect()
        model, load_ms = _loaded(compiled, function, compute_units)
        loads.append(load_ms)
    for i in range(repeats + 1):
        begun = time.perf_counter()
        # The call replaces fp16 arrays in what it is given.
        model.predict(dict(inputs))
        if i > 0:
            predictions.append(_ms_since(begun))
    return loads, predictions


def _loaded(compiled: Path, function: str | None, compute_units: str) -> tuple[Any, float]:
    ct = _coremltools()
    units = ct.ComputeUnit[compute_units.upper()]
    begun = time.perf_counter()
    model = ct.models.CompiledMLModel(str(compiled), compute_units=units, function_name=function)
    return model, _ms_since(begun)


def _in_new_process(work: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


# A connected device


def record_connected(
    folder: Path,
    manifest: Manifest,
    targets: Sequence[Target],
    compute_units: str,
    repeats: int,
    on_block: OnBlock,
    *,
    device_name: str,
    team: str | None = None,
) -> CostRecording:
    """Measure on a device that is connected to this Mac: cold loads and predictions; Xcode signs the runner for `team`.

    `on_block` as in `record_this_mac`. MachineError off macOS, without such a device, or where the runner cannot be
    built or started.
    """
    require_macos()
    device = _connected(device_name)
    os = f"{device.os_version} ({device.os_build_number})"
    recording = _begun(manifest, "remote benchmarker", f"{device.name} ({device.type.value})", os, compute_units)

    async def record() -> CostRecording:
        # The device's session belongs to the event loop that it was made in.
        prepared, found = await _prepared(device, team), recording
        for target in targets:
            try:
                with quiet():
                    measured = await measure_connected(
                        folder / target.package.folder, prepared, target, compute_units, repeats
                    )
            except Exception as problem:  # as in record_this_mac
                measured = target.samples(problem=_line(problem))
            found = _with(found, measured)
            on_block(found, len(targets))
        return found

    return asyncio.run(record())


async def measure_connected(
    package: Path, device: Any, target: Target, compute_units: str, repeats: int
) -> BlockSamples:
    """One target on a connected device, by coremltools' benchmarker."""
    ct = _coremltools()
    from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

    units = ct.ComputeUnit[compute_units.upper()]
    model = ct.models.MLModel(
        str(package), skip_model_load=True, compute_units=units, function_name=target.function_name
    )
    benchmarker = MLModelBenchmarker(model, device=device)
    loads = await benchmarker.benchmark_load(iterations=1)
    predictions = await benchmarker.benchmark_predict(target.inputs(), iterations=repeats, warmup=True)
    # The benchmarker keeps its model loaded, and the phone would keep all of them.
    await benchmarker._loaded_model.unload()
    return target.samples(**samples_of_benchmarker(loads, predictions))


def samples_of_benchmarker(loads: Any, predictions: Any) -> dict[str, list[float]]:
    """The samples in two of the benchmarker's measurements, by the names that `BlockSamples` has for them.

    Each load went to a new path on the device. ValueError for one that took no time: the runner had the model already.
    """
    if any(load_ms <= 0 for load_ms in loads.samples):
        raise ValueError("a load took no time: the device had the model loaded already")
    return {"cold_load_ms": loads.samples, "predict_ms": predictions.samples}


def _connected(name: str) -> Any:
    from coremltools.models.ml_program.experimental.remote_device import Device, DeviceState

    try:
        devices = [device for device in Device.get_devices() if device.state == DeviceState.CONNECTED]
    except Exception as problem:  # the library raises all kinds
        raise MachineError(f"connected devices cannot be listed ({_line(problem)}); is Xcode installed?") from None
    found = next((device for device in devices if device.name == name), None)
    if found is None:
        there_are = ", ".join(repr(device.name) for device in devices) or "none"
        raise MachineError(f"--device {name!r}: no such device is connected (there are: {there_are})")
    return found


async def _prepared(device: Any, team: str | None) -> Any:
    from coremltools.models.ml_program.experimental.remote_device import AppSigningCredentials

    try:
        with quiet():
            return await device.prepare_for_model_debugging(AppSigningCredentials(development_team=team or ""))
    except Exception as problem:  # the library raises all kinds
        raise MachineError(f"{device.name}: the model runner could not be started ({_line(problem)})") from None


# Of both


def _begun(
    manifest: Manifest, measured_by: Literal["coremltools", "remote benchmarker"], device: str, os: str, units: str
) -> CostRecording:
    return CostRecording(
        measured_by=measured_by,
        device=device,
        os=os,
        date=datetime.now(UTC).date().isoformat(),
        versions={name: metadata.version(name) for name in ("cidl-sim", "coremltools")},
        compute_units=units,
        model=manifest.model,
        dtype=manifest.dtype,
        compression=manifest.compression,
        workloads=tuple(manifest.workloads),
        packages_bytes=sum(package.bytes for package in manifest.packages.values()),
        blocks=(),
    )


def _with(recording: CostRecording, measured: BlockSamples) -> CostRecording:
    return recording.model_copy(update={"blocks": (*recording.blocks, measured)})


def _coremltools() -> Any:
    with quiet():
        import coremltools
    return coremltools


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"{name} unknown"


def _line(problem: Exception) -> str:
    text = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__


def _ms_since(begun: float) -> float:
    return (time.perf_counter() - begun) * 1e3
