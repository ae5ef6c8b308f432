"""STDiT3 (Open-Sora v1.2): embedders, pairs of a spatial and a temporal block, final layer.

State-dict keys, shapes and arithmetic follow hpcaitech/Open-Sora v1.2.0. The chain is
`STDiT3Part1`, `depth` times `STDiT3Pair`, `STDiT3Part2`. Both halves of classifier-free guidance are one
batch: (conditioned, unconditioned). They share one text mask, so padding is simply cut off beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cidl_sim.models.sizes import STDiT3Sizes
from cidl_sim.models.token_merging import merge_frames, unmerge_frames

FREQUENCIES = 256
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Geometry:
    """Latent frames, height and width, and the pixel area, which sets the scale of positions."""

    latent: tuple[int, int, int]
    pixels: int

    @property
    def tokens(self) -> tuple[int, int]:
        """Frames T and patches per frame S; an odd side of the latent is padded to an even one."""
        t, h, w = self.latent
        return t, math.ceil(h / 2) * math.ceil(w / 2)


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) * weight over the last dimension, computed in fp32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and scale."""
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + NORM_EPS)
        return self.weight * y.to(x.dtype)


def rotate_interleaved(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs. x: (B, heads, T, D), angles: (T, D/2) in fp32."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


class SelfAttention(nn.Module):
    """Self-attention with q/k norm; rotary positions, if any, come after the norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = RMSNorm(dim // heads)
        self.k_norm = RMSNorm(dim // heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, angles: Tensor | None) -> Tensor:
        """x: (B, N, C) -> (B, N, C)."""
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate_interleaved(q, angles), rotate_interleaved(k, angles)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(batch, tokens, dim))


class CrossAttention(nn.Module):
    """Attention from video tokens to text tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x: (B, N, C), y: (B, L, C) -> (B, N, C)."""
        batch, tokens, dim = x.shape
        q = self.q_linear(x).view(batch, tokens, self.heads, -1).transpose(1, 2)
        k, v = self.kv_linear(y).view(batch, y.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Linear, GELU (tanh approximation), Linear."""

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim_in, dim_hidden)
        self.fc2 = nn.Linear(dim_hidden, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim_in) -> (..., dim_out)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """X * (1 + scale) + shift."""
    return x * (1 + scale) + shift


