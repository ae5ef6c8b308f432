"""What the processor's kernels take for themselves beside what they give, as PyTorch allocates it.

Fake tensors tell what operations give. Convolutions copy what they read into another layout or into columns, softmax
without empty rows keeps a mask, fused layers hold their scores. `experiments/workspace_of_modules.py` holds what comes
of these formulas against what PyTorch really allocates, style by style.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

# Of a transformer's layer that is one operation, these: see PyTorch's native/transformers/transformer.cpp.
FUSED_LAYERS = (torch.nn.MultiheadAttention, torch.nn.TransformerEncoderLayer)


def scratch_bytes(function: Any, args: Sequence[Any], made: Sequence[Tensor]) -> int:
    """The most that the kernel of `function` holds beyond its arguments and the results `made`."""
    formula = _FORMULAS.get(function)
    return 0 if formula is None else max(0, formula(args, made))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _mask_of_rows(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    return int(args[0].numel())


def _copy_of_the_first(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    return _size(args[0])


def _convolution(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "transposed": transposed,
        "output_padding": output_padding,
        "groups": groups,
        "bias": bias,
    }
    backend = torch._C._select_conv_backend(x, weight, **options).name
    out = made[0]
    # Of transposed ones PyTorch has no name in Python.
    if backend.startswith("Mkldnn") or (transposed and backend == "???"):
        if any(_is_channels_last(tensor) for tensor in (x, weight)):
            return 0
        # oneDNN's own layout: what it reads is copied to it, then what it gives back from it.
        return _size(weight) + (2 * _size(out) if transposed else max(_size(x), _size(out)))
    if backend.startswith("Slow"):
        kernel = weight.shape[2:]
        is_plain = math.prod(kernel) == 1 and set(stride) == {1} and set(padding) == {0}
        if is_plain and not transposed and "Dilated" not in backend:
            return 0
        # Columns: for every place what the kernel covers there.
        channels, places = (weight.shape[1], x.shape[2:]) if transposed else (x.shape[1] // groups, out.shape[2:])
        columns = int(channels * math.prod(kernel) * math.prod(places) * x.element_size())
        at_once = 1 if transposed or "Dilated" in backend else int(x.shape[0])
        # Groups are computed one after another, and put together at the end.
        return max(_size(out), columns * at_once) if groups > 1 else columns * at_once
    return 0


def _is_channels_last(tensor: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    suggested = formats.get(tensor.ndim)
    return suggested is not None and tensor.is_contiguous(memory_format=suggested) and not tensor.is_contiguous()


def _attention_layer(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    query, key, heads = args[0], args[1], args[4]
    needs_weights = args[10] if len(args) > 10 else True
    held = _projections_and_scores(query, key, heads)
    return held if needs_weights else held - _size(made[0])


def _encoder_layer(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    source, heads, norm_first, wide = args[0], args[2], args[8], args[14]
    hidden = int(_size(source) // source.shape[-1] * wide.shape[0])
    normed = _size(source) if norm_first else 0
    attention = _projections_and_scores(source, source, heads) + normed - _size(made[0])
    return max(attention, _size(source) + normed + hidden)


def _projections_and_scores(query: Tensor, key: Tensor, heads: int) -> int:
    scores = query.shape[0] * heads * query.shape[1] * key.shape[1] * query.element_size()
    return int(3 * _size(query) + scores)


_FORMULAS: dict[Any, Callable[[Sequence[Any], Sequence[Tensor]], int]] = {
    aten._safe_softmax.default: _mask_of_rows,
    aten.convolution.default: _convolution,
    aten._fft_c2r.default: _copy_of_the_first,
    aten._native_multi_head_attention.default: _attention_layer,
    aten._transformer_encoder_layer_fwd.default: _encoder_layer,
}


# Arithmetic that PyTorch's own counter does not know; it gives the shapes of the arguments.


def _attention_flops(query: Any, key: Any, width: int, heads: int) -> int:
    batch, length = query[0], query[1]
    projections = 2 * batch * (3 * length + length) * width * width
    return int(projections + 4 * batch * length * key[1] * width)


def _attention_layer_flops(query: Any, key: Any, value: Any, width: int, heads: int, *_: Any, **__: Any) -> int:
    return _attention_flops(query, key, width, heads)


def _encoder_layer_flops(source: Any, width: int, heads: int, *rest: Any, **__: Any) -> int:
    wide = rest[11]
    return _attention_flops(source, source, width, heads) + int(4 * source[0] * source[1] * width * wide[0])


def _fused_attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    batch, heads, queries, width = q
    return int(4 * batch * heads * queries * k[-2] * width)


FLOPS = {
    aten._scaled_dot_product_flash_attention_for_cpu: _fused_attention_flops,
    aten._native_multi_head_attention: _attention_layer_flops,
    aten._transformer_encoder_layer_fwd: _encoder_layer_flops,
}
