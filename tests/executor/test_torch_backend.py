"""The backend on the CPU: weights are views of what was read, and nothing else points at them."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cidl_sim.core.errors import StoreError
from cidl_sim.core.workload import Visit
from cidl_sim.executor.arena import PAGE
from cidl_sim.executor.store import BlockStore
from cidl_sim.executor.torch_backend import TorchBackend
from cidl_sim.models.sizes import STDiT3Sizes
from cidl_sim.pipelines.model_store import build_random_store
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY, OpenSoraSizes
from cidl_sim.pipelines.open_sora.stages import stage_definitions
from tests.executor.tiny_runs import SETTINGS, run_control, run_policy, tiny_backend, tiny_workload


@pytest.fixture
def backend(tiny_store: Path) -> Iterator[TorchBackend]:
    backend = tiny_backend(tiny_store)
    yield backend
    backend.close()


def visit_of(block: str, stage: str = "denoiser") -> Visit:
    workload = tiny_workload()
    return next(v for v in workload.visits if v.block.name == block and workload.stages[v.stage].name == stage)


def load(backend: TorchBackend, *weights: str) -> None:
    for name in weights:
        backend.reserve(name)
        backend.load(name)


def pair_inputs() -> tuple[Tensor, ...]:
    """What a pair takes in the tiny setting, from one seed."""
    generator = torch.Generator().manual_seed(0)
    definitions = stage_definitions(OPENSORA_TINY, SETTINGS, 8)
    stage = next(stage for stage in definitions if stage.name == "denoiser")
    example = next(block for block in stage.blocks if block.name == "stdit.00").example()
    return tuple(torch.randn(tensor.shape, generator=generator) for tensor in example)


def tensors_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict(keep_vars=True))


@pytest.mark.parametrize(
    ("block", "stage"),
    [
        ("stdit.part1", "denoiser"),
        ("stdit.00", "denoiser.merged"),
        ("t5.00", "text_encoder"),
        ("vae.temporal.part1", "decoder.temporal.17f"),
        ("vae.spatial.part2", "decoder.spatial.4f"),
    ],
)
def test_the_parameters_of_a_loaded_block_are_views_of_its_slot(backend, tiny_store, block, stage):
    load(backend, block)
    tensors = tensors_of(backend.callable_for(visit_of(block, stage)))
    slot = backend._slots[block]
    expected = load_file(tiny_store / f"{block}.safetensors")
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        end = tensor.data_ptr() + tensor.numel() * tensor.element_size()
        assert slot.address <= tensor.data_ptr() < end <= slot.address + slot.bytes
        assert torch.equal(tensor, expected[name])


def table_visit(sizes: OpenSoraSizes) -> Visit:
    """The visit of the token embedding of a model with `sizes`: a kind names its width."""
    table = stage_definitions(sizes, SETTINGS, 8)[0].blocks[0]
    visit = visit_of("t5.embedding", "text_encoder")
    return dataclasses.replace(visit, block=visit.block.model_copy(update={"kind": table.kind}))


@pytest.mark.parametrize("d_model", [32, 1024], ids=["buffered rows", "direct rows"])
def test_of_the_token_embedding_only_the_rows_of_the_prompt_are_read(d_model, tmp_path, monkeypatch):
    # Rows of 1024 floats are whole pages and are read past the page cache.
    sizes = OPENSORA_TINY.model_copy(update={"t5": OPENSORA_TINY.t5.model_copy(update={"d_model": d_model})})
    store = build_random_store(tmp_path / "store", sizes, "fp32", 0)
    ids = torch.tensor([[7, 3, 3, 200, 0, 0]])
    backend = TorchBackend(store, stage_definitions(sizes, SETTINGS, 8), 1 << 20, ids)
    read: list[int] = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *a: (read.append(preadv(*a)), read[-1])[1])
    try:
        load(backend, "t5.embedding")
        assert read == [4 * d_model] * 4
        assert backend.footprint_bytes() <= -(-4 * 4 * d_model // PAGE) * PAGE
        found = backend.callable_for(table_visit(sizes))(ids)
    finally:
        backend.close()
    table = load_file(tmp_path / "store" / "t5.embedding.safetensors")["shared.weight"]
    assert torch.equal(found, table[ids])


def test_a_byte_written_to_the_slot_is_seen_by_the_module(backend):
    load(backend, "stdit.00")
    tensors = tensors_of(backend.callable_for(visit_of("stdit.00")))
    backend._slots["stdit.00"].buffer()[:] = bytes(backend._slots["stdit.00"].bytes)
    assert all(not tensor.any() for tensor in tensors.values())


def test_binding_another_block_of_the_same_kind_changes_the_result(backend):
    load(backend, "stdit.00", "stdit.01")
    inputs = pair_inputs()
    with torch.no_grad():
        first = backend.callable_for(visit_of("stdit.00"))(*inputs)
        second = backend.callable_for(visit_of("stdit.01"))(*inputs)
        again = backend.callable_for(visit_of("stdit.00"))(*inputs)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_the_merged_and_the_plain_variant_of_a_block_share_its_weights(backend):
    load(backend, "stdit.00")
    merged = tensors_of(backend.callable_for(visit_of("stdit.00", "denoiser.merged")))
    plain = tensors_of(backend.callable_for(visit_of("stdit.00", "denoiser")))
    assert {name: t.data_ptr() for name, t in merged.items()} == {name: t.data_ptr() for name, t in plain.items()}


def test_a_block_that_was_unloaded_and_loaded_again_gives_the_same_result(backend):
    inputs = pair_inputs()
    load(backend, "stdit.00")
    with torch.no_grad():
        before = backend.callable_for(visit_of("stdit.00"))(*inputs)
    backend.unload("stdit.00")
    load(backend, "stdit.part1", "stdit.00")
    with torch.no_grad():
        assert torch.equal(backend.callable_for(visit_of("stdit.00"))(*inputs), before)


# Memory


def test_memory_is_held_from_reserve_until_room_is_made(backend):
    assert backend.footprint_bytes() == 0
    load(backend, "stdit.00", "stdit.01")
    held = sum(-(-visit_of(name).block.weight_bytes // PAGE) * PAGE for name in ("stdit.00", "stdit.01"))
    assert backend.footprint_bytes() == held
    backend.unload("stdit.01")
    assert backend.footprint_bytes() == held
    backend.make_room(visit_of("stdit.00").block.weight_bytes)
    assert backend.footprint_bytes() == held // 2


def test_every_block_fits_an_arena_of_exactly_the_weights(tiny_store):
    workload = tiny_workload()
    backend = tiny_backend(tiny_store, capacity_bytes=workload.weights_bytes)
    try:
        load(backend, *dict.fromkeys(visit.block.weights for visit in workload.visits))
        assert backend.footprint_bytes() >= workload.weights_bytes
    finally:
        backend.close()


def test_a_closed_backend_leaves_its_modules_without_weights(tiny_store):
    backend = tiny_backend(tiny_store)
    load(backend, "stdit.00")
    module = backend.callable_for(visit_of("stdit.00"))
    backend.close()
    assert all(tensor.numel() == 0 for tensor in tensors_of(module).values())


# Stores that do not fit


def test_a_store_of_another_model_is_named_by_its_file(tiny_store):
    wider = OPENSORA_TINY.model_copy(update={"stdit": STDiT3Sizes(depth=3, hidden=96, heads=4, max_text_tokens=64)})
    with pytest.raises(StoreError, match=rf"{tiny_store / 'stdit.part1.safetensors'}: made for another model"):
        TorchBackend(BlockStore.open(tiny_store), stage_definitions(wider, SETTINGS, 32), 1 << 20, torch.zeros(1))


def test_a_store_with_fewer_blocks_than_the_model_is_named(tiny_store):
    deeper = OPENSORA_TINY.model_copy(update={"stdit": STDiT3Sizes(depth=4, hidden=48, heads=4, max_text_tokens=64)})
    with pytest.raises(StoreError, match=rf"{tiny_store}: no block 'stdit\.03'"):
        TorchBackend(BlockStore.open(tiny_store), stage_definitions(deeper, SETTINGS, 32), 1 << 20, torch.zeros(1))


@pytest.fixture
def own_store(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(tiny_store, tmp_path / "store")


@pytest.mark.parametrize("kept_bytes", [0, PAGE, 10_000], ids=["nothing", "a page", "part of a page"])
def test_a_block_that_was_truncated_after_the_store_was_opened_is_named(own_store, kept_bytes):
    backend = tiny_backend(own_store)
    path = own_store / "stdit.00.safetensors"
    try:
        os.truncate(path, BlockStore.open(own_store).entry("stdit.00").data_offset + kept_bytes)
        backend.reserve("stdit.00")
        with pytest.raises(StoreError, match=rf"{path}: (truncated|cannot be read)"):
            backend.load("stdit.00")
    finally:
        backend.close()


def test_a_block_that_was_removed_after_the_store_was_opened_is_named(own_store):
    backend = tiny_backend(own_store)
    path = own_store / "stdit.00.safetensors"
    try:
        path.unlink()
        backend.reserve("stdit.00")
        with pytest.raises(StoreError, match=rf"{path}: cannot be read \(No such file"):
            backend.load("stdit.00")
    finally:
        backend.close()


# Reading without O_DIRECT


def refuse_direct_reads(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    opened = os.open

    def refusing(path: str, flags: int, *rest: int, **named: int) -> int:
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(error, os.strerror(error))
        return opened(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refusing)


def test_without_direct_reads_the_tensors_are_the_same_and_the_fall_back_is_noted_once(
    tiny_store, backend, monkeypatch
):
    refuse_direct_reads(monkeypatch, errno.EINVAL)
    load(backend, "stdit.00", "stdit.01")
    assert len(backend.fall_backs) == 1
    assert "O_DIRECT unavailable" in backend.fall_backs[0]
    for name in ("stdit.00", "stdit.01"):
        expected = load_file(tiny_store / f"{name}.safetensors")
        tensors = tensors_of(backend.callable_for(visit_of(name)))
        assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items())


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no O_DIRECT to refuse")
def test_another_failure_to_open_is_not_taken_for_a_missing_feature(tiny_store, backend, monkeypatch):
    refuse_direct_reads(monkeypatch, errno.EACCES)
    backend.reserve("stdit.00")
    with pytest.raises(StoreError, match=rf"{tiny_store / 'stdit.00.safetensors'}: cannot be read \(Permission"):
        backend.load("stdit.00")
    assert backend.fall_backs == []


def test_a_block_longer_than_one_read_is_read_whole(tiny_store, backend, monkeypatch):
    monkeypatch.setattr("cidl_sim.executor.reading.READ_BYTES", 2 * PAGE)
    load(backend, "stdit.00")
    expected = load_file(tiny_store / "stdit.00.safetensors")
    tensors = tensors_of(backend.callable_for(visit_of("stdit.00")))
    assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items())


# Aliases


class PoisoningBackend(TorchBackend):
    """Fills a slot with NaN before it is given back: whoever still looks at it sees NaN."""

    def unload(self, weights: str) -> None:
        slot = self._slots[weights]
        slot.buffer()[:] = b"\xff" * slot.bytes
        super().unload(weights)


def test_no_result_of_a_block_aliases_its_weights(tiny_store):
    control = run_control(tiny_store)
    poisoned, trace = run_policy(tiny_store, "sequential", make=PoisoningBackend)
    assert len(trace.of("unload")) == len(tiny_workload().visits)
    assert torch.equal(poisoned.frames, control.frames)
    for (block, result), (_, expected) in zip(poisoned.results, control.results, strict=True):
        assert torch.equal(result, expected), block
