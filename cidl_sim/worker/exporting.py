"""Stores of any model as packages for Core ML, checked and measured: where the exports meet the model families."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cidl_sim.blocks.variants import Variants
from cidl_sim.core.errors import PackageError
from cidl_sim.core.progress import Progress, silent
from cidl_sim.coreml.check_export import FunctionCheck, check_functions
from cidl_sim.coreml.export import Exported, export_blocks
from cidl_sim.coreml.manifest import Compression, Manifest, Precision, read_manifest
from cidl_sim.coreml.measuring import Target, targets_in
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import canonical_name, parse_name, pipeline_of
from cidl_sim.pipelines.matching import sizes_from, store_sizes
from cidl_sim.pipelines.variants import blocks_by_kind, kinds_in, runs_for, variants_of


def export_store(
    store: BlockStore,
    out: Path,
    precision: Precision,
    *,
    workloads: Sequence[str] = (),
    compression: Compression = "none",
    blocks: Sequence[str] = (),
    workers: int = 1,
    on_package: Progress = silent,
) -> Manifest:
    """Export the blocks of a store for the shapes of some named workloads; without any, for the model's default.

    The workloads' own dtype gives way to `precision`; every variant of a block is exported, whether they use it or not.
    InputError for another model's workload; see `export_blocks` for the rest.
    """
    sizes = store_sizes(store)
    runs = runs_for(store, sizes, workloads, precision)
    exported = Exported(
        pipeline_of(sizes).name,
        sizes.name,
        sizes.model_dump(mode="json"),
        {canonical_name(sizes, run): kinds_in(sizes, run) for run in runs},
        partial(variants_of, sizes, runs),
    )
    return export_blocks(
        store,
        out,
        exported,
        precision,
        compression=compression,
        blocks=blocks,
        workers=workers,
        on_package=on_package,
    )


def variants_in(folder: Path, manifest: Manifest) -> Variants:
    """The blocks that an export's functions compute. PackageError if its model is not one of its family."""
    sizes = sizes_from(manifest.pipeline, manifest.sizes, str(folder), PackageError)
    settings = (parse_name(name)[1] for name in manifest.workloads)
    runs = (s.model_copy(update={"partition": manifest.partition, "dtype": manifest.dtype}) for s in settings)
    return variants_of(sizes, tuple(dict.fromkeys(runs)))


def check_export(
    folder: Path,
    store: BlockStore,
    blocks: Sequence[str] = (),
    on_function: Progress = silent,
) -> list[FunctionCheck]:
    """Compare the functions of an export with PyTorch: see `check_functions`."""
    return check_functions(folder, store, variants_in(folder, read_manifest(folder)), blocks, on_function)


def targets_of(folder: Path, manifest: Manifest, per_kind: int = 1) -> list[Target]:
    """Of each kind of block in an export the functions of its first `per_kind` packages, to be measured."""
    return targets_in(manifest, blocks_by_kind(tuple(manifest.workloads)), variants_in(folder, manifest), per_kind)
