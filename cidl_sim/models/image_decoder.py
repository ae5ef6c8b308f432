"""The way into an image decoder; the rest of it is made of pieces of `unet` and `autoencoder_kl`."""

from __future__ import annotations

from torch import Tensor, nn

from cidl_sim.models.unet_sizes import ImageDecoderSizes


class Entrance(nn.Module):
    """From a sampler's latent, in fp32 and of deviation about one, to the decoder's first features."""

    def __init__(self, sizes: ImageDecoderSizes) -> None:
        super().__init__()
        self.scale = sizes.scale
        self.post_quant_conv = nn.Conv2d(sizes.latent_channels, sizes.latent_channels, 1)
        self.conv_in = nn.Conv2d(sizes.latent_channels, sizes.channels[-1], 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, h, w) in fp32 -> (B, C', h, w)."""
        return self.conv_in(self.post_quant_conv((z / self.scale).to(self.conv_in.weight.dtype)))
