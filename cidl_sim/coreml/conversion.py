"""One block -> one Core ML program: its module made ready, traced and converted; what stays in fp32.

Fixed shapes, but for the number of text tokens, which differs from prompt to prompt. The inputs are those of the
block in PyTorch, by the names of its forward method; so are the results, in their order.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal

import coremltools as ct
import numpy as np
import torch
from torch import Tensor, nn

from cidl_sim.blocks.definition import TORCH_DTYPES, BlockDefinition
from cidl_sim.blocks.joined import Joined
from cidl_sim.blocks.pieces import PieceChain
from cidl_sim.blocks.variants import Variant
from cidl_sim.core.errors import StoreError
from cidl_sim.coreml.manifest import PackageFunction, Precision, TensorSpec
from cidl_sim.coreml.quiet import quiet
from cidl_sim.models import stdit3, t5, unet

TARGET = ct.target.iOS18  # the first with several functions in a package and attention as one operation

_LARGEST_FP16 = 65504.0
_NUMPY = {"fp32": np.float32, "fp16": np.float16, "int32": np.int32}
_NAMES: dict[torch.dtype, Literal["fp32", "fp16", "int32"]] = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.int64: "int32",
}
# With frequencies rounded to fp16 an angle of the twentieth frame would be off by up to 0.005.
_ALWAYS_FP32 = {"frequencies"}


def function_of(variant: Variant, precision: Precision) -> PackageFunction:
    """Inputs and results of a block, from a run on the meta device. The definitions' dtype is `precision`."""
    with torch.device("meta"):
        module = variant.longest.build().to(TORCH_DTYPES[precision]).eval()
    examples = variant.longest.example(), variant.shortest.example()
    with torch.no_grad():
        results = [_as_tuple(module(*example)) for example in examples]
    names = _input_names(module, len(examples[0]))
    return PackageFunction(
        kind=variant.longest.kind,
        inputs=_specs(names, *examples),
        outputs=_specs(_result_names(module, names), *results),
    )


def convert(
    definition: BlockDefinition, function: PackageFunction, tensors: Mapping[str, Tensor], precision: Precision
) -> ct.models.MLModel:
    """The Core ML program of a block with these weights (in any float dtype).

    In fp16 norms and the angles of sines and cosines stay in fp32, and T5's halves are clamped as in the library's
    own fp16. StoreError if the tensors are not those of this block.
    """
    module = _ready(definition, tensors, precision)
    examples = tuple(_example(spec) for spec in function.inputs)
    with torch.no_grad(), quiet():
        traced = torch.jit.trace(module, examples, check_trace=False)  # type: ignore[no-untyped-call]
        return ct.convert(
            traced,
            inputs=[_tensor_type(spec) for spec in function.inputs],
            outputs=[ct.TensorType(name=spec.name, dtype=_NUMPY[spec.dtype]) for spec in function.outputs],
            minimum_deployment_target=TARGET,
            compute_precision=_compute_precision(function, precision),
            convert_to="mlprogram",
            skip_model_load=True,
        )


# Inputs and results


def _as_tuple(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def _input_names(module: nn.Module, count: int) -> tuple[str, ...]:
    first: Any = module.parts[0] if isinstance(module, Joined) else module
    if isinstance(first, PieceChain):
        return first.inputs
    return tuple(inspect.signature(first.forward).parameters)[:count]


def _result_names(module: nn.Module, inputs: tuple[str, ...]) -> tuple[str, ...]:
    first: Any = module.parts[0] if isinstance(module, Joined) else module
    # A network that gives more than its changed input names what it gives.
    return getattr(first, "results", (f"{inputs[0]}_out",))


def _specs(names: tuple[str, ...], longest: tuple[Tensor, ...], shortest: tuple[Tensor, ...]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=name,
            dtype="fp32" if name in _ALWAYS_FP32 else _NAMES[a.dtype],
            shape=tuple(a.shape),
            flexible=tuple(axis for axis in range(a.dim()) if a.shape[axis] != b.shape[axis]),
        )
        for name, a, b in zip(names, longest, shortest, strict=True)
    )


def _tensor_type(spec: TensorSpec) -> ct.TensorType:
    shape = [
        ct.RangeDim(1, size, default=size) if axis in spec.flexible else size for axis, size in enumerate(spec.shape)
    ]
    return ct.TensorType(name=spec.name, shape=ct.Shape(shape), dtype=_NUMPY[spec.dtype])


def _example(spec: TensorSpec) -> Tensor:
    # Ones: no branch of a block depends on values.
    return torch.ones(spec.shape, dtype=torch.int32 if spec.dtype == "int32" else torch.float32)


# The module


