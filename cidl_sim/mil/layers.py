"""MIL's layers of neural networks, in the manner of `cidl_sim.mil.ops`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cidl_sim.mil.shapes import Numbers, ints, padded

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


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
    return _CONV[rank](padded(x, pads), weight, bias, steps, 0, spread, int(groups))


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


def _windows(
    x: Tensor, kernel_sizes: Numbers, strides: Numbers | None, pad_type: str, pad: Numbers | None
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Sizes of a pool's windows, their strides, and what is added around `x` for them."""
    kernel = ints(kernel_sizes)
    steps = ints(strides) or [1] * len(kernel)
    return kernel, steps, _spatial_pads(pad_type, pad, x.shape[2:], kernel, steps)


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
    kernel, steps, pads = _windows(x, kernel_sizes, strides, pad_type, pad)
    pool = _AVG_POOL[len(kernel)]
    if ceil_mode:  # then MIL wants the same on both sides
        return pool(x, kernel, steps, [b for b, _ in pads], True, not exclude_padding_from_average)
    means = pool(padded(x, pads), kernel, steps)
    return means / pool(padded(torch.ones_like(x), pads), kernel, steps) if exclude_padding_from_average else means


def max_pool(
    x: Tensor,
    kernel_sizes: Numbers,
    strides: Numbers | None = None,
    pad_type: str = "valid",
    pad: Numbers | None = None,
    ceil_mode: Any = False,
) -> Tensor:
    """The largest of each window."""
    kernel, steps, pads = _windows(x, kernel_sizes, strides, pad_type, pad)
    pool = _MAX_POOL[len(kernel)]
    if ceil_mode:  # then MIL wants the same on both sides
        return pool(x, kernel, steps, [b for b, _ in pads], ceil_mode=True)
    return pool(padded(x, pads, -math.inf), kernel, steps)


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


LAYERS: tuple[Callable[..., Any], ...] = (
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
)
