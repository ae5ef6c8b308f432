"""The whole pipeline as stages of blocks: what the workload is measured from and the executor runs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import groupby
from typing import NamedTuple

from cidl_sim.blocks.cuts import Dtype
from cidl_sim.blocks.definition import BlockDefinition, StageDefinition
from cidl_sim.blocks.pieces import Network
from cidl_sim.pipelines.stable_diffusion import networks
from cidl_sim.pipelines.stable_diffusion.settings import GRAMMAR, ImageSettings, ImageSizes

# What a sampler may remember, in latents: PNDM's four answers and the latent before its first step.
_REMEMBERED = 5
FLOAT_BYTES = 4


class Networks(NamedTuple):
    """The networks of a model as they run under some settings; one decoder for each shape of tile."""

    text_encoders: tuple[Network, ...]
    unet: Network
    decoders: dict[tuple[int, int], Network]


def networks_of(sizes: ImageSizes, settings: ImageSettings) -> Networks:
    """The networks of a model for one image; what the settings do not change is the same object each time."""
    rows = settings.halves * settings.prompts
    texts = [networks.text_encoder("clip", "text_encoder", sizes.text_encoder, rows * sizes.text_encoder.tokens)]
    if (second := sizes.text_encoder_2) is not None:
        texts.append(networks.text_encoder("clip2", "text_encoder_2", second, rows * second.tokens))
    factor = sizes.decoder.factor
    height, width = settings.latent_size(factor)
    unet = networks.denoiser(sizes.unet, settings.batch, height, width, sizes.text_encoder.tokens, settings.dtype)
    shapes = dict.fromkeys(tile.shape for tile in settings.tiles(factor))
    decoders = {shape: networks.decoder(sizes.decoder, *shape) for shape in shapes}
    return Networks(tuple(texts), unet, decoders)


def stage_definitions(sizes: ImageSizes, settings: ImageSettings) -> list[StageDefinition]:
    """The pipeline cut as `settings.partition` says.

    Text encoders run once for the prompt and, with guidance, once more for what the image is to be unlike; the UNet as
    often as the sampler asks, twice as often where both halves of the guidance run one after another; the decoder once
    for each tile. "reference": a residual block or a transformer with what changes the resolution after it, a layer of
    a text encoder. "fine": the widest layers of the UNet in halves, a deep transformer block by block. "whole": a
    network a block. "chunks2": the UNet in two of equal weights, the others whole. Numbers and words by group: see
    `CutGrammar`. With several prompts the stages of the later ones have the same blocks and names of their own.
    """
    once = _stages_of_one_prompt(sizes, settings)
    later = [replace(stage, name=f"prompt{p + 1}.{stage.name}") for p in range(1, settings.prompts) for stage in once]
    return once + later


def _stages_of_one_prompt(sizes: ImageSizes, settings: ImageSettings) -> list[StageDefinition]:
    cuts, dtype, own = GRAMMAR.cuts_of(settings.partition), settings.dtype, networks_of(sizes, settings)
    stages = [
        StageDefinition(
            "text_encoder" if i == 0 else f"text_encoder_{i + 1}",
            "text_encoder",
            settings.halves,
            _blocks(network, cuts["text_encoder"], dtype),
        )
        for i, network in enumerate(own.text_encoders)
    ]
    calls = settings.evaluations * (settings.halves if settings.guidance == "split" else 1)
    stages.append(StageDefinition("denoiser", "denoiser", calls, _blocks(own.unet, cuts["denoiser"], dtype)))
    shapes = (tile.shape for tile in settings.tiles(sizes.decoder.factor))
    runs = [(shape, len(list(run))) for shape, run in groupby(shapes)]
    for i, (shape, rounds) in enumerate(runs):
        name = "decoder" if len(runs) == 1 else f"decoder.{i + 1:02}.{shape[0]}x{shape[1]}"
        stages.append(StageDefinition(name, "decoder", rounds, _blocks(own.decoders[shape], cuts["decoder"], dtype)))
    return stages


# A network is compared by identity, and the same sizes and shapes give the same network.
@cache
def _blocks(network: Network, cut: int, dtype: Dtype) -> tuple[BlockDefinition, ...]:
    return network.blocks(cut, dtype)


def state_bytes(sizes: ImageSizes, settings: ImageSettings, group: str) -> int:
    """Bytes of what a run carries from block to block beside what the networks themselves keep.

    Text states, the latent and what the sampler remembers of it; in the decoder the latent, two rows of decoded tiles
    where there are tiles, and the image in 8-bit RGB.
    """
    factor = sizes.decoder.factor
    height, width = settings.latent_size(factor)
    latent = FLOAT_BYTES * sizes.unet.latent_channels * height * width
    text = FLOAT_BYTES * settings.halves * (sizes.text_encoder.tokens * sizes.unet.context + sizes.unet.pooled)
    tiles = settings.tiles(factor)
    # They overlap, so a row of them is wider than the image.
    row = sum(tile.height * tile.width for tile in tiles if tile.top == 0) if len(tiles) > 1 else 0
    kept = 2 * FLOAT_BYTES * 3 * row * factor**2
    image = 3 * settings.height * settings.width
    return {
        "text_encoder": text + latent,
        "denoiser": text + (2 + _REMEMBERED) * latent,
        "decoder": latent + kept + image,
    }[group]
