"""The text-to-image models by name. No torch.

Stable Diffusion's are exact. SnapFusion's and MobileDiffusion's code was never published: theirs are built from what
their papers and the talk say, with variants where these contradict each other (docs/background/text_to_image.md).
"""

from __future__ import annotations

from typing import Literal

from cidl_sim.models.unet_sizes import CLIPSizes, ImageDecoderSizes, UNetLevel, UNetSizes
from cidl_sim.pipelines.stable_diffusion.changes import mobile_diffusion, snapfusion, without_attention
from cidl_sim.pipelines.stable_diffusion.settings import ImageSettings, ImageSizes

# Both versions have the same networks.
SD_V1_4 = ImageSizes(name="sd-v1.4")
SD_V1_5 = ImageSizes(name="sd-v1.5")


def _attended(channels: int, heads: int, layer: str) -> UNetLevel:
    """A level of two layers, three on the way up, all alike."""
    return UNetLevel(channels=channels, heads=heads, down=(layer,) * 2, up=(layer,) * 3)


# OpenCLIP's encoder without its last layer, linear projections, heads of width 64.
SD2_TEXT = CLIPSizes(layers=23, width=1024, heads=16, inner=4096, activation="gelu")
SD2_UNET = UNetSizes(
    levels=(_attended(320, 5, "f"), _attended(640, 10, "f"), _attended(1280, 20, "f"), _attended(1280, 20, "")),
    context=1024,
    projection="linear",
)


def sd2(name: str, prediction: Literal["epsilon", "v"]) -> ImageSizes:
    """Stable Diffusion v2.1; the model for 512 pixels predicts noise, the one for 768 predicts v."""
    return ImageSizes(name=name, text_encoder=SD2_TEXT, unet=SD2_UNET, prediction=prediction, padding="zero")


SDXL = ImageSizes(
    name="sdxl",
    text_encoder=CLIPSizes(given=2),
    text_encoder_2=CLIPSizes(layers=32, width=1280, heads=20, inner=5120, activation="gelu", given=2, projected=1280),
    unet=UNetSizes(
        levels=(_attended(320, 5, ""), _attended(640, 10, "ff"), _attended(1280, 20, "f" * 10)),
        middle=("f" * 10, ""),
        context=2048,
        pooled=1280,
        projection="linear",
    ),
    decoder=ImageDecoderSizes(scale=0.13025),
    guidance=5.0,
)

# The real architecture, small: for tests.
SD_TINY = ImageSizes(
    name="sd-tiny",
    text_encoder=CLIPSizes(layers=2, width=32, heads=4, inner=64, vocabulary=260, tokens=77),
    unet=UNetSizes(
        levels=(
            UNetLevel(channels=32, heads=2, down=("f", "f"), up=("f", "f", "f")),
            UNetLevel(channels=64, heads=2, down=("f", "f"), up=("f", "f", "f")),
            UNetLevel(channels=64, heads=2, down=("", ""), up=("", "", "")),
        ),
        context=32,
        groups=8,
    ),
    decoder=ImageDecoderSizes(channels=(8, 16, 32, 32), layers=2, groups=4),
)
SDXL_TINY = ImageSizes(
    name="sdxl-tiny",
    text_encoder=CLIPSizes(layers=2, width=32, heads=4, inner=64, vocabulary=260, given=2),
    text_encoder_2=CLIPSizes(
        layers=3, width=64, heads=4, inner=128, activation="gelu", vocabulary=260, given=2, projected=48
    ),
    unet=UNetSizes(
        levels=(
            UNetLevel(channels=32, heads=2, down=("", ""), up=("", "", "")),
            UNetLevel(channels=64, heads=4, down=("ff", "ff"), up=("ff", "ff", "ff")),
        ),
        middle=("ff", ""),
        context=96,
        pooled=48,
        projection="linear",
        groups=8,
    ),
    decoder=ImageDecoderSizes(channels=(8, 16, 32, 32), layers=2, groups=4, scale=0.13025),
)

# Half of the channels everywhere: 12.4 M parameters (SnapFusion rounds to 13 M).
HALF_DECODER = ImageDecoderSizes(channels=(64, 128, 256, 256))
# Pruned in width and depth, latents of eight channels: 9.7 M; only "9.8 M" was published.
MOBILE_DECODER = ImageDecoderSizes(channels=(64, 128, 256, 256), layers=2, latent_channels=8)


def _snapfusion(name: str, unet: UNetSizes) -> ImageSizes:
    return ImageSizes(name=name, unet=unet, decoder=HALF_DECODER, prediction="v")


def _mobile(name: str, unet: UNetSizes) -> ImageSizes:
    return ImageSizes(name=name, unet=unet, decoder=MOBILE_DECODER)


MODELS = {
    sizes.name: sizes
    for sizes in (
        SD_V1_5,
        SD_V1_4,
        sd2("sd-v2.1-base", "epsilon"),
        sd2("sd-v2.1", "v"),
        SDXL,
        _snapfusion("snapfusion", snapfusion(SD_V1_5.unet)),
        _snapfusion("snapfusion-talk", snapfusion(SD_V1_5.unet, up=1)),
        # Stable Diffusion without its transformers at 64x64: what comes out at the 848 M that SnapFusion states.
        _snapfusion("snapfusion-848m", without_attention(SD_V1_5.unet)),
        _mobile("mobile-diffusion", mobile_diffusion(SD_V1_5.unet, channels=1024, down=4, middle=5, up=(3, 3))),
        _mobile("mobile-diffusion-lite", mobile_diffusion(SD_V1_5.unet, channels=896, down=3, middle=5, up=(2, 2))),
        SD_TINY,
        SDXL_TINY,
    )
}

DEFAULTS = {
    "sd-v2.1": ImageSettings(height=768, width=768, sampler="ddim"),
    "sdxl": ImageSettings(height=1024, width=1024, sampler="euler"),
    **dict.fromkeys(("snapfusion", "snapfusion-talk", "snapfusion-848m"), ImageSettings(steps=8, sampler="ddim")),
    **dict.fromkeys(
        ("mobile-diffusion", "mobile-diffusion-lite"), ImageSettings(steps=1, sampler="ufogen", guidance="off")
    ),
    "sd-tiny": ImageSettings(height=64, width=64, steps=4, sampler="ddim"),
    "sdxl-tiny": ImageSettings(height=64, width=64, steps=3, sampler="euler"),
}
