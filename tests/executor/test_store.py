"""Stores: what is written comes back, and what was damaged is named."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from cidl_sim.core import checked_files
from cidl_sim.core.errors import MachineError, StoreError
from cidl_sim.executor.store import ALIGNMENT, BlockStore, write_store

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64)
BLOCKS: dict[str, dict[str, Tensor]] = {
    "first": {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(3, dtype=torch.bfloat16)},
    "second": {"weight": torch.full((2000,), 0.5)},
    "third": {"weight": torch.zeros(4)},
}


def write(root: Path, blocks: Mapping[str, Mapping[str, Tensor]] = BLOCKS) -> BlockStore:
    return write_store(
        root, made(blocks), name="test", dtype="fp32", source="test", model={"any": 1}, pipeline="open_sora"
    )


def made(blocks: Mapping[str, Mapping[str, Tensor]]) -> list[tuple[str, Callable[[], Mapping[str, Tensor]]]]:
    return [(weights, lambda tensors=tensors: tensors) for weights, tensors in blocks.items()]


def read_back(store: BlockStore, weights: str) -> dict[str, Tensor]:
    """A block's tensors by the package's own layout."""
    data = bytearray(store.path(weights).read_bytes()[store.entry(weights).data_offset :])
    tensors = {}
    for tensor in store.layout(weights):
        count = torch.Size(tensor.shape).numel()
        empty = torch.empty(tensor.shape, dtype=tensor.dtype)
        tensors[tensor.name] = (
            torch.frombuffer(data, dtype=tensor.dtype, count=count, offset=tensor.offset).view(tensor.shape)
            if count
            else empty
        )
    return tensors


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].contiguous().view(-1).view(torch.uint8).tolist() == (
            tensor.contiguous().view(-1).view(torch.uint8).tolist()
        )


def edit_index(root: Path, weights: str, **fields: object) -> None:
    index = json.loads((root / "store.json").read_text())
    index["blocks"][weights].update(fields)
    (root / "store.json").write_text(json.dumps(index))


@st.composite
def blocks_of_tensors(draw: st.DrawFn) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    blocks: dict[str, dict[str, Tensor]] = {}
    for b in range(draw(st.integers(1, 3))):
        tensors = {}
        for name in draw(st.lists(st.text("abc._", min_size=1, max_size=40), min_size=1, max_size=5, unique=True)):
            shape = draw(st.lists(st.integers(0, 5), max_size=4))
            values = torch.randint(-(2**31), 2**31, shape, generator=generator)
            tensors[name] = values.to(draw(st.sampled_from(DTYPES)))
        blocks[f"block{b}"] = tensors
    return blocks


@settings(max_examples=30, deadline=None)
@given(blocks_of_tensors())
def test_tensors_come_back_bit_for_bit_from_an_aligned_offset(blocks):
    with tempfile.TemporaryDirectory() as folder:
        store = write(Path(folder), blocks)
        assert list(store.index.blocks) == list(blocks)
        for weights, tensors in blocks.items():
            entry = store.entry(weights)
            assert entry.data_offset % ALIGNMENT == 0
            assert entry.file_bytes == entry.data_offset + entry.data_bytes == store.path(weights).stat().st_size
            assert entry.data_bytes == sum(t.numel() * t.element_size() for t in tensors.values())
            assert_same(read_back(store, weights), tensors)


@settings(max_examples=30, deadline=None)
@given(blocks_of_tensors())
def test_the_safetensors_library_reads_the_files(blocks):
    with tempfile.TemporaryDirectory() as folder:
        store = write(Path(folder), blocks)
        for weights, tensors in blocks.items():
            loaded = load_file(store.path(weights))
            assert_same({name: loaded[name] for name in tensors}, tensors)
            assert loaded.keys() == tensors.keys()
            with safetensors.safe_open(store.path(weights), framework="pt") as file:
                assert set(file.keys()) == tensors.keys()


def test_a_tensor_that_is_not_contiguous_is_stored_as_what_it_shows(tmp_path):
    shown = torch.arange(12.0).view(3, 4).t()
    assert_same(read_back(write(tmp_path, {"a": {"x": shown}}), "a"), {"x": shown})


def test_a_reopened_store_has_the_same_index(tmp_path):
    store = write(tmp_path)
    again = BlockStore.open(tmp_path)
    assert again.index == store.index
    assert again.index.model == {"any": 1}


def test_observers_hear_of_every_block_and_its_bytes(tmp_path):
    heard: list[tuple[str, int]] = []
    write_store(
        tmp_path,
        made(BLOCKS),
        name="test",
        dtype="fp32",
        source="test",
        model={},
        pipeline="open_sora",
        on_block=lambda weights, data_bytes: heard.append((weights, data_bytes)),
    )
    assert heard == [("first", 6 * 4 + 3 * 2), ("second", 8000), ("third", 16)]


# Damage


def test_a_folder_without_an_index_is_not_a_store(tmp_path):
    with pytest.raises(StoreError, match=r"no store\.json"):
        BlockStore.open(tmp_path)


def test_a_truncated_block_is_named(tmp_path):
    path = write(tmp_path).path("second")
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(StoreError, match=rf"{path}: truncated"):
        BlockStore.open(tmp_path)


def test_a_missing_block_file_is_named(tmp_path):
    path = write(tmp_path).path("second")
    path.unlink()
    with pytest.raises(StoreError, match=rf"{path}: missing"):
        BlockStore.open(tmp_path)


@pytest.mark.parametrize("offset_from_end", [1, 8000, 8001], ids=["last value", "first value", "header"])
def test_an_altered_block_of_the_same_size_is_named(tmp_path, offset_from_end):
    path = write(tmp_path).path("second")
    data = bytearray(path.read_bytes())
    data[-offset_from_end] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=rf"{path}: altered"):
        BlockStore.open(tmp_path)


def test_a_header_that_ends_elsewhere_than_the_index_says_is_named(tmp_path):
    path = write(tmp_path).path("second")
    data = path.read_bytes()
    # The same size, other header length; the index is made to agree with the file's hash.
    altered = (len(data) - 8).to_bytes(8, "little") + data[8:]
    path.write_bytes(altered)
    edit_index(tmp_path, "second", sha256=hashlib.sha256(altered).hexdigest())
    store = BlockStore.open(tmp_path)
    with pytest.raises(StoreError, match=rf"{path}: altered"):
        store.layout("second")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "sub/inside.safetensors"])
def test_a_block_path_that_leaves_the_folder_is_refused(tmp_path, name):
    root = tmp_path / "store"
    write(root)
    shutil.copy(root / "third.safetensors", tmp_path / "outside.safetensors")
    (root / "sub").mkdir()
    shutil.copy(root / "third.safetensors", root / "sub" / "inside.safetensors")
    edit_index(root, "third", file=name)
    with pytest.raises(StoreError, match=r"store\.json: .*leaves the folder"):
        BlockStore.open(root)


@pytest.mark.parametrize(
    ("field", "value"),
    [("file_bytes", -1), ("data_offset", 100), ("data_bytes", "many"), ("sha256", "0"), ("colour", "red")],
)
def test_a_block_entry_that_makes_no_sense_is_named_by_file_and_field(tmp_path, field, value):
    write(tmp_path)
    edit_index(tmp_path, "third", **{field: value})
    with pytest.raises(StoreError, match=rf"{tmp_path / 'store.json'}: blocks\.third\.{field}"):
        BlockStore.open(tmp_path)


def test_an_unknown_format_version_is_named_by_file_and_field(tmp_path):
    write(tmp_path)
    index = tmp_path / "store.json"
    index.write_text(index.read_text().replace("cidl-store/1", "cidl-store/2"))
    with pytest.raises(StoreError, match=rf"{index}: format"):
        BlockStore.open(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"blocks": {"x": {"file": "\\ud800"}}}'])
def test_an_index_that_is_not_json_is_named(tmp_path, text):
    write(tmp_path)
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(StoreError, match=rf"{tmp_path / 'store.json'}: not JSON"):
        BlockStore.open(tmp_path)


def test_a_block_that_the_store_does_not_have_is_named(tmp_path):
    store = write(tmp_path)
    with pytest.raises(StoreError, match="no block 'fourth'"):
        store.layout("fourth")


# Stamps


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were hashed, in order."""
    files: list[str] = []
    check = checked_files._check_hash

    def counted(path: Path, *rest: object) -> None:
        files.append(path.name)
        check(path, *rest)

    monkeypatch.setattr(checked_files, "_check_hash", counted)
    return files


