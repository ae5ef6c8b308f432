"""Finer and coarser blocks compute the same video."""

from __future__ import annotations

import pytest
import torch

from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.pipelines.model_store import build_random_store
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY, OPENSORA_V1_2
from tests.executor.tiny_runs import SETTINGS, run_control, run_policy


@pytest.mark.parametrize(
    ("dtype", "others", "length"),
    [
        # In pieces of one length: each further one is a second to measure.
        ("fp32", ("fine", "t2.d2.v9"), 16),
        pytest.param("bf16", ("tfine.d2.v2",), 16, marks=pytest.mark.slow),
        pytest.param("fp32", ("fine", "t2.d2.v4", "t9.d9.v9"), 17, marks=pytest.mark.slow),
        pytest.param("bf16", ("fine", "d2.v2"), 17, marks=pytest.mark.slow),
    ],
)
def test_every_partition_gives_the_same_video_bit_for_bit(tmp_path, dtype, others, length):
    frames = {}
    for partition in ("reference", *others):
        build_random_store(tmp_path / partition, OPENSORA_TINY, dtype, 0, partition=partition)
        settings = SETTINGS.model_copy(update={"dtype": dtype, "partition": partition, "frames": length})
        frames[partition] = run_control(tmp_path / partition, settings).frames
        program, _ = run_policy(tmp_path / partition, "spread", settings)
        assert torch.equal(program.frames, frames[partition])
    for partition in others:
        assert torch.equal(frames["reference"], frames[partition])


def test_the_fine_partition_halves_the_blocks_and_keeps_the_bytes_and_the_arithmetic():
    coarse, fine = find_workload("opensora-v1.2-192x192-17f"), find_workload("opensora-v1.2-192x192-17f-fine")
    assert fine.weights_bytes == coarse.weights_bytes
    for name in ("text_encoder", "denoiser"):
        a, b = (next(s for s in w.stages if s.name == name) for w in (coarse, fine))
        assert sum(x.flops for x in a.blocks) == sum(x.flops for x in b.blocks)
        assert len(b.blocks) == 2 * len(a.blocks) - 2
    assert OPENSORA_V1_2.stdit.depth * 2 + 2 == len(fine.stages[1].blocks)
    assert max(b.weight_bytes for b in fine.stages[1].blocks) == 4 * 21_255_696


def test_joined_blocks_have_the_bytes_and_the_arithmetic_of_their_parts_and_more_workspace():
    parts, joined = find_workload("opensora-tiny-32x32-17f-2s"), find_workload("opensora-tiny-32x32-17f-2s-t2.d2.v4")
    assert joined.name == "opensora-tiny-32x32-17f-2s-fp32-t2.d2.v4"
    assert [len(stage.blocks) for stage in parts.stages] == [4, 5, 6, 8, 8]
    assert [len(stage.blocks) for stage in joined.stages] == [3, 4, 2, 2, 2]
    assert joined.weights_bytes == parts.weights_bytes
    for a, b in zip(parts.stages, joined.stages, strict=True):
        assert a.rounds == b.rounds
        assert sum(x.flops for x in a.blocks) == sum(x.flops for x in b.blocks)
        assert sum(x.bytes_moved for x in a.blocks) == sum(x.bytes_moved for x in b.blocks)
        by_name = {x.name: x for x in a.blocks}
        for block in b.blocks:
            assert [part.name for part in block.like] == [p.name for p in block.like if p.name in by_name]
            # What passes from one part to the next, and the first part's input, stay beside each part's own.
            assert block.workspace_bytes >= max((by_name[p.name].workspace_bytes for p in block.like), default=0)
