"""A block store -> a folder of Core ML packages: one for each block's weights, a function for each kind of block.

Every package is made by a process that holds one block, in a folder of its own beside the packages, and renamed into
place when it is whole. `manifest.json` is written anew after each, so the same call goes on after any end.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cidl_sim.blocks.variants import MakeVariants
from cidl_sim.core.errors import InputError, MachineError, StoreError
from cidl_sim.core.files import write_text
from cidl_sim.core.processes import end_with
from cidl_sim.core.progress import Progress, silent
from cidl_sim.core.workload import kind_without_widths
from cidl_sim.coreml.manifest import (
    MANIFEST,
    Compression,
    Manifest,
    Package,
    PackageFunction,
    Precision,
    files_of,
    read_manifest,
)
from cidl_sim.coreml.quiet import quiet
from cidl_sim.executor.store import TOKENIZER_FOLDER, BlockStore, copy_tokenizer

TARGET_NAME = "iOS18"
_SCRATCH = ".exporting-"
_LIBRARIES = ("coremltools", "torch")


@dataclass(frozen=True)
class Exported:
    """What an export is of: a model of a family, the kinds of block of each workload, and what makes the definitions.

    `variants` is called in every process that makes a package; it has to be a function that can be sent to one.
    """

    pipeline: str
    model: str
    sizes: dict[str, Any]
    workloads: dict[str, tuple[str, ...]]
    variants: MakeVariants


@dataclass(frozen=True)
class PackageJob:
    """All that a process needs for one package: the block's weights and their file, and what makes its definitions."""

    weights: str
    file: Path
    sha256: str
    variants: MakeVariants
    precision: Precision
    compression: Compression
    out: Path


def export_blocks(
    store: BlockStore,
    out: Path,
    exported: Exported,
    precision: Precision,
    *,
    compression: Compression = "none",
    blocks: Sequence[str] = (),
    workers: int = 1,
    on_package: Progress = silent,
) -> Manifest:
    """Export the blocks of a store as `exported` defines them, all in the dtype of `precision`.

    `blocks`: patterns of names of weights, all without any. `workers` processes hold one block each; with 0 this one
    converts, without the seconds that a process takes to start. Packages in `out` that are whole and the same are kept.
    InputError for a pattern without a match, or a folder that holds another export; MachineError if the disk or a
    process fails.
    """
    wanted = {weights: tuple(variants) for weights, variants in exported.variants().items()}
    chosen = _chosen(list(wanted), blocks)
    manifest = _begun(store, out, precision, compression, exported)
    kept = {
        weights: package
        for weights, package in manifest.packages.items()
        if weights in wanted and _is_current(out, package, store.entry(weights).sha256, wanted[weights])
    }
    manifest = _with_packages(manifest, kept, wanted)
    jobs = [
        PackageJob(
            weights, store.path(weights), store.entry(weights).sha256, exported.variants, precision, compression, out
        )
        for weights in chosen
        if weights not in kept
    ]
    _clear_scratch(out)
    manifest.write(out)
    copy_tokenizer(store.root / TOKENIZER_FOLDER, out / TOKENIZER_FOLDER)
    done = len(chosen) - len(jobs)
    for weights, package in _exported(jobs, workers):
        kept[weights] = package
        manifest = _with_packages(manifest, kept, wanted)
        manifest.write(out)
        done += 1
        on_package(done, len(chosen), weights)
    return manifest


def export_package(job: PackageJob) -> Package:
    """Make one package and put it into its place. StoreError if the block's file is not of this model."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from cidl_sim.blocks.finite import check_finite, converted

    with quiet():
        from cidl_sim.coreml.compression import compress
        from cidl_sim.coreml.conversion import convert, function_of
    variants = job.variants()[job.weights]
    functions: dict[str, PackageFunction] = {}
    errors = []
    with _as_os_errors(), _scratch(job.out) as scratch:
        try:
            tensors = load_file(job.file)
        except (OSError, SafetensorError) as problem:
            raise StoreError(f"{job.file}: cannot be read ({problem})") from None
        for key, tensor in tensors.items():
            check_finite(tensor, f"{job.file}: {key!r}", StoreError)
            if job.precision == "fp16":
                converted(tensor, torch.float16, f"{job.file}: {key!r}", StoreError)
        for kind, variant in variants.items():
            name = _function_name(kind) if len(variants) > 1 else "main"
            functions[name] = function_of(variant, job.precision)
            model = convert(variant.longest, functions[name], tensors, job.precision)
            if job.compression != "none":
                model, error = compress(model, job.compression)
                errors.append(error)
            model.save(str(scratch / f"{name}.mlpackage"))
            del model
        package = _joined(scratch, list(functions))
        _put_in_order(package)
        files = files_of(package)
        target = job.out / f"{job.weights}.mlpackage"
        shutil.rmtree(target, ignore_errors=True)
        package.rename(target)
    # What the conversion leaves behind is in cycles, and as large as the block.
    gc.collect()
    return Package(
        folder=target.name,
        bytes=sum(file.bytes for file in files.values()),
        source_sha256=job.sha256,
        default_function=next(iter(functions)),
        functions=functions,
        files=files,
        weight_error=max(errors) if errors else None,
    )


def _chosen(weights: list[str], patterns: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in weights):
            raise InputError(f"--blocks {pattern!r}: no such block; there are {weights[0]}, ... {weights[-1]}")
    return [name for name in weights if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)]


# What is there already


def _begun(
    store: BlockStore,
    out: Path,
    precision: Precision,
    compression: Compression,
    exported: Exported,
) -> Manifest:
    """This export's manifest with the packages that an earlier call has left. InputError: see `export_blocks`."""
    new = Manifest(
        pipeline=exported.pipeline,
        model=exported.model,
        sizes=exported.sizes,
        dtype=precision,
        compression=compression,
        partition=store.index.partition,
        target=TARGET_NAME,
        made_with={name: metadata.version(name) for name in _LIBRARIES},
        workloads=exported.workloads,
    )
    if not (out / MANIFEST).is_file():
        return new
    old = read_manifest(out)
    for field in ("pipeline", "model", "dtype", "compression", "partition", "target", "made_with"):
        if getattr(old, field) != getattr(new, field):
            raise InputError(
                f"{out}: holds another export ({field} {getattr(old, field)}, not {getattr(new, field)}); "
                "choose another folder"
            )
    return new.model_copy(update={"packages": old.packages})


