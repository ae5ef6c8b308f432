"""Sizes of text-to-image networks: the UNet of latent diffusion models, its text encoders, its image decoder. No torch.

The defaults are Stable Diffusion v1's. A UNet's levels are written layer by layer, so that an architecture found by
search, or one that was pruned by hand, is a value and each published change a function from one value to another.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from cidl_sim.models.sizes import NetworkSizes

# The transformer blocks after a residual block: "f" with self-attention, "c" with cross-attention alone, "" none.
Layer = Annotated[str, StringConstraints(pattern=r"^[fc]*$")]

# What SDXL is told beside the prompt: sizes of the original, of its crop, of the result, each as so many sinusoids.
SIZE_NUMBERS = 6
SIZE_WIDTH = 256


class UNetLevel(NetworkSizes):
    """One resolution: its layers on the way down, and on the way up one more, each a residual block and what follows.

    `separable`: its 3x3 convolutions are a depthwise and a pointwise one.
    """

    channels: int = Field(ge=1)
    heads: int = Field(default=8, ge=1)
    down: tuple[Layer, ...] = Field(min_length=1)
    up: tuple[Layer, ...] = Field(min_length=2)
    separable: bool = False

    @model_validator(mode="after")
    def _fits(self) -> UNetLevel:
        if len(self.up) != len(self.down) + 1:
            raise ValueError("a level has one layer more on the way up than on the way down: each takes one skip")
        if self.channels % self.heads:
            raise ValueError("channels must be a multiple of heads")
        return self


def _sd1_levels() -> tuple[UNetLevel, ...]:
    attended = {"down": ("f", "f"), "up": ("f", "f", "f")}
    plain = {"down": ("", ""), "up": ("", "", "")}
    shapes = ((320, attended), (640, attended), (1280, attended), (1280, plain))
    return tuple(UNetLevel.model_validate({"channels": channels, **layers}) for channels, layers in shapes)


class UNetSizes(NetworkSizes):
    """A conditional UNet with the published keys of diffusers' `UNet2DConditionModel`.

    `middle`: the layers at the lowest resolution; transformers stand between residual blocks. `context`: width of the
    text states. `pooled`: width of the pooled text that SDXL is given, 0 for none. `projection`: how a transformer's
    input and output are projected. `feed_forward`: inner width over channels, of each half of the gated unit.
    `shared_keys`: keys serve as values too.
    """

    levels: tuple[UNetLevel, ...] = Field(default_factory=_sd1_levels, min_length=1)
    middle: tuple[Layer, ...] = ("f", "")
    latent_channels: int = Field(default=4, ge=1)
    context: int = Field(default=768, ge=1)
    pooled: int = Field(default=0, ge=0)
    projection: Literal["convolution", "linear", "none"] = "convolution"
    feed_forward: float = Field(default=4.0, gt=0)
    gate: Literal["gelu", "swish"] = "gelu"
    attention: Literal["softmax", "relu"] = "softmax"
    shared_keys: bool = False
    groups: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _groups_divide(self) -> UNetSizes:
        if any(level.channels % self.groups for level in self.levels):
            raise ValueError("channels must be multiples of groups")
        return self

    @property
    def time_width(self) -> int:
        """Width of the time embedding."""
        return 4 * self.levels[0].channels

    def inner(self, channels: int) -> int:
        """Width of a feed-forward's hidden layer."""
        return round(self.feed_forward * channels)


class CLIPSizes(NetworkSizes):
    """A CLIP text encoder. The defaults are those of ViT-L/14.

    `given`: the layer whose output is the text's states, counted from the end; 1 with the final norm, 2 without it, as
    SDXL takes them. `projected`: width of the pooled text, 0 for none.
    """

    layers: int = Field(default=12, ge=1)
    width: int = Field(default=768, ge=1)
    heads: int = Field(default=12, ge=1)
    inner: int = Field(default=3072, ge=1)
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    vocabulary: int = Field(default=49408, ge=3)
    tokens: int = Field(default=77, ge=2)
    given: Literal[1, 2] = 1
    projected: int = Field(default=0, ge=0)


class ImageDecoderSizes(NetworkSizes):
    """The decoder of an image autoencoder, with the published keys of diffusers' `AutoencoderKL`.

    `channels` from the image's resolution to the latent's; `layers`: residual blocks a level. `scale`: latents are
    divided by it. `encoder`: whether a published checkpoint has the encoder's weights beside the decoder's.
    """

    channels: tuple[int, ...] = Field(default=(128, 256, 512, 512), min_length=1)
    layers: int = Field(default=3, ge=1)
    latent_channels: int = Field(default=4, ge=1)
    groups: int = Field(default=32, ge=1)
    scale: float = Field(default=0.18215, gt=0)
    encoder: bool = True

    @model_validator(mode="after")
    def _groups_divide(self) -> ImageDecoderSizes:
        if any(channels % self.groups for channels in self.channels):
            raise ValueError("channels must be multiples of groups")
        return self

    @property
    def factor(self) -> int:
        """Pixels a side for each latent."""
        return int(2 ** (len(self.channels) - 1))
