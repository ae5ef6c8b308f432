"""T5 v1.1 encoder, block by block, with the published state-dict keys.

The relative position bias belongs to the first block: it computes the bias once and hands it on. The transformers
library has this encoder too, and the tests hold every block against it bit for bit; but importing it takes a run's
process seconds, and memory that a plan under a limit would rather give to blocks (experiments/results/startup.md).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cidl_sim.models.sizes import T5Sizes

# Finite, so that a row of padding stays a number, and representable in every dtype.
MASKED = -1e4
# Distances of tokens that have a bias of their own; from FAR on all share the last one.
BUCKETS = 32
FAR = 128


class RMSNorm(nn.Module):
    """Scale by the root of the mean square, which is worked out in fp32: no mean is subtracted, nothing added."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        mean_square = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(mean_square + self.eps)
        x = x.to(self.weight.dtype)
        return self.weight * x


class GELUTanh(nn.Module):
    """GELU by the tanh formula, step by step as T5 was trained (Hendrycks and Gimpel, arXiv 1606.08415)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class GatedFeedForward(nn.Module):
    """Two projections, one of them through GELU, multiplied, and one back."""

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(sizes.d_model, sizes.d_ff, bias=False)
        self.wi_1 = nn.Linear(sizes.d_model, sizes.d_ff, bias=False)
        self.wo = nn.Linear(sizes.d_ff, sizes.d_model, bias=False)
        self.act = GELUTanh()

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model)."""
        gate = self.act(self.wi_0(x))
        linear = self.wi_1(x)
        x = gate * linear
        return self.wo(x)


def position_buckets(tokens: int, device: torch.device) -> Tensor:
    """(L, L): of each pair of tokens the number of its bias.

    Half of them for tokens that come after, half for the others; in each half the near distances one by one and the
    rest by their logarithm.
    """
    here = torch.arange(tokens, dtype=torch.long, device=device)
    distance = here[None, :] - here[:, None]
    one_side = BUCKETS // 2
    near = one_side // 2
    side = (distance > 0).to(torch.long) * one_side
    distance = torch.abs(distance)
    by_logarithm = near + (torch.log(distance.float() / near) / math.log(FAR / near) * (one_side - near)).to(torch.long)
    by_logarithm = torch.min(by_logarithm, torch.full_like(by_logarithm, one_side - 1))
    return side + torch.where(distance < near, distance, by_logarithm)


class Attention(nn.Module):
    """Self-attention whose scores are not divided by sqrt(d); a bias by the tokens' distance is added to them."""

    def __init__(self, sizes: T5Sizes, *, first: bool) -> None:
        super().__init__()
        inner = sizes.heads * sizes.d_kv
        self.head_width = sizes.d_kv
        self.q = nn.Linear(sizes.d_model, inner, bias=False)
        self.k = nn.Linear(sizes.d_model, inner, bias=False)
        self.v = nn.Linear(sizes.d_model, inner, bias=False)
        self.o = nn.Linear(inner, sizes.d_model, bias=False)
        if first:
            self.relative_attention_bias = nn.Embedding(BUCKETS, sizes.heads)

    def position_bias(self, tokens: int) -> Tensor:
        """(1, heads, L, L), of the first block."""
        table = self.relative_attention_bias
        return table(position_buckets(tokens, table.weight.device)).permute([2, 0, 1]).unsqueeze(0)

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, d_model), mask (B, 1, 1, L), bias (1, heads, L, L) or the block's own -> result, bias, weights."""
        query, key, value = (self._by_head(projection(x)) for projection in (self.q, self.k, self.v))
        if bias is None:
            bias = self.position_bias(x.shape[1])
        # The factor is T5's 1 for 1 / sqrt(d). Measured workspaces, and with them workloads' hashes, count its copy.
        weights = torch.matmul(query, key.transpose(2, 3)) * 1.0
        weights = weights + bias
        weights = weights + mask
        weights = F.softmax(weights, dim=-1)
        mixed = torch.matmul(weights, value).transpose(1, 2).contiguous()
        return self.o(mixed.reshape(*x.shape[:-1], -1)), bias, weights

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_width).transpose(1, 2)


class AttentionLayer(nn.Module):
    """Norm and self-attention around a shortcut."""

    def __init__(self, sizes: T5Sizes, *, first: bool) -> None:
        super().__init__()
        self.SelfAttention = Attention(sizes, first=first)
        self.layer_norm = RMSNorm(sizes.d_model)

    def forward(self, hidden: Tensor, mask: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden (B, L, d_model) -> hidden, position bias, attention's weights (B, heads, L, L)."""
        mixed, bias, weights = self.SelfAttention(self.layer_norm(hidden), mask, bias)
        return hidden + mixed, bias, weights


class FeedForwardLayer(nn.Module):
    """Norm and feed-forward around a shortcut."""

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.DenseReluDense = GatedFeedForward(sizes)
        self.layer_norm = RMSNorm(sizes.d_model)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden (B, L, d_model) -> hidden."""
        return hidden + self.DenseReluDense(self.layer_norm(hidden))


class Block(nn.Module):
    """Attention and feed-forward."""

    def __init__(self, sizes: T5Sizes, *, first: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(sizes, first=first), FeedForwardLayer(sizes)])

    def forward(self, hidden: Tensor, mask: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hidden (B, L, d_model) -> hidden, position bias."""
        # The weights stay until the block is done, as in the library: measured workspaces count them.
        hidden, bias, _ = self.layer[0](hidden, mask, bias)
        return clamped(self.layer[1](clamped(hidden))), bias


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
        self.block = Block(sizes, first=True)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden (B, L, d), additive mask (B, 1, 1, L) -> hidden, position bias."""
        return self.block(hidden, mask)


class T5LaterBlock(nn.Module):
    """Any other block: takes the position bias as an input."""

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.block = Block(sizes, first=False)

    def forward(self, hidden: Tensor, mask: Tensor, position_bias: Tensor) -> Tensor:
        """Hidden (B, L, d), additive mask (B, 1, 1, L), position bias (1, heads, L, L) -> hidden."""
        return self.block(hidden, mask, position_bias)[0]


class T5FirstAttention(nn.Module):
    """The attention half of the first block: also returns the position bias that all others use."""

    results = ("hidden_out", "position_bias")

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.layer = AttentionLayer(sizes, first=True)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden (B, L, d), additive mask (B, 1, 1, L) -> hidden, position bias."""
        hidden, bias, _ = self.layer(hidden, mask)
        return clamped(hidden), bias


class T5LaterAttention(nn.Module):
    """The attention half of any other block."""

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.layer = AttentionLayer(sizes, first=False)

    def forward(self, hidden: Tensor, mask: Tensor, position_bias: Tensor) -> Tensor:
        """Hidden (B, L, d), additive mask (B, 1, 1, L), position bias (1, heads, L, L) -> hidden."""
        return clamped(self.layer(hidden, mask, position_bias)[0])


class T5FeedForward(nn.Module):
    """The feed-forward half of a block."""

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.layer = FeedForwardLayer(sizes)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden (B, L, d) -> hidden."""
        return clamped(self.layer(hidden))


def clamped(hidden: Tensor) -> Tensor:
    """After each half of a block in fp16: infinities become large numbers, as in the transformers library."""
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
        self.final_layer_norm = RMSNorm(sizes.d_model)

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise."""
        return self.final_layer_norm(hidden)


def additive_mask(token_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Token mask (B, L) of ones and zeros -> additive mask (B, 1, 1, L)."""
    return ((1.0 - token_mask.to(torch.float32)) * MASKED).to(dtype)[:, None, None, :]
