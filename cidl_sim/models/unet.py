"""The UNet of latent diffusion models (arXiv 2112.10752) in pieces, with the published keys of the diffusers library.

A piece is the smallest part that a cut may set apart: half a residual block, half a transformer block, a sampler. Their
calls in a row compute what the library's UNet computes, bit for bit (tests); importing the library takes a run's
process seconds, and memory that a plan under a limit would rather give to blocks (experiments/results/startup.md).
What SnapFusion (arXiv 2306.00980) and MobileDiffusion (arXiv 2311.16567) change in it is in the sizes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cidl_sim.models.unet_sizes import SIZE_NUMBERS, SIZE_WIDTH, UNetSizes

TRANSFORMER_EPS = 1e-6
_LONGEST_PERIOD = 10000.0


def frequencies(width: int, device: torch.device | None = None) -> Tensor:
    """(width / 2,) in fp32: of the sinusoids of an embedding, with periods up to 10000."""
    half = width // 2
    exponent = -math.log(_LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32, device=device) / half
    return torch.exp(exponent)


def sinusoids(values: Tensor, of: Tensor) -> Tensor:
    """(N,), frequencies (F,) -> (N, 2 F) in fp32: cosines, then sines."""
    angles = values[:, None].float() * of[None, :]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class Embedding(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width_in) -> (B, width)."""
        return self.linear_2(F.silu(self.linear_1(x)))


def convolution(channels_in: int, channels_out: int, *, separable: bool) -> nn.Module:
    """3x3; `separable`: each channel by itself, then all of them at each pixel."""
    if not separable:
        return nn.Conv2d(channels_in, channels_out, 3, padding=1)
    depthwise = nn.Conv2d(channels_in, channels_in, 3, padding=1, groups=channels_in)
    return nn.Sequential(depthwise, nn.Conv2d(channels_in, channels_out, 1))


class Entrance(nn.Module):
    """First convolution and the embedding of the time, to which SDXL adds pooled text and sizes."""

    def __init__(self, sizes: UNetSizes) -> None:
        super().__init__()
        first = sizes.levels[0].channels
        self.sinusoids = first
        self.time_embedding = Embedding(first, sizes.time_width)
        if sizes.pooled:
            self.add_embedding = Embedding(sizes.pooled + SIZE_NUMBERS * SIZE_WIDTH, sizes.time_width)
        self.conv_in = nn.Conv2d(sizes.latent_channels, first, 3, padding=1)
        self._tables: dict[int, Tensor] = {}

    def tabulate(self) -> None:
        """Work the frequencies out now: an exporter's exponential differs in the last digit, and t is up to 1000."""
        self._tables = {width: frequencies(width) for width in (self.sinusoids, SIZE_WIDTH)}

    def _frequencies(self, width: int, device: torch.device) -> Tensor:
        return self._tables[width] if width in self._tables else frequencies(width, device)

    def forward(self, z: Tensor, t: Tensor, pooled: Tensor | None = None, image: Tensor | None = None) -> Any:
        """(B, C, h, w) in fp32, (1,), (B, pooled), (B, 6) -> hidden (B, C', h, w), time (B, width)."""
        z = z.to(self.conv_in.weight.dtype)
        time = self.time_embedding(
            sinusoids(t.expand(z.shape[0]), self._frequencies(self.sinusoids, t.device)).to(z.dtype)
        )
        if pooled is not None and image is not None:
            sizes = sinusoids(image.flatten(), self._frequencies(SIZE_WIDTH, t.device)).reshape(z.shape[0], -1)
            time = time + self.add_embedding(torch.cat([pooled, sizes], dim=-1).to(z.dtype))
        return self.conv_in(z), time


class ResnetStart(nn.Module):
    """First half of a residual block: norm, SiLU, convolution, and the time's share. Joins a skip to its input."""

    def __init__(
        self, channels_in: int, channels_out: int, time_width: int, groups: int, eps: float, *, separable: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=eps)
        self.conv1 = convolution(channels_in, channels_out, separable=separable)
        self.time_emb_proj = nn.Linear(time_width, channels_out) if time_width else None

    def forward(self, x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w), time where there is one, a skip (B, C'', h, w) or none -> hidden, what goes past it."""
        time, skips = (others[0], others[1:]) if self.time_emb_proj is not None else (None, others)
        if skips:
            x = torch.cat([x, *skips], dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        if time is not None and self.time_emb_proj is not None:
            h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        return h, x


class ResnetEnd(nn.Module):
    """Second half of a residual block: norm, SiLU, convolution, and what went past it."""

    def __init__(
        self, channels_in: int, channels_out: int, groups: int, eps: float, *, separable: bool = False
    ) -> None:
        super().__init__()
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=eps)
        self.conv2 = convolution(channels_out, channels_out, separable=separable)
        self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, h: Tensor, past: Tensor) -> Tensor:
        """(B, C', h, w), (B, C, h, w) -> (B, C', h, w)."""
        h = self.conv2(F.silu(self.norm2(h)))
        if self.conv_shortcut is not None:
            past = self.conv_shortcut(past)
        return past + h


class Attention(nn.Module):
    """Multi-head attention to a context. `shared`: its keys are its values; `rectified`: relu for softmax.

    Rectified scores are divided by the number of keys (arXiv 2309.08586); MobileDiffusion does not say by what.
    """

    def __init__(
        self, channels: int, heads: int, context: int, *, shared: bool = False, rectified: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.rectified = heads, rectified
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = None if shared else nn.Linear(context, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, N, C), (B, M, C'') -> (B, N, C)."""
        query, key = self._by_head(self.to_q(x)), self._by_head(self.to_k(context))
        value = key if self.to_v is None else self._by_head(self.to_v(context))
        if self.rectified:
            scores = F.relu(query @ key.transpose(2, 3)) * (query.shape[-1] ** -0.5 / key.shape[2])
            mixed = scores @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        return self.to_out[0](mixed.transpose(1, 2).reshape(x.shape))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.heads, x.shape[2] // self.heads).transpose(1, 2)


class Gated(nn.Module):
    """A projection to twice the width, one half of which gates the other."""

    def __init__(self, channels: int, inner: int, gate: str) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)
        self.gate = F.silu if gate == "swish" else F.gelu

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, inner)."""
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * self.gate(gate)


class FeedForward(nn.Module):
    """Gated feed-forward; the published keys leave a number to a dropout."""

    def __init__(self, channels: int, inner: int, gate: str) -> None:
        super().__init__()
        self.net = nn.ModuleList([Gated(channels, inner, gate), nn.Identity(), nn.Linear(inner, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention (not in one of kind "c"), attention to the text, feed-forward: both parts or one of them."""

    def __init__(
        self, sizes: UNetSizes, channels: int, heads: int, kind: str, *, attends: bool = True, feeds: bool = True
    ) -> None:
        super().__init__()
        self.attends, self.feeds, self.looks_at_itself = attends, feeds, kind == "f"
        options = {"shared": sizes.shared_keys, "rectified": sizes.attention == "relu"}
        if attends and self.looks_at_itself:
            self.norm1 = nn.LayerNorm(channels)
            self.attn1 = Attention(channels, heads, channels, **options)
        if attends:
            self.norm2 = nn.LayerNorm(channels)
            self.attn2 = Attention(channels, heads, sizes.context, **options)
        if feeds:
            self.norm3 = nn.LayerNorm(channels)
            self.ff = FeedForward(channels, sizes.inner(channels), sizes.gate)

    def forward(self, x: Tensor, text: Tensor | None = None) -> Tensor:
        """(B, N, C), (B, tokens, context) -> (B, N, C)."""
        if text is not None and self.attends:
            if self.looks_at_itself:
                normed = self.norm1(x)
                x = self.attn1(normed, normed) + x
            x = self.attn2(self.norm2(x), text) + x
        if self.feeds:
            x = self.ff(self.norm3(x)) + x
        return x


class TransformerPiece(nn.Module):
    """Some of a transformer's blocks, by their numbers; the first piece has the way in, the last one the way out."""

    def __init__(
        self,
        sizes: UNetSizes,
        channels: int,
        heads: int,
        blocks: dict[int, str],
        *,
        enters: bool = True,
        leaves: bool = True,
        attends: bool = True,
        feeds: bool = True,
    ) -> None:
        super().__init__()
        self.enters, self.leaves, self.attends = enters, leaves, attends
        self.linear = sizes.projection == "linear"
        if enters:
            self.norm = nn.GroupNorm(sizes.groups, channels, eps=TRANSFORMER_EPS)
            self.proj_in = self._projection(sizes, channels)
        self.transformer_blocks = nn.ModuleDict(
            {
                str(number): TransformerBlock(sizes, channels, heads, kind, attends=attends, feeds=feeds)
                for number, kind in blocks.items()
            }
        )
        if leaves:
            self.proj_out = self._projection(sizes, channels)

    @staticmethod
    def _projection(sizes: UNetSizes, channels: int) -> nn.Module:
        if sizes.projection == "none":
            return nn.Identity()
        return nn.Linear(channels, channels) if sizes.projection == "linear" else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, *others: Tensor) -> Any:
        """Pixels (B, C, h, w) or tokens (B, h w, C), the text where it attends, the pixels that went past it.

        -> pixels where it leaves, else tokens; and the pixels that go past it where it enters and does not leave.
        """
        text = others[0] if self.attends else None
        past = x if self.enters else others[-1]
        if self.enters:
            x = self.norm(x)
            x = self.proj_in(_tokens(x)) if self.linear else _tokens(self.proj_in(x))
        for block in self.transformer_blocks.values():
            x = block(x, text)
        if not self.leaves:
            return (x, past) if self.enters else x
        x = _pixels(self.proj_out(x), past) if self.linear else self.proj_out(_pixels(x, past))
        return x + past


class Downsampler(nn.Module):
    """Convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h/2, w/2)."""
        return self.conv(x)


class Upsampler(nn.Module):
    """Each pixel four times, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2 h, 2 w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Exit(nn.Module):
    """Norm, SiLU and the last convolution."""

    def __init__(self, channels: int, channels_out: int, groups: int, eps: float) -> None:
        super().__init__()
        self.conv_norm_out = nn.GroupNorm(groups, channels, eps=eps)
        self.conv_out = nn.Conv2d(channels, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h, w)."""
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def _tokens(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)


def _pixels(x: Tensor, like: Tensor) -> Tensor:
    batch, _, height, width = like.shape
    return x.reshape(batch, height, width, -1).permute(0, 3, 1, 2).contiguous()
