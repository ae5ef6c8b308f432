"""The decoder's parts: the spatial ones against the library, the temporal ones against small formulas."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cidl_sim.models.autoencoder_kl import AutoencoderKL as OwnAutoencoderKL
from cidl_sim.models.sizes import VAESizes
from cidl_sim.models.vae import (
    LATENT_SCALE,
    LATENT_SHIFT,
    SPATIAL_SCALE,
    CausalConv3d,
    ResBlock3d,
    TemporalHead,
    TemporalLevel,
    spatial_parts,
    temporal_parts,
)
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SIZES = OPENSORA_TINY.vae


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_random_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return module.eval()


# Spatial


@pytest.fixture(scope="module")
def library() -> AutoencoderKL:
    from diffusers import AutoencoderKL

    blocks = len(SIZES.spatial_channels)
    torch.manual_seed(0)
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=SIZES.spatial_channels,
        layers_per_block=SIZES.spatial_layers,
        latent_channels=4,
        norm_num_groups=SIZES.groups,
        scaling_factor=SPATIAL_SCALE,
    )
    return with_random_weights(model)


def library_name(part: str, name: str) -> str:
    """What a tensor of a spatial part is called in the library's model."""
    if name.startswith("post_quant_conv"):
        return name
    if part.startswith("vae.spatial.part3_4_"):
        resnet = int(part.rpartition("_")[2]) - 1
        return name.replace("resnet.resnet", f"decoder.up_blocks.3.resnets.{resnet}", 1)
    if part.startswith("vae.spatial.part3_"):
        level = int(part.rpartition("_")[2]) - 1
        return name.replace("up_block", f"decoder.up_blocks.{level}", 1)
    return f"decoder.{name}"


def filled_spatial_parts(library: AutoencoderKL) -> dict[str, nn.Module]:
    state, parts = library.state_dict(), {}
    for part in spatial_parts(SIZES):
        module = part.build().to_empty(device="cpu").eval()
        module.load_state_dict({name: state[library_name(part.name, name)] for name in module.state_dict()})
        parts[part.name] = module
    return parts


@pytest.mark.parametrize("shape", [(1, 4, 4, 4), (4, 4, 4, 6)])
def test_the_spatial_parts_in_a_chain_are_the_whole_decoder(library, shape):
    z = seeded(*shape)
    with torch.no_grad():
        expected = library.decode(z / SPATIAL_SCALE).sample
        x = z
        for module in filled_spatial_parts(library).values():
            x = module(x)
    assert x.shape == (shape[0], 3, 8 * shape[2], 8 * shape[3])
    assert torch.equal(x, expected)


def test_the_spatial_parts_leave_no_tensor_of_the_decoder_out(library):
    used = [library_name(part, name) for part, m in filled_spatial_parts(library).items() for name in m.state_dict()]
    decoder = {name for name in library.state_dict() if name.startswith(("decoder.", "post_quant_conv."))}
    assert sorted(used) == sorted(decoder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_image_autoencoder_is_the_librarys_bit_for_bit(library, dtype):
    ours, theirs = OwnAutoencoderKL(SIZES), copy.deepcopy(library).to(dtype)
    ours.load_state_dict(library.state_dict())
    ours.to(dtype).eval()
    images = seeded(2, 3, 24, 32).to(dtype)
    with torch.no_grad():
        mean, log_variance = ours.moments(images)
        expected = theirs.encode(images).latent_dist
        assert torch.equal(mean, expected.mean)
        assert torch.equal(log_variance, expected.logvar)
        assert torch.equal(ours.decode(mean), theirs.decode(mean).sample)


# Temporal


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_causal_convolution_sees_no_later_frame(kernel):
    conv = with_random_weights(CausalConv3d(2, 3, kernel))
    x = seeded(1, 2, 5, 4, 4)
    changed = x.clone()
    changed[:, :, 3:] += 1
    with torch.no_grad():
        before, after = conv(x), conv(changed)
    assert before.shape == (1, 3, 5, 4, 4)
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.equal(before[:, :, 3], after[:, :, 3])


def test_a_causal_convolution_is_a_convolution_over_the_frames_so_far():
    conv = with_random_weights(CausalConv3d(2, 3, 3))
    x = seeded(1, 2, 4, 5, 5)
    with torch.no_grad():
        out = conv(x)
        for frame in range(4):
            expected = conv.conv.bias.view(1, 3, 1, 1).expand(1, 3, 5, 5).clone()
            for back in range(3):
                if frame - back >= 0:
                    expected += F.conv2d(x[:, :, frame - back], conv.conv.weight[:, :, 2 - back], padding=1)
            torch.testing.assert_close(out[:, :, frame], expected, rtol=1e-5, atol=1e-5)


def test_a_residual_block_keeps_its_input_beside_what_it_computes():
    block = with_random_weights(ResBlock3d(8, 8, 4))
    x = seeded(1, 8, 3, 4, 4)
    with torch.no_grad():
        h = block.conv1(F.silu(F.group_norm(x, 4, block.norm1.weight, block.norm1.bias)))
        h = block.conv2(F.silu(F.group_norm(h, 4, block.norm2.weight, block.norm2.bias)))
        torch.testing.assert_close(block(x), x + h)
        block.conv2.conv.weight.zero_()
        assert torch.equal(block(x), x)


def test_a_residual_block_that_changes_width_has_a_shortcut_of_kernel_1():
    block = with_random_weights(ResBlock3d(8, 4, 4))
    x = seeded(1, 8, 3, 4, 4)
    with torch.no_grad():
        block.conv2.conv.weight.zero_()
        expected = torch.einsum("oi,bithw->bothw", block.conv3.conv.weight[:, :, 0, 0, 0], x)
        torch.testing.assert_close(block(x), expected)


def test_a_level_that_doubles_time_interleaves_neighbouring_channels_as_frames():
    level = with_random_weights(TemporalLevel([(8, 8)], 4, doubles_time=True))
    x = seeded(1, 8, 3, 4, 4)
    with torch.no_grad():
        wide = level.conv_block(level.blocks[0](x))
        out = level(x)
    assert out.shape == (1, 8, 6, 4, 4)
    for channel in range(8):
        for frame in range(6):
            assert torch.equal(out[:, channel, frame], wide[:, 2 * channel + frame % 2, frame // 2])


def test_the_head_undoes_the_normalisation_of_the_latent():
    head = with_random_weights(TemporalHead(VAESizes(temporal_filters=8, temporal_res_blocks=1, groups=4)))
    head.scale.copy_(torch.tensor(LATENT_SCALE).view(1, 4, 1, 1, 1))
    head.shift.copy_(torch.tensor(LATENT_SHIFT).view(1, 4, 1, 1, 1))
    head.res_blocks = nn.ModuleList()
    z = seeded(1, 4, 2, 4, 4)
    channels = [z[:, c] * LATENT_SCALE[c] + LATENT_SHIFT[c] for c in range(4)]
    with torch.no_grad():
        expected = head.conv1(head.post_quant_conv(torch.stack(channels, dim=1)))
        torch.testing.assert_close(head(z), expected)


@pytest.mark.parametrize("latent_frames", [1, 5])
def test_the_temporal_parts_quadruple_the_frames_of_a_piece(latent_frames):
    x = torch.empty(1, 4, latent_frames, 4, 6, device="meta")
    for part in temporal_parts(SIZES):
        with torch.device("meta"):
            x = part.build()(x)
    assert x.shape == (1, 4, 4 * latent_frames, 4, 6)