FILES = ["first.safetensors", "second.safetensors", "third.safetensors"]


def test_a_second_open_does_not_hash_again(tmp_path, hashed):
    write(tmp_path)
    assert hashed == FILES
    BlockStore.open(tmp_path)
    assert hashed == FILES


def test_verifying_hashes_again(tmp_path, hashed):
    write(tmp_path)
    hashed.clear()
    BlockStore.open(tmp_path, verify=True)
    assert hashed == FILES


def test_another_time_of_modification_hashes_again_once(tmp_path, hashed):
    path = write(tmp_path).path("second")
    hashed.clear()
    modified = path.stat().st_mtime_ns
    os.utime(path, ns=(modified, modified + 1_000_000))
    BlockStore.open(tmp_path)
    BlockStore.open(tmp_path)
    assert hashed == FILES


def test_another_inode_hashes_again_once(tmp_path, hashed):
    path = write(tmp_path).path("second")
    hashed.clear()
    modified = path.stat().st_mtime_ns
    shutil.copy(path, tmp_path / "copy")
    os.utime(tmp_path / "copy", ns=(modified, modified))
    (tmp_path / "copy").replace(path)
    BlockStore.open(tmp_path)
    BlockStore.open(tmp_path)
    assert hashed == FILES


def test_another_hash_in_the_index_hashes_again(tmp_path):
    write(tmp_path)
    edit_index(tmp_path, "second", sha256="0" * 64)
    with pytest.raises(StoreError, match=r"second\.safetensors: altered"):
        BlockStore.open(tmp_path)


