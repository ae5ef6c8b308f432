"""Every kind of block of the tiny model: saved, read back and run, against PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest

from cidl_sim.coreml.check import compare_block
from cidl_sim.models.config import OPENSORA_TINY, VideoSettings
from tests.coreml.converted import blocks_by_kind, convert, example_inputs, exportable, loaded

SETTINGS = VideoSettings(height=64, width=64, frames=21, steps=4, tdtm=2)
FINE = SETTINGS.model_copy(update={"partition": "fine"})
BLOCKS = blocks_by_kind(OPENSORA_TINY, SETTINGS, 16) | blocks_by_kind(OPENSORA_TINY, FINE, 16)
# Those that differ in more than sizes; the others are marked slow.
QUICK = {
    "t5.embedding",
    "t5.first_block",
    "t5.block",
    "t5.final_norm",
    "stdit.part1",
    "stdit.pair",
    "stdit.pair.merged",
    "stdit.part2",
    "vae.temporal.part1",
    "vae.temporal.part2_1",
    "vae.spatial.part2",
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
