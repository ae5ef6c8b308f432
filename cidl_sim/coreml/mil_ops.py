"""What each operation of MIL computes, as small torch functions with MIL's parameter names.

`OPS` maps the name of an operation to its function. Floats arrive in fp32 (see `cidl_sim.coreml.mil_interpreter`),
shapes, axes and flags as tensors, strings as strings. What a function returns is brought to the type that the
package declares. The definitions are those of the operations in coremltools.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cidl_sim.coreml.mil_program import unpack_bits

Numbers = Tensor | Sequence[int]
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def ints(numbers: Numbers | None) -> list[int]:
    """A list of integers from a tensor or a sequence; none from None."""
    if numbers is None:
        return []
    return [int(n) for n in (numbers.reshape(-1).tolist() if isinstance(numbers, Tensor) else numbers)]


# Element by element


def log(x: Tensor, epsilon: Tensor | float = 1e-45) -> Tensor:
    """Logarithm of x + epsilon."""
    return torch.log(x + epsilon)


def rsqrt(x: Tensor, epsilon: Tensor | float = 1e-12) -> Tensor:
    """One over the root of x + epsilon."""
    return torch.rsqrt(x + epsilon)


def inverse(x: Tensor, epsilon: Tensor | float = 1e-4) -> Tensor:
    """One over x + epsilon."""
    return 1 / (x + epsilon)


def clip(x: Tensor, alpha: Any, beta: Any) -> Tensor:
    """At least alpha, at most beta."""
    return torch.clamp(x, float(alpha), float(beta))


def threshold(x: Tensor, alpha: Any) -> Tensor:
    """At least alpha."""
    return torch.clamp(x, min=float(alpha))


def cast(x: Tensor, dtype: str) -> Tensor:
    """The same numbers: the declared type of the result does the rest."""
    return x != 0 if dtype == "bool" else x


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A where cond holds, else b."""
    return torch.where(cond, a, b)


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """GELU, exact or by one of its two approximations."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def leaky_relu(x: Tensor, alpha: Any) -> Tensor:
    """Negative numbers times alpha."""
    return torch.where(x >= 0, x, x * alpha)


def elu(x: Tensor, alpha: Any) -> Tensor:
    """Negative numbers as alpha (exp(x) - 1)."""
    return F.elu(x, float(alpha))


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """Negative numbers times the alpha of their channel, the second dimension."""
    return F.prelu(x, alpha)


def sigmoid_hard(x: Tensor, alpha: Any = 0.2, beta: Any = 0.5) -> Tensor:
    """Alpha x + beta, kept within 0 and 1."""
    return torch.clamp(alpha * x + beta, 0, 1)


# Sums and the like over axes


def _reduction(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def over(x: Tensor, axes: Numbers | None = None, keep_dims: Any = False) -> Tensor:
        return reduce(x, tuple(ints(axes)) or tuple(range(x.dim())), bool(keep_dims))

    return over


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    # Integers have a mean too; the declared type cuts its fraction off.
    return (x if x.is_floating_point() else x.double()).mean(axes, keepdim=keep)


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _argument(pick: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def along(x: Tensor, axis: Any = -1, keep_dims: Any = False) -> Tensor:
        return pick(x, int(axis), bool(keep_dims))

    return along


def cumsum(x: Tensor, axis: Any = 0, exclusive: Any = False, reverse: Any = False) -> Tensor:
    """Running sums along an axis, from either end, with or without the element itself."""
    flipped = x.flip(int(axis)) if reverse else x
    sums = flipped.cumsum(int(axis))
    sums = sums - flipped if exclusive else sums
    return sums.flip(int(axis)) if reverse else sums


def softmax(x: Tensor, axis: Any = -1) -> Tensor:
    """Softmax along an axis."""
    return torch.softmax(x, int(axis))


# Products


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X times the transposed weight, plus bias."""
    return F.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, transpose_x: Any = False, transpose_y: Any = False) -> Tensor:
    """Product of matrices, either one transposed first."""
    return torch.matmul(x.mT if transpose_x else x, y.mT if transpose_y else y)


