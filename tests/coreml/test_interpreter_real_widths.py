"""One block of each kind at real width, in both precisions: minutes; the token table in fp16 takes 5 GB to convert.

.venv/bin/python -m pytest -m slow tests/coreml/test_interpreter_real_widths.py
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cidl_sim.coreml.check import compare_block
from cidl_sim.pipelines.open_sora.settings import OPENSORA_V1_2, VideoSettings
from tests.coreml.converted import blocks_by_kind, convert, example_inputs, exportable, loaded
from tests.coreml.test_interpreter_on_blocks import FP16_ERROR, FP32_ERROR

pytestmark = pytest.mark.slow

# Real widths; few tokens, which change nothing but the time.
SETTINGS = VideoSettings(height=128, width=128, frames=17, steps=4, tdtm=2)
BLOCKS = blocks_by_kind(OPENSORA_V1_2, SETTINGS, 50)


@pytest.fixture
def package() -> Iterator[Path]:
    # Gone after the test: all of them would be gigabytes.
    with TemporaryDirectory() as folder:
        yield Path(folder) / "block.mlpackage"


@pytest.mark.parametrize("fp16", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_the_interpreter_and_torch_agree_at_real_width(kind: str, fp16: bool, package: Path):
    inputs = example_inputs(BLOCKS[kind])
    convert(exportable(loaded(BLOCKS[kind])), inputs, package, fp16=fp16)
    # What the conversion leaves behind is in cycles, and as large as the block.
    gc.collect()
    errors = compare_block(loaded(BLOCKS[kind]), inputs, package)
    assert errors.largest <= (FP16_ERROR if fp16 else FP32_ERROR)
    assert not errors.flagged
