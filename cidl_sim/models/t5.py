"""T5 v1.1 encoder, block by block, from the modules of the transformers library.

The relative position bias belongs to the first block: it computes the bias once and hands it on.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Block, T5LayerFF, T5LayerNorm, T5LayerSelfAttention

from cidl_sim.models.sizes import T5Sizes

# Finite, so that a row of padding stays a number, and representable in every dtype.
MASKED = -1e4


@cache
def library_config(sizes: T5Sizes) -> T5Config:
    """The transformers library's configuration of an encoder of these sizes."""
    config = T5Config(
        vocab_size=sizes.vocabulary,
        d_model=sizes.d_model,
        d_kv=sizes.d_kv,
        d_ff=sizes.d_ff,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )
    config._attn_implementation = "eager"
    return config


class T5Embedding(nn.Module):
    """Token ids (B, L) -> hidden states (B, L, d_model)."""

    results = ("hidden",)

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.shared = nn.Embedding(sizes.vocabulary, sizes.d_model)

    def forward(self, ids: Tensor) -> Tensor:
        """Look the tokens up."""
        return self.shared(ids)


class T5FirstBlock(nn.Module):
    """The first block: also returns the position bias (1, heads, L, L) that all others use."""

    results = ("hidden_out", "position_bias")

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.block = T5Block(library_config(sizes), has_relative_attention_bias=True, layer_idx=0)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden (B, L, d), additive mask (B, 1, 1, L) -> hidden, position bias."""
        out = self.block(hidden, attention_mask=mask)
        return out[0], out[1]


class T5LaterBlock(nn.Module):
    """Any other block: takes the position bias as an input."""

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.block = T5Block(library_config(sizes), has_relative_attention_bias=False, layer_idx=1)

    def forward(self, hidden: Tensor, mask: Tensor, position_bias: Tensor) -> Tensor:
        """Hidden (B, L, d), additive mask (B, 1, 1, L), position bias (1, heads, L, L) -> hidden."""
        return self.block(hidden, attention_mask=mask, position_bias=position_bias)[0]


class T5FirstAttention(nn.Module):
    """The attention half of the first block: also returns the position bias that all others use."""

    results = ("hidden_out", "position_bias")

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.layer = T5LayerSelfAttention(library_config(sizes), has_relative_attention_bias=True, layer_idx=0)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden (B, L, d), additive mask (B, 1, 1, L) -> hidden, position bias."""
        out = self.layer(hidden, attention_mask=mask)
        return clamped(out[0]), out[1]


class T5LaterAttention(nn.Module):
    """The attention half of any other block."""

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.layer = T5LayerSelfAttention(library_config(sizes), has_relative_attention_bias=False, layer_idx=1)

    def forward(self, hidden: Tensor, mask: Tensor, position_bias: Tensor) -> Tensor:
        """Hidden (B, L, d), additive mask (B, 1, 1, L), position bias (1, heads, L, L) -> hidden."""
        return clamped(self.layer(hidden, attention_mask=mask, position_bias=position_bias)[0])


class T5FeedForward(nn.Module):
    """The feed-forward half of a block."""

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.layer = T5LayerFF(library_config(sizes))

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden (B, L, d) -> hidden."""
        return clamped(self.layer(hidden))


def clamped(hidden: Tensor) -> Tensor:
    """What the library's block does after each half in fp16: infinities become large numbers."""
    if hidden.dtype != torch.float16:
        return hidden
    largest = torch.finfo(torch.float16).max
    bound = torch.where(torch.isinf(hidden).any(), largest - 1000, largest)
    return torch.clamp(hidden, min=-bound, max=bound)


class T5FinalNorm(nn.Module):
    """Final layer norm: hidden states -> text embedding, both (B, L, d_model)."""

    results = ("text",)

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.final_layer_norm = T5LayerNorm(sizes.d_model, eps=1e-6)

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise."""
        return self.final_layer_norm(hidden)


def additive_mask(token_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Token mask (B, L) of ones and zeros -> additive mask (B, 1, 1, L)."""
    return ((1.0 - token_mask.to(torch.float32)) * MASKED).to(dtype)[:, None, None, :]
