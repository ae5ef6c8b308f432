"""What converted programs say of themselves: names, shapes, types; making a block ready changes nothing in it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import types
from torch import nn

from cidl_sim.core.errors import StoreError
from cidl_sim.core.workload import kind_without_widths
from cidl_sim.coreml.compression import _values, compress, mixed_bits, palette
from cidl_sim.coreml.conversion import _FlatGroupNorm, _ready, convert, function_of
from cidl_sim.pipelines.open_sora.family import OPEN_SORA
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY, VideoSettings
from cidl_sim.pipelines.random_weights import random_weights
from cidl_sim.pipelines.variants import variants_of
from tests.coreml.quick_conversion import without_self_checks

KINDS = {
    "t5.embedding": "t5.embedding.fp16.64",
    "t5.00": "t5.first_block.fp16.64",
    "stdit.part1": "stdit.part1.fp16.6x4",
    "stdit.01": "stdit.pair.merged.fp16.6x4",
    "stdit.part2": "stdit.part2.fp16.6x4",
    "vae.temporal.part1": "vae.temporal.part1.fp16.5x4x4",
    "vae.spatial.part2": "vae.spatial.part2.fp16.4x4x4",
}


def variants(precision, **fields):
    run = VideoSettings(height=32, width=32, frames=20, dtype=precision, **fields)
    return variants_of(OPENSORA_TINY, (run,))


def variant(weights, precision="fp16", **fields):
    by_kind = variants(precision, **fields)[weights]
    wanted = KINDS.get(weights, "").replace("fp16", precision)
    named = (found for kind, found in by_kind.items() if kind_without_widths(kind) == wanted)
    return next(named, next(iter(by_kind.values())))


def weights_of(block):
    return random_weights(OPEN_SORA, block, 3, torch.float32)


@cache
def converted(weights, precision="fp16"):
    chosen = variant(weights, precision)
    function = function_of(chosen, precision)
    with without_self_checks():
        return function, convert(chosen.longest, function, weights_of(chosen.longest), precision)


def operations(model):
    return list(model._mil_program.functions["main"].operations)


def type_of(var):
    return types.builtin_to_string(var.dtype) if var.dtype is not None else ""


@pytest.mark.parametrize("weights", KINDS)
def test_a_program_takes_and_gives_what_its_function_says(weights):
    function, model = converted(weights)
    assert kind_without_widths(function.kind) == KINDS[weights]
    description = model.get_spec().description
    codes = {65568: "fp32", 65552: "fp16", 131104: "int32"}
    for said, features in ((function.inputs, description.input), (function.outputs, description.output)):
        assert [(s.name, s.dtype) for s in said] == [(f.name, codes[f.type.multiArrayType.dataType]) for f in features]
        for spec, feature in zip(said, features, strict=True):
            array = feature.type.multiArrayType
            if not spec.flexible:
                assert tuple(array.shape) == spec.shape
            if array.shapeRange.sizeRanges:
                ranges = [(r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges]
                assert ranges == [(1 if i in spec.flexible else n, n) for i, n in enumerate(spec.shape)]
            else:
                assert not spec.flexible or spec in function.outputs


@pytest.mark.parametrize("weights", KINDS)
def test_no_value_has_more_than_five_axes_and_no_result_is_a_constant(weights):
    _, model = converted(weights)
    found = operations(model)
    assert max(len(var.shape) for op in found for var in op.outputs if var.shape is not None) <= 5
    results = model._mil_program.functions["main"].outputs
    assert all(result.op is not None and result.op.op_type != "const" for result in results)


@pytest.mark.parametrize("weights", KINDS)
def test_in_fp16_norms_and_angles_are_computed_in_fp32_and_products_in_fp16(weights):
    _, model = converted(weights)
    for op in operations(model):
        if op.op_type in {"pow", "reduce_mean", "rsqrt", "layer_norm", "sin", "cos"}:
            assert type_of(op.outputs[0]) == "fp32", op.name
        if op.op_type in {"linear", "conv", "matmul", "scaled_dot_product_attention"}:
            assert type_of(op.outputs[0]) == "fp16", op.name


@pytest.mark.parametrize("weights", ["t5.00", "stdit.part1"])
def test_in_fp32_nothing_is_rounded(weights):
    _, model = converted(weights, "fp32")
    assert not [op.name for op in operations(model) for var in op.outputs if type_of(var) == "fp16"]


def test_timesteps_reach_their_sines_without_rounding():
    _, model = converted("stdit.part1")
    for op in operations(model):
        while op.op_type in {"sin", "cos", "mul", "expand_dims"} and type_of(op.outputs[0]) == "fp32":
            assert all(type_of(var) == "fp32" for var in op.inputs.values() if type_of(var).startswith("fp"))
            before = op.x.op
            if before is None:
                break
            op = before  # noqa: PLW2901


def test_halves_of_t5_are_clamped_in_fp16_alone():
    counts = [
        sum(op.op_type == "clip" for op in operations(converted("t5.00", precision)[1]))
        for precision in ("fp16", "fp32")
    ]
    assert counts == [2, 0]
    halves = variant("t5.01.feed_forward", partition="fine")
    ready = _ready(halves.longest, {n: t * 1e6 for n, t in weights_of(halves.longest).items()}, "fp16")
    assert ready(torch.ones(1, 64, 32)).abs().max() == 65504


@pytest.mark.parametrize("weights", ["stdit.part1", "t5.00"])
def test_tables_are_pytorchs_to_the_last_bit(weights):
    block = variant(weights, "fp32").longest
    with torch.device("meta"):
        module = block.build().eval()
    module.load_state_dict(weights_of(block), assign=True)
    with torch.no_grad():
        if weights == "t5.00":
            table = module.block.layer[0].SelfAttention.position_bias(64)
        else:
            table = module._positions(torch.zeros(()))
    constants = [op.outputs[0].val for op in operations(converted(weights, "fp32")[1]) if op.op_type == "const"]
    same_size = [np.asarray(value) for value in constants if np.size(value) == table.numel()]
    assert any(np.array_equal(value.reshape(table.shape), table.numpy()) for value in same_size)


def test_only_the_number_of_text_tokens_is_flexible():
    function, _ = converted("stdit.part1")
    assert {spec.name: spec.flexible for spec in (*function.inputs, *function.outputs) if spec.flexible} == {
        "text": (1,),
        "y": (1,),
    }
    assert next(spec for spec in function.inputs if spec.name == "text").shape == (1, 64, 32)


@pytest.mark.parametrize("partition", ["fine", "t2.d3.v4"])
def test_a_block_made_ready_computes_what_the_block_computes(partition):
    for by_kind in variants("fp32", partition=partition).values():
        block = next(reversed(by_kind.values())).longest
        weights = weights_of(block)
        with torch.device("meta"):
            module = block.build().eval()
        module.load_state_dict(weights, assign=True)
        generator = torch.Generator().manual_seed(0)
        inputs = [
            torch.randint(0, 9, e.shape) if e.dtype == torch.int64 else torch.randn(e.shape, generator=generator)
            for e in block.example()
        ]
        with torch.no_grad():
            expected, got = module(*inputs), _ready(block, weights, "fp32")(*inputs)
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("weights", "partition"), [("t5.00.attention", "fine"), ("t5.00..t5.01", "t2")])
def test_half_and_joined_blocks_hand_on_what_they_make(weights, partition):
    chosen = variant(weights, partition=partition)
    function = function_of(chosen, "fp16")
    assert [spec.name for spec in function.outputs] == ["hidden_out", "position_bias"]
    # The one that is converted with the library's checks of its own programs.
    convert(chosen.longest, function, weights_of(chosen.longest), "fp16")


@pytest.mark.parametrize("shape", [(2, 8, 5, 3), (1, 8, 4, 5, 3)])
def test_the_flat_group_norm_is_the_librarys(shape):
    norm = nn.GroupNorm(4, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(shape) * 3 + 5
    torch.testing.assert_close(_FlatGroupNorm(norm)(x), norm(x), rtol=1e-5, atol=1e-5)


def test_weights_of_another_model_are_refused():
    chosen = variant("t5.01")
    weights = weights_of(chosen.longest)
    weights.pop(next(iter(weights)))
    with pytest.raises(StoreError, match=r"t5\.01: made for another model"):
        convert(chosen.longest, function_of(chosen, "fp16"), weights, "fp16")


# Compression


@pytest.mark.parametrize(
    ("compression", "low", "high"), [("int8", 1e-3, 0.01), ("palette6", 0.01, 0.04), ("mixed4", 0.02, 0.2)]
)
def test_compressed_weights_are_near_the_weights_and_the_error_is_told(compression, low, high):
    _, model = converted("stdit.part1")
    small, error = compress(model, compression)
    assert low < error < high
    compressed = [op for op in operations(small) if op.op_type.startswith("constexpr_")]
    assert compressed
    for op in compressed:
        np.testing.assert_allclose(_values(op), op.materialized_val_inference(), rtol=1e-3, atol=1e-6)
    assert {child.op_type for op in compressed for child in op.outputs[0].child_ops} <= {"linear", "conv", "gather"}


def test_mixed_palettes_keep_the_average_and_change_weights_less_than_equal_ones():
    generator = np.random.default_rng(0)
    weights = [
        generator.normal(size=40_000),  # a bell: every bit helps alike
        generator.choice([-1.0, 1.0], size=40_000),  # two values: two bits are all it needs
        generator.standard_cauchy(size=40_000).clip(-50, 50),  # long tails: it needs many
    ]
    bits = mixed_bits([values.astype(np.float32) for values in weights], 4)
    assert np.mean(bits) <= 4
    assert bits[1] == 2
    assert max(bits[0], bits[2]) > 4

    def error(values, n):
        entries, indices = palette(values, n)
        return np.square(entries[indices] - values).sum() / np.square(values).sum()

    mixed = sum(error(values, n) for values, n in zip(weights, bits, strict=True))
    assert mixed < sum(error(values, 4) for values in weights)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_a_palette_is_near_the_best_for_normal_weights(bits):
    values = np.random.default_rng(0).normal(size=(400, 500)).astype(np.float32)
    entries, indices = palette(values, bits)
    assert entries.shape == (1 << bits,)
    assert entries.dtype == values.dtype
    assert indices.dtype == np.uint8
    error = np.sqrt(np.mean((entries[indices].reshape(values.shape) - values) ** 2))
    # Panter and Dite: sqrt(3) * pi / 2 of the variance, over the square of the number of values.
    assert error < 1.15 * np.sqrt(np.sqrt(3) * np.pi / 2) / (1 << bits)


def test_every_weight_gets_the_nearest_value_of_its_palette():
    values = np.random.default_rng(1).standard_cauchy(size=3000).astype(np.float32).clip(-50, 50)
    entries, indices = palette(values, 4)
    nearest = np.abs(values[:, None] - entries[None]).min(axis=1)
    np.testing.assert_allclose(np.abs(values - entries[indices]), nearest, rtol=1e-6)
    constant, _ = palette(np.full(5000, 0.25, dtype=np.float16), 4)
    assert 0.25 in constant