def _ready(definition: BlockDefinition, tensors: Mapping[str, Tensor], precision: Precision) -> nn.Module:
    with torch.device("meta"):
        module = definition.build().eval()
    try:
        module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    except RuntimeError as problem:
        reason = str(problem).splitlines()[-1].strip()
        raise StoreError(f"{definition.weights}: made for another model ({reason})") from None
    with torch.no_grad():
        _work_out_constants(module, definition)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, _FlatGroupNorm(child))
            elif precision == "fp16" and isinstance(child, t5.AttentionLayer | t5.FeedForwardLayer):
                child.register_forward_hook(_clamp)
    module.register_forward_hook(_depend_on_an_input)
    return module


def _work_out_constants(module: nn.Module, definition: BlockDefinition) -> None:
    """Put tables in place of their formulas: the converter would work them out anew, with 1 / (x + 1e-4) for 1 / x."""
    if isinstance(module, stdit3.STDiT3Part1):
        positions = module._positions(torch.zeros(()))
        setattr(module, "_positions", lambda x: positions)  # noqa: B010
        for name in ("t_embedder", "fps_embedder"):
            setattr(module, name, _TabulatedEmbedder(getattr(module, name)))
    for entrance in module.modules():
        if isinstance(entrance, unet.Entrance):
            entrance.tabulate()
    for attention in module.modules():
        if isinstance(attention, t5.Attention) and hasattr(attention, "relative_attention_bias"):
            bias = attention.position_bias(definition.example()[0].shape[1])
            setattr(attention, "position_bias", lambda _, bias=bias: bias)  # noqa: B010


class _TabulatedEmbedder(nn.Module):
    """The embedder of a scalar with its frequencies as a table: the converter's exp differs in the last digit.

    An angle is up to a thousand times a frequency, and as much further off.
    """

    def __init__(self, embedder: nn.Module) -> None:
        super().__init__()
        self.mlp: Any = embedder.mlp
        half = stdit3.FREQUENCIES // 2
        self.frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half)

    def forward(self, scalar: Tensor) -> Tensor:
        """Scalars (B,) -> (B, C)."""
        angles = scalar[:, None] * self.frequencies[None]
        embedded: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return embedded


class _FlatGroupNorm(nn.Module):
    """GroupNorm over (B, G, everything else): of a video, the library's own would have six axes, one too many."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        flat = x.reshape(x.shape[0], self.groups, -1)
        centred = flat - flat.mean(-1, keepdim=True)
        normal = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps)
        per_channel = (1, -1) + (1,) * (x.dim() - 2)
        return normal.reshape(x.shape) * self.weight.view(per_channel) + self.bias.view(per_channel)


def _clamp(module: nn.Module, inputs: Any, results: Any) -> Any:
    """What the library does after each half of a block in fp16: infinities become large numbers."""
    if isinstance(results, tuple):
        return _clamp(module, inputs, results[0]), *results[1:]
    return torch.clamp(results, -_LARGEST_FP16, _LARGEST_FP16)


def _depend_on_an_input(module: nn.Module, inputs: tuple[Tensor, ...], results: Any) -> Any:
    """Position bias and rotary frequencies come from weights alone; a program's result should not be a constant.

    Nor may it be an input as it is.
    """
    if not isinstance(results, tuple):
        return results
    results = tuple(result + 0.0 if any(result is given for given in inputs) else result for result in results)
    return *results[:-1], results[-1] + 0.0 * inputs[1].reshape(-1)[:1]


# What stays in fp32


def _compute_precision(function: PackageFunction, precision: Precision) -> Any:
    if precision == "fp32":
        return ct.precision.FLOAT32
    fp32_results = [i for i, spec in enumerate(function.outputs) if spec.dtype == "fp32"]

    def in_fp16(op: Any) -> bool:
        results = op.enclosing_block.outputs
        gives_fp32 = any(op.outputs[0] is results[i] for i in fp32_results)
        return not (gives_fp32 or _is_of_a_norm(op) or _leads_to_an_angle(op))

    return ct.transform.FP16ComputePrecision(op_selector=in_fp16)


def _is_of_a_norm(op: Any) -> bool:
    """From the squares, or the centred values, to the normalised value: in fp16 squares overflow beyond 256."""
    if op.op_type in {"layer_norm", "pow", "reduce_mean", "rsqrt"}:
        return True
    if op.op_type not in {"add", "sub", "mul"}:
        return False
    followers = {child.op_type for child in op.outputs[0].child_ops}
    before = {operand.op.op_type for operand in (op.x, op.y) if operand.op is not None}
    return (
        (op.op_type == "add" and "rsqrt" in followers)
        or (op.op_type == "sub" and "reduce_mean" in before)
        or (op.op_type == "mul" and "rsqrt" in before)
    )


def _leads_to_an_angle(op: Any) -> bool:
    """Sines and cosines and what they are taken of: in fp16 a timestep of 999 is off by up to a quarter."""
    if op.op_type in {"sin", "cos"}:
        return True
    return op.op_type in {"expand_dims", "mul"} and any(_leads_to_an_angle(c) for c in op.outputs[0].child_ops)