def einsum(values: list[Tensor], equation: str) -> Tensor:
    """Einstein's summation."""
    return torch.einsum(equation, values)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Attention; a mask of flags says what takes part, one of numbers is added to the scores."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


# Convolution and pooling


def _spatial_pads(
    pad_type: str, pad: Numbers | None, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """What is added before and behind each spatial dimension; `kernel` with its dilation."""
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        given = ints(pad)
        return list(zip(given[::2], given[1::2], strict=True))
    totals = [max(0, (math.ceil(n / s) - 1) * s + k - n) for n, k, s in zip(sizes, kernel, strides, strict=True)]
    smaller = [(total // 2, total - total // 2) for total in totals]
    return smaller if pad_type == "same" else [(behind, before) for before, behind in smaller]


def _padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    if not any(side for pair in pads for side in pair):
        return x
    return F.pad(x, [side for pair in reversed(pads) for side in pair], value=value)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Numbers | None = None,
    pad_type: str = "valid",
    pad: Numbers | None = None,
    dilations: Numbers | None = None,
    groups: Any = 1,
) -> Tensor:
    """Convolution in one to three dimensions."""
    rank = x.dim() - 2
    steps, spread = ints(strides) or [1] * rank, ints(dilations) or [1] * rank
    kernel = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], spread, strict=True)]
    pads = _spatial_pads(pad_type, pad, x.shape[2:], kernel, steps)
    if all(before == behind for before, behind in pads):
        return _CONV[rank](x, weight, bias, steps, [before for before, _ in pads], spread, int(groups))
    return _CONV[rank](_padded(x, pads), weight, bias, steps, 0, spread, int(groups))


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Numbers | None = None,
    output_shape: Numbers | None = None,
    pad_type: str = "valid",
    strides: Numbers | None = None,
    dilations: Numbers | None = None,
    groups: Any = 1,
) -> Tensor:
    """Transposed convolution in one to three dimensions: the whole result, from which the padding is cut off."""
    rank = x.dim() - 2
    steps, spread = ints(strides) or [1] * rank, ints(dilations) or [1] * rank
    kernel = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], spread, strict=True)]
    whole = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], steps, kernel, strict=True)]
    if pad_type in ("same", "same_lower"):
        wanted = [n * s for n, s in zip(x.shape[2:], steps, strict=True)]
        pads = [((w - n) // 2, w - n - (w - n) // 2) for w, n in zip(whole, wanted, strict=True)]
    else:
        pads = _spatial_pads(pad_type, pad, x.shape[2:], kernel, steps)
    sizes = ints(output_shape)[2:] or [w - before - behind for w, (before, behind) in zip(whole, pads, strict=True)]
    more = [max(0, before + n - w) for n, w, (before, _) in zip(sizes, whole, pads, strict=True)]
    y = _CONV_TRANSPOSE[rank](x, weight, bias, steps, 0, more, int(groups), spread)
    for axis, (n, (before, _)) in enumerate(zip(sizes, pads, strict=True), start=2):
        y = y.narrow(axis, before, n)
    return y


def avg_pool(
    x: Tensor,
    kernel_sizes: Numbers,
    strides: Numbers | None = None,
    pad_type: str = "valid",
    pad: Numbers | None = None,
    exclude_padding_from_average: Any = False,
    ceil_mode: Any = False,
) -> Tensor:
    """Means of windows; zeros that were added count, or do not."""
    kernel, rank = ints(kernel_sizes), x.dim() - 2
    steps = ints(strides) or [1] * rank
    pads = _spatial_pads(pad_type, pad, x.shape[2:], kernel, steps)
    pool = _AVG_POOL[rank]
    if ceil_mode:  # then MIL wants the same on both sides
        return pool(x, kernel, steps, [b for b, _ in pads], True, not exclude_padding_from_average)
    means = pool(_padded(x, pads), kernel, steps)
    return means / pool(_padded(torch.ones_like(x), pads), kernel, steps) if exclude_padding_from_average else means


def max_pool(
    x: Tensor,
    kernel_sizes: Numbers,
    strides: Numbers | None = None,
    pad_type: str = "valid",
    pad: Numbers | None = None,
    ceil_mode: Any = False,
) -> Tensor:
    """The largest of each window."""
    kernel, rank = ints(kernel_sizes), x.dim() - 2
    steps = ints(strides) or [1] * rank
    pads = _spatial_pads(pad_type, pad, x.shape[2:], kernel, steps)
    pool = _MAX_POOL[rank]
    if ceil_mode:  # then MIL wants the same on both sides
        return pool(x, kernel, steps, [b for b, _ in pads], ceil_mode=True)
    return pool(_padded(x, pads, -math.inf), kernel, steps)


def upsample_nearest_neighbor(x: Tensor, scale_factor_height: Any = 1, scale_factor_width: Any = 1) -> Tensor:
    """The last two dimensions enlarged, each new element a copy of the nearest."""
    factors = (float(scale_factor_height), float(scale_factor_width))
    y = F.interpolate(x.reshape(-1, 1, *x.shape[-2:]), scale_factor=factors, mode="nearest")
    return y.reshape(*x.shape[:-2], *y.shape[-2:])


def upsample_bilinear(
    x: Tensor, scale_factor_height: Any = 1, scale_factor_width: Any = 1, align_corners: Any = True
) -> Tensor:
    """The last two dimensions enlarged, new elements in between."""
    size = [
        math.floor(n * float(s)) for n, s in zip(x.shape[-2:], (scale_factor_height, scale_factor_width), strict=True)
    ]
    y = F.interpolate(x.reshape(-1, 1, *x.shape[-2:]), size=size, mode="bilinear", align_corners=bool(align_corners))
    return y.reshape(*x.shape[:-2], *size)


# Normalisation


def _affine(x: Tensor, gamma: Tensor | None, beta: Tensor | None, shape: Sequence[int]) -> Tensor:
    scaled = x if gamma is None else x * gamma.reshape(tuple(shape))
    return scaled if beta is None else scaled + beta.reshape(tuple(shape))


def _normalised(x: Tensor, axes: Sequence[int], epsilon: Any) -> Tensor:
    variance, mean = torch.var_mean(x, tuple(axes), correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + epsilon)


def layer_norm(
    x: Tensor,
    axes: Numbers | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Any = 1e-5,
) -> Tensor:
    """Mean 0 and variance 1 over the axes, then scaled and shifted."""
    over = sorted(a % x.dim() for a in ints(axes) or range(x.dim()))
    if over == list(range(over[0], x.dim())):
        return F.layer_norm(x, tuple(x.shape[over[0] :]), gamma, beta, float(epsilon))
    shape = [n if i in over else 1 for i, n in enumerate(x.shape)]
    return _affine(_normalised(x, over, epsilon), gamma, beta, shape)


def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Any = 1e-5) -> Tensor:
    """Mean 0 and variance 1 in each channel of each sample, then scaled and shifted by channel."""
    channels = (1, -1) + (1,) * (x.dim() - 2)
    return _affine(_normalised(x, range(2, x.dim()), epsilon), gamma, beta, channels)


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Any = 1e-5,
) -> Tensor:
    """By the mean and variance of each channel that are given, then scaled and shifted by channel."""
    channels = (1, -1) + (1,) * (x.dim() - 2)
    scale = torch.rsqrt(variance + epsilon).reshape(channels)
    return _affine((x - mean.reshape(channels)) * scale, gamma, beta, channels)


