"""Every kind of block of the tiny model: saved, read back and run, against PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cidl_sim.coreml.check import compare_block
from cidl_sim.mil.interpreter import load_package
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY, VideoSettings
from tests.coreml.converted import blocks_by_kind, convert, example_inputs, exportable, loaded

SETTINGS = VideoSettings(height=64, width=64, frames=21, steps=4, tdtm=2)
FINE = SETTINGS.model_copy(update={"partition": "fine"})
BLOCKS = blocks_by_kind(OPENSORA_TINY, SETTINGS, 16) | blocks_by_kind(OPENSORA_TINY, FINE, 16)
# Those that differ in more than sizes; the others are marked slow.
QUICK = {
    "t5.embedding",
    "t5.first_block",
    "stdit.part1",
    "stdit.pair.merged",
    "stdit.part2",
    "vae.temporal.part2_1",
    "vae.spatial.part3_1",
}
KINDS = [pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow) for kind in BLOCKS]
# The largest relative error in fp32, and in fp16 with every result rounded.
FP32_ERROR, FP16_ERROR = 2e-6, 3e-3


@pytest.mark.parametrize("kind", KINDS)
def test_in_fp32_the_interpreter_and_torch_agree_to_the_last_digits(kind: str, tmp_path: Path):
    module, inputs, package = loaded(BLOCKS[kind]), example_inputs(BLOCKS[kind]), tmp_path / "block.mlpackage"
    convert(exportable(module), inputs, package)
    errors = compare_block(loaded(BLOCKS[kind]), inputs, package)
    assert errors.largest <= FP32_ERROR
    assert not errors.flagged


@pytest.mark.parametrize("kind", KINDS)
def test_in_fp16_the_error_is_that_of_rounding(kind: str, tmp_path: Path):
    module, inputs, package = loaded(BLOCKS[kind]), example_inputs(BLOCKS[kind]), tmp_path / "block.mlpackage"
    convert(exportable(module), inputs, package, fp16=True)
    rounded = compare_block(loaded(BLOCKS[kind]), inputs, package)
    exact = compare_block(loaded(BLOCKS[kind]), inputs, package, mode="exact")
    assert 0 < exact.largest <= rounded.largest <= FP16_ERROR
    assert not rounded.flagged


class Reciprocal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1.0 / x


def test_the_converters_reciprocal_is_that_of_a_little_more(tmp_path: Path):
    x = torch.linspace(0.1, 1, 10)
    convert(Reciprocal(), (x,), tmp_path / "reciprocal.mlpackage")
    (result,) = load_package(tmp_path / "reciprocal.mlpackage").run({"input_0": x}).values()
    assert torch.allclose(result, 1 / (x + 1e-4), rtol=1e-6)


def test_that_shows_in_the_table_of_positions_converted_as_it_stands(tmp_path: Path):
    block = BLOCKS["stdit.part1"]
    convert(loaded(block), example_inputs(block), tmp_path / "part1.mlpackage")
    errors = compare_block(loaded(block), example_inputs(block), tmp_path / "part1.mlpackage")
    assert errors.largest == next(iter(errors.relative.values())) > 1e-4
