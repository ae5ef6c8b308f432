"""Totals, keys and arithmetic of the models against what is published."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cidl_sim.blocks.definition import StageDefinition
from cidl_sim.blocks.measure import measured_stages
from cidl_sim.blocks.pieces import Network
from cidl_sim.models.unet_sizes import ImageDecoderSizes, UNetSizes
from cidl_sim.pipelines.catalog import find_workload, parse_name
from cidl_sim.pipelines.model_store import distinct_blocks, published_shapes
from cidl_sim.pipelines.stable_diffusion import changes, networks
from cidl_sim.pipelines.stable_diffusion.architectures import HALF_DECODER, MOBILE_DECODER, MODELS, SD_V1_5
from cidl_sim.pipelines.stable_diffusion.family import STABLE_DIFFUSION
from tests.pipelines.stable_diffusion.library import library_autoencoder, library_text_encoder, library_unet
from tests.pipelines.stable_diffusion.test_networks import text_keys

# Parameters of the networks as published files have them; SDXL's first encoder without its last layer and norm.
TOTALS = {
    "sd-v1.4": (859_520_964, 123_060_480, 0, 49_490_199),
    "sd-v1.5": (859_520_964, 123_060_480, 0, 49_490_199),
    "sd-v2.1": (865_910_724, 340_387_840, 0, 49_490_199),
    "sd-v2.1-base": (865_910_724, 340_387_840, 0, 49_490_199),
    "sdxl": (2_567_463_684, 123_060_480 - 7_089_408, 694_659_840, 49_490_199),
}
# In millions: what is built, what was published, and how far apart they may be.
OWN = {
    "snapfusion": (742.9, 848.0, 0.13),
    "snapfusion-talk": (673.6, 848.0, 0.21),
    "snapfusion-848m": (846.8, 848.0, 0.002),
    "mobile-diffusion": (392.6, 386.0, 0.02),
    "mobile-diffusion-lite": (274.5, 278.0, 0.02),
}


def unet_of(sizes: UNetSizes, size: int = 64) -> Network:
    return networks.denoiser(sizes, 1, size, size, 77, "fp32")


def giga_multiply_adds(network: Network) -> float:
    stages = [StageDefinition("one", "one", 1, network.blocks(1, "fp32"))]
    (stage,) = measured_stages(stages, stages, "fp32", lambda group: 0)
    return sum(block.flops for block in stage.blocks) / 2e9


@pytest.mark.parametrize("name", TOTALS)
def test_parameter_totals_are_those_of_the_published_files(name: str) -> None:
    sizes, (unet, first, second, decoder) = MODELS[name], TOTALS[name]
    assert unet_of(sizes.unet).parameters() == unet
    assert networks.text_encoder("clip", "text_encoder", sizes.text_encoder, 77).parameters() == first
    if sizes.text_encoder_2 is not None:
        assert networks.text_encoder("clip2", "text_encoder_2", sizes.text_encoder_2, 77).parameters() == second
    assert networks.decoder(sizes.decoder, 64, 64).parameters() == decoder


@pytest.mark.parametrize("name", OWN)
def test_architectures_that_were_never_published_come_as_near_as_is_said(name: str) -> None:
    built, published, apart = OWN[name]
    found = unet_of(MODELS[name].unet).parameters() / 1e6
    assert found == pytest.approx(built, abs=0.06)
    assert abs(found / published - 1) <= apart


@pytest.mark.parametrize("name", ["sd-v1.5", "sd-v2.1", "sdxl"])
def test_keys_and_shapes_are_the_libraries(name: str) -> None:
    sizes = MODELS[name]
    with torch.device("meta"):
        parts = {"unet": library_unet(sizes.unet), "vae": library_autoencoder(sizes.decoder)}
        parts["text_encoder"] = library_text_encoder(sizes.text_encoder)
        if sizes.text_encoder_2 is not None:
            parts["text_encoder_2"] = library_text_encoder(sizes.text_encoder_2)
    blocks = distinct_blocks(sizes, "fp32")
    for part, module in parts.items():
        wanted = published_shapes([block for block in blocks if block.checkpoint == part])
        state = text_keys(module) if part.startswith("text") else module.state_dict()
        there = {key: tuple(tensor.shape) for key, tensor in state.items()}
        unused = STABLE_DIFFUSION.unused_keys(sizes, part)
        assert wanted.items() <= there.items()
        assert {k: s for k, s in there.items() if k not in wanted}.items() <= unused.items()


def test_arithmetic_is_what_the_tables_count_as_multiply_adds() -> None:
    assert giga_multiply_adds(unet_of(SD_V1_5.unet)) == pytest.approx(401.64, abs=0.01)
    assert giga_multiply_adds(unet_of(MODELS["sd-v2.1"].unet)) == pytest.approx(402.1, abs=0.1)
    assert giga_multiply_adds(networks.decoder(SD_V1_5.decoder, 64, 64)) == pytest.approx(1257.3, abs=0.1)
    assert giga_multiply_adds(networks.decoder(HALF_DECODER, 64, 64)) == pytest.approx(318.9, abs=0.1)


@pytest.mark.parametrize(
    ("sizes", "millions"), [(ImageDecoderSizes(), 49.49), (HALF_DECODER, 12.39), (MOBILE_DECODER, 9.66)]
)
def test_decoders_weigh_what_is_published(sizes: ImageDecoderSizes, millions: float) -> None:
    assert networks.decoder(sizes, 64, 64).parameters() / 1e6 == pytest.approx(millions, abs=0.01)


def test_in_the_middle_of_the_unet_53_mb_are_put_aside() -> None:
    network = networks.denoiser(SD_V1_5.unet, 2, 64, 64, 77, "fp32")
    blocks = {block.name: block for block in network.blocks(1, "fp32")}
    assert blocks["unet.mid.1.resnet"].held_bytes == pytest.approx(53.1e6, rel=0.01)
    assert blocks["unet.out"].held_bytes == 0


@pytest.mark.parametrize("change", changes.PUBLISHED.values(), ids=changes.PUBLISHED)
def test_every_published_change_stands_alone(change: changes.Change) -> None:
    changed = change(SD_V1_5.unet)
    assert changed != SD_V1_5.unet
    assert UNetSizes.model_validate(changed.model_dump()) == changed
    assert len(unet_of(changed).units) > 0


@pytest.mark.parametrize(("size", "total"), [("base", 579_384_964), ("small", 482_346_884), ("tiny", 323_384_964)])
def test_pruning_blocks_gives_the_published_small_models(size: Any, total: int) -> None:
    assert unet_of(changes.bk_sdm(SD_V1_5.unet, size)).parameters() == total


def test_a_second_residual_block_in_the_middle_gives_the_texts_eighteen() -> None:
    assert unet_of(changes.snapfusion(SD_V1_5.unet, middle=2)).parameters() / 1e6 == pytest.approx(774.1, abs=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_name_that_is_read_again(name: str) -> None:
    sizes, settings = parse_name(name)
    assert sizes is MODELS[name]
    assert settings == STABLE_DIFFUSION.defaults[name]


@pytest.mark.parametrize(
    "name",
    [
        "sd-tiny-64x64-4s-ddim-fp32",
        "sd-tiny-128x64-9s-dpm-bf16-chunks2-cfgsplit",
        "sd-tiny-64x64-1s-ufogen-fp16-whole-cfgoff-2p",
        "sdxl-tiny-64x128-3s-euler-fp32-t2.dfine.vwhole-tile16",
    ],
)
def test_a_workload_by_its_full_name(name: str) -> None:
    assert find_workload(name).name == name
