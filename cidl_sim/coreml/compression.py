"""Smaller weights: eight-bit integers, or indices into a palette of at most 256 values, of one size or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.optimize import coreml as optimize
from numpy.typing import NDArray

from cidl_sim.coreml.manifest import Compression
from cidl_sim.coreml.quiet import quiet

# Weights of these operations are compressed; norms, biases and tables that are added stay as they are.
_COMPRESSED = ("linear", "conv", "gather")
_SAMPLE = 1 << 22
_BINS = 4096
_ITERATIONS = 30
# Smaller tensors stay as they are, as the library has it.
_SMALLEST = 2048
MIXED_BITS = (2, 4, 6, 8)


def compress(model: ct.models.MLModel, compression: Compression) -> tuple[ct.models.MLModel, float]:
    """The same program with compressed weights, and norm(change) / norm(weights) over those that were compressed.

    "int8": symmetric, a scale for each output channel. "paletteN": 2^N values for each tensor, by k-means. "mixedN":
    palettes of 2, 4, 6 or 8 bits, N on average over the block, where they change weights least.
    """
    with quiet():
        if compression == "int8":
            config: Any = optimize.OpLinearQuantizerConfig(mode="linear_symmetric")
            small = optimize.linear_quantize_weights(model, _only_for(config))
        elif compression.startswith("mixed"):
            small = optimize.palettize_weights(model, _mixed(model, int(compression.removeprefix("mixed"))))
        else:
            bits = int(compression.removeprefix("palette"))
            small = optimize.palettize_weights(model, _only_for(_palettes(bits)))
    return small, _relative_error(model, small)


def mixed_bits(weights: Sequence[NDArray[Any]], average: float) -> list[int]:
    """The bits of each tensor's palette: `average` an element at most, spent where they change weights least.

    Every tensor's relative error counts alike, since each is a layer's; the next bits go where an element's bit lowers
    it most. Apple's own mixed palettes weigh the image that comes out, over a whole network; this knows one block.
    """
    sizes = [values.size for values in weights]
    errors = [[_palette_error(values, bits) for bits in MIXED_BITS] for values in weights]
    chosen, left = [0] * len(weights), (average - MIXED_BITS[0]) * sum(sizes)

    def gain(i: int) -> float:
        step = MIXED_BITS[chosen[i] + 1] - MIXED_BITS[chosen[i]]
        return (errors[i][chosen[i]] - errors[i][chosen[i] + 1]) / (step * sizes[i])

    def cost(i: int) -> float:
        return (MIXED_BITS[chosen[i] + 1] - MIXED_BITS[chosen[i]]) * sizes[i]

    while fitting := [i for i in range(len(weights)) if chosen[i] + 1 < len(MIXED_BITS) and cost(i) <= left]:
        best = max(fitting, key=gain)
        left -= cost(best)
        chosen[best] += 1
    return [MIXED_BITS[i] for i in chosen]


def palette(values: NDArray[Any], bits: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """2^bits values, and for each element of `values`, flattened, the index of the nearest.

    Lloyd's k-means in one dimension, on at most some four million evenly spaced elements. It begins with values as
    dense as the cube root of the weights' density, which is the best there is for many values (Panter and Dite, 1951).
    """
    flat = values.reshape(-1)
    ordered = np.sort(flat[:: 1 + flat.size // _SAMPLE].astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    count = 1 << bits
    histogram, borders = np.histogram(ordered, bins=_BINS)
    share = np.concatenate([[0.0], np.cumsum(np.cbrt(histogram))])
    centres = np.interp((np.arange(count) + 0.5) / count * share[-1], share, borders)
    for _ in range(_ITERATIONS):
        edges = np.concatenate([[0], np.searchsorted(ordered, _between(centres)), [ordered.size]])
        members = np.diff(edges)
        moved = np.where(members > 0, np.diff(sums[edges]) / np.maximum(members, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    entries = centres.astype(values.dtype)
    return entries, np.searchsorted(_between(entries.astype(np.float64)), flat).astype(np.uint8)


def _between(centres: NDArray[Any]) -> NDArray[Any]:
    middle: NDArray[Any] = (centres[1:] + centres[:-1]) / 2
    return middle


def _palette_error(values: NDArray[Any], bits: int) -> float:
    """norm(change)^2 / norm(weights)^2 with a palette of 2^bits values, on a sample."""
    sample = values.reshape(-1)[:: 1 + values.size // _SAMPLE].astype(np.float32)
    entries, indices = palette(sample, bits)
    total = float(np.square(sample).sum(dtype=np.float64))
    return float(np.square(entries[indices] - sample).sum(dtype=np.float64)) / total if total else 0.0


def _palettes(bits: int) -> Any:
    return optimize.OpPalettizerConfig(mode="custom", lut_function=lambda values: palette(values, bits))


def _mixed(model: ct.models.MLModel, average: int) -> Any:
    """A palette's size for each weight of a program."""
    weights = {
        op.name: op.outputs[0].val
        for op in _operations(model)
        if op.op_type == "const"
        and isinstance(op.outputs[0].val, np.ndarray)
        and op.outputs[0].val.size > _SMALLEST
        and any(child.op_type in _COMPRESSED for child in op.outputs[0].child_ops)
    }
    chosen = mixed_bits(list(weights.values()), average)
    return optimize.OptimizationConfig(
        op_name_configs={name: _palettes(bits) for name, bits in zip(weights, chosen, strict=True)}
    )


def _only_for(config: Any) -> Any:
    return optimize.OptimizationConfig(op_type_configs=dict.fromkeys(_COMPRESSED, config))


def _relative_error(model: ct.models.MLModel, small: ct.models.MLModel) -> float:
    weights = {op.name: op for op in _operations(model) if op.op_type == "const"}
    changed = total = 0.0
    for op in _operations(small):
        if op.op_type.startswith("constexpr_"):
            before = weights[op.name.rpartition("_")[0]].outputs[0].val.astype(np.float32)
            changed += float(np.square(_values(op) - before).sum(dtype=np.float64))
            total += float(np.square(before).sum(dtype=np.float64))
    return float(np.sqrt(changed / total)) if total else 0.0


def _values(op: Any) -> NDArray[np.float32]:
    """What an operation makes of compressed weights; the library's own way takes several GB for a large tensor."""
    if op.op_type == "constexpr_lut_to_dense":
        return np.asarray(op.lut.val.reshape(-1)[op.indices.val.astype(np.uint8)], dtype=np.float32)
    return np.asarray(op.data.val.astype(np.float32) * op.scale.val.astype(np.float32))


def _operations(model: ct.models.MLModel) -> list[Any]:
    return list(model._mil_program.functions["main"].operations)