def l2_norm(x: Tensor, epsilon: Any = 1e-6) -> Tensor:
    """Divided by the root of the sum of squares over the last three dimensions."""
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


# Shapes


def reshape(x: Tensor, shape: Numbers) -> Tensor:
    """Another shape; 0 keeps the dimension at its place, -1 is what is left."""
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(ints(shape))])


def transpose(x: Tensor, perm: Numbers) -> Tensor:
    """The dimensions in another order."""
    return x.permute(ints(perm))


def expand_dims(x: Tensor, axes: Numbers) -> Tensor:
    """Dimensions of 1 at these places of the result."""
    rank = x.dim() + len(ints(axes))
    for axis in sorted(a % rank for a in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Numbers | None = None) -> Tensor:
    """Without these dimensions of 1; without axes, without any."""
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


def concat(values: list[Tensor], axis: Any, interleave: Any = False) -> Tensor:
    """One behind the other, single numbers too; interleaved: by turns."""
    along = int(axis) % max(1, values[0].dim())
    if interleave:
        return torch.stack(values, along + 1).flatten(along, along + 1)
    return torch.cat([value if value.dim() else value[None] for value in values], along)


def stack(values: list[Tensor], axis: Any) -> Tensor:
    """One behind the other in a new dimension."""
    return torch.stack(values, int(axis))


