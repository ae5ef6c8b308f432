"""Blocks as Core ML packages, run by Core ML (macOS) or by the interpreter (anywhere), under the same plans.

A `PackageRunner` loads, runs and unloads the functions of packages; `PackageBackend` is what the runtime drives, the
same over both. Core ML has run nothing of this yet (docs/background/coreml.md).
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cidl_sim.core.errors import MachineError, PackageError, StoreError
from cidl_sim.core.files import sha256_of
from cidl_sim.core.trace import Origin
from cidl_sim.core.workload import Visit, Workload
from cidl_sim.coreml.macos import compile_package, core_ml, first_line, phys_footprint_bytes
from cidl_sim.coreml.manifest import PackageFunction, TensorSpec
from cidl_sim.coreml.packages import Packages
from cidl_sim.coreml.quiet import quiet
from cidl_sim.executor.arena import PAGE
from cidl_sim.executor.backend import Call
from cidl_sim.executor.job import BackendName, ComputeUnits
from cidl_sim.executor.memory_limit import Heap
from cidl_sim.executor.reading import BUFFERED, read_file
from cidl_sim.mil.interpreter import MilProgram, load_package
from cidl_sim.mil.program import Bytes

COMPILED = "compiled"  # beside the packages

_TORCH = {"fp32": torch.float32, "fp16": torch.float16, "int32": torch.int32}


class PackageRunner(Protocol):
    """Loads the packages of an export by the names of their weights, and runs their functions.

    Several threads may load at the same time, also while another runs. Tensors go in and come out by the names of the
    function's inputs and results, in their dtypes.
    """

    origin: Origin
    fall_backs: list[str]

    def load(self, weights: str, function: str) -> None:
        """Bring a package into memory for this function. PackageError if it is damaged, MachineError if that fails."""

    def run(self, weights: str, function: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run a function of a loaded package. A function that it was not loaded for is loaded now."""

    def unload(self, weights: str) -> None:
        """Let a package go, every function of it."""

    def footprint_bytes(self) -> int:
        """Bytes that are held for packages now."""

    def figures(self) -> dict[str, int | str]:
        """What the trace's header should say beside the footprint."""


def runner_for(backend: BackendName, packages: Packages, compute_units: ComputeUnits) -> PackageRunner:
    """The runner of this name, its libraries in memory. MachineError if Core ML is asked for where there is none."""
    return CoreMLRunner(packages, compute_units) if backend == "coreml" else MilRunner(packages)


class PackageBackend:
    """What the runtime drives: visits become calls of functions, tensors get the dtypes that packages declare."""

    def __init__(self, packages: Packages, workload: Workload, runner: PackageRunner) -> None:
        """PackageError if a package or a function for the workload is missing."""
        self.origin = runner.origin
        self.fall_backs = runner.fall_backs
        self._runner = runner
        self._functions: dict[tuple[str, str], tuple[str, PackageFunction]] = {}
        self._visits: dict[str, list[Visit]] = {}
        for visit in workload.visits:
            block = visit.block
            if (block.weights, block.kind) not in self._functions:
                self._functions[block.weights, block.kind] = packages.function(block.weights, block.kind)
            self._visits.setdefault(block.weights, []).append(visit)
        self._held: set[str] = set()
        self._current = -1
        self._peak_bytes = 0
        self._heap = Heap()

    def reserve(self, weights: str) -> None:
        """Nothing to do: a runner takes memory as it loads."""

    def load(self, weights: str) -> None:
        """Load the package for the function of the next visit of `weights`."""
        visits = self._visits[weights]
        # After a stage that ended early this may be a visit that is skipped: then `run` loads what it lacks.
        following = bisect_right(visits, self._current, key=lambda visit: visit.number)
        block = visits[min(following, len(visits) - 1)].block
        self._held.add(weights)
        self._runner.load(weights, self._functions[weights, block.kind][0])
        self._peak_bytes = max(self._peak_bytes, self._runner.footprint_bytes())

    def callable_for(self, visit: Visit) -> Call:
        """The function of the visit's block as a function of tensors, in the order of the block in PyTorch."""
        weights = visit.block.weights
        name, function = self._functions[weights, visit.block.kind]
        self._current = visit.number
        self._heap.trim_beyond(visit.block.workspace_bytes)

        def call(*given: Tensor) -> Any:
            inputs = {spec.name: as_declared(x, spec) for spec, x in zip(function.inputs, given, strict=True)}
            made = self._runner.run(weights, name, inputs)
            results = tuple(as_declared(made[spec.name], spec) for spec in function.outputs)
            return results if len(results) > 1 else results[0]

        return call

    def unload(self, weights: str) -> None:
        """Let the package go."""
        self._held.discard(weights)
        self._runner.unload(weights)

    def make_room(self, weights_bytes: int) -> None:
        """Nothing to do: packages that are let go leave nothing behind that is held for others."""

    def grow(self, capacity_bytes: int) -> None:
        """Nothing to do: packages are loaded one by one."""

    def footprint_bytes(self) -> int:
        """Bytes that are held for packages now."""
        return self._runner.footprint_bytes()

    def figures(self) -> dict[str, int | str]:
        """The most bytes held for packages at the end of a load, and what the runner says."""
        return {"touched_bytes": self._peak_bytes, **self._runner.figures()}

    def close(self) -> None:
        """Let every package go."""
        for weights in list(self._held):
            self.unload(weights)


