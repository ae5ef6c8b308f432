"""OpenSora-VAE-v1.2: the decoder cut into the 9 temporal and 9 spatial parts of the reference app, and the whole.

Temporal: causal 3-D convolutions. Spatial: the image autoencoder of latent diffusion models (autoencoder_kl.py). Every
part maps one tensor to one tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cidl_sim.models.autoencoder_kl import LATENT_CHANNELS, AutoencoderKL
from cidl_sim.models.sizes import MICRO_BATCH, TIME_FACTOR, VAESizes, temporal_chunks

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


class StridedCausalConv3d(nn.Module):
    """Causal 3-D convolution that halves the frames."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, 3, stride=(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T/2, H, W); one frame of zeros less in front than without the stride."""
        return self.conv(F.pad(x, (1, 1, 1, 1, 1, 0)))


def depth_to_time(x: Tensor) -> Tensor:
    """(B, 2 C, T, H, W) -> (B, C, 2 T, H, W): each two neighbouring channels become two frames."""
    batch, channels, frames, height, width = x.shape
    x = x.view(batch, channels // 2, 2, frames, height, width)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, channels // 2, 2 * frames, height, width)


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
        return depth_to_time(self.conv_block(x))


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


def _built(layers: dict[str, nn.Module], before: Callable[[Tensor], Tensor] | None) -> SpatialPart:
    # The layers are meta tensors cut out of one module; every build gets its own.
    return SpatialPart(copy.deepcopy(layers), before)


def _unscale(x: Tensor) -> Tensor:
    return x / SPATIAL_SCALE


@dataclass(frozen=True)
class Part:
    """A part of a decoder: its name, how to build it, and where its tensors are in the published checkpoint.

    `published` maps the beginning of a tensor's name in the part to its beginning in the checkpoint.
    """

    name: str
    build: Callable[[], nn.Module]
    published: dict[str, str]


def temporal_parts(sizes: VAESizes) -> list[Part]:
    """The temporal parts, in order."""
    decoder = "temporal_vae.decoder."
    filters = [sizes.temporal_filters * m for m in sizes.temporal_multipliers]
    head = {name: decoder + name for name in ("conv1.", "res_blocks.")}
    head |= {"scale": "scale", "shift": "shift", "post_quant_conv.": "temporal_vae.post_quant_conv."}
    parts = [Part("vae.temporal.part1", partial(TemporalHead, sizes), head)]
    width = filters[3]
    for level in (3, 2, 1, 0):
        channels = []
        for _ in range(sizes.temporal_res_blocks):
            channels.append((width, filters[level]))
            width = filters[level]
        # The reference app cuts the level that neither doubles time nor narrows block by block.
        size = 1 if level == 1 else len(channels)
        pieces = [channels[i : i + size] for i in range(0, len(channels), size)]
        for i, piece in enumerate(pieces):
            name = f"vae.temporal.part2_{4 - level}" + (f"_{i + 1}" if len(pieces) > 1 else "")
            published = {
                f"blocks.{j}.": f"{decoder}block_res_blocks.{level}.{i * size + j}." for j in range(len(piece))
            }
            published["conv_block."] = f"{decoder}conv_blocks.{level - 1}."
            build = partial(TemporalLevel, piece, sizes.groups, doubles_time=level >= 2)
            parts.append(Part(name, build, published))
    tail = {name: decoder + name for name in ("norm1.", "conv_out.")}
    return [*parts, Part("vae.temporal.part3", partial(TemporalTail, sizes), tail)]


def spatial_parts(sizes: VAESizes) -> list[Part]:
    """The spatial parts, in order. They are built on the meta device."""
    with torch.device("meta"):
        whole = AutoencoderKL(sizes)
    decoder, module = whole.decoder, "spatial_vae.module."
    up = decoder.up_blocks
    cut: list[tuple[str, dict[str, nn.Module], dict[str, str]]] = [
        ("part1", {"post_quant_conv": whole.post_quant_conv, "conv_in": decoder.conv_in}, {}),
        ("part2", {"mid_block": decoder.mid_block}, {}),
    ]
    cut += [(f"part3_{i + 1}", {"up_block": up[i]}, {"up_block.": f"up_blocks.{i}."}) for i in range(3)]
    cut += [
        (f"part3_4_{i + 1}", {"resnet": _Resnet(resnet)}, {"resnet.resnet.": f"up_blocks.3.resnets.{i}."})
        for i, resnet in enumerate(up[3].resnets)  # type: ignore[arg-type]
    ]
    last = {"conv_norm_out": decoder.conv_norm_out, "conv_act": nn.SiLU(), "conv_out": decoder.conv_out}
    cut.append(("part4", last, {}))
    parts = []
    for name, layers, renamed in cut:
        published = {f"{layer}.": f"{module}decoder.{layer}." for layer in layers if layer != "post_quant_conv"}
        published |= {"post_quant_conv.": f"{module}post_quant_conv."} if "post_quant_conv" in layers else {}
        published |= {local: f"{module}decoder.{key}" for local, key in renamed.items()}
        before = _unscale if name == "part1" else None
        parts.append(Part(f"vae.spatial.{name}", partial(_built, layers, before), published))
    return parts


class TemporalEncoder(nn.Module):
    """Encoder half of the temporal autoencoder, with the published state-dict keys."""

    def __init__(self, sizes: VAESizes) -> None:
        super().__init__()
        filters = [sizes.temporal_filters * m for m in sizes.temporal_multipliers]
        self.conv_in = CausalConv3d(LATENT_CHANNELS, filters[0], 3, bias=False)
        self.block_res_blocks = nn.ModuleList()
        self.conv_blocks = nn.ModuleList()
        width = filters[0]
        for level, channels in enumerate(filters):
            blocks = nn.ModuleList()
            for _ in range(sizes.temporal_res_blocks):
                blocks.append(ResBlock3d(width, channels, sizes.groups))
                width = channels
            self.block_res_blocks.append(blocks)
            if level < len(filters) - 1:
                self.conv_blocks.append(StridedCausalConv3d(width, width) if level >= 1 else nn.Identity())
        self.res_blocks = nn.ModuleList(
            ResBlock3d(width, width, sizes.groups) for _ in range(sizes.temporal_res_blocks)
        )
        self.norm1 = nn.GroupNorm(sizes.groups, width)
        self.conv2 = CausalConv3d(width, 2 * LATENT_CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4, T, h, w) with T a multiple of 4 -> moments before the quantisation convolution (B, 8, T/4, h, w)."""
        x = self.conv_in(x)
        for level, blocks in enumerate(self.block_res_blocks):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
            if level < len(self.conv_blocks):
                x = self.conv_blocks[level](x)
        for block in self.res_blocks:
            x = block(x)
        return self.conv2(F.silu(self.norm1(x)))


class TemporalDecoder(nn.Module):
    """Decoder half of the temporal autoencoder, with the published state-dict keys."""

    def __init__(self, sizes: VAESizes) -> None:
        super().__init__()
        filters = [sizes.temporal_filters * m for m in sizes.temporal_multipliers]
        width = filters[3]
        self.conv1 = CausalConv3d(LATENT_CHANNELS, width, 3)
        self.res_blocks = nn.ModuleList(
            ResBlock3d(width, width, sizes.groups) for _ in range(sizes.temporal_res_blocks)
        )
        levels: list[nn.ModuleList] = []
        for level in (3, 2, 1, 0):
            blocks = nn.ModuleList()
            for _ in range(sizes.temporal_res_blocks):
                blocks.append(ResBlock3d(width, filters[level], sizes.groups))
                width = filters[level]
            levels.insert(0, blocks)
        self.block_res_blocks = nn.ModuleList(levels)
        doubling = [CausalConv3d(channels, 2 * channels, 3) for channels in (filters[2], filters[3])]
        self.conv_blocks = nn.ModuleList([nn.Identity(), *doubling])
        self.norm1 = nn.GroupNorm(sizes.groups, width)
        self.conv_out = CausalConv3d(width, LATENT_CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4, t, h, w) -> (B, 4, 4 t, h, w)."""
        x = self.conv1(x)
        for block in self.res_blocks:
            x = block(x)
        for level in (3, 2, 1, 0):
            for block in self.block_res_blocks[level]:  # type: ignore[attr-defined]
                x = block(x)
            if level >= 2:
                x = depth_to_time(self.conv_blocks[level - 1](x))
        return self.conv_out(F.silu(self.norm1(x)))


class TemporalVAE(nn.Module):
    """Temporal autoencoder with the published state-dict keys: 4 channels, a quarter of the frames in between."""

    def __init__(self, sizes: VAESizes) -> None:
        super().__init__()
        self.encoder = TemporalEncoder(sizes)
        self.quant_conv = CausalConv3d(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1)
        self.post_quant_conv = CausalConv3d(LATENT_CHANNELS, LATENT_CHANNELS, 1)
        self.decoder = TemporalDecoder(sizes)

    def moments(self, x: Tensor) -> Tensor:
        """(B, 4, T, h, w) -> mean and log-variance (B, 8, ceil(T/4), h, w); zeros in front fill up to 4 frames."""
        return self.quant_conv(self.encoder(F.pad(x, (0, 0, 0, 0, -x.shape[2] % TIME_FACTOR, 0))))

    def decode(self, z: Tensor, frames: int) -> Tensor:
        """(B, 4, t, h, w) -> (B, 4, frames, h, w): the frames of the padding come first and are dropped."""
        return self.decoder(self.post_quant_conv(z))[:, :, -frames:]


class _SpatialHolder(nn.Module):
    """The published keys have the image autoencoder one level deeper."""

    def __init__(self, sizes: VAESizes) -> None:
        super().__init__()
        self.module = AutoencoderKL(sizes)


class VideoVAE(nn.Module):
    """OpenSora-VAE-v1.2 as a whole, with the published state-dict keys, for checkpoints, training and comparison."""

    scale: Tensor
    shift: Tensor

    def __init__(self, sizes: VAESizes) -> None:
        super().__init__()
        self.spatial_vae = _SpatialHolder(sizes)
        self.temporal_vae = TemporalVAE(sizes)
        self.register_buffer("scale", torch.tensor(LATENT_SCALE).view(1, LATENT_CHANNELS, 1, 1, 1))
        self.register_buffer("shift", torch.tensor(LATENT_SHIFT).view(1, LATENT_CHANNELS, 1, 1, 1))

    def decode(self, z: Tensor, frames: int) -> Tensor:
        """Latent (1, 4, t, h, w) -> video (frames, 3, 8 h, 8 w) in about -1..1, in pieces of 17 and of 4 frames."""
        pieces, first = [], 0
        for chunk in temporal_chunks(frames):
            for _ in range(chunk.rounds):
                latent = z[:, :, first : first + chunk.latent_frames] * self.scale + self.shift
                pieces.append(self.temporal_vae.decode(latent, chunk.frames))
                first += chunk.latent_frames
        decoded = torch.cat(pieces, dim=2)[0].transpose(0, 1)
        spatial = self.spatial_vae.module
        return torch.cat([spatial.decode(batch / SPATIAL_SCALE) for batch in decoded.split(MICRO_BATCH)])


class _Resnet(nn.Module):
    """A residual block one level deeper: stores call its tensors resnet.resnet."""

    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        self.resnet = resnet

    def forward(self, x: Tensor) -> Tensor:
        return self.resnet(x)
