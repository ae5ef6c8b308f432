"""The project's blocks as saved packages, made here so that the interpreter is tested on its own."""

from __future__ import annotations

import logging
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cidl_sim.models.config import OpenSoraSizes, VideoSettings
from cidl_sim.models.open_sora import BlockDefinition, stage_definitions
from cidl_sim.models.random_weights import random_weights
from cidl_sim.models.stdit3 import FREQUENCIES, STDiT3Part1

logging.getLogger("coremltools").setLevel(logging.ERROR)

# Squares of large numbers and sines of large ones need fp32.
KEPT_IN_FP32 = {"pow", "reduce_mean", "rsqrt", "sin", "cos"}


class GroupNorm(nn.Module):
    """Group norm whose values never have more than five dimensions, the most that Core ML takes."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[0], self.groups, -1)
        centred = rows - rows.mean(-1, keepdim=True)
        normal = centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + self.eps)
        channels = (1, -1) + (1,) * (x.dim() - 2)
        return normal.reshape(x.shape) * self.weight.reshape(channels) + self.bias.reshape(channels)


class ScalarEmbedder(nn.Module):
    """The embedder of a scalar whose frequencies are a constant: the converter's own exp differs in the last digit."""

    def __init__(self, embedder: nn.Module) -> None:
        super().__init__()
        self.mlp = embedder.mlp
        half = FREQUENCIES // 2
        self.frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half)

    def forward(self, scalar: Tensor) -> Tensor:
        angles = scalar[:, None] * self.frequencies[None]
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


def blocks_by_kind(sizes: OpenSoraSizes, settings: VideoSettings, text_tokens: int) -> dict[str, BlockDefinition]:
    """One block of each kind, whatever its token count."""
    kinds: dict[str, BlockDefinition] = {}
    for stage in stage_definitions(sizes, settings, text_tokens):
        for block in stage.blocks:
            kinds.setdefault(block.kind.partition(f".{settings.dtype}")[0], block)
    return kinds


def loaded(block: BlockDefinition, seed: int = 0) -> nn.Module:
    """The block in fp32 with random weights."""
    with torch.device("meta"):
        module = block.build()
    module.load_state_dict(random_weights(block, seed, torch.float32), assign=True)
    return module.eval()


def example_inputs(block: BlockDefinition, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of the block's shapes: token ids, scalars in the middle of their range, normal numbers."""
    generator = torch.Generator().manual_seed(seed)

    def filled(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return torch.randint(0, 300, x.shape, generator=generator, dtype=torch.int32)
        if x.shape == (1,):
            return torch.full((1,), 500.0)
        return torch.randn(x.shape, generator=generator)

    return tuple(filled(x) for x in block.example())


def exportable(module: nn.Module) -> nn.Module:
    """The module with parts that convert, and convert exactly."""
    if isinstance(module, STDiT3Part1):
        # The converter's 1 / x is 1 / (x + 1e-4), in constants too.
        positions = module._positions(torch.empty(0))
        module._positions = lambda x: positions
        module.t_embedder = ScalarEmbedder(module.t_embedder)
        module.fps_embedder = ScalarEmbedder(module.fps_embedder)
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, GroupNorm(child))
        else:
            exportable(child)
    return module


def convert(module: nn.Module, inputs: tuple[Tensor, ...], path: Path | None, *, fp16: bool = False) -> Any:
    """The module as an ML program for iOS 18, saved in the folder `path` if there is one."""
    import coremltools as ct

    precision: Any = ct.precision.FLOAT32
    if fp16:
        precision = ct.transform.FP16ComputePrecision(op_selector=_in_fp16)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, inputs, check_trace=False)
        model = ct.convert(
            traced,
            inputs=[ct.TensorType(f"input_{i}", x.shape, dtype=_numpy(x)) for i, x in enumerate(inputs)],
            convert_to="mlprogram",
            compute_precision=precision,
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
        )
    if path is not None:
        model.save(str(path))
    return model


def _numpy(x: Tensor) -> Any:
    return torch.empty(0, dtype=x.dtype).numpy().dtype.type


def _in_fp16(operation: Any) -> bool:
    if operation.op_type in KEPT_IN_FP32:
        return False
    # What a sine or cosine is taken of is as wrong as its digits.
    followers = {child.op_type for output in operation.outputs for child in output.child_ops}
    return not followers & {"sin", "cos"}