def as_declared(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """A tensor in the dtype that a package declares."""
    return tensor.to(_TORCH[spec.dtype])


# The interpreter


@dataclass(frozen=True)
class _Held:
    program: MilProgram
    bytes: int


class MilRunner:
    """Runs packages with `mil_interpreter`, every result rounded to the type that the package declares.

    Loading reads the program and all weights into memory of their own, unloading gives that back to the system. Of the
    program itself, some hundred operations, only the bytes of its file are counted.
    """

    origin: Origin = "mil"

    def __init__(self, packages: Packages) -> None:
        with quiet():
            import_module("coremltools.proto.Model_pb2")  # so that no load pays for it
        self.fall_backs: list[str] = []
        self._packages = packages
        self._held: dict[str, _Held] = {}

    def load(self, weights: str, function: str) -> None:
        """Read the package; every function of it can be run then. PackageError if it is damaged."""
        program = load_package(self._packages.path(weights), self._read)
        program.function(function)
        self._held[weights] = _Held(program, self._packages.package(weights).bytes)

    def run(self, weights: str, function: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Interpret a function. PackageError if an operation fails."""
        return self._held[weights].program.run(inputs, function)

    def unload(self, weights: str) -> None:
        """Drop program and weights; the last reference gives the memory back."""
        self._held.pop(weights, None)

    def footprint_bytes(self) -> int:
        """Bytes of the files that are in memory."""
        return sum(held.bytes for held in list(self._held.values()))

    def figures(self) -> dict[str, int | str]:
        """Nothing beside the footprint."""
        return {}

    def _read(self, path: Path) -> Bytes:
        """The bytes of a file in pages of their own, shared ones, so that they are told from the heap's."""
        try:
            size = path.stat().st_size
            if size == 0:
                return np.zeros(0, np.uint8)
            pages = mmap.mmap(-1, -(-size // PAGE) * PAGE)
            if not read_file(path, memoryview(pages), size) and BUFFERED not in self.fall_backs:
                self.fall_backs.append(BUFFERED)
        except OSError as problem:
            raise PackageError(f"{path}: cannot be read ({problem.strerror})") from None
        except StoreError as problem:
            raise PackageError(str(problem)) from None
        return np.frombuffer(pages, np.uint8, size)


# Core ML, on macOS; this has not been run.


class CoreMLRunner:
    """Runs packages with Core ML, compiled once into `compiled/` beside them.

    Core ML caches what it makes of a compiled model for this machine by the model's path, so that loads from the same
    path are warm but for the first. A function is a model object of its own. Whether two of them would share the memory
    of their weights is not known here, so at most one function of a package is held at a time.
    """

    origin: Origin = "coreml"

    def __init__(self, packages: Packages, compute_units: ComputeUnits) -> None:
        """Compile what was not compiled yet. MachineError off macOS, or if Core ML refuses a package."""
        self.fall_backs: list[str] = []
        self._library = core_ml()
        self._packages = packages
        self._units_name = compute_units
        self._units = self._library.ComputeUnit[compute_units.upper()]
        self._compiled_now = sum(_compile(packages, weights) for weights in packages.manifest.packages)
        self._models: dict[str, tuple[str, Any]] = {}  # by weights: the function and its model
        self._loaded_late = 0
        self._before_bytes = phys_footprint_bytes()

    def load(self, weights: str, function: str) -> None:
        """Make the model of this function from the compiled package. MachineError if Core ML cannot."""
        package, path = self._packages.package(weights), compiled_path(self._packages, weights)
        # A package with one function was saved without names of functions.
        name = function if len(package.functions) > 1 else None
        try:
            model = self._library.models.CompiledMLModel(str(path), compute_units=self._units, function_name=name)
        except Exception as problem:
            raise MachineError(f"{path}: Core ML cannot load {function!r} ({first_line(problem)})") from problem
        self._models[weights] = function, model

    def run(self, weights: str, function: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict. MachineError if Core ML fails."""
        if self._models[weights][0] != function:
            # Weights that were kept from a merged to a plain stage.
            self._loaded_late += 1
            self.unload(weights)
            self.load(weights, function)
        given = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
        try:
            made = self._models[weights][1].predict(given)
        except Exception as problem:
            path = compiled_path(self._packages, weights)
            raise MachineError(f"{path}: Core ML cannot run {function!r} ({first_line(problem)})") from problem
        # Copies: what Core ML gives may lie in memory that it uses again.
        return {name: torch.from_numpy(np.array(array)) for name, array in made.items()}

    def unload(self, weights: str) -> None:
        """Drop the model. It is in no cycle, so it is freed now; Core ML may give memory back later."""
        self._models.pop(weights, None)

    def footprint_bytes(self) -> int:
        """By how much the process's footprint has grown; what the Neural Engine holds is often not charged to it."""
        return max(0, phys_footprint_bytes() - self._before_bytes)

    def figures(self) -> dict[str, int | str]:
        """Compute units; packages compiled for this run; functions loaded when they were to run."""
        return {
            "compute_units": self._units_name,
            "packages_compiled": self._compiled_now,
            "functions_loaded_late": self._loaded_late,
        }


def compiled_path(packages: Packages, weights: str) -> Path:
    """Where the compiled package of these weights lies, run after run."""
    return packages.root / COMPILED / f"{packages.path(weights).stem}.mlmodelc"


def _compile(packages: Packages, weights: str) -> bool:
    identity = sha256_of({name: file.sha256 for name, file in packages.package(weights).files.items()})
    return compile_package(packages.path(weights), compiled_path(packages, weights), identity)
