"""The published sizes, counted on the meta device: nothing is allocated."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from cidl_sim.blocks.definition import BlockDefinition
from cidl_sim.models.sizes import Chunk, spatial_chunks, temporal_chunks
from cidl_sim.pipelines.open_sora.family import OPEN_SORA
from cidl_sim.pipelines.open_sora.settings import OPENSORA_V1_2, VideoSettings
from cidl_sim.pipelines.open_sora.stages import stage_definitions


@cache
def published_blocks() -> dict[str, nn.Module]:
    """The module of each set of weights of Open-Sora v1.2."""
    definitions = definitions_of(VideoSettings())
    with torch.device("meta"):
        return {weights: definition.build() for weights, definition in definitions.items()}


def definitions_of(settings: VideoSettings) -> dict[str, BlockDefinition]:
    stages = stage_definitions(OPENSORA_V1_2, settings, OPENSORA_V1_2.nominal_text_tokens)
    return {block.weights: block for stage in stages for block in stage.blocks}


def parameters(prefix: str) -> int:
    blocks = [module for weights, module in published_blocks().items() if weights.startswith(prefix)]
    return sum(p.numel() for module in blocks for p in module.parameters())


def buffer_values(prefix: str) -> dict[str, int]:
    return {
        name: buffer.numel()
        for weights, module in published_blocks().items()
        if weights.startswith(prefix)
        for name, buffer in module.named_buffers()
    }


def test_the_text_encoder_has_the_published_number_of_parameters():
    assert parameters("t5.") == 4_762_310_656
    assert buffer_values("t5.") == {}


def test_a_later_block_of_the_text_encoder_lacks_the_position_bias_of_the_first():
    assert parameters("t5.01") == 192_946_176
    assert parameters("t5.00") - parameters("t5.01") == 32 * 64


def test_the_denoiser_has_the_published_number_of_values_with_its_null_embedding():
    assert buffer_values("stdit.") == {"y_embedder.y_embedding": 1_228_800}
    assert parameters("stdit.") + 1_228_800 == 1_208_872_772


def test_every_pair_of_the_denoiser_has_the_published_number_of_parameters():
    pairs = [weights for weights in published_blocks() if weights.removeprefix("stdit.").isdigit()]
    assert len(pairs) == 28
    assert {parameters(pair) for pair in pairs} == {42_511_392}


def test_the_decoder_has_the_published_number_of_parameters():
    assert parameters("vae.") == 214_756_143
    assert buffer_values("vae.") == {"scale": 4, "shift": 4}


def test_the_decoder_is_cut_into_nine_temporal_and_nine_spatial_parts():
    parts = [weights for weights in published_blocks() if weights.startswith("vae.")]
    assert len([part for part in parts if part.startswith("vae.temporal.")]) == 9
    assert len([part for part in parts if part.startswith("vae.spatial.")]) == 9


@pytest.mark.parametrize("name", OPEN_SORA.models)
def test_settings_change_what_runs_but_never_what_is_stored(name):
    shapes = []
    for settings in (
        VideoSettings(height=16, width=16, frames=17, steps=1),
        VideoSettings(height=32, width=48, frames=23, steps=4, tdtm=2, lpl="2"),
    ):
        stages = stage_definitions(OPEN_SORA.models[name], settings, 1)
        with torch.device("meta"):
            shapes.append(
                {
                    block.weights: {key: tensor.shape for key, tensor in block.build().state_dict().items()}
                    for stage in stages
                    for block in stage.blocks
                }
            )
    assert shapes[0] == shapes[1]


# What settings make of a run


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (1, [Chunk(1, 1, 1)]),
        (17, [Chunk(17, 5, 1)]),
        (20, [Chunk(17, 5, 1), Chunk(3, 1, 1)]),
        (68, [Chunk(17, 5, 4)]),
    ],
)
def test_the_temporal_decoder_takes_seventeen_frames_then_the_rest(frames, expected):
    assert temporal_chunks(frames) == expected


@pytest.mark.parametrize("frames", range(1, 40))
def test_pieces_add_up_to_the_video_and_its_latents(frames):
    settings = VideoSettings(frames=frames)
    assert sum(chunk.frames * chunk.rounds for chunk in temporal_chunks(frames)) == frames
    assert sum(chunk.frames * chunk.rounds for chunk in spatial_chunks(frames)) == frames
    assert settings.latent_shape[0] == sum(c.latent_frames * c.rounds for c in temporal_chunks(frames))


def test_the_published_setting_has_twenty_latent_frames_of_256_patches():
    settings = VideoSettings(height=256, width=256, frames=68)
    assert settings.latent_shape == (20, 32, 32)
    assert settings.token_grid == (20, 256)


def test_merged_evaluations_are_a_stage_of_their_own_with_the_same_weights():
    settings = VideoSettings(steps=30, lpl="15", tdtm=10)
    stages = {stage.name: stage for stage in stage_definitions(OPENSORA_V1_2, settings, 50)}
    merged, plain = stages["denoiser.merged"], stages["denoiser"]
    assert (merged.rounds, plain.rounds) == (10, 6)
    assert [block.weights for block in merged.blocks] == [block.weights for block in plain.blocks]
    assert {a.kind == b.kind for a, b in zip(merged.blocks[1:-1], plain.blocks[1:-1], strict=True)} == {False}


def test_without_merging_there_is_no_merged_stage():
    stages = stage_definitions(OPENSORA_V1_2, VideoSettings(tdtm=0), 50)
    assert [stage.name for stage in stages if stage.group == "denoiser"] == ["denoiser"]
    assert not any("merged" in block.kind for stage in stages for block in stage.blocks)
