"""MIL's operations on shapes and places, in the manner of `cidl_sim.mil.ops`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Numbers = Tensor | Sequence[int]


def ints(numbers: Numbers | None) -> list[int]:
    """A list of integers from a tensor or a sequence; none from None."""
    if numbers is None:
        return []
    return [int(n) for n in (numbers.reshape(-1).tolist() if isinstance(numbers, Tensor) else numbers)]


# Shapes


def padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """`x` with a value added before and behind each of its last dimensions."""
    if not any(side for pair in pads for side in pair):
        return x
    return F.pad(x, [side for pair in reversed(pads) for side in pair], value=value)


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
        return padded(x, pads, float(constant_val))
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


SHAPES: tuple[Callable[..., Any], ...] = (
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
)
