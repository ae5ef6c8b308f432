"""`manifest.json`: what an export holds, for whoever loads its packages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from cidl_sim.core.errors import InputError
from cidl_sim.core.files import Record, read_json, validated, write_text
from cidl_sim.core.plan import FIRST_PIPELINE

Precision = Literal["fp32", "fp16"]
Compression = Literal["none", "int8", "palette8", "palette6", "palette4", "mixed4"]
MANIFEST = "manifest.json"


class TensorSpec(Record):
    """An input or a result: its shape at the longest prompt; the axes in `flexible` take any size from 1 to that."""

    name: str
    dtype: Literal["fp32", "fp16", "int32"]
    shape: tuple[int, ...]
    flexible: tuple[int, ...] = ()


class PackageFunction(Record):
    """One function of a package: the kind of block that it computes, inputs and results in the block's order."""

    kind: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class PackageFile(Record):
    """A file inside a package."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Package(Record):
    """One .mlpackage: a block's weights, and a function for each kind of block that uses them.

    `source_sha256` is that of the block's file in the store. `weight_error`: norm of what compression changed over
    the norm of the compressed weights, None without compression.
    """

    folder: str
    bytes: int = Field(ge=0)
    source_sha256: str
    default_function: str
    functions: dict[str, PackageFunction]
    files: dict[str, PackageFile]
    weight_error: float | None = None

    @field_validator("folder", "files")
    @classmethod
    def _stays_in_the_folder(cls, given: str | dict[str, PackageFile]) -> str | dict[str, PackageFile]:
        for path in [given] if isinstance(given, str) else given:
            if not path or path.startswith("/") or {"", ".", ".."} & set(path.split("/")) or "\0" in path:
                raise ValueError(f"{path!r} leaves the folder of the export")
        return given


class Manifest(Record):
    """An export of the model with these sizes, which is of the family `pipeline`.

    `workloads`: the kinds of block of each, in order of first use; `missing`: not exported yet.
    """

    format: Literal["cidl-coreml/1"] = "cidl-coreml/1"
    pipeline: str = FIRST_PIPELINE
    model: str
    sizes: dict[str, Any]
    dtype: Precision
    compression: Compression
    partition: str
    target: str
    made_with: dict[str, str]
    workloads: dict[str, tuple[str, ...]]
    packages: dict[str, Package] = Field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write `manifest.json` in one step. MachineError if the disk does not take it."""
        write_text(folder / MANIFEST, self.model_dump_json(indent=1) + "\n")


class ExportSummary(Record):
    """What `cidl coreml export` says: the export as it is now, and which packages were made in this call.

    `weight_error`: the largest that compression made, None without compression.
    """

    out: str
    model: str
    dtype: Precision
    compression: Compression
    workloads: tuple[str, ...]
    packages: int
    functions: int
    bytes: int
    exported: tuple[str, ...]
    missing: tuple[str, ...]
    weight_error: float | None


def export_summary(manifest: Manifest, out: Path, made: Sequence[str]) -> ExportSummary:
    """The figures of the export in `out`, of which the packages of `made` are new."""
    packages = manifest.packages.values()
    errors = [package.weight_error for package in packages if package.weight_error is not None]
    return ExportSummary(
        out=str(out),
        model=manifest.model,
        dtype=manifest.dtype,
        compression=manifest.compression,
        workloads=tuple(manifest.workloads),
        packages=len(packages),
        functions=sum(len(package.functions) for package in packages),
        bytes=sum(package.bytes for package in packages),
        exported=tuple(made),
        missing=manifest.missing,
        weight_error=max(errors, default=None),
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the export in `folder`. InputError names what is wrong with it."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: not an export (no {MANIFEST}); make one with 'cidl coreml export'")
    return validated(Manifest, read_json(path, InputError), str(path), InputError)


def files_of(package: Path) -> dict[str, PackageFile]:
    """Sizes and hashes of a package's files, by their paths inside it."""
    found = {}
    for path in sorted(path for path in package.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.relative_to(package).as_posix()] = PackageFile(bytes=path.stat().st_size, sha256=digest)
    return found
