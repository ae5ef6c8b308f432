"""The back end for accelerators: written and tested against fakes (here the CPU), it has not been run on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cidl_sim.core.errors import MachineError, StoreError
from cidl_sim.executor.accelerator_backend import AcceleratorBackend, check_device
from cidl_sim.executor.runtime import Limits, Runtime
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.open_sora.prompt import encode_prompt
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY
from cidl_sim.policies.catalog import make_plan
from tests.executor.tiny_runs import (
    PROMPT,
    SETTINGS,
    RecordingProgram,
    run_control,
    tight_device,
    tiny_stages,
    tiny_workload,
)

TOKENS = encode_prompt(PROMPT, OPENSORA_TINY.text_encoder_tokens)
needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="no CUDA device here: written and tested against fakes, it has not been run on a GPU",
)


def backend_on(device: str, store: Path) -> AcceleratorBackend:
    return AcceleratorBackend(BlockStore.open(store), tiny_stages(), TOKENS[0], device)


def frames_on(device: str, store: Path, policy: str, channels: int = 1) -> torch.Tensor:
    """The video of the tiny model, streamed through the staging rings."""
    workload = tiny_workload()
    plan = make_plan(policy, workload, tight_device(workload, channels=channels))
    backend = backend_on(device, store)
    program = RecordingProgram(workload, OPENSORA_TINY, SETTINGS, TOKENS, 1, device=device)
    try:
        Runtime(workload, plan, Limits(plan.memory_limit_bytes, plan.baseline_bytes), backend).run(program)
    finally:
        backend.close()
    assert backend.footprint_bytes() == 0
    assert 0 < backend.figures()["touched_bytes"] <= plan.memory_limit_bytes
    return program.frames


@pytest.mark.parametrize("policy", ["sequential", "lru"])
@pytest.mark.parametrize("piece_bytes", [4096, 3 * 4096, 32 << 20], ids=["a page", "three pages", "whole blocks"])
def test_what_goes_through_the_ring_in_pieces_of_any_size_is_the_same_video(
    policy, piece_bytes, tiny_store, monkeypatch
):
    monkeypatch.setattr("cidl_sim.executor.accelerator_backend.PIECE_BYTES", piece_bytes)
    assert torch.equal(frames_on("cpu", tiny_store, policy), run_control(tiny_store).frames)


def test_each_loader_has_a_ring_of_its_own(tiny_store):
    assert torch.equal(frames_on("cpu", tiny_store, "lru", channels=3), run_control(tiny_store).frames)


def test_a_truncated_block_is_named(tiny_store, tmp_path):
    import os
    import shutil

    store = shutil.copytree(tiny_store, tmp_path / "store")
    backend = backend_on("cpu", store)
    try:
        os.truncate(store / "stdit.00.safetensors", BlockStore.open(store).entry("stdit.00").data_offset + 10)
        backend.reserve("stdit.00")
        with pytest.raises(StoreError, match=r"stdit\.00\.safetensors: (truncated|cannot be read)"):
            backend.load("stdit.00")
    finally:
        backend.close()


def test_a_device_that_is_not_there_is_the_machines_fault():
    with pytest.raises(MachineError, match="no 'abacus' device"):
        check_device("abacus")


@needs_cuda
@pytest.mark.parametrize("policy", ["sequential", "lru", "spread"])
def test_on_cuda_the_video_is_that_of_the_cpu_within_rounding(policy, tiny_store):
    ours = frames_on("cuda", tiny_store, policy).int()
    assert (ours - run_control(tiny_store).frames.int()).abs().max() <= 4


@needs_cuda
def test_on_cuda_every_policy_gives_the_same_video(tiny_store):
    first, *rest = (frames_on("cuda", tiny_store, policy) for policy in ("sequential", "lru", "spread"))
    assert all(torch.equal(first, other) for other in rest)
