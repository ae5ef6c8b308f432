"""Real widths with random weights: finite, near each other in both precisions, parts equal to the whole.

.venv/bin/python -m pytest -m full_size        (a few minutes, under 8 GB)
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cidl_sim.blocks.definition import BlockDefinition
from cidl_sim.models.stdit3 import rotary_frequencies
from cidl_sim.models.t5 import additive_mask
from cidl_sim.models.vae import VideoVAE
from cidl_sim.pipelines.open_sora.family import OPEN_SORA
from cidl_sim.pipelines.open_sora.settings import OPENSORA_V1_2, VideoSettings
from cidl_sim.pipelines.open_sora.stages import stage_definitions
from cidl_sim.pipelines.random_weights import random_weights

pytestmark = pytest.mark.full_size

SETTINGS = VideoSettings(height=192, width=192, frames=17)
# Relative to the size of the result; bf16 keeps 8 bits.
BF16_TOLERANCE = 0.02


def block(name: str, **settings: object) -> BlockDefinition:
    stages = stage_definitions(OPENSORA_V1_2, SETTINGS.model_copy(update=settings), text_tokens=50)
    return next(b for stage in stages for b in stage.blocks if b.name == name)


def loaded(definition: BlockDefinition, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        module = definition.build().to(dtype)
    module.load_state_dict(random_weights(OPEN_SORA, definition, 0, dtype), assign=True)
    return module.eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(half: Tensor, full: Tensor) -> float:
    assert torch.isfinite(half).all()
    assert torch.isfinite(full).all()
    return ((half.float() - full).norm() / full.norm()).item()


def in_both_precisions(name: str, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        module = loaded(block(name), dtype)
        with torch.no_grad():
            result = module(*(x.to(dtype) if x.is_floating_point() else x for x in inputs))
        results.append(result[0] if isinstance(result, tuple) else result)
        del module
    return results[0], results[1]


def test_a_block_of_t5_xxl_in_both_precisions():
    mask = torch.ones(1, 300)
    mask[:, 60:] = 0
    bias = normal(1, 64, 300, 300, seed=1)
    full, half = in_both_precisions("t5.05", normal(1, 300, 4096), additive_mask(mask, torch.float32), bias)
    assert full.shape == (1, 300, 4096)
    assert relative_error(half, full) < BF16_TOLERANCE


@pytest.mark.parametrize("merged", [False, True], ids=["plain", "merged"])
def test_a_pair_of_stdit3_xl_in_both_precisions(merged):
    frames, patches = SETTINGS.token_grid
    inputs = (
        normal(2, frames * patches, 1152),
        normal(2, 50, 1152, seed=1),
        normal(2, 6 * 1152, seed=2) * 0.1,
        rotary_frequencies(72),
    )
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        definition = block("stdit.07", lpl="off", tdtm=30 if merged else 0)
        module = loaded(definition, dtype)
        assert module.merged is merged
        with torch.no_grad():
            results.append(module(*(x.to(dtype) for x in inputs)))
    assert results[0].shape == inputs[0].shape
    assert relative_error(results[1], results[0]) < BF16_TOLERANCE


def test_the_parts_of_the_decoder_are_the_whole_decoder_on_one_chunk():
    with torch.device("meta"):
        whole = VideoVAE(OPENSORA_V1_2.vae)
    parts = [
        b for stage in stage_definitions(OPENSORA_V1_2, SETTINGS, 50) for b in stage.blocks if b.checkpoint == "vae"
    ]
    state: dict[str, Tensor] = {}
    for part in {p.weights: p for p in parts}.values():
        state |= {part.published_key(k): t for k, t in random_weights(OPEN_SORA, part, 0, torch.float32).items()}
    # The library lays tensors out in another way while training.
    whole.load_state_dict(state, strict=False, assign=True)
    whole.eval()
    z = normal(1, 4, 5, 24, 24)
    with torch.no_grad():
        expected = whole.decode(z, 17)[:4]
        x = z
        for part in [b for b in parts if ".temporal." in b.name]:
            x = loaded(part, torch.float32)(x)
        x = x[0, :, -17:].transpose(0, 1)[:4]
        for part in list({b.name: b for b in parts if ".spatial." in b.name}.values()):
            x = loaded(part, torch.float32)(x)
    assert expected.shape == (4, 3, 192, 192)
    assert torch.isfinite(expected).all()
    assert torch.equal(x, expected)
