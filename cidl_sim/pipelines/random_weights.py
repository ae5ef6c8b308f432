"""Seeded random weights of sensible scale, tensor by tensor: no checkpoint, no memory beyond one block.

Each tensor has its own generator, keyed by seed and name, so a block's weights do not depend on which
other blocks are made, or in which order.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from cidl_sim.blocks.definition import BlockDefinition
from cidl_sim.pipelines.pipeline import Pipeline


def random_weights(pipeline: Pipeline, block: BlockDefinition, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of a block by their names in its module, drawn in fp32 and rounded to `dtype`."""
    return {
        name: _tensor(pipeline, f"{block.checkpoint}/{block.published_key(name)}", name, shape, seed).to(dtype)
        for name, shape in block.shapes().items()
    }


def _tensor(pipeline: Pipeline, key: str, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    known = pipeline.known_tensor(name, shape)
    if known is not None:
        return known
    if name.rpartition(".")[2] == "bias":
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)  # every one-dimensional weight is the gain of a norm
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    scale = pipeline.initial_scale(name, shape)
    # One over the root of the inputs keeps activations at their size.
    return torch.randn(shape, generator=generator) * (scale or 1.0 / math.sqrt(math.prod(shape[1:])))