def split(x: Tensor, axis: Any, num_splits: Any = None, split_sizes: Numbers | None = None) -> tuple[Tensor, ...]:
    """Cut into pieces of these sizes, or into so many equal ones."""
    sizes = ints(split_sizes) or [x.shape[int(axis)] // int(num_splits)] * int(num_splits)
    return torch.split(x, sizes, int(axis))


def slice_by_index(
    x: Tensor,
    begin: Numbers,
    end: Numbers,
    stride: Numbers | None = None,
    begin_mask: Numbers | None = None,
    end_mask: Numbers | None = None,
    squeeze_mask: Numbers | None = None,
) -> Tensor:
    """Python's slices, dimension by dimension; a mask ignores a begin or an end, or takes one element only."""
    none = [0] * x.dim()
    rows = zip(
        ints(begin),
        ints(end),
        ints(stride) or [1] * x.dim(),
        ints(begin_mask) or none,
        ints(end_mask) or none,
        ints(squeeze_mask) or none,
        strict=True,
    )
    single = []
    for axis, (first, last, step, from_start, to_end, squeezed) in enumerate(rows):
        if squeezed:
            x = x.narrow(axis, first % x.shape[axis], 1)
            single.append(axis)
            continue
        wanted = slice(None if from_start else first, None if to_end else last, step)
        x = _sliced(x, axis, wanted)
    return x.squeeze(tuple(single)) if single else x


def _sliced(x: Tensor, axis: int, wanted: slice) -> Tensor:
    start, stop, step = wanted.indices(x.shape[axis])
    if step > 0:
        return x[(slice(None),) * axis + (slice(start, stop, step),)]
    return x.index_select(axis, torch.arange(start, stop, step) if start > stop else torch.arange(0))


def slice_by_size(x: Tensor, begin: Numbers, size: Numbers) -> Tensor:
    """So many elements from there on in each dimension; -1: all that follow."""
    for axis, (first, count) in enumerate(zip(ints(begin), ints(size), strict=True)):
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


def pad(x: Tensor, pad: Numbers, mode: str = "constant", constant_val: Any = 0.0) -> Tensor:
    """The last dimensions enlarged, those that come first are named first; torch has them the other way round."""
    given = ints(pad)
    pads = list(zip(given[::2], given[1::2], strict=True))
    if mode == "constant":
        return _padded(x, pads, float(constant_val))
    for axis, (before, behind) in enumerate(pads, start=x.dim() - len(pads)):
        places = torch.arange(-before, x.shape[axis] + behind)
        last = x.shape[axis] - 1
        places = places.clamp(0, last) if mode == "replicate" else last - (last - places.abs()).abs()
        x = x.index_select(axis, places)
    return x


def tile(x: Tensor, reps: Numbers) -> Tensor:
    """Copied so many times along each dimension."""
    return x.repeat(ints(reps))


def reverse(x: Tensor, axes: Numbers | None = None) -> Tensor:
    """Back to front along these axes, or all."""
    return x.flip(ints(axes) or list(range(x.dim())))


def fill(shape: Numbers, value: Any = 0.0) -> Tensor:
    """A tensor of one value."""
    return torch.as_tensor(value).expand(ints(shape))


def fill_like(ref_tensor: Tensor, value: Any = 0.0) -> Tensor:
    """A tensor of one value, in the shape of another."""
    return torch.as_tensor(value).expand(ref_tensor.shape)


def shape(x: Tensor) -> Tensor:
    """The dimensions."""
    return torch.tensor(x.shape)


def range_1d(start: Any, end: Any, step: Any) -> Tensor:
    """Numbers from start up to end, without it."""
    return torch.arange(torch.as_tensor(start).item(), torch.as_tensor(end).item(), torch.as_tensor(step).item())


def pixel_shuffle(x: Tensor, upscale_factor: Any) -> Tensor:
    """Channels into pixels."""
    return F.pixel_shuffle(x, int(upscale_factor))


def pixel_unshuffle(x: Tensor, downscale_factor: Any) -> Tensor:
    """Pixels into channels."""
    return F.pixel_unshuffle(x, int(downscale_factor))


# Picking elements


def gather(x: Tensor, indices: Tensor, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = False) -> Tensor:
    """The slices of x along an axis that the indices name."""
    along = int(axis) % x.dim()
    if int(batch_dims):
        pairs = zip(x, indices, strict=True)
        return torch.stack([gather(a, i, along - 1, int(batch_dims) - 1, validate_indices) for a, i in pairs])
    places = torch.where(indices < 0, indices + x.shape[along], indices).reshape(-1)
    _within(places, x.shape[along])
    return x.index_select(along, places.int()).reshape((*x.shape[:along], *indices.shape, *x.shape[along + 1 :]))


def _within(places: Tensor, size: int) -> None:
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < size:
        raise ValueError(f"an index lies outside 0 to {size - 1}")


def gather_along_axis(x: Tensor, indices: Tensor, axis: Any = 0, validate_indices: Any = False) -> Tensor:
    """The elements of x that the indices name along an axis, place by place."""
    size = x.shape[int(axis)]
    places = torch.where(indices < 0, indices + size, indices).long()
    _within(places, size)
    return x.gather(int(axis), places)


def gather_nd(x: Tensor, indices: Tensor, batch_dims: Any = 0, validate_indices: Any = False) -> Tensor:
    """The slices of x that the last dimension of the indices names."""
    if int(batch_dims):
        pairs = zip(x, indices, strict=True)
        return torch.stack([gather_nd(a, i, int(batch_dims) - 1, validate_indices) for a, i in pairs])
    return x[tuple(indices.long().unbind(-1))]


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Numbers,
    end: Numbers,
    stride: Numbers | None = None,
    begin_mask: Numbers | None = None,
    end_mask: Numbers | None = None,
    squeeze_mask: Numbers | None = None,
) -> Tensor:
    """X with a slice replaced; strides are positive."""
    y = x.clone()
    slice_by_index(y, begin, end, stride, begin_mask, end_mask, squeeze_mask).copy_(update)
    return y


