"""The image autoencoder of latent diffusion models (arXiv 2112.10752), with the published state-dict keys.

Eight pixels a side become one latent. The diffusers library has it too, and the tests hold both halves against it bit
for bit; but importing it takes a run's process seconds, and memory that a plan under a limit would rather give to
blocks (experiments/results/startup.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cidl_sim.models.sizes import VAESizes

LATENT_CHANNELS = 4
_EPS = 1e-6
# What sums around a shortcut are divided by. Measured workspaces, and with them workloads' hashes, count the copy.
_OUTPUT_SCALE = 1.0


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, around a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=_EPS)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=_EPS)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        h = self.norm1(x)
        h = F.silu(h)
        h = self.conv1(h)
        h = self.norm2(h)
        h = F.silu(h)
        h = self.conv2(h)
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return (x + h) / _OUTPUT_SCALE


class Attention(nn.Module):
    """Self-attention of all pixels with one head."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        normed = self.group_norm(x.flatten(2)).transpose(1, 2)
        query, key, value = self.to_q(normed), self.to_k(normed), self.to_v(normed)
        # One head: (B, 1, H W, C).
        pixels = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])
        pixels = self.to_out[0](pixels[:, 0])
        pixels = pixels.transpose(-1, -2).reshape(x.shape)
        pixels = pixels + x
        return pixels / _OUTPUT_SCALE


class MidBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, groups)])
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, groups) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Upsample(nn.Module):
    """Each pixel four times, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W)."""
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x)


class Downsample(nn.Module):
    """Convolution with stride 2; zeros are put on the right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class UpBlock(nn.Module):
    """Residual blocks of one level of the decoder and, but for the last level, twice the pixels a side."""

    def __init__(self, channels_in: int, channels_out: int, layers: int, groups: int, *, doubles: bool) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * (layers - 1)
        self.resnets = nn.ModuleList([ResnetBlock(width, channels_out, groups) for width in widths])
        self.upsamplers = nn.ModuleList([Upsample(channels_out)] if doubles else [])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H or 2 H, W or 2 W)."""
        for layer in [*self.resnets, *self.upsamplers]:
            x = layer(x)
        return x


class DownBlock(nn.Module):
    """Residual blocks of one level of the encoder and, but for the last level, half the pixels a side."""

    def __init__(self, channels_in: int, channels_out: int, layers: int, groups: int, *, halves: bool) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * (layers - 1)
        self.resnets = nn.ModuleList([ResnetBlock(width, channels_out, groups) for width in widths])
        self.downsamplers = nn.ModuleList([Downsample(channels_out)] if halves else [])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H or H/2, W or W/2)."""
        for layer in [*self.resnets, *self.downsamplers]:
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Images -> what the quantisation convolution makes moments of."""

    def __init__(self, sizes: VAESizes) -> None:
        super().__init__()
        channels, groups = sizes.spatial_channels, sizes.groups
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        before = [channels[0], *channels[:-1]]
        self.down_blocks = nn.ModuleList(
            DownBlock(a, b, sizes.spatial_layers, groups, halves=i < len(channels) - 1)
            for i, (a, b) in enumerate(zip(before, channels, strict=True))
        )
        self.mid_block = MidBlock(channels[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * LATENT_CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 8 h, 8 w) -> (B, 8, h, w)."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents -> images."""

    def __init__(self, sizes: VAESizes) -> None:
        super().__init__()
        channels, groups = sizes.spatial_channels[::-1], sizes.groups
        self.conv_in = nn.Conv2d(LATENT_CHANNELS, channels[0], 3, padding=1)
        before = [channels[0], *channels[:-1]]
        self.mid_block = MidBlock(channels[0], groups)
        self.up_blocks = nn.ModuleList(
            UpBlock(a, b, sizes.spatial_layers + 1, groups, doubles=i < len(channels) - 1)
            for i, (a, b) in enumerate(zip(before, channels, strict=True))
        )
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, 3, 8 h, 8 w)."""
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """Both halves, with the convolutions to and from the latent."""

    def __init__(self, sizes: VAESizes) -> None:
        super().__init__()
        self.encoder = Encoder(sizes)
        self.decoder = Decoder(sizes)
        self.quant_conv = nn.Conv2d(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1)
        self.post_quant_conv = nn.Conv2d(LATENT_CHANNELS, LATENT_CHANNELS, 1)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, 8 h, 8 w) in -1..1 -> mean and log-variance of their latents, both (B, 4, h, w)."""
        mean, log_variance = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, 4, h, w) -> images (B, 3, 8 h, 8 w) in about -1..1."""
        return self.decoder(self.post_quant_conv(z))


def sampled(mean: Tensor, log_variance: Tensor) -> Tensor:
    """A latent drawn from its distribution, by torch's own random numbers."""
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
