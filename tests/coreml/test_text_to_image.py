"""Blocks of text-to-image models as the exporter converts them, run by the interpreter, against PyTorch."""

from __future__ import annotations

import gc
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cidl_sim.blocks.definition import BlockDefinition
from cidl_sim.blocks.variants import Variant
from cidl_sim.coreml.check import compare_block
from cidl_sim.coreml.conversion import convert, function_of
from cidl_sim.pipelines.random_weights import random_weights
from cidl_sim.pipelines.stable_diffusion.architectures import MODELS
from cidl_sim.pipelines.stable_diffusion.family import STABLE_DIFFUSION
from cidl_sim.pipelines.stable_diffusion.settings import SMALLEST, ImageSizes
from tests.coreml.quick_conversion import without_self_checks
from tests.coreml.test_interpreter_on_blocks import FP16_ERROR, FP32_ERROR


def narrow(name: str) -> ImageSizes:
    """A model's structure with few channels."""
    sizes = MODELS[name]
    levels = tuple(
        level.model_copy(update={"channels": 32 + 32 * (i > 0), "heads": 2})
        for i, level in enumerate(sizes.unet.levels)
    )
    unet = sizes.unet.model_copy(update={"levels": levels, "context": 32, "groups": 8})
    tiny = MODELS["sd-tiny"]
    decoder = tiny.decoder.model_copy(update={"latent_channels": unet.latent_channels})
    return tiny.model_copy(update={"name": name, "unet": unet, "decoder": decoder})


def blocks_of(sizes: ImageSizes, dtype: str, *partitions: str) -> dict[str, BlockDefinition]:
    """By type, whatever its widths and shape, the heaviest block of a model."""
    found: dict[str, BlockDefinition] = {}
    weigh: dict[str, int] = {}
    for partition in partitions:
        settings = SMALLEST.model_copy(update={"dtype": dtype, "partition": partition, "guidance": "batch"})
        for stage in STABLE_DIFFUSION.stages(sizes, settings, "longest"):
            for block in stage.blocks:
                kind = re.sub(r"\.w\d+(x\d+)*|\.(fp32|fp16)\.[\dx]+", "", block.kind)
                kind += f" {len(block.example())} inputs"
                weight = sum(torch.Size(shape).numel() for shape in block.shapes().values())
                if weight > weigh.get(kind, -1):
                    found[kind], weigh[kind] = block, weight
    return found


def module_of(block: BlockDefinition) -> nn.Module:
    with torch.device("meta"):
        module = block.build()
    module.load_state_dict(random_weights(STABLE_DIFFUSION, block, 3, torch.float32), assign=True)
    return module.eval()


def inputs_of(block: BlockDefinition, dtype: str) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)

    def filled(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return torch.randint(1, 70, x.shape, generator=generator, dtype=torch.int32)
        if x.shape == (1,):
            return torch.full((1,), 501.0)
        return torch.randn(x.shape, generator=generator).to(torch.float16 if dtype == "fp16" else torch.float32).float()

    return tuple(filled(x) for x in block.example())


def error_of(block: BlockDefinition, dtype: str, package: Path) -> tuple[float, bool]:
    """The largest relative error of a converted block, and whether it was flagged."""
    function = function_of(Variant(block, block, block), dtype)  # type: ignore[arg-type]
    with without_self_checks():
        model = convert(block, function, random_weights(STABLE_DIFFUSION, block, 3, torch.float32), dtype)  # type: ignore[arg-type]
    model.save(str(package))
    del model
    gc.collect()
    errors = compare_block(module_of(block), inputs_of(block, dtype), package)
    return errors.largest, bool(errors.flagged)


TINY = {
    "sd-tiny": lambda: MODELS["sd-tiny"],
    "sdxl-tiny": lambda: MODELS["sdxl-tiny"],
    "snapfusion": lambda: narrow("snapfusion"),
    "mobile-diffusion": lambda: narrow("mobile-diffusion"),
}
# Those that differ in more than sizes; the slow test takes all.
QUICK = (
    ("sdxl-tiny", "unet.in 4 inputs"),
    ("sdxl-tiny", "clip.pooled.gelu 2 inputs"),
    ("sd-tiny", "unet.resnet 3 inputs"),
    ("sd-tiny", "unet.transformer.1f.convolution.gelu.softmax.down 2 inputs"),
    ("mobile-diffusion", "unet.transformer.1c4f.none.swish.relu.shared 2 inputs"),
    ("sd-tiny", "image_decoder.resnet.up 1 inputs"),
)
DTYPES = ("fp32", "fp16")
ALLOWED = {"fp32": FP32_ERROR, "fp16": FP16_ERROR}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "kind"), QUICK)
def test_the_interpreter_and_torch_agree(name: str, kind: str, dtype: str, tmp_path: Path) -> None:
    block = blocks_of(TINY[name](), dtype, "reference")[kind]
    error, flagged = error_of(block, dtype, tmp_path / "block.mlpackage")
    assert error <= ALLOWED[dtype]
    assert not flagged


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TINY)
def test_the_interpreter_and_torch_agree_on_every_type_of_block(name: str, dtype: str, tmp_path: Path) -> None:
    check_all(blocks_of(TINY[name](), dtype, "reference", "fine"), dtype, tmp_path)


# Of SDXL the finer cut: a transformer of ten blocks would be 1.4 GB.
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "partition"),
    [("sd-v1.5", "reference"), ("sdxl", "fine"), ("snapfusion", "reference"), ("mobile-diffusion", "reference")],
)
def test_the_interpreter_and_torch_agree_at_real_width(name: str, partition: str, dtype: str, tmp_path: Path) -> None:
    check_all(blocks_of(MODELS[name], dtype, partition), dtype, tmp_path)


def check_all(blocks: dict[str, BlockDefinition], dtype: str, folder: Path) -> None:
    """Every block, the package of each gone before the next is made: all of them would be gigabytes."""
    wrong = {}
    assert len(blocks) > 10
    for kind, block in blocks.items():
        package = folder / "block.mlpackage"
        error, flagged = error_of(block, dtype, package)
        shutil.rmtree(package)
        if error > ALLOWED[dtype] or flagged:
            wrong[kind] = error, flagged
    assert wrong == {}
