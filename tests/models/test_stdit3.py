"""The denoiser's pieces against formulas written out by hand: loops, complex numbers, no library attention."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cidl_sim.models.sizes import STDiT3Sizes
from cidl_sim.models.stdit3 import (
    CrossAttention,
    Geometry,
    Mlp,
    RMSNorm,
    SelfAttention,
    STDiT3,
    STDiT3Block,
    STDiT3Pair,
    STDiT3Part1,
    STDiT3Part2,
    modulate,
    position_embedding,
    rotary_frequencies,
    rotate_interleaved,
    sinusoid,
    unpatchify,
)
from cidl_sim.pipelines.open_sora.settings import VideoSettings
from cidl_sim.pipelines.open_sora.stages import geometry_of

SIZES = STDiT3Sizes(depth=1, hidden=32, heads=2, in_channels=4, max_text_tokens=8, base_pixels=512)
DIM, HEADS, HEAD = 32, 2, 16
CAPTIONS = 12


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_random_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return module.eval().requires_grad_(False)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# The formulas


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return torch.einsum("...i,oi->...o", x, layer.weight) + layer.bias


def rotated(x: Tensor, frequencies: Tensor) -> Tensor:
    """x: (T, D), one head. Each pair of neighbours is a complex number turned by position * frequency."""
    numbers = torch.complex(x[:, 0::2], x[:, 1::2])
    for position in range(len(x)):
        numbers[position] *= torch.exp(1j * position * frequencies)
    return torch.view_as_real(numbers).flatten(1)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head: (N, D), (M, D), (M, D) -> (N, D)."""
    scores = q @ k.T / math.sqrt(q.shape[1])
    shares = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
    return shares @ v


def self_attention(module: SelfAttention, x: Tensor, frequencies: Tensor | None) -> Tensor:
    """x: (N, C)."""
    q, k, v = linear(x, module.qkv).split(DIM, dim=1)
    heads = []
    for head in range(HEADS):
        part = slice(head * HEAD, (head + 1) * HEAD)
        qh, kh = rms_norm(q[:, part], module.q_norm.weight), rms_norm(k[:, part], module.k_norm.weight)
        if frequencies is not None:
            qh, kh = rotated(qh, frequencies), rotated(kh, frequencies)
        heads.append(attended(qh, kh, v[:, part]))
    return linear(torch.cat(heads, dim=1), module.proj)


def cross_attention(module: CrossAttention, x: Tensor, y: Tensor) -> Tensor:
    """x: (N, C), y: (L, C)."""
    q = linear(x, module.q_linear)
    k, v = linear(y, module.kv_linear).split(DIM, dim=1)
    parts = [slice(head * HEAD, (head + 1) * HEAD) for head in range(HEADS)]
    return linear(torch.cat([attended(q[:, p], k[:, p], v[:, p]) for p in parts], dim=1), module.proj)


def mlp(module: Mlp, x: Tensor) -> Tensor:
    h = linear(x, module.fc1)
    gelu = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    return linear(gelu, module.fc2)


def plain_block(
    block: STDiT3Block, x: Tensor, y: Tensor, t_mlp: Tensor, frequencies: Tensor, grid: tuple[int, int]
) -> Tensor:
    """One sample, no merging. x: (T*S, C), y: (L, C), t_mlp: (6*C,)."""
    frames, patches = grid
    rows = block.scale_shift_table + t_mlp.view(6, DIM)
    shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = rows
    h = (layer_norm(x) * (1 + scale_attention) + shift_attention).view(frames, patches, DIM)
    if block.temporal:
        out = torch.stack([self_attention(block.attn, h[:, s], frequencies) for s in range(patches)], dim=1)
    else:
        out = torch.stack([self_attention(block.attn, h[t], None) for t in range(frames)])
    x = x + gate_attention * out.reshape(x.shape)
    x = x + cross_attention(block.cross_attn, x, y)
    return x + gate_mlp * mlp(block.mlp, layer_norm(x) * (1 + scale_mlp) + shift_mlp)


# Norm, rotation, attention


def test_the_norm_divides_by_the_root_of_the_mean_square():
    norm = with_random_weights(RMSNorm(16))
    x = seeded(3, 5, 16)
    assert_close(norm(x), rms_norm(x, norm.weight))


def test_the_norm_computes_in_fp32_whatever_it_is_given():
    norm = with_random_weights(RMSNorm(16)).bfloat16()
    x = (seeded(3, 16) * 100).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    expected = (x.float() / (x.float().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()).bfloat16() * norm.weight
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=0)


