"""From a model to a block store: with seeded random weights, or from published checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cidl_sim.core.errors import MachineError
from cidl_sim.diffusion.checkpoint import Checkpoint, check_keys
from cidl_sim.diffusion.matching import TOKENIZER_FOLDER
from cidl_sim.executor.store import BlockStore, write_store
from cidl_sim.models.config import Dtype, OpenSoraSizes, Partition, VideoSettings
from cidl_sim.models.open_sora import TORCH_DTYPES, BlockDefinition, stage_definitions
from cidl_sim.models.random_weights import random_weights

OnBlock = Callable[[str, int], None]
TOKENIZER_MODELS = ("tokenizer.json", "spiece.model")  # either holds a tokenizer by itself
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")


def build_random_store(
    root: Path,
    sizes: OpenSoraSizes,
    dtype: Dtype,
    seed: int,
    on_block: OnBlock = lambda weights, data_bytes: None,
    *,
    partition: Partition = "reference",
) -> BlockStore:
    """Write a store with seeded random weights, one block in memory at a time; `on_block` observes.

    An interrupted call goes on where it stopped.
    """
    make = partial(random_weights, seed=seed, dtype=TORCH_DTYPES[dtype])
    return _write(root, sizes, dtype, partition, f"random, seed {seed}", make, on_block)


def import_checkpoints(
    root: Path,
    sizes: OpenSoraSizes,
    dtype: Dtype,
    folders: Mapping[str, Path],
    on_block: OnBlock = lambda weights, data_bytes: None,
    *,
    partition: Partition = "reference",
) -> BlockStore:
    """Write a store from the folders of published checkpoints: "t5", "stdit" and "vae".

    At most one shard is mapped and one block held in memory. The tokenizer comes along if it lies beside T5's
    weights. An interrupted call goes on where it stopped. CheckpointError lists keys that are missing,
    unknown or of another shape, before anything is written.
    """
    checkpoints = {part: Checkpoint(folder) for part, folder in folders.items()}
    blocks = distinct_blocks(sizes, dtype, partition)
    for part, checkpoint in checkpoints.items():
        wanted = published_shapes([block for block in blocks if block.checkpoint == part])
        check_keys(checkpoint, wanted, unused_shapes(sizes, part))

    def make(block: BlockDefinition) -> dict[str, Tensor]:
        checkpoint = checkpoints[block.checkpoint]
        return {
            name: checkpoint.tensor(block.published_key(name)).to(TORCH_DTYPES[dtype]).reshape(shape)
            for name, shape in _local_shapes(block).items()
        }

    source = ", ".join(f"{part} from {folder.absolute()}" for part, folder in folders.items())
    store = _write(root, sizes, dtype, partition, source, make, on_block)
    copy_tokenizer(folders["t5"], root / TOKENIZER_FOLDER)
    return store


def distinct_blocks(sizes: OpenSoraSizes, dtype: Dtype, partition: Partition = "reference") -> list[BlockDefinition]:
    """One definition for each set of weights, in order of first use."""
    settings = VideoSettings(height=16, width=16, frames=17, steps=1, dtype=dtype, partition=partition)
    stages = stage_definitions(sizes, settings, text_tokens=1)
    return list({block.weights: block for stage in stages for block in stage.blocks}.values())


def published_shapes(blocks: list[BlockDefinition]) -> dict[str, tuple[int, ...]]:
    """The checkpoint keys of some blocks with their shapes."""
    return {block.published_key(name): shape for block in blocks for name, shape in _local_shapes(block).items()}


def unused_shapes(sizes: OpenSoraSizes, part: str) -> dict[str, tuple[int, ...]]:
    """Keys of a published checkpoint that the pipeline has no use for."""
    if part == "t5":
        # The same table as shared.weight under its second name.
        return {"encoder.embed_tokens.weight": (sizes.t5.vocabulary, sizes.t5.d_model)}
    if part == "vae":
        from cidl_sim.models.vae import VideoVAE

        with torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in VideoVAE(sizes.vae).state_dict().items()}
    return {}


def _local_shapes(block: BlockDefinition) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in block.build().state_dict().items()}


def _write(
    root: Path,
    sizes: OpenSoraSizes,
    dtype: Dtype,
    partition: Partition,
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
        on_block=on_block,
    )


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of T5's tokenizer, if there is one in `source`. MachineError if the disk does not take them."""
    files = [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]
    if not any(file.name in TOKENIZER_MODELS for file in files):
        return
    try:
        target.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, target / file.name)
    except OSError as problem:
        raise MachineError(f"{target}: cannot be written ({problem.strerror})") from problem
