"""Parameters and multiply-adds of the text-to-image networks beside what was published, and each change by itself.

    .venv/bin/python experiments/text_to_image_architectures.py

Counted on the meta device: the UNet at a latent of 64x64 (SDXL 128x128) for one latent, the decoder for one image.
"Padding left out": taps of a convolution that meet its padding do not count, as compilers that work on the padded
operation count; the published 392 for Stable Diffusion is near that. Writes
experiments/results/text_to_image_architectures.md; half a minute.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn

from cidl_sim.blocks.definition import StageDefinition
from cidl_sim.blocks.measure import measured_stages
from cidl_sim.blocks.pieces import Network
from cidl_sim.models.unet_sizes import UNetSizes
from cidl_sim.pipelines.stable_diffusion import changes, networks
from cidl_sim.pipelines.stable_diffusion.architectures import MODELS, SD_V1_5

RESULTS = Path(__file__).parent / "results" / "text_to_image_architectures.md"

# UNet: millions of parameters and thousands of millions of multiply-adds, as published; decoder: millions.
PUBLISHED: dict[str, tuple[float | None, float | None, float | None, str]] = {
    "sd-v1.4": (860, 392, 50, "MobileDiffusion's table 2"),
    "sd-v1.5": (860, 392, 50, "the same network as v1.4's"),
    "sd-v2.1-base": (None, None, None, ""),
    "sd-v2.1": (None, None, None, ""),
    "sdxl": (2300, 710, 50, "MobileDiffusion's table 2; at 64x64, see below"),
    "snapfusion": (848, 285, 13, "table 3 as the paper's text has it"),
    "snapfusion-talk": (848, 285, 13, "the table as the talk has it"),
    "snapfusion-848m": (848, 285, 13, "only the transformers at 64x64 removed"),
    "mobile-diffusion": (386, 182, 9.8, "a fit within what is described"),
    "mobile-diffusion-lite": (278, 153, 9.8, "a fit within what is described"),
}
WHY = (
    "Stable Diffusion's totals are exact, and so are the keys (tests). What does not reproduce:",
    "",
    "- **SDXL's 2300 M and 710** are not the published model's. A middle block with one transformer block instead of "
    "ten gives {sdxl_parameters:.1f} M and, at 64x64, {sdxl_macs:.1f} without padding: that row is of another network.",
    "- **SnapFusion's 848 M** does not come out of its own table 3 in any reading: {snapfusion:.1f} M as the text has "
    "it, {talk:.1f} M as the talk has it, {middle:.1f} M with a second residual block in the middle, which the text's "
    "18 blocks ask for. Removing the five 320-wide transformers alone gives {only:.1f} M and {only_macs:.1f}.",
    "- **MobileDiffusion's** figures leave several structures. The one here has the described changes but for the "
    "trimmed feed-forward, with which it would be {trimmed:.1f} M and {trimmed_lite:.1f} M. Where its blocks stand "
    "within 16x16 changes neither figure.",
    "- **The decoders**: exact halves of the channels are 12.4 M (SnapFusion rounds to 13); MobileDiffusion states 9.8 "
    "M, half the channels and two residual blocks a level with latents of eight channels make 9.66 M.",
)


def main() -> None:
    text = "\n".join(report()) + "\n"
    RESULTS.write_text(text)
    print(text)


def report() -> list[str]:
    return [
        "# Text-to-image networks beside what was published",
        "",
        f"Command: `.venv/bin/python experiments/text_to_image_architectures.py`. Date: {datetime.now(UTC):%Y-%m-%d}. "
        "Counted on the meta device, the same on every machine.",
        "",
        "UNet of one latent (64x64; SDXL 128x128 in brackets). GMAC: thousands of millions of multiply-adds.",
        "",
        "| model | M parameters | published | off | GMAC | padding left out | published | off | decoder M | published "
        "| |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(model_row(name) for name in PUBLISHED),
        "",
        *(line.format(**figures()) for line in WHY),
        "",
        "Each published change of the UNet, made to Stable Diffusion v1.5's by itself:",
        "",
        "| change | M parameters | | GMAC, padding left out | |",
        "|---|---|---|---|---|",
        *change_rows(),
    ]


def model_row(name: str) -> str:
    sizes = MODELS[name]
    parameters, macs, decoder, remark = PUBLISHED[name]
    unet = unet_of(sizes.unet)
    own, counted = unet.parameters() / 1e6, multiply_adds(unet)
    bare = counted - in_padding(unet)
    large = f" ({multiply_adds(unet_of(sizes.unet, 128)):.1f})" if name == "sdxl" else ""
    half = networks.decoder(sizes.decoder, 64, 64).parameters() / 1e6
    return (
        f"| {name} | {own:.1f} | {shown(parameters)} | {off(own, parameters)} | {counted:.1f}{large} | {bare:.1f} | "
        f"{shown(macs)} | {off(bare, macs)} | {half:.2f} | {shown(decoder)} | {remark} |"
    )


def change_rows() -> list[str]:
    rows, base = [], unet_of(SD_V1_5.unet)
    first = base.parameters() / 1e6, multiply_adds(base) - in_padding(base)
    for name, change in {"none": lambda sizes: sizes, **changes.PUBLISHED}.items():
        unet = unet_of(change(SD_V1_5.unet))
        found = unet.parameters() / 1e6, multiply_adds(unet) - in_padding(unet)
        shares = [
            f"{now / before - 1:+.1%}" if name != "none" else "" for now, before in zip(found, first, strict=True)
        ]
        rows.append(f"| {name} | {found[0]:.1f} | {shares[0]} | {found[1]:.1f} | {shares[1]} |")
    return rows


def figures() -> dict[str, float]:
    """What the explanations state."""
    other = MODELS["sdxl"].unet.model_copy(update={"middle": ("f", "")})
    only = unet_of(changes.without_attention(SD_V1_5.unet))
    return {
        "sdxl_parameters": unet_of(other).parameters() / 1e6,
        "sdxl_macs": multiply_adds(unet_of(other)) - in_padding(unet_of(other)),
        "snapfusion": unet_of(MODELS["snapfusion"].unet).parameters() / 1e6,
        "talk": unet_of(MODELS["snapfusion-talk"].unet).parameters() / 1e6,
        "middle": unet_of(changes.snapfusion(SD_V1_5.unet, middle=2)).parameters() / 1e6,
        "trimmed": unet_of(changes.trimmed_feed_forward(MODELS["mobile-diffusion"].unet)).parameters() / 1e6,
        "trimmed_lite": unet_of(changes.trimmed_feed_forward(MODELS["mobile-diffusion-lite"].unet)).parameters() / 1e6,
        "only": only.parameters() / 1e6,
        "only_macs": multiply_adds(only) - in_padding(only),
    }


def unet_of(sizes: UNetSizes, side: int = 64) -> Network:
    return networks.denoiser(sizes, 1, side, side, 77, "fp32")


def multiply_adds(network: Network) -> float:
    """In thousands of millions: matrix products, convolutions and attention."""
    stages = [StageDefinition("all", "all", 1, network.blocks(1, "fp32"))]
    (stage,) = measured_stages(stages, stages, "fp32", lambda group: 0)
    return sum(block.flops for block in stage.blocks) / 2e9


def in_padding(network: Network) -> float:
    """Of these, those that multiply a convolution's padding."""
    counted = 0.0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        assert isinstance(layer, nn.Conv2d)
        (high, wide), (size, _), (stride, _) = inputs[0].shape[2:], layer.kernel_size, layer.stride
        if layer.padding[0]:
            taps = [
                sum(min(n, at * stride + 2) - max(0, at * stride - 1) for at in range(out))
                for n, out in ((high, output.shape[2]), (wide, output.shape[3]))
            ]
            whole = size * size * output.shape[2] * output.shape[3]
            counted += (whole - taps[0] * taps[1]) * layer.in_channels // layer.groups * layer.out_channels

    (block,) = network.blocks(-1, "fp32")
    with torch.device("meta"), torch.no_grad():
        module = block.build()
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(count)
        module(*block.example())
    return counted / 1e9


def shown(figure: float | None) -> str:
    return "" if figure is None else f"{figure:g}"


def off(own: float, published: float | None) -> str:
    return "" if published is None else f"{own / published - 1:+.1%}"


if __name__ == "__main__":
    main()
