"""How MIL stores compressed weights, in the manner of `cidl_sim.mil.ops`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cidl_sim.mil.program import unpack_bits
from cidl_sim.mil.shapes import Numbers, ints


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


WEIGHTS: tuple[Callable[..., Any], ...] = (
    constexpr_affine_dequantize,
    constexpr_blockwise_shift_scale,
    constexpr_lut_to_dense,
    constexpr_sparse_to_dense,
    constexpr_lut_to_sparse,
    constexpr_sparse_blockwise_shift_scale,
    constexpr_cast,
)
