"""The published checkpoints: every key of the whole networks is found in exactly one block."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from cidl_sim.models.stdit3 import STDiT3
from cidl_sim.models.vae import VideoVAE
from cidl_sim.pipelines.model_store import distinct_blocks
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY, OPENSORA_V1_2, OpenSoraSizes, VideoSettings
from cidl_sim.pipelines.open_sora.stages import geometry_of
from cidl_sim.pipelines.open_sora.whole_model import library_text_encoder

Shapes = dict[str, tuple[int, ...]]


def block_shapes(sizes: OpenSoraSizes, checkpoint: str, partition: str) -> Shapes:
    found: Shapes = {}
    keys: Counter[str] = Counter()
    for block in distinct_blocks(sizes, "fp32", partition):
        if block.checkpoint == checkpoint:
            with torch.device("meta"):
                for name, tensor in block.build().state_dict().items():
                    found[block.published_key(name)] = tuple(tensor.shape)
                    keys[block.published_key(name)] += 1
    assert set(keys.values()) == {1}
    return found


def shapes_of(module: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("partition", ["reference", "fine"])
@pytest.mark.parametrize("sizes", [OPENSORA_V1_2, OPENSORA_TINY], ids=lambda s: s.name)
def test_the_blocks_of_the_denoiser_are_the_whole_network(sizes, partition):
    with torch.device("meta"):
        whole = STDiT3(sizes.stdit, sizes.t5.d_model, geometry_of(VideoSettings()))
    assert block_shapes(sizes, "stdit", partition) == shapes_of(whole)


@pytest.mark.parametrize("partition", ["reference", "fine"])
def test_the_blocks_of_the_text_encoder_are_the_librarys(partition):
    with torch.device("meta"):
        whole = shapes_of(library_text_encoder(OPENSORA_V1_2.t5))
    whole.pop("encoder.embed_tokens.weight", None)  # the same table as shared.weight
    assert block_shapes(OPENSORA_V1_2, "t5", partition) == whole


@pytest.mark.parametrize("sizes", [OPENSORA_V1_2, OPENSORA_TINY], ids=lambda s: s.name)
def test_the_blocks_of_the_decoder_are_the_vae_without_its_encoders(sizes):
    with torch.device("meta"):
        whole = shapes_of(VideoVAE(sizes.vae))
    decoder = {key: shape for key, shape in whole.items() if ".encoder." not in key and ".quant_conv." not in key}
    assert block_shapes(sizes, "vae", "reference") == decoder


def test_the_whole_vae_has_the_published_number_of_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in VideoVAE(OPENSORA_V1_2.vae).parameters()) == 393_341_007


def test_the_keys_are_spelled_as_published():
    denoiser = block_shapes(OPENSORA_V1_2, "stdit", "reference")
    for key, shape in {
        "spatial_blocks.27.attn.qkv.weight": (3456, 1152),
        "temporal_blocks.0.cross_attn.kv_linear.weight": (2304, 1152),
        "temporal_blocks.0.attn.q_norm.weight": (72,),
        "spatial_blocks.0.scale_shift_table": (6, 1152),
        "x_embedder.proj.weight": (1152, 4, 1, 2, 2),
        "t_block.1.weight": (6912, 1152),
        "y_embedder.y_embedding": (300, 4096),
        "y_embedder.y_proj.fc1.weight": (1152, 4096),
        "final_layer.linear.weight": (32, 1152),
        "rope.freqs": (36,),
    }.items():
        assert denoiser[key] == shape
    decoder = block_shapes(OPENSORA_V1_2, "vae", "reference")
    for key, shape in {
        "scale": (1, 4, 1, 1, 1),
        "temporal_vae.post_quant_conv.conv.weight": (4, 4, 1, 1, 1),
        "temporal_vae.decoder.conv1.conv.bias": (512,),
        "temporal_vae.decoder.res_blocks.3.conv2.conv.weight": (512, 512, 3, 3, 3),
        "temporal_vae.decoder.block_res_blocks.2.0.conv3.conv.weight": (256, 512, 1, 1, 1),
        "temporal_vae.decoder.conv_blocks.1.conv.weight": (512, 256, 3, 3, 3),
        "temporal_vae.decoder.conv_blocks.2.conv.weight": (1024, 512, 3, 3, 3),
        "spatial_vae.module.post_quant_conv.weight": (4, 4, 1, 1),
        "spatial_vae.module.decoder.up_blocks.3.resnets.2.conv1.weight": (128, 128, 3, 3),
        "spatial_vae.module.decoder.conv_out.weight": (3, 128, 3, 3),
    }.items():
        assert decoder[key] == shape