def test_a_stamp_that_cannot_be_read_hashes_again(tmp_path, hashed):
    write(tmp_path)
    hashed.clear()
    (tmp_path / ".verified.json").write_text("not JSON")
    BlockStore.open(tmp_path)
    assert hashed == FILES


def test_verifying_finds_what_the_stamp_cannot_see(tmp_path):
    path = write(tmp_path).path("second")
    modified = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    os.utime(path, ns=(modified, modified))
    BlockStore.open(tmp_path)
    with pytest.raises(StoreError, match=rf"{path}: altered"):
        BlockStore.open(tmp_path, verify=True)


def test_a_damaged_store_is_never_stamped(tmp_path):
    path = write(tmp_path).path("second")
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    for _ in range(2):
        with pytest.raises(StoreError, match=rf"{path}: altered"):
            BlockStore.open(tmp_path)


def test_a_store_that_cannot_be_written_to_opens_without_a_stamp(tmp_path, hashed, monkeypatch):
    write(tmp_path)
    (tmp_path / ".verified.json").unlink()
    hashed.clear()

    def full_disk(path: Path, text: str) -> None:
        raise MachineError("no space left")

    monkeypatch.setattr("cidl_sim.core.checked_files.write_text", full_disk)
    BlockStore.open(tmp_path)
    BlockStore.open(tmp_path)
    assert hashed == FILES + FILES
    assert not (tmp_path / ".verified.json").exists()


# Interrupted writes


def interrupted() -> Iterator[tuple[str, Callable[[], Mapping[str, Tensor]]]]:
    yield made(BLOCKS)[0]
    raise KeyboardInterrupt


@pytest.mark.parametrize("existed", [False, True], ids=["new", "over an older store"])
def test_a_write_that_was_interrupted_leaves_no_store(tmp_path, existed):
    if existed:
        write(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path, interrupted(), name="test", dtype="fp32", source="test", model={}, pipeline="open_sora")
    with pytest.raises(StoreError, match=r"no store\.json"):
        BlockStore.open(tmp_path)
    write(tmp_path)
    assert BlockStore.open(tmp_path).index.blocks.keys() == BLOCKS.keys()


def test_a_full_disk_is_a_machine_error_and_leaves_no_half_block(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match=rf"{tmp_path / 'first.safetensors'}: cannot be written \(No space left"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []
