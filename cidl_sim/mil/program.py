"""A saved package as functions, operations and values, read from its files.

A package is a folder: `Manifest.json` names the model file (a protobuf), beside which lies the file of weights.
What is read here is what was saved, not the program that a converter holds in memory. Large values stay in
the file of weights until they are used, or come from memory that the caller has read it into.

The file of weights is a header of 64 bytes and, for each value, a record of 64 bytes (a mark, the type of the data,
its size in bytes, its position) and the data; numbers of fewer than 8 bits are packed, the lowest bits first.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cidl_sim.core.errors import PackageError
from cidl_sim.core.files import read_json

# What holds a value of each type here. uint16 and uint32 become wider signed types: torch computes with those.
TORCH_DTYPES = {
    "BOOL": torch.bool,
    "FLOAT16": torch.float16,
    "FLOAT32": torch.float32,
    "FLOAT64": torch.float64,
    "BFLOAT16": torch.bfloat16,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
    "UINT16": torch.int32,
    "UINT32": torch.int64,
    "INT4": torch.int8,
    "UINT1": torch.uint8,
    "UINT2": torch.uint8,
    "UINT3": torch.uint8,
    "UINT4": torch.uint8,
    "UINT6": torch.uint8,
}
_NUMPY_DTYPES = {
    "BOOL": np.bool_,
    "FLOAT16": np.float16,
    "FLOAT32": np.float32,
    "FLOAT64": np.float64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
}
_PACKED_BITS = {"UINT1": 1, "UINT2": 2, "UINT3": 3, "UINT4": 4, "INT4": 4, "UINT6": 6}
_RECORD = struct.Struct("<IIQQ")
_RECORD_MARK = 0xDEADBEEF


Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class TensorType:
    """Type of a tensor: MIL's name of its data type, and its dimensions (None where the package leaves one open)."""

    dtype: str
    shape: tuple[int | None, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        """What holds such a tensor here."""
        return TORCH_DTYPES[self.dtype]


@dataclass(frozen=True)
class Blob:
    """A value that lies in a file of weights, whose bytes are `stored`, at the position of its record."""

    path: Path
    position: int
    type: TensorType
    stored: Bytes = field(repr=False, compare=False)

    def read(self) -> Tensor:
        """The value, a view of the file's bytes where it is not packed. PackageError if the file holds no such."""
        try:
            mark, _, size, start = _RECORD.unpack(self.stored[self.position : self.position + _RECORD.size].tobytes())
            if mark != _RECORD_MARK or start + size > len(self.stored):
                raise ValueError
            return _tensor(self.stored[start : start + size], self.type)
        except (ValueError, struct.error):
            raise PackageError(f"{self.path}: no value of type {self.type.dtype} at {self.position}") from None


def mapped(path: Path) -> Bytes:
    """The bytes of a file, mapped: read when they are used, and copied when they are written to."""
    try:
        return np.memmap(path, np.uint8, "c")
    except (OSError, ValueError) as problem:
        raise PackageError(f"{path}: cannot be read ({problem})") from None


@dataclass(frozen=True)
class Name:
    """A value that an earlier operation made, or an input."""

    name: str


Value = Tensor | str | Blob
Argument = Name | Value | list["Name | Value"]


@dataclass(frozen=True)
class Output:
    """Name and type of what an operation makes or a function takes."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Operation:
    """One operation: its type, its name, what it is given by parameter, what it makes."""

    type: str
    name: str
    arguments: dict[str, Argument]
    outputs: tuple[Output, ...]

    def names(self) -> Iterator[str]:
        """The names of all values that it is given."""
        for argument in self.arguments.values():
            for given in argument if isinstance(argument, list) else [argument]:
                if isinstance(given, Name):
                    yield given.name


@dataclass(frozen=True)
class Function:
    """One function of a program: inputs, operations in order, and the names of what it returns."""

    inputs: tuple[Output, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class SavedProgram:
    """The functions of a package, and the one that runs where none is named."""

    path: Path
    functions: dict[str, Function]
    default: str


def read_package(path: Path, bytes_of: Callable[[Path], Bytes] = mapped) -> SavedProgram:
    """The program of the package in the folder `path`; `bytes_of` gives what its files of weights hold.

    A pipeline of programs, which is how a bisected model can be saved, becomes one function.
    PackageError: it is none, has no ML program (other kinds of models have none), or has parts that are not known here.
    """
    model_path = _model_path(path)
    model = _parsed(model_path)
    try:
        return _program_of(path, model, _Reader(path, model_path.parent, cache(bytes_of)))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError, RuntimeError) as problem:
        # A message that can be parsed may still hold anything.
        raise PackageError(f"{path}: its program cannot be read ({type(problem).__name__}: {problem})") from None


def _program_of(path: Path, model: Any, reader: _Reader) -> SavedProgram:
    if model.WhichOneof("Type") == "pipeline":
        stages = [reader.functions(stage)["main"] for stage in model.pipeline.models]
        whole = _joined(stages, tuple(output.name for output in model.description.output))
        return SavedProgram(path, {"main": whole}, "main")
    functions = reader.functions(model)
    if not functions:
        raise PackageError(f"{path}: its program has no function")
    default = model.description.defaultFunctionName or "main"
    if default not in functions:
        default = next(iter(functions))
    return SavedProgram(path, functions, default)


def _model_path(path: Path) -> Path:
    manifest = read_json(path / "Manifest.json", PackageError)
    try:
        named = str(manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"])
        inside = (path / "Data").resolve()
        found = (inside / named).resolve()
    except (KeyError, IndexError, TypeError, ValueError, OSError):
        raise PackageError(f"{path}: its Manifest.json names no model") from None
    if not found.is_relative_to(inside):
        raise PackageError(f"{path}: its Manifest.json names a model outside of it")
    return path / "Data" / named


def _parsed(model_path: Path) -> Any:
    # The library says at its import what it cannot do on this system, which is none of the reader's business.
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    model = Model_pb2.Model()
    try:
        model.ParseFromString(model_path.read_bytes())
    except (OSError, DecodeError):
        raise PackageError(f"{model_path}: cannot be read as a Core ML model") from None
    return model


@dataclass(frozen=True)
class _Reader:
    """Turns the messages of one package into the records above."""

    package: Path
    folder: Path
    bytes_of: Callable[[Path], Bytes]

    def functions(self, model: Any) -> dict[str, Function]:
        kind = model.WhichOneof("Type")
        if kind != "mlProgram":
            raise PackageError(f"{self.package}: holds no ML program but a model of kind {kind}")
        return {name: self.function(name, f) for name, f in sorted(model.mlProgram.functions.items())}

    def function(self, name: str, function: Any) -> Function:
        block = function.block_specializations[function.opset]
        inputs = tuple(self.output(value) for value in function.inputs)
        return Function(inputs, tuple(block.outputs), tuple(self.operation(name, o) for o in block.operations))

    def operation(self, function: str, operation: Any) -> Operation:
        attributes = {name: self.value(value) for name, value in operation.attributes.items() if name == "name"}
        name = str(attributes.get("name") or next((o.name for o in operation.outputs), operation.type))
        if operation.blocks:
            raise PackageError(f"{self.package}: function {function}: {operation.type} {name!r} has blocks of its own")
        arguments: dict[str, Argument] = {}
        if operation.type.startswith("const"):
            # Constants, and compressed ones of older packages, have their values as attributes.
            arguments |= {key: self.value(value) for key, value in operation.attributes.items() if key != "name"}
        for key, argument in operation.inputs.items():
            given = [self.binding(binding) for binding in argument.arguments]
            arguments[key] = given if key == "values" or len(given) != 1 else given[0]
        return Operation(operation.type, name, arguments, tuple(self.output(value) for value in operation.outputs))

    def binding(self, binding: Any) -> Name | Value:
        return Name(binding.name) if binding.WhichOneof("binding") == "name" else self.value(binding.value)

    def output(self, value: Any) -> Output:
        return Output(value.name, self.type(value.type))

    def type(self, value_type: Any) -> TensorType:
        kind = value_type.WhichOneof("type")
        if kind != "tensorType":
            raise PackageError(f"{self.package}: values of kind {kind} are not known here")
        from coremltools.proto import MIL_pb2

        tensor = value_type.tensorType
        dtype = MIL_pb2.DataType.Name(tensor.dataType)
        if dtype not in TORCH_DTYPES and dtype != "STRING":
            raise PackageError(f"{self.package}: values of type {dtype} are not known here")
        sizes = (d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
        return TensorType(dtype, tuple(sizes))

    def value(self, value: Any) -> Value:
        value_type = self.type(value.type)
        if value.WhichOneof("value") == "blobFileValue":
            name = value.blobFileValue.fileName.removeprefix("@model_path/")
            file = self.folder / name
            return Blob(file, value.blobFileValue.offset, value_type, self.bytes_of(file))
        field = value.immediateValue.tensor.WhichOneof("value")
        values = getattr(value.immediateValue.tensor, field).values
        if field == "strings":
            return str(values[0])
        if field == "bytes":
            return _tensor(np.frombuffer(bytearray(values), np.uint8), value_type)
        return torch.tensor(list(values), dtype=value_type.torch_dtype).reshape(_sizes(value_type))


def _joined(stages: list[Function], outputs: tuple[str, ...]) -> Function:
    """Programs that hand on what they make, as one function; inputs and results keep their names, the rest do not."""
    inputs: dict[str, Output] = {}
    operations: list[Operation] = []
    made: set[str] = set()
    for number, stage in enumerate(stages):
        shared = {value.name for value in stage.inputs} | set(stage.outputs)
        inputs |= {value.name: value for value in stage.inputs if value.name not in made}
        operations += [_renamed(operation, shared, f"{number}/") for operation in stage.operations]
        made |= set(stage.outputs)
    return Function(tuple(inputs.values()), outputs, tuple(operations))


def _renamed(operation: Operation, shared: set[str], prefix: str) -> Operation:
    def name(old: str) -> str:
        return old if old in shared else prefix + old

    def renamed(argument: Argument) -> Argument:
        if isinstance(argument, list):
            return [Name(name(part.name)) if isinstance(part, Name) else part for part in argument]
        return Name(name(argument.name)) if isinstance(argument, Name) else argument

    return replace(
        operation,
        arguments={key: renamed(argument) for key, argument in operation.arguments.items()},
        outputs=tuple(Output(name(output.name), output.type) for output in operation.outputs),
    )


def _sizes(value_type: TensorType) -> tuple[int, ...]:
    return tuple(size or 0 for size in value_type.shape)


def _tensor(stored: Bytes, value_type: TensorType) -> Tensor:
    """Bytes as a tensor of this type; ValueError if there are too few."""
    shape = _sizes(value_type)
    bits = _PACKED_BITS.get(value_type.dtype)
    if bits is None:
        numbers: np.ndarray[Any, Any] = stored.view(_NUMPY_DTYPES[value_type.dtype]).reshape(shape)
        return torch.from_numpy(numbers).to(value_type.torch_dtype)
    unpacked = torch.from_numpy(unpack_bits(stored, bits, math.prod(shape)).reshape(shape))
    if value_type.dtype == "INT4":
        return (unpacked.to(torch.int8) + 8) % 16 - 8
    return unpacked


def unpack_bits(packed: Bytes, bits: int, count: int) -> Bytes:
    """`count` numbers of `bits` bits each, the lowest bits first, as bytes. ValueError if there are fewer."""
    single = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(single, axis=1, bitorder="little").reshape(count)


def used_until(function: Function) -> Mapping[str, int]:
    """For each value the number of the last operation that is given it; those that are returned are left out."""
    last = {name: i for i, operation in enumerate(function.operations) for name in operation.names()}
    return {name: i for name, i in last.items() if name not in function.outputs}
