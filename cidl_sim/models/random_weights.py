"""Seeded random weights of sensible scale, tensor by tensor: no checkpoint, no memory beyond one block.

Each tensor has its own generator, keyed by seed and name, so a block's weights do not depend on which
other blocks are made, or in which order.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from cidl_sim.models import stdit3, vae
from cidl_sim.models.open_sora import BlockDefinition


def random_weights(block: BlockDefinition, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of a block by their names in its module, drawn in fp32 and rounded to `dtype`."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in block.build().state_dict().items()}
    return {
        name: _tensor(f"{block.checkpoint}/{block.published_key(name)}", name, shape, seed).to(dtype)
        for name, shape in shapes.items()
    }


def _tensor(key: str, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    leaf = name.rpartition(".")[2]
    if name.endswith("rope.freqs"):
        return stdit3.rotary_frequencies(2 * shape[0])
    if leaf == "scale" and len(shape) == 5:
        return torch.tensor(vae.LATENT_SCALE).view(shape)
    if leaf == "shift" and len(shape) == 5:
        return torch.tensor(vae.LATENT_SHIFT).view(shape)
    if leaf == "bias":
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)  # every one-dimensional weight is the gain of a norm
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    return torch.randn(shape, generator=generator) * _scale(name, shape)


def _scale(name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation: 1/sqrt(inputs) keeps activations at their size; the rest as its reference starts."""
    if name.endswith(("shared.weight", "relative_attention_bias.weight")):
        return 1.0
    if name.endswith(("scale_shift_table", "y_embedding")):
        return 1.0 / math.sqrt(shape[-1])
    inputs = math.prod(shape[1:])
    if name.endswith("SelfAttention.q.weight"):
        # T5 does not divide attention scores by sqrt(d); its initialisation does it here.
        return 1.0 / math.sqrt(inputs * 64)
    return 1.0 / math.sqrt(inputs)
