"""Finer blocks compute the same video."""

from __future__ import annotations

import pytest
import torch

from cidl_sim.diffusion.model_store import build_random_store
from cidl_sim.models.config import OPENSORA_TINY, OPENSORA_V1_2
from cidl_sim.workloads.catalog import find_workload
from tests.executor.tiny_runs import SETTINGS, run_control, run_policy


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_fine_partition_gives_the_same_video_bit_for_bit(tmp_path, dtype):
    frames = {}
    for partition in ("reference", "fine"):
        build_random_store(tmp_path / partition, OPENSORA_TINY, dtype, 0, partition=partition)
        settings = SETTINGS.model_copy(update={"dtype": dtype, "partition": partition})
        frames[partition] = run_control(tmp_path / partition, settings).frames
        program, _ = run_policy(tmp_path / partition, "spread", settings)
        assert torch.equal(program.frames, frames[partition])
    assert torch.equal(frames["reference"], frames["fine"])


def test_the_fine_partition_halves_the_blocks_and_keeps_the_bytes_and_the_arithmetic():
    coarse, fine = find_workload("opensora-v1.2-192x192-17f"), find_workload("opensora-v1.2-192x192-17f-fine")
    assert fine.weights_bytes == coarse.weights_bytes
    for name in ("text_encoder", "denoiser"):
        a, b = (next(s for s in w.stages if s.name == name) for w in (coarse, fine))
        assert sum(x.flops for x in a.blocks) == sum(x.flops for x in b.blocks)
        assert len(b.blocks) == 2 * len(a.blocks) - 2
    assert OPENSORA_V1_2.stdit.depth * 2 + 2 == len(fine.stages[1].blocks)
    assert max(b.weight_bytes for b in fine.stages[1].blocks) == 4 * 21_255_696
