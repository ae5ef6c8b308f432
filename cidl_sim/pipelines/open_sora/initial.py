"""Weights of Open-Sora without a checkpoint: what is part of the architecture, how the rest is drawn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cidl_sim.models import stdit3, vae
from cidl_sim.pipelines.open_sora.settings import OpenSoraSizes


def known_tensor(name: str, shape: tuple[int, ...]) -> Tensor | None:
    """Rotary frequencies, and the latents' scale and shift; None for what is learnt."""
    leaf = name.rpartition(".")[2]
    if name.endswith("rope.freqs"):
        return stdit3.rotary_frequencies(2 * shape[0])
    if leaf == "scale" and len(shape) == 5:
        return torch.tensor(vae.LATENT_SCALE).view(shape)
    if leaf == "shift" and len(shape) == 5:
        return torch.tensor(vae.LATENT_SHIFT).view(shape)
    return None


def initial_scale(name: str, shape: tuple[int, ...]) -> float | None:
    """The standard deviation of tensors that their references start in a way of their own; None for the others."""
    if name.endswith(("shared.weight", "relative_attention_bias.weight")):
        return 1.0
    if name.endswith(("scale_shift_table", "y_embedding")):
        return 1.0 / math.sqrt(shape[-1])
    if name.endswith("SelfAttention.q.weight"):
        # T5 does not divide attention scores by sqrt(d); its initialisation does it here.
        return 1.0 / math.sqrt(math.prod(shape[1:]) * 64)
    return None


def unused_keys(sizes: OpenSoraSizes, part: str) -> dict[str, tuple[int, ...]]:
    """Keys of a published checkpoint, with their shapes, that the pipeline has no use for."""
    if part == "t5":
        # The same table as shared.weight under its second name.
        return {"encoder.embed_tokens.weight": (sizes.t5.vocabulary, sizes.t5.d_model)}
    if part == "vae":
        with torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in vae.VideoVAE(sizes.vae).state_dict().items()}
    return {}
