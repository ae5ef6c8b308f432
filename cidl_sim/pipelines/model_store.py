"""From a model to a block store: with seeded random weights, or from published checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from cidl_sim.blocks.cuts import Dtype
from cidl_sim.blocks.definition import TORCH_DTYPES, BlockDefinition
from cidl_sim.executor.store import TOKENIZER_FOLDER, BlockStore, copy_tokenizer, write_store
from cidl_sim.pipelines.catalog import pipeline_of, pipelines
from cidl_sim.pipelines.checkpoint import Checkpoint, CheckpointError, check_keys
from cidl_sim.pipelines.pipeline import ModelSizes
from cidl_sim.pipelines.random_weights import random_weights

OnBlock = Callable[[str, int], None]


def build_random_store(
    root: Path,
    sizes: ModelSizes,
    dtype: Dtype,
    seed: int,
    on_block: OnBlock = lambda weights, data_bytes: None,
    *,
    partition: str = "reference",
) -> BlockStore:
    """Write a store with seeded random weights, one block in memory at a time; `on_block` observes.

    An interrupted call goes on where it stopped.
    """
    make = partial(random_weights, pipeline_of(sizes), seed=seed, dtype=TORCH_DTYPES[dtype])
    return _write(root, sizes, dtype, partition, f"random, seed {seed}", make, on_block)


def import_checkpoints(
    root: Path,
    sizes: ModelSizes,
    dtype: Dtype,
    folders: Mapping[str, Path],
    on_block: OnBlock = lambda weights, data_bytes: None,
    *,
    partition: str = "reference",
) -> BlockStore:
    """Write a store from the folders of a published checkpoint's parts.

    At most one shard is mapped and one block held in memory. The tokenizer comes along if it lies beside the text
    encoder's weights. An interrupted call goes on where it stopped. CheckpointError lists keys that are missing,
    unknown or of another shape, before anything is written.
    """
    pipeline = pipeline_of(sizes)
    checkpoints = {part: Checkpoint(folder) for part, folder in folders.items()}
    _check(checkpoints, sizes, dtype, partition)

    def make(block: BlockDefinition) -> dict[str, Tensor]:
        checkpoint = checkpoints[block.checkpoint]
        return {
            name: checkpoint.tensor(block.published_key(name)).to(TORCH_DTYPES[dtype]).reshape(shape)
            for name, shape in block.shapes().items()
        }

    source = ", ".join(f"{part} from {folder.absolute()}" for part, folder in folders.items())
    store = _write(root, sizes, dtype, partition, source, make, on_block)
    if (part := pipeline.tokenizer_part()) is not None:
        copy_tokenizer(folders[part], root / TOKENIZER_FOLDER)
    return store


def recognised(folder: Path) -> tuple[ModelSizes, dict[str, Path]]:
    """The model whose checkpoint lies in `folder`, and the folders of its parts: found by keys and shapes.

    CheckpointError if no family's model has just these tensors.
    """
    nearest: CheckpointError | None = None
    for pipeline in pipelines().values():
        parts = pipeline.find_parts(folder)
        if parts is None:
            continue
        checkpoints = {part: Checkpoint(path) for part, path in parts.items()}
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
    )
