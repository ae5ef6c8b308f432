"""From a model to a block store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from cidl_sim.executor.store import BlockStore, write_store
from cidl_sim.models.config import Dtype, OpenSoraSizes, VideoSettings
from cidl_sim.models.open_sora import TORCH_DTYPES, BlockDefinition, stage_definitions
from cidl_sim.models.random_weights import random_weights

OnBlock = Callable[[str, int], None]


def build_random_store(
    root: Path,
    sizes: OpenSoraSizes,
    dtype: Dtype,
    seed: int,
    on_block: OnBlock = lambda weights, data_bytes: None,
) -> BlockStore:
    """Write a store with seeded random weights, one block in memory at a time; `on_block` observes."""
    blocks = distinct_blocks(sizes, dtype)

    def weights() -> Iterator[tuple[str, dict[str, Tensor]]]:
        for block in blocks:
            yield block.weights, random_weights(block, seed, TORCH_DTYPES[dtype])

    return write_store(
        root,
        weights(),
        name=sizes.name,
        dtype=dtype,
        source=f"random, seed {seed}",
        model=sizes.model_dump(mode="json"),
        on_block=on_block,
    )


def distinct_blocks(sizes: OpenSoraSizes, dtype: Dtype) -> list[BlockDefinition]:
    """One definition for each set of weights, in order of first use."""
    settings = VideoSettings(height=16, width=16, frames=17, steps=1, dtype=dtype)
    stages = stage_definitions(sizes, settings, text_tokens=1)
    return list({block.weights: block for stage in stages for block in stage.blocks}.values())
