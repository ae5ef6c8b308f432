"""Decoder half of OpenSora-VAE-v1.2, cut into the 9 temporal and 9 spatial parts of the reference app.

Temporal: causal 3-D convolutions, ours. Spatial: the decoder of the diffusers library's AutoencoderKL.
Every part maps one tensor to one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import Decoder as SpatialDecoder
from torch import Tensor, nn

from cidl_sim.models.config import VAESizes

LATENT_CHANNELS = 4
SPATIAL_SCALE = 0.18215
LATENT_SCALE = (3.85, 2.32, 2.33, 3.06)
LATENT_SHIFT = (-0.10, 0.34, 0.27, 0.98)


class CausalConv3d(nn.Module):
    """3-D convolution that sees no later frame: zeros are put in front of the first one."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__()
        side = kernel // 2
        self.padding = (side, side, side, side, kernel - 1, 0)
        self.conv = nn.Conv3d(channels_in, channels_out, kernel, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T, H, W)."""
        return self.conv(F.pad(x, self.padding))


class ResBlock3d(nn.Module):
    """GroupNorm, SiLU, convolution, twice, around a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in)
        self.conv1 = CausalConv3d(channels_in, channels_out, 3, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels_out)
        self.conv2 = CausalConv3d(channels_out, channels_out, 3, bias=False)
        self.conv3 = CausalConv3d(channels_in, channels_out, 1, bias=False) if channels_in != channels_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv3 is None else self.conv3(x))


class TemporalHead(nn.Module):
    """Undo the latent's normalisation, post-quantisation convolution, first convolution and residual blocks."""

    scale: Tensor
    shift: Tensor

    def __init__(self, sizes: VAESizes) -> None:
        super().__init__()
        top = sizes.temporal_filters * sizes.temporal_multipliers[-1]
        shape = (1, LATENT_CHANNELS, 1, 1, 1)
        self.register_buffer("scale", torch.empty(shape))
        self.register_buffer("shift", torch.empty(shape))
        self.post_quant_conv = CausalConv3d(LATENT_CHANNELS, LATENT_CHANNELS, 1)
        self.conv1 = CausalConv3d(LATENT_CHANNELS, top, 3)
        self.res_blocks = nn.ModuleList(ResBlock3d(top, top, sizes.groups) for _ in range(sizes.temporal_res_blocks))

    def forward(self, z: Tensor) -> Tensor:
        """Latent (1, 4, t, h, w) -> (1, C, t, h, w)."""
        x = self.conv1(self.post_quant_conv(z.to(self.scale.dtype) * self.scale + self.shift))
        for block in self.res_blocks:
            x = block(x)
        return x


class TemporalLevel(nn.Module):
    """Residual blocks of one level and, where time is doubled, a convolution and depth-to-time."""

    def __init__(self, channels: list[tuple[int, int]], groups: int, *, doubles_time: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock3d(a, b, groups) for a, b in channels)
        last = channels[-1][1]
        self.conv_block = CausalConv3d(last, 2 * last, 3) if doubles_time else None

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, t, h, w) -> (1, C', t or 2 t, h, w)."""
        for block in self.blocks:
            x = block(x)
        if self.conv_block is None:
            return x
        x = self.conv_block(x)
        batch, channels, frames, height, width = x.shape
        x = x.view(batch, channels // 2, 2, frames, height, width)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, channels // 2, 2 * frames, height, width)


class TemporalTail(nn.Module):
    """Norm, SiLU and the last convolution, back to 4 channels."""

    def __init__(self, sizes: VAESizes) -> None:
        super().__init__()
        channels = sizes.temporal_filters * sizes.temporal_multipliers[0]
        self.norm1 = nn.GroupNorm(sizes.groups, channels)
        self.conv_out = CausalConv3d(channels, LATENT_CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, T, h, w) -> (1, 4, T, h, w)."""
        return self.conv_out(F.silu(self.norm1(x)))


class SpatialPart(nn.Module):
    """Some consecutive layers of the spatial decoder, applied one after the other."""

    def __init__(self, layers: dict[str, nn.Module], before: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.names = tuple(layers)
        self.before = before
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        if self.before is not None:
            x = self.before(x)
        for name in self.names:
            x = self._modules[name](x)  # type: ignore[misc]
        return x


def _unscale(x: Tensor) -> Tensor:
    return x / SPATIAL_SCALE


Part = tuple[str, Callable[[], nn.Module]]


def temporal_parts(sizes: VAESizes) -> list[Part]:
    """Names and constructors of the temporal parts, in order."""
    filters = [sizes.temporal_filters * m for m in sizes.temporal_multipliers]
    parts: list[Part] = [("vae.temporal.part1", partial(TemporalHead, sizes))]
    width = filters[3]
    for level in (3, 2, 1, 0):
        channels = []
        for _ in range(sizes.temporal_res_blocks):
            channels.append((width, filters[level]))
            width = filters[level]
        # The reference app cuts the level that neither halves time nor fits one package block by block.
        pieces = [channels] if level != 1 else [[c] for c in channels]
        for i, piece in enumerate(pieces):
            name = f"vae.temporal.part2_{4 - level}" + (f"_{i + 1}" if len(pieces) > 1 else "")
            parts.append((name, partial(TemporalLevel, piece, sizes.groups, doubles_time=level >= 2)))
    return [*parts, ("vae.temporal.part3", partial(TemporalTail, sizes))]


def _spatial_decoder(sizes: VAESizes) -> SpatialDecoder:
    with torch.device("meta"):
        return SpatialDecoder(
            in_channels=LATENT_CHANNELS,
            out_channels=3,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=sizes.spatial_channels,
            layers_per_block=sizes.spatial_layers,
            norm_num_groups=sizes.groups,
        )


def spatial_parts(sizes: VAESizes) -> list[Part]:
    """Names and constructors of the spatial parts, in order. They are built on the meta device."""
    decoder = _spatial_decoder(sizes)
    with torch.device("meta"):
        post_quant_conv = nn.Conv2d(LATENT_CHANNELS, LATENT_CHANNELS, 1)
    cut: list[tuple[str, dict[str, nn.Module]]] = [
        ("part1", {"post_quant_conv": post_quant_conv, "conv_in": decoder.conv_in}),
        ("part2", {"mid_block": decoder.mid_block}),
    ]
    cut += [(f"part3_{i + 1}", {"up_block": decoder.up_blocks[i]}) for i in range(3)]
    cut += [(f"part3_4_{i + 1}", {"resnet": _Resnet(r)}) for i, r in enumerate(decoder.up_blocks[3].resnets)]
    cut += [("part4", {"conv_norm_out": decoder.conv_norm_out, "conv_act": nn.SiLU(), "conv_out": decoder.conv_out})]
    before = {"part1": _unscale}
    return [(f"vae.spatial.{name}", partial(SpatialPart, layers, before.get(name))) for name, layers in cut]


class _Resnet(nn.Module):
    """A library residual block without its time embedding."""

    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        self.resnet = resnet

    def forward(self, x: Tensor) -> Tensor:
        return self.resnet(x, None)