class STDiT3Block(nn.Module):
    """One spatial or temporal block; `merged` attends to merged frames (TDTM)."""

    def __init__(self, sizes: STDiT3Sizes, *, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        dim = sizes.hidden
        self.scale_shift_table = nn.Parameter(torch.empty(6, dim))
        self.attn = SelfAttention(dim, sizes.heads)
        self.cross_attn = CrossAttention(dim, sizes.heads)
        self.mlp = Mlp(dim, 4 * dim, dim)

    def forward(
        self, x: Tensor, y: Tensor, t_mlp: Tensor, frequencies: Tensor, grid: tuple[int, int], *, merged: bool
    ) -> Tensor:
        """x: (B, T*S, C), y: (B, L, C), t_mlp: (B, 6*C), frequencies: (D/2,), grid: (T, S) -> (B, T*S, C)."""
        batch, _, dim = x.shape
        norm = (dim,)
        parameters = self.scale_shift_table[None] + t_mlp.view(batch, 6, dim)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = parameters.chunk(6, dim=1)
        h = modulate(F.layer_norm(x, norm, eps=NORM_EPS), shift_msa, scale_msa)
        x = x + gate_msa * self._around(h, grid, merged, lambda frames: self._attend(frames, frequencies))
        x = x + self._around(x, grid, merged, lambda frames: self._cross_attend(frames, y))
        h = modulate(F.layer_norm(x, norm, eps=NORM_EPS), shift_mlp, scale_mlp)
        return x + gate_mlp * self.mlp(h)

    @staticmethod
    def _around(x: Tensor, grid: tuple[int, int], merged: bool, attend: Callable[[Tensor], Tensor]) -> Tensor:
        frames, patches = grid
        h = x.view(x.shape[0], frames, patches, x.shape[2])
        h = unmerge_frames(attend(merge_frames(h)), frames) if merged else attend(h)
        return h.reshape(x.shape)

    def _attend(self, x: Tensor, frequencies: Tensor) -> Tensor:
        batch, frames, patches, dim = x.shape
        if not self.temporal:
            h = self.attn(x.reshape(batch * frames, patches, dim), None)
            return h.view(batch, frames, patches, dim)
        positions = torch.arange(frames, device=x.device, dtype=torch.float32)
        angles = positions[:, None] * frequencies.float()[None]
        h = self.attn(x.transpose(1, 2).reshape(batch * patches, frames, dim), angles)
        return h.view(batch, patches, frames, dim).transpose(1, 2)

    def _cross_attend(self, x: Tensor, y: Tensor) -> Tensor:
        batch, frames, patches, dim = x.shape
        return self.cross_attn(x.reshape(batch, frames * patches, dim), y).view(batch, frames, patches, dim)


class STDiT3Pair(nn.Module):
    """One spatial and one temporal block: the unit that the reference app loads."""

    def __init__(self, sizes: STDiT3Sizes, geometry: Geometry, *, merged: bool) -> None:
        super().__init__()
        self.geometry = geometry
        self.merged = merged
        self.spatial = STDiT3Block(sizes, temporal=False)
        self.temporal = STDiT3Block(sizes, temporal=True)

    def forward(self, x: Tensor, y: Tensor, t_mlp: Tensor, frequencies: Tensor) -> Tensor:
        """x: (B, T*S, C), y: (B, L, C), t_mlp: (B, 6*C), frequencies: (D/2,) -> (B, T*S, C)."""
        for block in (self.spatial, self.temporal):
            x = block(x, y, t_mlp, frequencies, self.geometry.tokens, merged=self.merged)
        return x


class STDiT3Single(nn.Module):
    """One spatial or one temporal block on its own, called like a pair."""

    def __init__(self, sizes: STDiT3Sizes, geometry: Geometry, *, temporal: bool, merged: bool) -> None:
        super().__init__()
        self.geometry = geometry
        self.merged = merged
        self.block = STDiT3Block(sizes, temporal=temporal)

    def forward(self, x: Tensor, y: Tensor, t_mlp: Tensor, frequencies: Tensor) -> Tensor:
        """x: (B, T*S, C), y: (B, L, C), t_mlp: (B, 6*C), frequencies: (D/2,) -> (B, T*S, C)."""
        return self.block(x, y, t_mlp, frequencies, self.geometry.tokens, merged=self.merged)


class _PatchEmbedder(nn.Module):
    def __init__(self, sizes: STDiT3Sizes) -> None:
        super().__init__()
        self.proj = nn.Conv3d(sizes.in_channels, sizes.hidden, kernel_size=(1, 2, 2), stride=(1, 2, 2))


class _ScalarEmbedder(nn.Module):
    """Sinusoid features of a scalar, then an MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, scalar: Tensor) -> Tensor:
        first: nn.Linear = self.mlp[0]  # type: ignore[assignment]
        return self.mlp(sinusoid(scalar).to(first.weight.dtype))


class _CaptionEmbedder(nn.Module):
    y_embedding: Tensor

    def __init__(self, sizes: STDiT3Sizes, caption_channels: int) -> None:
        super().__init__()
        self.register_buffer("y_embedding", torch.empty(sizes.max_text_tokens, caption_channels))
        self.y_proj = Mlp(caption_channels, sizes.hidden, sizes.hidden)


class _Rope(nn.Module):
    def __init__(self, sizes: STDiT3Sizes) -> None:
        super().__init__()
        self.freqs = nn.Parameter(torch.empty(sizes.hidden // sizes.heads // 2))


class STDiT3Part1(nn.Module):
    """The embedders: everything before the first pair."""

    results = ("x", "t", "t_mlp", "y", "frequencies")

    def __init__(self, sizes: STDiT3Sizes, caption_channels: int, geometry: Geometry) -> None:
        super().__init__()
        self.sizes = sizes
        self.geometry = geometry
        self.x_embedder = _PatchEmbedder(sizes)
        self.t_embedder = _ScalarEmbedder(sizes.hidden)
        self.fps_embedder = _ScalarEmbedder(sizes.hidden)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(sizes.hidden, 6 * sizes.hidden))
        self.y_embedder = _CaptionEmbedder(sizes, caption_channels)
        self.rope = _Rope(sizes)

    def forward(self, z: Tensor, timestep: Tensor, fps: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        """Latent (1, 4, T, H, W), timestep (1,) in 0..1000, fps (1,), text (1, L, captions), all for one video.

        Returns x (2, T*S, C), t (2, C), t_mlp (2, 6*C), y (2, L, C), rotary frequencies (D/2,).
        """
        patches = self.x_embedder.proj(padded(z).to(self.x_embedder.proj.weight.dtype))
        x = patches.flatten(3).permute(0, 2, 3, 1)
        x = (x + self._positions(x)).flatten(1, 2)
        t = self.t_embedder(timestep) + self.fps_embedder(fps)
        null = self.y_embedder.y_embedding[None, : text.shape[1]]
        y = self.y_embedder.y_proj(torch.cat([text.to(null.dtype), null]))
        # A copy: the weights may be gone when the temporal blocks use it.
        return x.expand(2, -1, -1), t.expand(2, -1), self.t_block(t).expand(2, -1), y, self.rope.freqs.clone()

    def _positions(self, x: Tensor) -> Tensor:
        _, height, width = self.geometry.latent
        scale = math.sqrt(self.geometry.pixels) / self.sizes.base_pixels
        return position_embedding(math.ceil(height / 2), math.ceil(width / 2), self.sizes.hidden, scale).to(x)


class _FinalLayer(nn.Module):
    def __init__(self, sizes: STDiT3Sizes) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.empty(2, sizes.hidden))
        self.linear = nn.Linear(sizes.hidden, 4 * 2 * sizes.in_channels)


class STDiT3Part2(nn.Module):
    """The final layer: tokens back to a drift; the predicted variance is dropped."""

    results = ("drift",)

    def __init__(self, sizes: STDiT3Sizes, geometry: Geometry) -> None:
        super().__init__()
        self.sizes = sizes
        self.geometry = geometry
        self.final_layer = _FinalLayer(sizes)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: (2, T*S, C), t: (2, C) -> drift (2, 4, T, H, W) in fp32."""
        return final_drift(self.final_layer, x, t, self.geometry, self.sizes)


class STDiT3(STDiT3Part1):
    """The whole network with the published state-dict keys, for checkpoints, training and comparison."""

    def __init__(self, sizes: STDiT3Sizes, caption_channels: int, geometry: Geometry) -> None:
        super().__init__(sizes, caption_channels, geometry)
        self.spatial_blocks = nn.ModuleList(STDiT3Block(sizes, temporal=False) for _ in range(sizes.depth))
        self.temporal_blocks = nn.ModuleList(STDiT3Block(sizes, temporal=True) for _ in range(sizes.depth))
        self.final_layer = _FinalLayer(sizes)

    def drift(self, z: Tensor, timestep: Tensor, fps: Tensor, text: Tensor, *, merged: bool = False) -> Tensor:
        """Latent (1, 4, T, H, W), timestep (1,), fps (1,), text (1, L, captions) -> drift (2, 4, T, H, W)."""
        x, t, t_mlp, y, frequencies = self(z, timestep, fps, text)
        for pair in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            for block in pair:
                x = block(x, y, t_mlp, frequencies, self.geometry.tokens, merged=merged)
        return final_drift(self.final_layer, x, t, self.geometry, self.sizes)

    def drift_of_batch(
        self, z: Tensor, timestep: Tensor, fps: Tensor, text: Tensor, pixels: int, *, merged: Collection[int] = ()
    ) -> Tensor:
        """Latents (B, 4, T, H, W), timesteps (B,), fps (1,), texts (B, L, captions) -> drifts (B, 4, T, H, W).

        For training and evaluation of many videos: guidance is the caller's, texts have one length, and `pixels`
        (height times width of the video) replaces the module's own geometry. `merged`: the pairs that merge tokens.
        """
        latent = (z.shape[2], z.shape[3], z.shape[4])
        geometry, sizes = Geometry(latent, pixels), self.sizes
        scale = math.sqrt(pixels) / sizes.base_pixels
        grid = math.ceil(latent[1] / 2), math.ceil(latent[2] / 2)
        positions = position_embedding(*grid, sizes.hidden, scale)
        x = (self.x_embedder.proj(padded(z)).flatten(3).permute(0, 2, 3, 1) + positions).flatten(1, 2)
        t = self.t_embedder(timestep) + self.fps_embedder(fps)
        y, t_mlp = self.y_embedder.y_proj(text), self.t_block(t)
        for depth, pair in enumerate(zip(self.spatial_blocks, self.temporal_blocks, strict=True)):
            for block in pair:
                x = block(x, y, t_mlp, self.rope.freqs, geometry.tokens, merged=depth in merged)
        return final_drift(self.final_layer, x, t, geometry, sizes)

    def null_text(self, tokens: int) -> Tensor:
        """The text of the unconditioned half, (1, tokens, captions)."""
        return self.y_embedder.y_embedding[None, :tokens]


def final_drift(layer: _FinalLayer, x: Tensor, t: Tensor, geometry: Geometry, sizes: STDiT3Sizes) -> Tensor:
    """The final layer: x (2, T*S, C), t (2, C) -> drift (2, 4, T, H, W) in fp32, without the predicted variance."""
    shift, scale = (layer.scale_shift_table[None] + t[:, None]).chunk(2, dim=1)
    h = modulate(F.layer_norm(x, (sizes.hidden,), eps=NORM_EPS), shift, scale)
    return unpatchify(layer.linear(h), geometry.latent, 2 * sizes.in_channels)[:, : sizes.in_channels].float()


def unpatchify(x: Tensor, latent: tuple[int, int, int], channels: int) -> Tensor:
    """x: (B, T*S, 1*2*2*channels) -> (B, channels, T, H, W), what was padded cut off.

    Within a patch the channel varies fastest.
    """
    frames, height, width = latent
    rows, columns = math.ceil(height / 2), math.ceil(width / 2)
    x = x.view(x.shape[0], frames, rows, columns, 2, 2, channels)
    x = x.permute(0, 6, 1, 2, 4, 3, 5).reshape(x.shape[0], channels, frames, 2 * rows, 2 * columns)
    return x if (2 * rows, 2 * columns) == (height, width) else x[..., :height, :width]


def padded(z: Tensor) -> Tensor:
    """Latents (..., H, W) with zeros below and to the right, so that both sides are even."""
    height, width = z.shape[-2:]
    return F.pad(z, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else z


def sinusoid(scalar: Tensor) -> Tensor:
    """Scalars (B,) -> features (B, 256): cosines, then sines, periods up to 1e4; in fp32."""
    half = FREQUENCIES // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=scalar.device) / half)
    angles = scalar.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def position_embedding(height: int, width: int, dim: int, scale: float) -> Tensor:
    """2-D sine-cosine positions, shape (height*width, dim): width first, each half as [sin | cos].

    Positions are divided by `scale` and stretched to a square of the same area, as in the reference.
    """
    base_size = round(math.sqrt(height * width))
    rows = torch.arange(height, dtype=torch.float32) / scale * (base_size / height)
    columns = torch.arange(width, dtype=torch.float32) / scale * (base_size / width)
    half = dim // 2
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, half, 2, dtype=torch.float32) / half)

    def features(positions: Tensor) -> Tensor:
        angles = positions.reshape(-1)[:, None] * frequencies[None]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    across = features(columns[None, :].expand(height, width))
    down = features(rows[:, None].expand(height, width))
    return torch.cat([across, down], dim=-1)


def rotary_frequencies(dim: int) -> Tensor:
    """The published values of `rope.freqs`, shape (dim/2,): 1 / 10000^(2i/dim)."""
    return 1.0 / 10000.0 ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
