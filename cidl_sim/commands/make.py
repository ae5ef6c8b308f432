"""Commands that make block stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from cidl_sim.blocks.cuts import Dtype
from cidl_sim.commands.console import (
    AsJson,
    Option,
    StoreOption,
    note,
    progress,
    show,
)
from cidl_sim.commands.extra_options import extra_options
from cidl_sim.core.errors import InputError
from cidl_sim.pipelines.catalog import find_model, pipeline_of, pipelines
from cidl_sim.pipelines.pipeline import ModelSizes

PartitionOption = Annotated[
    str, Option("--partition", help="reference, fine, t2.d4...; see docs/reference/workload_names.md.")
]


def model_build(
    store: StoreOption,
    name: Annotated[
        str | None, typer.Argument(help="A model's name: the first part of a workload's. Default: small.")
    ] = None,
    size: Annotated[str | None, Option("--size", help="As NAME; also full, small, tiny, or shapes (trained).")] = None,
    seed: Annotated[
        int | None,
        Option("--random", help="Seed of the random weights; 0, but for a model that has trained ones."),
    ] = None,
    dtype: Annotated[str, Option("--dtype", help="fp32, bf16 or fp16.")] = "fp32",
    partition: PartitionOption = "reference",
    as_json: AsJson = False,
) -> None:
    """Build a block store with seeded random weights, or the trained ones; goes on where it was interrupted."""
    if name is not None and size is not None:
        raise InputError("give either a NAME or --size")
    sizes = find_model(name or size or "small")
    chosen, cut = _dtype(dtype), _partition(sizes, partition)
    from cidl_sim.pipelines.model_store import build_random_store, distinct_blocks, import_checkpoints

    trained = pipeline_of(sizes).trained(sizes.name) if seed is None else None
    count = len(distinct_blocks(sizes, chosen, cut))
    with progress() as step:
        counted = _Counted(lambda done, weights: step("write blocks", done, count, weights))
        if trained is not None:
            built = import_checkpoints(store, sizes, chosen, trained, counted, partition=cut, on_note=note)
        else:
            built = build_random_store(store, sizes, chosen, seed or 0, counted, partition=cut, on_note=note)
    show(counted.summary(built, sizes.name, dtype), as_json, lambda: counted.line(built))


def model_import(
    context: typer.Context,
    store: StoreOption,
    dtype: Annotated[str, Option("--dtype", help="fp32, bf16 or fp16.")] = "fp32",
    partition: PartitionOption = "reference",
    size: Annotated[str | None, Option("--size", help="The model, where its parts are given: its name.")] = None,
    variant: Annotated[
        str | None, Option("--variant", help="Of files that come in several: fp16 takes model.fp16.safetensors.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build a block store from a published checkpoint; an interrupted import goes on where it stopped.

    Give the CHECKPOINT's folder, or an original .safetensors file with all of its parts, and what model it is of is
    found from its tensors; or the folder of each of its parts as --PART DIR.
    """
    options, arguments = extra_options(context)
    chosen, parts = _dtype(dtype), {part: Path(folder) for part, folder in options.items()}
    if len(arguments) > 1 or bool(arguments) == bool(parts):
        known = "; ".join(", ".join(f"--{part}" for part in pipeline.parts) for pipeline in pipelines().values())
        raise InputError(f"give either one CHECKPOINT folder or file, or the folder of each of its parts ({known})")
    from cidl_sim.pipelines.model_store import distinct_blocks, import_checkpoints, recognised

    sizes: ModelSizes
    if arguments:
        if size is not None:
            raise InputError("--size goes with the folders of parts; of a CHECKPOINT it is found")
        sizes, parts = recognised(Path(arguments[0]), variant)
    else:
        sizes = _model_with_parts(parts, size)
    cut = _partition(sizes, partition)
    count = len(distinct_blocks(sizes, chosen, cut))
    with progress() as step:
        counted = _Counted(lambda done, weights: step("import blocks", done, count, weights))
        built = import_checkpoints(store, sizes, chosen, parts, counted, partition=cut, variant=variant, on_note=note)
    show(counted.summary(built, sizes.name, dtype), as_json, lambda: counted.line(built))


def _model_with_parts(parts: dict[str, Path], size: str | None) -> ModelSizes:
    """The model of the family whose checkpoints have these parts; its first one if no name is given."""
    for pipeline in pipelines().values():
        if set(parts) <= set(pipeline.parts):
            needed = (part for part in pipeline.parts if part not in pipeline.optional_parts)
            missing = [f"--{part}" for part in needed if part not in parts]
            if missing:
                raise InputError(f"missing {', '.join(missing)}: a checkpoint of {pipeline.name} has these parts too")
            return find_model(size or next(iter(pipeline.models)))
    unknown = next(iter(parts))
    known = [f"--{part}" for pipeline in pipelines().values() for part in pipeline.parts]
    raise InputError(f"no such option: --{unknown}; parts of a checkpoint are {', '.join(known)}")


class _Counted:
    """Counts the blocks of a store as they are written."""

    def __init__(self, show: Callable[[int, str], None]) -> None:
        self._show = show
        self.blocks = self.bytes = 0

    def __call__(self, weights: str, data_bytes: int) -> None:
        self.blocks, self.bytes = self.blocks + 1, self.bytes + data_bytes
        self._show(self.blocks, weights)

    def summary(self, store: Any, model: str, dtype: str) -> dict[str, Any]:
        return {"store": str(store.root), "model": model, "dtype": dtype, "blocks": self.blocks, "bytes": self.bytes}

    def line(self, store: Any) -> str:
        return f"{self.blocks} blocks, {self.bytes / 1e6:.1f} MB, in {store.root}"


def _dtype(dtype: str) -> Dtype:
    if dtype not in get_args(Dtype):
        raise InputError(f"--dtype {dtype!r}: choose one of {', '.join(get_args(Dtype))}")
    return cast(Dtype, dtype)


def _partition(sizes: ModelSizes, partition: str) -> str:
    try:
        return pipeline_of(sizes).grammar.canonical(partition)
    except ValueError as problem:
        raise InputError(f"--partition: {problem}") from None
