"""From a model to a block store: with seeded random weights, or from published checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from cidl_sim.blocks.cuts import Dtype
from cidl_sim.blocks.definition import TORCH_DTYPES, BlockDefinition
from cidl_sim.blocks.finite import converted
from cidl_sim.executor.store import TOKENIZER_FOLDER, BlockStore, copy_tokenizer, write_store
from cidl_sim.pipelines.catalog import pipeline_of, pipelines
from cidl_sim.pipelines.checkpoint import Checkpoint, check_keys
from cidl_sim.pipelines.pipeline import ModelSizes
from cidl_sim.pipelines.random_weights import random_weights
from cidl_sim.pipelines.shards import CheckpointError

OnBlock = Callable[[str, int], None]
OnNote = Callable[[str], None]


def build_random_store(
    root: Path,
    sizes: ModelSizes,
    dtype: Dtype,
    seed: int,
    on_block: OnBlock = lambda weights, data_bytes: None,
    *,
    partition: str = "reference",
    on_note: OnNote = lambda words: None,
) -> BlockStore:
    """Write a store with seeded random weights, one block in memory at a time; `on_block` observes.

    An interrupted call goes on where it stopped; `on_note` hears it where what is there is of another store.
    """
    make = partial(random_weights, pipeline_of(sizes), seed=seed, dtype=TORCH_DTYPES[dtype])
    return _write(root, sizes, dtype, partition, f"random, seed {seed}", make, on_block, on_note)


def import_checkpoints(
    root: Path,
    sizes: ModelSizes,
    dtype: Dtype,
    folders: Mapping[str, Path],
    on_block: OnBlock = lambda weights, data_bytes: None,
    *,
    partition: str = "reference",
    variant: str | None = None,
    on_note: OnNote = lambda words: None,
) -> BlockStore:
    """Write a store from the folders of a published checkpoint's parts; `variant` of files where there are some (fp16).

    At most one shard is mapped and one block held in memory. The tokenizer comes along if it lies beside the text
    encoder's weights. An interrupted call goes on where it stopped. CheckpointError lists keys that are missing,
    unknown or of another shape, before anything is written, and names values that are not finite. An interrupted call
    goes on with the same files alone; with others, also under the same names, it begins anew.
    """
    pipeline = pipeline_of(sizes)
    checkpoints = {part: Checkpoint(folder, variant) for part, folder in folders.items()}
    _check(checkpoints, sizes, dtype, partition)

    def make(block: BlockDefinition) -> dict[str, Tensor]:
        checkpoint = checkpoints[block.checkpoint]

        def tensor(key: str) -> Tensor:
            named = f"{checkpoint.folder}: {key!r}"
            return converted(checkpoint.tensor(key), TORCH_DTYPES[dtype], named, CheckpointError)

        return {name: tensor(block.published_key(name)).reshape(shape) for name, shape in block.shapes().items()}

    source = ", ".join(f"{part} from {folder.absolute()}" for part, folder in folders.items())
    files = {part: checkpoint.fingerprint for part, checkpoint in checkpoints.items()}
    store = _write(root, sizes, dtype, partition, source, make, on_block, on_note, files)
    if (part := pipeline.tokenizer_part()) is not None:
        copy_tokenizer(folders[part], root / TOKENIZER_FOLDER)
    return store


def recognised(folder: Path, variant: str | None = None) -> tuple[ModelSizes, dict[str, Path]]:
    """The model whose checkpoint lies in `folder`, and the folders of its parts: found by keys and shapes.

    CheckpointError if no family's model has just these tensors.
    """
    nearest: CheckpointError | None = None
    for pipeline in pipelines().values():
        parts = pipeline.find_parts(folder)
        if parts is None:
            continue
        checkpoints = {part: Checkpoint(path, variant) for part, path in parts.items()}
        for sizes in pipeline.models.values():
            try:
                _check(checkpoints, sizes, "fp32", "reference")
            except CheckpointError as problem:
                nearest = nearest or problem
                continue
            return sizes, parts
    raise nearest or CheckpointError(f"{folder}: laid out as no model's checkpoint that is known here")


def _check(checkpoints: Mapping[str, Checkpoint], sizes: ModelSizes, dtype: Dtype, partition: str) -> None:
    """CheckpointError unless these are the parts of a model of these sizes."""
    blocks = distinct_blocks(sizes, dtype, partition)
    for part, checkpoint in checkpoints.items():
        wanted = published_shapes([block for block in blocks if block.checkpoint == part])
        checkpoint.rename(pipeline_of(sizes).other_names(part))
        check_keys(checkpoint, wanted, pipeline_of(sizes).unused_keys(sizes, part))


def distinct_blocks(sizes: ModelSizes, dtype: Dtype, partition: str = "reference") -> list[BlockDefinition]:
    """One definition for each set of weights, in order of first use."""
    pipeline = pipeline_of(sizes)
    stages = pipeline.stages(sizes, pipeline.smallest(dtype, partition), "shortest")
    return list({block.weights: block for stage in stages for block in stage.blocks}.values())


def published_shapes(blocks: list[BlockDefinition]) -> dict[str, tuple[int, ...]]:
    """The checkpoint keys of some blocks with their shapes."""
    return {block.published_key(name): shape for block in blocks for name, shape in block.shapes().items()}


def _write(
    root: Path,
    sizes: ModelSizes,
    dtype: Dtype,
    partition: str,
    source: str,
    make: Callable[[BlockDefinition], Mapping[str, Tensor]],
    on_block: OnBlock,
    on_note: OnNote,
    files: Any = None,
) -> BlockStore:
    shutil.rmtree(root / TOKENIZER_FOLDER, ignore_errors=True)  # an earlier import's does not belong to this model
    return write_store(
        root,
        ((block.weights, partial(make, block)) for block in distinct_blocks(sizes, dtype, partition)),
        name=sizes.name,
        dtype=dtype,
        partition=partition,
        source=source,
        model=sizes.model_dump(mode="json"),
        pipeline=pipeline_of(sizes).name,
        on_block=on_block,
        on_note=on_note,
        made_from=files,
    )
