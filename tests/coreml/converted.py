"""The project's blocks as saved packages, made here so that the interpreter is tested on its own."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cidl_sim.blocks.definition import BlockDefinition
from cidl_sim.coreml.conversion import _FlatGroupNorm, _TabulatedEmbedder
from cidl_sim.models.stdit3 import STDiT3Part1
from cidl_sim.pipelines.open_sora.family import OPEN_SORA
from cidl_sim.pipelines.open_sora.settings import OpenSoraSizes, VideoSettings
from cidl_sim.pipelines.open_sora.stages import stage_definitions
from cidl_sim.pipelines.random_weights import random_weights
from tests.coreml.quick_conversion import without_self_checks

logging.getLogger("coremltools").setLevel(logging.ERROR)

# Squares of large numbers and sines of large ones need fp32.
KEPT_IN_FP32 = {"pow", "reduce_mean", "rsqrt", "sin", "cos"}


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
    module.load_state_dict(random_weights(OPEN_SORA, block, seed, torch.float32), assign=True)
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
        module.t_embedder = _TabulatedEmbedder(module.t_embedder)
        module.fps_embedder = _TabulatedEmbedder(module.fps_embedder)
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, _FlatGroupNorm(child))
        else:
            exportable(child)
    return module


def convert(module: nn.Module, inputs: tuple[Tensor, ...], path: Path | None, *, fp16: bool = False) -> Any:
    """The module as an ML program for iOS 18, saved in the folder `path` if there is one."""
    import coremltools as ct

    precision: Any = ct.precision.FLOAT32
    if fp16:
        precision = ct.transform.FP16ComputePrecision(op_selector=_in_fp16)
    with warnings.catch_warnings(), torch.no_grad(), without_self_checks():
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
