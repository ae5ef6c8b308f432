"""CLIP's text encoder (arXiv 2103.00020) in pieces, with the published keys of the transformers library.

Every token sees those before it; a prompt's padding comes after its end, so nothing else is masked. The tests hold the
pieces against the library, which takes a run's process seconds and memory to import.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cidl_sim.models.unet_sizes import CLIPSizes


class TokenTable(nn.Module):
    """The embedding of tokens."""

    def __init__(self, sizes: CLIPSizes) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(sizes.vocabulary, sizes.width)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) integers -> (B, L, width)."""
        return self.token_embedding(ids)


class Positions(nn.Module):
    """The embedding of positions, added."""

    def __init__(self, sizes: CLIPSizes) -> None:
        super().__init__()
        self.position_embedding = nn.Embedding(sizes.tokens, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) -> (B, L, width)."""
        return x + self.position_embedding.weight[: x.shape[1]]


class SelfAttention(nn.Module):
    """Causal multi-head attention."""

    def __init__(self, sizes: CLIPSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.k_proj = nn.Linear(sizes.width, sizes.width)
        self.v_proj = nn.Linear(sizes.width, sizes.width)
        self.q_proj = nn.Linear(sizes.width, sizes.width)
        self.out_proj = nn.Linear(sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) -> (B, L, width)."""
        query, key, value = (
            projection(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out_proj(mixed.transpose(1, 2).reshape(x.shape))


class MLP(nn.Module):
    """Two linear layers; ViT-L's activation between them is x * sigmoid(1.702 x)."""

    def __init__(self, sizes: CLIPSizes) -> None:
        super().__init__()
        self.quick = sizes.activation == "quick_gelu"
        self.fc1 = nn.Linear(sizes.width, sizes.inner)
        self.fc2 = nn.Linear(sizes.inner, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) -> (B, L, width)."""
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class Layer(nn.Module):
    """Attention and MLP, each after a norm."""

    def __init__(self, sizes: CLIPSizes) -> None:
        super().__init__()
        self.self_attn = SelfAttention(sizes)
        self.layer_norm1 = nn.LayerNorm(sizes.width)
        self.mlp = MLP(sizes)
        self.layer_norm2 = nn.LayerNorm(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) -> (B, L, width)."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class FinalNorm(nn.Module):
    """The norm after the last layer."""

    def __init__(self, sizes: CLIPSizes) -> None:
        super().__init__()
        self.final_layer_norm = nn.LayerNorm(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) -> (B, L, width)."""
        return self.final_layer_norm(x)


class Pooled(nn.Module):
    """The last layer and a projection of what it gives at the end of the text, beside the states that go in."""

    def __init__(self, sizes: CLIPSizes) -> None:
        super().__init__()
        self.layer = Layer(sizes)
        self.final_layer_norm = nn.LayerNorm(sizes.width)
        self.text_projection = nn.Linear(sizes.width, sizes.projected, bias=False)

    def forward(self, x: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, width), position of each text's end (B,) -> the states as they were, (B, projected)."""
        last = self.final_layer_norm(self.layer(x))
        return x, self.text_projection(last[torch.arange(x.shape[0], device=x.device), ends])
