"""Runs the program of a saved Core ML package operation by operation, with torch on the CPU.

It shows what the package says, not what a device does with it: a device may round inside an operation, join
operations or reorder sums. Every operation is computed in fp32, in one of two modes:

- "rounded": each result is rounded to the type that the package declares, so an fp16 result that is too large
  becomes infinite, as it does on a device that computes in fp16. Sums inside one operation stay in fp32.
- "exact": results stay in fp32 where the package declares fp16. What is left of the error against the
  network is that of rounded weights and of the conversion itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cidl_sim.core.errors import PackageError
from cidl_sim.mil.ops import OPS
from cidl_sim.mil.program import (
    Argument,
    Blob,
    Bytes,
    Function,
    Name,
    Operation,
    Output,
    mapped,
    read_package,
    used_until,
)

Mode = Literal["rounded", "exact"]
Observer = Callable[[Operation, tuple[Tensor, ...]], None]


@dataclass(frozen=True)
class MilProgram:
    """The functions of a package that can be run."""

    path: Path
    functions: dict[str, Function]
    default: str

    def function(self, name: str | None = None) -> Function:
        """A function by its name, or the default one. PackageError if there is none of that name."""
        named = self.default if name is None else name
        if named not in self.functions:
            raise PackageError(f"{self.path}: has no function {named!r}, only {', '.join(self.functions)}")
        return self.functions[named]

    def run(
        self,
        inputs: Mapping[str, Tensor],
        function: str | None = None,
        *,
        mode: Mode = "rounded",
        observe: Observer | None = None,
    ) -> dict[str, Tensor]:
        """The outputs of a function (by default the package's own default) by their names.

        A value is dropped after the last operation that needs it. `observe` is called with each operation and
        its results. PackageError: no such function, other inputs than declared, an operation that is not known.
        """
        chosen, named = self.function(function), function or self.default
        self._check_operations(named, chosen)
        values: dict[str, Any] = self._checked_inputs(named, chosen, inputs, mode)
        last = used_until(chosen)
        with torch.inference_mode():
            for i, operation in enumerate(chosen.operations):
                self._step(operation, values, mode, observe)
                for name in {*operation.names(), *(o.name for o in operation.outputs)}:
                    if name not in chosen.outputs and last.get(name, i) <= i:
                        del values[name]
            return {
                name: _computable(values[name]) if mode == "exact" else _read(values[name]) for name in chosen.outputs
            }

    def _step(self, operation: Operation, values: dict[str, Any], mode: Mode, observe: Observer | None) -> None:
        if operation.type == "const":
            values[operation.outputs[0].name] = operation.arguments["val"]
            return
        results = self._results(operation, values)
        kept = tuple(_kept(r, o, mode) for r, o in zip(results, operation.outputs, strict=True))
        for result, output in zip(kept, operation.outputs, strict=True):
            self._check_shape(operation, output, result)
            values[output.name] = result
        if observe is not None:
            observe(operation, kept)

    def _results(self, operation: Operation, values: Mapping[str, Any]) -> tuple[Tensor, ...]:
        given = {key: _given(argument, values) for key, argument in operation.arguments.items()}
        try:
            made = OPS[operation.type](**given)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as problem:
            reason = str(problem).strip().partition("\n")[0]
            raise PackageError(f"{self.path}: {operation.type} {operation.name!r} failed: {reason}") from problem
        return tuple(made) if isinstance(made, tuple | list) else (made,)

    def _check_operations(self, name: str, function: Function) -> None:
        types = {o.type for o in function.operations} - {"const"}
        lacking = sorted(types - set(OPS))
        if lacking:
            raise PackageError(f"{self.path}: function {name}: the interpreter lacks {', '.join(lacking)}")
        for operation in function.operations:
            if operation.type == "const":
                continue
            extra = set(operation.arguments) - set(inspect.signature(OPS[operation.type]).parameters)
            if extra:
                what = f"{operation.type} {operation.name!r}"
                raise PackageError(f"{self.path}: {what}: the interpreter does not know {', '.join(sorted(extra))}")

    def _check_shape(self, operation: Operation, output: Output, result: Tensor) -> None:
        declared = output.type.shape
        if len(declared) == result.dim() and all(d in (None, n) for d, n in zip(declared, result.shape, strict=True)):
            return
        what = f"{operation.type} {operation.name!r}"
        raise PackageError(f"{self.path}: {what} made {tuple(result.shape)} where {declared} is declared")

    def _checked_inputs(
        self, name: str, function: Function, inputs: Mapping[str, Tensor], mode: Mode
    ) -> dict[str, Tensor]:
        wanted = [value.name for value in function.inputs]
        if set(wanted) != set(inputs):
            raise PackageError(f"{self.path}: function {name} takes {', '.join(wanted)}, not {', '.join(inputs)}")
        for value in function.inputs:
            given, declared = tuple(inputs[value.name].shape), value.type.shape
            if len(given) != len(declared) or any(d not in (None, n) for d, n in zip(declared, given, strict=True)):
                raise PackageError(f"{self.path}: input {value.name} is {given} where {declared} is declared")
        return {value.name: _kept(inputs[value.name], value, mode) for value in function.inputs}


def load_package(path: Path, bytes_of: Callable[[Path], Bytes] = mapped) -> MilProgram:
    """The package in the folder `path`, ready to run. PackageError if it cannot be read.

    `bytes_of` gives what its files of weights hold; by default they are mapped.
    """
    saved = read_package(path, bytes_of)
    return MilProgram(saved.path, saved.functions, saved.default)


def _kept(result: Tensor, output: Output, mode: Mode) -> Tensor:
    """A result as it is kept: in the declared type; in exact mode floats in fp32."""
    if mode == "exact" and output.type.torch_dtype.is_floating_point:
        return result.float()
    return result.to(output.type.torch_dtype)


def _given(argument: Argument, values: Mapping[str, Any]) -> Any:
    if isinstance(argument, list):
        return [_given(part, values) for part in argument]
    return _computable(values[argument.name] if isinstance(argument, Name) else argument)


def _read(value: Any) -> Any:
    return value.read() if isinstance(value, Blob) else value


def _computable(value: Any) -> Any:
    """A value as operations are given it: read from the file of weights, floats in fp32."""
    read = _read(value)
    return read.float() if isinstance(read, Tensor) and read.is_floating_point() else read