def topk(
    x: Tensor,
    k: Any = 1,
    axis: Any = -1,
    ascending: Any = False,
    sort: Any = True,
    return_indices: Any = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:
    """The k largest (ascending: smallest) along an axis and, if wanted, where they are."""
    values, places = torch.topk(x, int(k), int(axis), largest=not ascending, sorted=bool(sort))
    return (values, places) if return_indices else (values,)


# Compressed weights


def constexpr_affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Any) -> Tensor:
    """Scale times (data - zero point), each one number or one for each place along an axis."""
    shape = [1] * quantized_data.dim()
    shape[int(axis)] = -1
    return (quantized_data.float() - zero_point.float().reshape(shape)) * scale.reshape(shape)


def _over_blocks(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """One value for each block, repeated for each element of the block."""
    for axis, size in enumerate(sizes):
        if values.shape[axis] not in (1, size):
            values = values.repeat_interleave(size // values.shape[axis], axis)
    return values


def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Scale times (data - offset), each one number for each block."""
    shifted = data.float() if offset is None else data.float() - _over_blocks(offset.float(), data.shape)
    return shifted * _over_blocks(scale, data.shape)


def constexpr_lut_to_dense(
    indices: Tensor, lut: Tensor, vector_axis: Any = None, shape: Numbers | None = None
) -> Tensor:
    """Indices to the entries of a table: one table, or one for each block; entries may be vectors along an axis.

    Older packages give packed indices and the shape.
    """
    if shape is not None:
        sizes = ints(shape)
        bits = int(math.log2(lut.numel()))
        unpacked = unpack_bits(indices.numpy(), bits, math.prod(sizes)).reshape(sizes)
        return lut.reshape(-1)[torch.from_numpy(unpacked).int()]
    *blocks, entries, width = lut.shape
    tables = torch.arange(math.prod(blocks), dtype=torch.int32).reshape(blocks)
    places = _over_blocks(tables * entries, indices.shape) + indices.int()
    dense = lut.reshape(-1, width).index_select(0, places.reshape(-1)).reshape(*indices.shape, width)
    if width == 1:
        return dense.squeeze(-1)
    along = int(vector_axis) % indices.dim()
    return dense.movedim(-1, along + 1).flatten(along, along + 1)


def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Numbers | None = None) -> Tensor:
    """The data where the mask is set, zeros elsewhere. Older packages give a packed mask and the shape."""
    if shape is not None:
        sizes = ints(shape)
        mask = torch.from_numpy(unpack_bits(mask.numpy(), 1, math.prod(sizes)).reshape(sizes))
    dense = torch.zeros(mask.shape, dtype=nonzero_data.dtype)
    dense[mask != 0] = nonzero_data
    return dense


def constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: Any = None
) -> tuple[Tensor, Tensor]:
    """Mask and data of a sparse tensor whose data are indices to the entries of a table."""
    indices = constexpr_sparse_to_dense(indices_nonzero_data, indices_mask)
    dense = constexpr_lut_to_dense(indices, lut, vector_axis)
    width = lut.shape[-1]
    mask = indices_mask if width == 1 else indices_mask.repeat_interleave(width, int(vector_axis))
    return mask, dense[mask != 0]


def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mask and data of a sparse tensor whose data are scaled and shifted by block."""
    dense = constexpr_blockwise_shift_scale(constexpr_sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """The same numbers in another type."""
    return source_val


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    """A torch function of one tensor, or of two, under MIL's names of its parameters."""

    def of(x: Tensor, y: Tensor | None = None) -> Any:
        return function(x) if y is None else function(x, y)

    return of


_PLAIN: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "real_div": torch.true_divide,  # of integers: its declared type cuts the fraction off
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,
    "pow": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "logical_not": torch.logical_not,
    "identity": torch.clone,
    "abs": torch.abs,
    "sign": torch.sign,
    "ceil": torch.ceil,
    "floor": torch.floor,
    "round": torch.round,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "tanh": torch.tanh,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "erf": torch.erf,
    "relu": torch.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softsign": F.softsign,
}
_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "reduce_mean": _mean,
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "reduce_max": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "reduce_min": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "reduce_prod": _prod,
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "reduce_log_sum_exp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
}
_WRITTEN_OUT: tuple[Callable[..., Any], ...] = (
    log,
    rsqrt,
    inverse,
    clip,
    threshold,
    cast,
    select,
    gelu,
    leaky_relu,
    elu,
    prelu,
    sigmoid_hard,
    cumsum,
    softmax,
    linear,
    matmul,
    einsum,
    scaled_dot_product_attention,
    conv,
    conv_transpose,
    avg_pool,
    max_pool,
    upsample_nearest_neighbor,
    upsample_bilinear,
    layer_norm,
    instance_norm,
    batch_norm,
    l2_norm,
    reshape,
    transpose,
    expand_dims,
    squeeze,
    concat,
    stack,
    split,
    slice_by_index,
    slice_by_size,
    pad,
    tile,
    reverse,
    fill,
    fill_like,
    shape,
    range_1d,
    pixel_shuffle,
    pixel_unshuffle,
    gather,
    gather_along_axis,
    gather_nd,
    slice_update,
    topk,
    constexpr_affine_dequantize,
    constexpr_blockwise_shift_scale,
    constexpr_lut_to_dense,
    constexpr_sparse_to_dense,
    constexpr_lut_to_sparse,
    constexpr_sparse_blockwise_shift_scale,
    constexpr_cast,
)
OPS: dict[str, Callable[..., Any]] = {
    **{name: _named(function) for name, function in _PLAIN.items()},
    **{name: _reduction(function) for name, function in _REDUCTIONS.items()},
    "reduce_argmax": _argument(torch.argmax),
    "reduce_argmin": _argument(torch.argmin),
    **{function.__name__: function for function in _WRITTEN_OUT},
}
