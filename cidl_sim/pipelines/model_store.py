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
from cidl_sim.pipelines.checkpoint import Checkpoint, KeyMismatchError, check_keys
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
    checkpoints = _opened(folders, sizes, variant)
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
    if (tokenizer := pipeline.tokenizer_folder(folders)) is not None:
        copy_tokenizer(tokenizer, root / TOKENIZER_FOLDER)
    return store


def recognised(folder: Path, variant: str | None = None) -> tuple[ModelSizes, dict[str, Path]]:
    """The model whose checkpoint lies in `folder`, and the folders of its parts: found by keys and shapes.

    `folder` may be one original file with all parts. CheckpointError if no family's model has just these tensors; it
    tells what is wrong with the one that has most of them.
    """
    if not folder.exists():
        raise CheckpointError(f"{folder}: neither a checkpoint's folder nor a file")
    nearest: tuple[int, CheckpointError] | None = None
    for pipeline in pipelines().values():
        single = folder.is_file()
        parts = dict.fromkeys(pipeline.parts, folder) if single else pipeline.find_parts(folder)
        if parts is None:
            continue
        fitting: list[tuple[ModelSizes, dict[str, Path]]] = []
        for sizes in pipeline.models.values():
            own = {part: parts[part] for part in parts if not single or part in _parts_of(sizes)}
            if single and any(pipeline.in_single_file(sizes, part) is None for part in own):
                continue
            try:
                _check(_opened(own, sizes, variant), sizes, "fp32", "reference")
            except KeyMismatchError as problem:
                nearest = (problem.count, problem) if nearest is None or problem.count < nearest[0] else nearest
            else:
                fitting.append((sizes, own))
        if fitting:
            chosen = pipeline.told_apart(folder, [sizes for sizes, _ in fitting])
            return next((sizes, own) for sizes, own in fitting if sizes is chosen)
    if nearest is not None:
        raise nearest[1]
    raise CheckpointError(f"{folder}: laid out as no model's checkpoint that is known here")


def _opened(folders: Mapping[str, Path], sizes: ModelSizes, variant: str | None) -> dict[str, Checkpoint]:
    """The checkpoints of a model's parts, tensors under the names that the model's blocks know."""
    pipeline, opened = pipeline_of(sizes), {}
    for part, folder in folders.items():
        checkpoint = opened[part] = Checkpoint(folder, variant)
        if folder.is_file() and (views := pipeline.in_single_file(sizes, part)) is not None:
            checkpoint.see(*views)
        checkpoint.rename(pipeline.other_names(sizes, part))
    return opened


def _parts_of(sizes: ModelSizes) -> set[str]:
    """The parts of a checkpoint that a model's blocks come from."""
    return {block.checkpoint for block in distinct_blocks(sizes, "fp32")}


def _check(checkpoints: Mapping[str, Checkpoint], sizes: ModelSizes, dtype: Dtype, partition: str) -> None:
    """CheckpointError unless these are the parts of a model of these sizes."""
    blocks = distinct_blocks(sizes, dtype, partition)
    for part in dict.fromkeys((*checkpoints, *(block.checkpoint for block in blocks))):
        wanted = published_shapes([block for block in blocks if block.checkpoint == part])
        if part not in checkpoints:
            raise KeyMismatchError(f"{sizes.name} has a part {part!r}, which is not there", len(wanted))
        check_keys(checkpoints[part], wanted, pipeline_of(sizes).unused_keys(sizes, part))


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