def test_positions_turn_neighbouring_values_as_complex_numbers():
    x, frequencies = seeded(2, 3, 7, HEAD), rotary_frequencies(HEAD)
    angles = torch.arange(7.0)[:, None] * frequencies[None]
    turned = rotate_interleaved(x, angles)
    for batch in range(2):
        for head in range(3):
            assert_close(turned[batch, head], rotated(x[batch, head], frequencies))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])


def test_rotary_frequencies_fall_geometrically_from_one():
    expected = torch.tensor([10000.0 ** (-2 * i / HEAD) for i in range(HEAD // 2)])
    assert_close(rotary_frequencies(HEAD), expected)


@pytest.mark.parametrize("rotary", [False, True], ids=["spatial", "temporal"])
def test_self_attention_turns_queries_and_keys_after_their_norm(rotary):
    module = with_random_weights(SelfAttention(DIM, HEADS))
    x, frequencies = seeded(2, 6, DIM), rotary_frequencies(HEAD)
    angles = torch.arange(6.0)[:, None] * frequencies[None] if rotary else None
    found = module(x, angles)
    for batch in range(2):
        assert_close(found[batch], self_attention(module, x[batch], frequencies if rotary else None))


def test_the_order_of_norm_and_rotation_matters_for_these_weights():
    # Otherwise the test before this one could not tell them apart.
    module = with_random_weights(SelfAttention(DIM, HEADS))
    x, frequencies = seeded(6, HEAD), rotary_frequencies(HEAD)
    after = rotated(rms_norm(x, module.q_norm.weight), frequencies)
    before = rms_norm(rotated(x, frequencies), module.q_norm.weight)
    assert (after - before).abs().max() > 0.1


def test_cross_attention_looks_from_video_to_text():
    module = with_random_weights(CrossAttention(DIM, HEADS))
    x, y = seeded(2, 6, DIM), seeded(2, 3, DIM, seed=1)
    found = module(x, y)
    for batch in range(2):
        assert_close(found[batch], cross_attention(module, x[batch], y[batch]))


def test_the_mlp_uses_the_tanh_approximation_of_gelu():
    module = with_random_weights(Mlp(8, 16, 8))
    x = seeded(3, 8) * 3
    torch.testing.assert_close(module(x), mlp(module, x), rtol=1e-5, atol=1e-6)


def test_modulation_scales_around_one():
    x = seeded(2, 4)
    assert torch.equal(modulate(x, torch.zeros(4), torch.zeros(4)), x)
    assert torch.equal(modulate(x, torch.ones(4), torch.ones(4)), 2 * x + 1)


# Blocks


@pytest.mark.parametrize("temporal", [False, True], ids=["spatial", "temporal"])
def test_a_block_is_attention_cross_attention_and_mlp_in_this_order_of_modulation(temporal):
    block = with_random_weights(STDiT3Block(SIZES, temporal=temporal))
    grid = (5, 4)
    x, y, t_mlp = seeded(2, 20, DIM), seeded(2, 3, DIM, seed=1), seeded(2, 6 * DIM, seed=2)
    frequencies = rotary_frequencies(HEAD)
    found = block(x, y, t_mlp, frequencies, grid, merged=False)
    for batch in range(2):
        assert_close(found[batch], plain_block(block, x[batch], y[batch], t_mlp[batch], frequencies, grid))


def pair_of(frames: int, *, merged: bool, seed: int = 0) -> STDiT3Pair:
    geometry = Geometry((frames, 4, 4), 32 * 32)
    return with_random_weights(STDiT3Pair(SIZES, geometry, merged=merged), seed)


def pair_inputs(frames: int) -> tuple[Tensor, ...]:
    return (
        seeded(2, frames * 4, DIM),
        seeded(2, 3, DIM, seed=1),
        seeded(2, 6 * DIM, seed=2),
        rotary_frequencies(HEAD),
    )


def test_a_pair_is_its_spatial_then_its_temporal_block():
    pair, (x, y, t_mlp, frequencies) = pair_of(5, merged=False), pair_inputs(5)
    between = pair.spatial(x, y, t_mlp, frequencies, (5, 4), merged=False)
    expected = pair.temporal(between, y, t_mlp, frequencies, (5, 4), merged=False)
    assert torch.equal(pair(x, y, t_mlp, frequencies), expected)
    assert not pair.spatial.temporal
    assert pair.temporal.temporal


def test_a_merged_pair_of_one_frame_is_the_plain_pair():
    inputs = pair_inputs(1)
    assert torch.equal(pair_of(1, merged=True)(*inputs), pair_of(1, merged=False)(*inputs))


@pytest.mark.parametrize("frames", [2, 3, 5])
def test_merging_changes_a_pair_of_several_frames(frames):
    inputs = pair_inputs(frames)
    merged, plain = pair_of(frames, merged=True)(*inputs), pair_of(frames, merged=False)(*inputs)
    assert merged.shape == plain.shape
    assert not torch.allclose(merged, plain, atol=1e-3)


@pytest.mark.parametrize("frames", [4, 5])
def test_merging_changes_nothing_in_space_where_frames_are_equal_in_pairs(frames):
    block = with_random_weights(STDiT3Block(SIZES, temporal=False))
    _, y, t_mlp, frequencies = pair_inputs(frames)
    x = seeded(2, (frames + 1) // 2, 4, DIM).repeat_interleave(2, dim=1)[:, :frames].reshape(2, frames * 4, DIM)
    merged = block(x, y, t_mlp, frequencies, (frames, 4), merged=True)
    assert_close(merged, block(x, y, t_mlp, frequencies, (frames, 4), merged=False))


def test_only_attention_sees_merged_frames():
    block = with_random_weights(STDiT3Block(SIZES, temporal=True))
    with torch.no_grad():
        for layer in (block.attn.proj, block.cross_attn.proj):
            layer.weight.zero_()
            layer.bias.zero_()
    x, y, t_mlp, frequencies = pair_inputs(5)
    merged = block(x, y, t_mlp, frequencies, (5, 4), merged=True)
    assert torch.equal(merged, block(x, y, t_mlp, frequencies, (5, 4), merged=False))
    assert not torch.allclose(merged, x, atol=1e-3)


def test_a_merged_block_attends_to_the_means_of_pairs_of_frames():
    block = with_random_weights(STDiT3Block(SIZES, temporal=True))
    grid, (x, y, t_mlp, frequencies) = (3, 4), pair_inputs(3)
    found = block(x, y, t_mlp, frequencies, grid, merged=True)
    for batch in range(2):
        rows = block.scale_shift_table + t_mlp[batch].view(6, DIM)
        h = (layer_norm(x[batch]) * (1 + rows[1]) + rows[0]).view(3, 4, DIM)
        few = torch.stack([(h[0] + h[1]) / 2, h[2]])
        out = torch.stack([self_attention(block.attn, few[:, s], frequencies) for s in range(4)], dim=1)
        state = x[batch].view(3, 4, DIM) + rows[2] * torch.stack([out[0], out[0], out[1]])
        few = torch.stack([(state[0] + state[1]) / 2, state[2]]).reshape(8, DIM)
        out = cross_attention(block.cross_attn, few, y[batch]).view(2, 4, DIM)
        state = (state + torch.stack([out[0], out[0], out[1]])).reshape(12, DIM)
        assert_close(found[batch], state + rows[5] * mlp(block.mlp, layer_norm(state) * (1 + rows[4]) + rows[3]))


# Embedders and final layer


def test_a_scalar_becomes_cosines_then_sines():
    features = sinusoid(torch.tensor([0.0, 3.0]))
    assert features.shape == (2, 256)
    assert features[0].tolist() == [1.0] * 128 + [0.0] * 128
    angles = torch.tensor([3.0 * 10000.0 ** (-i / 128) for i in range(128)])
    assert_close(features[1], torch.cat([angles.cos(), angles.sin()]))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (2, 8), (3, 5)])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_positions_are_columns_then_rows_each_as_sines_then_cosines(height, width, scale):
    dim = 16
    found = position_embedding(height, width, dim, scale)
    assert found.shape == (height * width, dim)
    side = round(math.sqrt(height * width))
    for row in range(height):
        for column in range(width):
            expected = []
            for position in (column * side / width / scale, row * side / height / scale):
                angles = [position * 10000.0 ** (-i / 4) for i in range(4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert_close(found[row * width + column], torch.tensor(expected))


def part1_of(height: int, width: int, pixels: int) -> STDiT3Part1:
    return with_random_weights(STDiT3Part1(SIZES, CAPTIONS, Geometry((3, height, width), pixels)))


def part1_inputs(height: int, width: int) -> tuple[Tensor, ...]:
    return seeded(1, 4, 3, height, width), torch.tensor([700.0]), torch.tensor([24.0]), seeded(1, 5, CAPTIONS, seed=1)


def test_patches_of_two_by_two_become_tokens_with_their_position():
    part, inputs = part1_of(4, 6, 32 * 48), part1_inputs(4, 6)
    x = part(*inputs)[0].view(2, 3, 6, DIM)
    positions = position_embedding(2, 3, DIM, math.sqrt(32 * 48) / 512)
    weight, bias = part.x_embedder.proj.weight[:, :, 0], part.x_embedder.proj.bias
    for t in range(3):
        for row in range(2):
            for column in range(3):
                patch = inputs[0][0, :, t, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                token = torch.einsum("oihw,ihw->o", weight, patch) + bias + positions[row * 3 + column]
                assert_close(x[0, t, row * 3 + column], token)
    assert torch.equal(x[0], x[1])


@pytest.mark.parametrize("latent", [(2, 5, 6), (2, 4, 7), (1, 3, 3)])
def test_an_odd_side_is_as_if_zeros_had_been_added_and_their_drift_cut_off(latent):
    frames, height, width = latent
    even = (frames, height + height % 2, width + width % 2)
    z = torch.randn(1, 4, *latent)
    padded = torch.zeros(1, 4, *even)
    padded[..., :height, :width] = z
    torch.manual_seed(0)
    network = STDiT3(SIZES, 32, Geometry(latent, 1024))
    for tensor in (*network.parameters(), *network.buffers()):
        nn.init.normal_(tensor, std=0.1)
    same = STDiT3(SIZES, 32, Geometry(even, 1024))
    same.load_state_dict(network.state_dict())
    rest = torch.tensor([300.0]), torch.tensor([24.0]), torch.randn(1, 5, 32)
    with torch.no_grad():
        found, expected = network.drift(z, *rest), same.drift(padded, *rest)
    assert torch.equal(found, expected[..., :height, :width])


def test_the_scale_of_positions_is_the_side_of_the_video_over_the_base_resolution():
    small, large = part1_of(4, 4, 256 * 256), part1_of(4, 4, 512 * 512)
    inputs = part1_inputs(4, 4)
    difference = (small(*inputs)[0] - large(*inputs)[0])[0].view(3, 4, DIM)[0]
    assert_close(difference, position_embedding(2, 2, DIM, 0.5) - position_embedding(2, 2, DIM, 1.0))


def test_time_and_frame_rate_are_embedded_and_added():
    part = part1_of(4, 4, 1024)
    _, t, t_mlp, _, _ = part(*part1_inputs(4, 4))

    def embedded(module: nn.Module, value: float) -> Tensor:
        h = linear(sinusoid(torch.tensor([value]))[0], module.mlp[0])
        return linear(h * torch.sigmoid(h), module.mlp[2])

    expected = embedded(part.t_embedder, 700.0) + embedded(part.fps_embedder, 24.0)
    for half in range(2):
        assert_close(t[half], expected)
        assert_close(t_mlp[half], linear(expected * torch.sigmoid(expected), part.t_block[1]))


def test_the_second_half_of_the_batch_sees_the_null_embedding_instead_of_the_text():
    part, inputs = part1_of(4, 4, 1024), part1_inputs(4, 4)
    y = part(*inputs)[3]
    assert y.shape == (2, 5, DIM)
    assert_close(y[0], mlp(part.y_embedder.y_proj, inputs[3][0]))
    assert_close(y[1], mlp(part.y_embedder.y_proj, part.y_embedder.y_embedding[:5]))


def test_rotary_frequencies_are_handed_on_as_a_copy():
    part = part1_of(4, 4, 1024)
    frequencies = part(*part1_inputs(4, 4))[4]
    assert torch.equal(frequencies, part.rope.freqs)
    assert frequencies.data_ptr() != part.rope.freqs.data_ptr()


def test_within_a_patch_the_channel_varies_fastest():
    channels, (frames, height, width) = 3, (2, 4, 6)
    tokens = frames * (height // 2) * (width // 2)
    x = seeded(2, tokens, 4 * channels)
    found = unpatchify(x, (frames, height, width), channels)
    assert found.shape == (2, channels, frames, height, width)
    for t in range(frames):
        for row in range(height):
            for column in range(width):
                token = (t * (height // 2) + row // 2) * (width // 2) + column // 2
                inside = ((row % 2) * 2 + column % 2) * channels
                assert torch.equal(found[:, :, t, row, column], x[:, token, inside : inside + channels])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_final_layer_gives_the_drift_in_fp32_and_drops_the_variance(dtype):
    geometry = Geometry((2, 4, 4), 1024)
    part = with_random_weights(STDiT3Part2(SIZES, geometry)).to(dtype)
    x, t = seeded(2, 8, DIM).to(dtype), seeded(2, DIM, seed=1).to(dtype)
    drift = part(x, t)
    assert drift.shape == (2, 4, 2, 4, 4)
    assert drift.dtype == torch.float32
    if dtype == torch.float32:
        for half in range(2):
            shift, scale = part.final_layer.scale_shift_table + t[half]
            h = linear(layer_norm(x[half]) * (1 + scale) + shift, part.final_layer.linear)
            assert_close(drift[half], unpatchify(h[None], geometry.latent, 8)[0, :4])


def test_the_geometry_of_a_run_counts_patches_of_two_by_two():
    geometry = geometry_of(VideoSettings(height=64, width=96, frames=17))
    assert geometry == Geometry((5, 8, 12), 64 * 96)
    assert geometry.tokens == (5, 24)