def _is_current(out: Path, package: Package, sha256: str, kinds: Sequence[str]) -> bool:
    earlier = [kind_without_widths(kind) for kind in kinds]
    return (
        package.source_sha256 == sha256
        # Exports from before kinds knew widths are of one model each all the same.
        and [function.kind for function in package.functions.values()] in (list(kinds), earlier)
        and files_of(out / package.folder) == package.files
    )


def _with_packages(manifest: Manifest, packages: Mapping[str, Package], wanted: Mapping[str, object]) -> Manifest:
    in_order = {weights: packages[weights] for weights in wanted if weights in packages}
    missing = tuple(weights for weights in wanted if weights not in packages)
    return manifest.model_copy(update={"packages": in_order, "missing": missing})


# One after the other, or several at a time


def _exported(jobs: Sequence[PackageJob], workers: int) -> Iterator[tuple[str, Package]]:
    if not jobs:
        return
    if workers == 0:
        yield from ((job.weights, export_package(job)) for job in jobs)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=end_with, initargs=(os.getpid(),)
    )
    try:
        running = {pool.submit(export_package, job): job.weights for job in jobs}
        for future in as_completed(running):
            yield running[future], future.result()
    except BrokenProcessPool:
        raise MachineError(
            "a process died (killed, or out of memory?); the same command goes on, with fewer --workers if need be"
        ) from None
    except OSError as problem:
        raise MachineError(f"{jobs[0].out}: cannot be written ({problem.strerror or problem})") from problem
    finally:
        pool.shutdown(wait=sys.exc_info()[0] is None, cancel_futures=True)


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """What the library's compiled part says of the disk: it raises a RuntimeError for the OSError that it is."""
    try:
        yield
    except RuntimeError as problem:
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO):
            if os.strerror(code) in str(problem):
                raise OSError(code, os.strerror(code)) from problem
        raise


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder beside the packages; the libraries' own temporary files, as large as a block, go there too."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=out) as folder:
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


def _clear_scratch(out: Path) -> None:
    """Remove what a killed call left."""
    for folder in out.glob(f"{_SCRATCH}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _function_name(kind: str) -> str:
    # A package is of one model: its widths need not be told.
    return "".join(letter if letter.isalnum() else "_" for letter in kind_without_widths(kind))


def _joined(scratch: Path, functions: Sequence[str]) -> Path:
    """The package of a block: its only program, or all of them as functions that share their weights."""
    if len(functions) == 1:
        return scratch / f"{functions[0]}.mlpackage"
    import coremltools as ct

    descriptor = ct.utils.MultiFunctionDescriptor()
    for name in functions:
        descriptor.add_function(str(scratch / f"{name}.mlpackage"), "main", name)
    descriptor.default_function_name = functions[0]
    together = scratch / "together.mlpackage"
    with quiet():
        ct.utils.save_multifunction(descriptor, str(together))
    return together


def _put_in_order(package: Path) -> None:
    """Equal exports are equal bytes: the library writes maps in an order of chance, and names files by chance."""
    from coremltools.proto import Model_pb2

    for file in package.rglob("*.mlmodel"):
        model = Model_pb2.Model()
        model.ParseFromString(file.read_bytes())
        file.write_bytes(model.SerializeToString(deterministic=True))
    manifest = json.loads((package / "Manifest.json").read_text(encoding="utf-8"))
    names = {
        name: str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"])) for name, item in manifest["itemInfoEntries"].items()
    }
    items = {names[name]: item for name, item in manifest["itemInfoEntries"].items()}
    manifest |= {
        "itemInfoEntries": dict(sorted(items.items())),
        "rootModelIdentifier": names[manifest["rootModelIdentifier"]],
    }
    write_text(package / "Manifest.json", json.dumps(manifest, indent=4) + "\n")
