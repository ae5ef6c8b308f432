"""Operations with many parameters against torch or numpy; compressed weights against coremltools' own definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cidl_sim.mil.ops import OPS


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def vector(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def close(result: Tensor, reference: Tensor) -> None:
    torch.testing.assert_close(result, reference, rtol=1e-5, atol=1e-5)


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))

    def each(low: int, high: int, count: int = rank) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    return {
        "rank": rank,
        "groups": groups,
        "kernel": each(1, 3),
        "strides": each(1, 2),
        "dilations": each(1, 2),
        "pad": each(0, 2, 2 * rank),
        "sizes": each(5, 7),
    }


def torch_pad(x: Tensor, pad: list[int]) -> Tensor:
    return F.pad(x, [side for i in reversed(range(len(pad) // 2)) for side in pad[2 * i : 2 * i + 2]])


@given(convolutions())
def test_conv_pads_before_and_behind_each_dimension(c: dict[str, Any]):
    x, bias = normal(2, 4, *c["sizes"]), normal(6)
    weight = normal(6, 4 // c["groups"], *c["kernel"], seed=1)
    function = (F.conv1d, F.conv2d, F.conv3d)[c["rank"] - 1]
    padded = torch_pad(x, c["pad"])
    reference = function(padded, weight, bias, c["strides"], 0, c["dilations"], c["groups"])
    result = OPS["conv"](
        x,
        weight,
        bias,
        strides=vector(*c["strides"]),
        pad_type="custom",
        pad=vector(*c["pad"]),
        dilations=vector(*c["dilations"]),
        groups=torch.tensor(c["groups"]),
    )
    close(result, reference)


@given(convolutions(), st.sampled_from(["same", "same_lower"]))
def test_same_padding_keeps_the_size_up_to_the_stride(c: dict[str, Any], pad_type: str):
    x, weight = normal(1, 2, *c["sizes"]), normal(3, 2, *c["kernel"], seed=1)
    result = OPS["conv"](x, weight, strides=vector(*c["strides"]), pad_type=pad_type, dilations=vector(*c["dilations"]))
    assert list(result.shape[2:]) == [-(-n // s) for n, s in zip(c["sizes"], c["strides"], strict=True)]


@given(convolutions())
def test_conv_transpose_is_the_gradient_of_conv(c: dict[str, Any]):
    weight = normal(4, 4 // c["groups"], *c["kernel"], seed=1)
    spread = [(k - 1) * d + 1 for k, d in zip(c["kernel"], c["dilations"], strict=True)]
    # Sizes that the strides divide, so that the output shape is the input's.
    sizes = [k + s * n for k, s, n in zip(spread, c["strides"], c["sizes"], strict=True)]
    y = normal(1, 4, *sizes).requires_grad_()
    function = (F.conv1d, F.conv2d, F.conv3d)[c["rank"] - 1]
    made = function(y, weight, None, c["strides"], 0, c["dilations"], c["groups"])
    x = normal(*made.shape, seed=2)
    (reference,) = torch.autograd.grad(made, y, x)
    pad = [min(p, (s - 1) // 2) for p, s in zip(c["pad"], [n for n in sizes for _ in (0, 1)], strict=True)]
    result = OPS["conv_transpose"](
        x,
        weight,
        pad=vector(*pad),
        pad_type="custom",
        strides=vector(*c["strides"]),
        dilations=vector(*c["dilations"]),
        groups=torch.tensor(c["groups"]),
    )
    for axis, (n, before, behind) in enumerate(zip(sizes, pad[::2], pad[1::2], strict=True), start=2):
        reference = reference.narrow(axis, before, n - before - behind)
    close(result, reference)


@pytest.mark.parametrize("output_padding", [0, 1])
def test_conv_transpose_reaches_the_output_shape_it_is_given(output_padding: int):
    x, weight, bias = normal(1, 3, 5, 6), normal(3, 4, 3, 3, seed=1), normal(4)
    reference = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=output_padding)
    result = OPS["conv_transpose"](
        x,
        weight,
        bias,
        pad=vector(1, 1, 1, 1),
        output_shape=vector(*reference.shape),
        pad_type="custom",
        strides=vector(2, 2),
    )
    close(result, reference)


@given(
    kernel=st.integers(2, 3),
    stride=st.integers(1, 3),
    pad=st.integers(0, 1),
    ceil=st.booleans(),
    exclude=st.booleans(),
    size=st.integers(5, 8),
)
def test_pooling_as_in_torch(kernel: int, stride: int, pad: int, ceil: bool, exclude: bool, size: int):
    x = normal(2, 3, size, size + 1)
    parameters = {
        "kernel_sizes": vector(kernel, kernel),
        "strides": vector(stride, stride),
        "pad_type": "custom",
        "pad": vector(pad, pad, pad, pad),
        "ceil_mode": ceil,
    }
    close(OPS["max_pool"](x, **parameters), F.max_pool2d(x, kernel, stride, pad, ceil_mode=ceil))
    averaged = OPS["avg_pool"](x, **parameters, exclude_padding_from_average=exclude)
    close(averaged, F.avg_pool2d(x, kernel, stride, pad, ceil, count_include_pad=not exclude))


@st.composite
def slices(draw: st.DrawFn) -> tuple[list[int], list[dict[str, int]]]:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    dimensions = []
    for size in sizes:
        begin = draw(st.integers(-size, size - 1))
        dimensions.append(
            {
                "begin": begin,
                "end": draw(st.integers(-size, size)),
                "stride": draw(st.sampled_from([1, 2, -1, -2])),
                "begin_mask": draw(st.booleans()),
                "end_mask": draw(st.booleans()),
                "squeeze_mask": draw(st.booleans()),
            }
        )
    return sizes, dimensions


@given(slices())
def test_slice_by_index_is_numpys_slice(case: tuple[list[int], list[dict[str, int]]]):
    sizes, dimensions = case
    x = normal(*sizes)
    chosen = tuple(
        d["begin"]
        if d["squeeze_mask"]
        else slice(
            None if d["begin_mask"] else d["begin"],
            None if d["end_mask"] else d["end"],
            d["stride"],
        )
        for d in dimensions
    )
    given_ = {key: torch.tensor([d[key] for d in dimensions]) for key in dimensions[0]}
    reference = np.asarray(x.numpy()[chosen])
    result = OPS["slice_by_index"](x, **given_)
    assert result.shape == reference.shape
    assert np.array_equal(result.numpy(), reference)


@given(
    axis=st.integers(-3, 2),
    shape=st.lists(st.integers(1, 3), max_size=2),
    negative=st.booleans(),
    seed=st.integers(0, 9),
)
def test_gather_is_numpys_take(axis: int, shape: list[int], negative: bool, seed: int):
    x = normal(3, 4, 5)
    low = -x.shape[axis] if negative else 0
    indices = torch.randint(low, x.shape[axis], shape, generator=torch.Generator().manual_seed(seed))
    result = OPS["gather"](x, indices.int(), axis=torch.tensor(axis))
    assert np.array_equal(result.numpy(), np.take(x.numpy(), indices.numpy(), axis))


def test_gather_of_a_single_number_from_a_list():
    result = OPS["gather"](vector(5, 6, 7), torch.tensor(1))
    assert result.shape == ()
    assert result == 6


def test_gather_with_batch_dimensions_gathers_row_by_row():
    x, indices = normal(2, 3, 4), torch.tensor([[0, 2], [1, 1]])
    result = OPS["gather"](x, indices, axis=1, batch_dims=1)
    assert torch.equal(result, torch.stack([x[0][[0, 2]], x[1][[1, 1]]]))


def test_gather_names_an_index_that_lies_outside():
    with pytest.raises(ValueError, match="outside 0 to 3"):
        OPS["gather"](normal(4), torch.tensor([4]))


def test_gather_along_an_axis_and_by_coordinates():
    x, places = normal(3, 4), torch.tensor([[0, -1], [1, 1], [2, 3]])
    along = OPS["gather_along_axis"](x, places, axis=1)
    assert torch.equal(along, torch.take_along_dim(x, places % 4, 1))
    assert torch.equal(OPS["gather_nd"](x, torch.tensor([[0, 1], [2, 3]])), x[[0, 2], [1, 3]])


NUMPY_REDUCTIONS = {
    "reduce_mean": np.mean,
    "reduce_sum": np.sum,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_l1_norm": lambda x, **k: np.sum(np.abs(x), **k),
    "reduce_l2_norm": lambda x, **k: np.sqrt(np.sum(np.square(x), **k)),
    "reduce_sum_square": lambda x, **k: np.sum(np.square(x), **k),
    "reduce_log_sum": lambda x, **k: np.log(np.sum(x, **k)),
    "reduce_log_sum_exp": lambda x, **k: np.log(np.sum(np.exp(x), **k)),
}


@pytest.mark.parametrize("name", NUMPY_REDUCTIONS)
@given(axes=st.none() | st.sets(st.integers(0, 2), min_size=1), keep=st.booleans(), negative=st.booleans())
def test_reductions_as_in_numpy(name: str, axes: set[int] | None, keep: bool, negative: bool):
    x = normal(2, 3, 4).abs() + 0.1
    listed = None if axes is None else tuple(a - 3 if negative else a for a in axes)
    reference = NUMPY_REDUCTIONS[name](x.numpy(), axis=listed, keepdims=keep)
    result = OPS[name](x, axes=None if listed is None else vector(*listed), keep_dims=torch.tensor(keep))
    close(result, torch.as_tensor(reference))


@given(axes=st.sets(st.integers(0, 3), min_size=1), affine=st.booleans())
def test_layer_norm_over_any_axes(axes: set[int], affine: bool):
    x = normal(2, 3, 4, 5)
    over = tuple(sorted(axes))
    shape = [x.shape[a] for a in over]
    gamma, beta = (normal(*shape, seed=1), normal(*shape, seed=2)) if affine else (None, None)
    centred = x - x.mean(over, keepdim=True)
    reference = centred / (centred.square().mean(over, keepdim=True) + 1e-3).sqrt()
    if gamma is not None and beta is not None:
        wide = [n if a in axes else 1 for a, n in enumerate(x.shape)]
        reference = reference * gamma.reshape(wide) + beta.reshape(wide)
    close(OPS["layer_norm"](x, vector(*over), gamma, beta, torch.tensor(1e-3)), reference)


@pytest.mark.parametrize("sizes", [(6,), (4, 5), (2, 4, 5)])
def test_batch_and_instance_norm_as_in_torch(sizes: tuple[int, ...]):
    x = normal(2, 3, *sizes)
    mean, variance = normal(3, seed=1), normal(3, seed=2).square() + 0.1
    gamma, beta = normal(3, seed=3), normal(3, seed=4)
    close(OPS["batch_norm"](x, mean, variance, gamma, beta, 1e-5), F.batch_norm(x, mean, variance, gamma, beta))
    close(OPS["instance_norm"](x, gamma, beta, 1e-5), F.instance_norm(x, weight=gamma, bias=beta))


@given(transpose_x=st.booleans(), transpose_y=st.booleans())
def test_matmul_transposes_the_last_two_dimensions(transpose_x: bool, transpose_y: bool):
    x, y = normal(2, 1, 3, 4), normal(5, 4, 6)
    given_x, given_y = x.mT if transpose_x else x, y.mT if transpose_y else y
    flags = {"transpose_x": torch.tensor(transpose_x), "transpose_y": torch.tensor(transpose_y)}
    close(OPS["matmul"](given_x, given_y, **flags), x @ y)


@pytest.mark.parametrize("mask", [None, "flags", "numbers"])
def test_attention_is_softmax_of_scaled_scores(mask: str | None):
    q, k, v = normal(2, 3, 4, 8), normal(2, 3, 5, 8, seed=1), normal(2, 3, 5, 6, seed=2)
    scores = q @ k.mT / 8**0.5
    given_: Tensor | None = None
    if mask == "flags":
        given_ = normal(4, 5, seed=3) > -1
        scores = scores.masked_fill(~given_, -torch.inf)
    elif mask == "numbers":
        given_ = normal(2, 1, 4, 5, seed=3)
        scores = scores + given_
    close(OPS["scaled_dot_product_attention"](q, k, v, given_), scores.softmax(-1) @ v)


@given(
    mode=st.sampled_from(["constant", "reflect", "replicate"]),
    pads=st.lists(st.integers(0, 2), min_size=2, max_size=6).filter(lambda p: len(p) % 2 == 0),
)
def test_pad_names_the_first_of_the_last_dimensions_first(mode: str, pads: list[int]):
    x = normal(3, 4, 5)
    sides = [(0, 0)] * (3 - len(pads) // 2) + list(zip(pads[::2], pads[1::2], strict=True))
    numpy_mode: Any = "edge" if mode == "replicate" else mode
    reference = np.pad(x.numpy(), sides, numpy_mode, **({"constant_values": 2.5} if mode == "constant" else {}))
    assert np.array_equal(OPS["pad"](x, vector(*pads), mode, torch.tensor(2.5)).numpy(), reference)


def test_reshape_keeps_a_dimension_for_0_and_infers_one_for_minus_1():
    assert OPS["reshape"](normal(2, 3, 4), vector(0, -1, 2)).shape == (2, 6, 2)
    assert OPS["reshape"](normal(2, 3, 4), vector(-1)).shape == (24,)


def test_upsampling_as_in_torch():
    x = normal(1, 2, 3, 4)
    nearest = OPS["upsample_nearest_neighbor"](x, torch.tensor(2), torch.tensor(3.0))
    close(nearest, x.repeat_interleave(2, 2).repeat_interleave(3, 3))
    for corners in (True, False):
        bilinear = OPS["upsample_bilinear"](x, 2, 2, corners)
        close(bilinear, F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=corners))


def test_roots_and_logarithms_add_an_epsilon():
    zero = torch.zeros(1)
    close(OPS["rsqrt"](zero), torch.tensor([1e6]))
    close(OPS["inverse"](zero), torch.tensor([1e4]))
    assert torch.isfinite(OPS["log"](zero)).all()


def test_select_einsum_tile_stack_and_split():
    x, y = normal(2, 3), normal(2, 3, seed=1)
    assert torch.equal(OPS["select"](x > 0, x, y), torch.where(x > 0, x, y))
    a, b = normal(2, 3, 4, 5), normal(2, 5, 4, 6, seed=1)
    close(OPS["einsum"]([a, b], "nchw,nwhu->nchu"), torch.einsum("nchw,nwhu->nchu", a, b))
    assert np.array_equal(OPS["tile"](x, vector(2, 3)).numpy(), np.tile(x.numpy(), (2, 3)))
    assert torch.equal(OPS["stack"]([x, y], axis=torch.tensor(1)), torch.stack([x, y], 1))
    assert [p.shape[1] for p in OPS["split"](x, axis=1, split_sizes=vector(1, 2))] == [1, 2]
    assert [p.shape[1] for p in OPS["split"](x, axis=1, num_splits=3)] == [1, 1, 1]
    assert torch.equal(OPS["concat"]([x, y], 1, interleave=True)[:, :2], torch.stack([x[:, 0], y[:, 0]], 1))


def test_concat_makes_a_list_of_single_numbers():
    assert OPS["concat"]([torch.tensor(2), vector(3, 4)], axis=torch.tensor(0)).tolist() == [2, 3, 4]


def test_running_sums_from_either_end_with_or_without_the_element():
    x = torch.tensor([1.0, 2.0, 3.0])
    assert OPS["cumsum"](x).tolist() == [1, 3, 6]
    assert OPS["cumsum"](x, exclusive=True).tolist() == [0, 1, 3]
    assert OPS["cumsum"](x, reverse=True).tolist() == [6, 5, 3]
    assert OPS["cumsum"](x, exclusive=True, reverse=True).tolist() == [5, 3, 0]


def random_numbers(shape: tuple[int, ...], low: int, high: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int8 if low < 0 else np.uint8)


@pytest.mark.parametrize("blocks", [(1, 1), (6, 1), (3, 4), (6, 8)])
@pytest.mark.parametrize("shifted", [True, False])
def test_scales_by_block_as_coremltools_defines_them(blocks: tuple[int, int], shifted: bool):
    from coremltools.converters.mil.mil.ops.defs.iOS18 import compression

    data = random_numbers((6, 8), -128, 128)
    scale = np.random.default_rng(1).random(blocks, dtype=np.float32)
    offset = random_numbers(blocks, -128, 128, seed=2) if shifted else None
    reference = compression.constexpr_blockwise_shift_scale.decompress(data, scale, offset)
    parts = (torch.from_numpy(data), torch.from_numpy(scale), None if offset is None else torch.from_numpy(offset))
    close(OPS["constexpr_blockwise_shift_scale"](*parts), torch.from_numpy(reference))


@pytest.mark.parametrize("blocks", [(1, 1), (6, 1), (3, 4)])
@pytest.mark.parametrize(("width", "axis"), [(1, None), (2, 0), (3, 1)])
def test_tables_by_block_as_coremltools_defines_them(blocks: tuple[int, int], width: int, axis: int | None):
    from coremltools.converters.mil.mil.ops.defs.iOS18 import compression

    indices = random_numbers((6, 8), 0, 4)
    lut = np.random.default_rng(1).random((*blocks, 4, width), dtype=np.float32)
    reference = compression.constexpr_lut_to_dense.decompress(indices, lut, axis)
    result = OPS["constexpr_lut_to_dense"](torch.from_numpy(indices), torch.from_numpy(lut), axis)
    assert np.array_equal(result.numpy(), reference)


@pytest.mark.parametrize(("width", "axis"), [(1, None), (2, 0), (2, 1)])
def test_sparse_weights_as_coremltools_defines_them(width: int, axis: int | None):
    from coremltools.converters.mil.mil.ops.defs.iOS18 import compression

    mask = random_numbers((4, 6), 0, 2)
    indices = random_numbers((int(mask.sum()),), 0, 4, seed=1)
    lut = np.random.default_rng(2).random((1, 1, 4, width), dtype=np.float32)
    reference = compression.constexpr_lut_to_sparse.decompress(mask, indices, lut, axis)
    given_ = (torch.from_numpy(mask), torch.from_numpy(indices), torch.from_numpy(lut), axis)
    made_mask, data = OPS["constexpr_lut_to_sparse"](*given_)
    assert np.array_equal(made_mask.numpy(), reference[0])
    assert np.array_equal(data.numpy(), reference[1])
    dense = OPS["constexpr_sparse_to_dense"](data, made_mask)
    assert np.array_equal(dense.numpy(), compression.constexpr_sparse_to_dense.decompress(reference[1], reference[0]))


def test_compressed_weights_of_older_packages_as_coremltools_defines_them():
    from coremltools.converters.mil.mil.ops.defs.iOS16 import constexpr_ops

    data, zero = random_numbers((3, 4), 0, 255), random_numbers((4,), 0, 255, seed=1)
    scale = np.random.default_rng(2).random(4, dtype=np.float32)
    reference = constexpr_ops.constexpr_affine_dequantize.decompress(data, zero, scale, 1)
    parts = (torch.from_numpy(data), torch.from_numpy(zero), torch.from_numpy(scale), torch.tensor(1))
    close(OPS["constexpr_affine_dequantize"](*parts), torch.from_numpy(reference))

    lut, shape = np.arange(8, dtype=np.float32), np.array([3, 5])
    packed = random_numbers((6,), 0, 255, seed=3)
    reference = constexpr_ops.constexpr_lut_to_dense.decompress(lut, packed, shape)
    result = OPS["constexpr_lut_to_dense"](torch.from_numpy(packed), torch.from_numpy(lut), shape=vector(3, 5))
    assert np.array_equal(result.numpy(), reference)

    mask = np.packbits(np.array([1, 0, 1, 1, 0, 0, 0, 0, 1], np.uint8), bitorder="little")
    nonzero = np.arange(1, 5, dtype=np.float32)
    reference = constexpr_ops.constexpr_sparse_to_dense.decompress(nonzero, mask, (3, 3))
    result = OPS["constexpr_sparse_to_dense"](torch.from_numpy(nonzero), torch.from_numpy(mask), vector(3, 3))
    assert np.array_equal(result.numpy(), reference)
