"""The block store: one safetensors file per block, laid out so that a block is one aligned read.

The header of each file is padded with spaces (which the format allows) so that the tensors begin on a
4096-byte border; then O_DIRECT can put them straight into a slot of the arena.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from cidl_sim.core.checked_files import check_files
from cidl_sim.core.errors import MachineError, StoreError
from cidl_sim.core.files import Record, read_json, replacing, validated, write_text
from cidl_sim.core.plan import FIRST_PIPELINE

if TYPE_CHECKING:  # whoever asks what a store holds needs no torch, which takes seconds to import
    import torch
    from torch import Tensor

ALIGNMENT = 4096
TOKENIZER_FOLDER = "tokenizer"  # beside the blocks, if the checkpoint brought one
TOKENIZER_MODELS = ("tokenizer.json", "spiece.model")  # either holds a tokenizer by itself
# CLIP's is two files.
_TOKENIZER_FILES = (*TOKENIZER_MODELS, "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "I64": "int64"}  # as safetensors and torch say


class BlockFile(Record):
    """One block's file: where its data starts, how long it is, what it hashes to."""

    file: str
    data_offset: int = Field(ge=0, multiple_of=ALIGNMENT)
    data_bytes: int = Field(ge=0)
    file_bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @field_validator("file")
    @classmethod
    def _stays_in_the_folder(cls, file: str) -> str:
        if file != Path(file).name or file in ("", ".", "..") or "\0" in file:
            raise ValueError(f"{file!r} leaves the folder of the store")
        return file


class StoreIndex(Record):
    """The contents of `store.json`; `model`, of the family `pipeline`, is what the store was built for."""

    format: Literal["cidl-store/1"] = "cidl-store/1"
    name: str
    dtype: Literal["fp32", "bf16", "fp16"]
    partition: str = "reference"
    source: str
    pipeline: str = FIRST_PIPELINE
    model: dict[str, Any]
    blocks: dict[str, BlockFile]


@dataclass(frozen=True)
class TensorLayout:
    """A tensor inside a block's data: `offset` in bytes from the start of the data."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


class BlockStore:
    """A block store that was opened and, once per state of its files, verified."""

    def __init__(self, root: Path, index: StoreIndex) -> None:
        self.root = root
        self.index = index

    @classmethod
    def open(cls, root: Path, *, verify: bool = False) -> BlockStore:
        """Open the store in folder `root`.

        Sizes are checked always; hashes once for each state (size, time, inode) of the files, or always
        with `verify`. StoreError names the file that is missing, truncated or altered.
        """
        if not (root / "store.json").is_file():
            raise StoreError(f"{root}: not a block store (no store.json); make one with 'cidl model build'")
        index = validated(StoreIndex, read_json(root / "store.json", StoreError), str(root / "store.json"), StoreError)
        listed = {block.file: (block.file_bytes, block.sha256) for block in index.blocks.values()}
        check_files(root, listed, index="store.json", error=StoreError, verify=verify)
        return cls(root, index)

    def path(self, weights: str) -> Path:
        """The file that holds `weights`."""
        return self.root / self.entry(weights).file

    def entry(self, weights: str) -> BlockFile:
        """The index entry of `weights`; StoreError if the store has no such block."""
        if weights not in self.index.blocks:
            raise StoreError(f"{self.root}: no block {weights!r} in this store")
        return self.index.blocks[weights]

    def layout(self, weights: str) -> list[TensorLayout]:
        """The tensors of a block, from the header of its file."""
        import torch

        entry, path = self.entry(weights), self.path(weights)
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length + 8 != entry.data_offset:
                    raise StoreError(f"{path}: altered (its header ends elsewhere than store.json says)")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            return [
                TensorLayout(name, getattr(torch, _DTYPES[t["dtype"]]), tuple(t["shape"]), t["data_offsets"][0])
                for name, t in header.items()
            ]
        except (OSError, ValueError, KeyError, TypeError, struct.error) as problem:
            raise StoreError(f"{path}: cannot be read ({type(problem).__name__}: {problem})") from None


def write_store(
    root: Path,
    blocks: Iterable[tuple[str, Callable[[], Mapping[str, Tensor]]]],
    *,
    name: str,
    dtype: str,
    partition: str = "reference",
    source: str,
    model: dict[str, Any],
    pipeline: str,
    on_block: Callable[[str, int], None] = lambda weights, data_bytes: None,
    made_from: Any = None,
    on_note: Callable[[str], None] = lambda words: None,
) -> BlockStore:
    """Write a store block by block; `blocks` gives the weights' names and functions that make their tensors.

    Only one block is held in memory. `store.json` comes last: a folder without it is not a store. After an
    interruption the same call goes on where it stopped: blocks that are whole are not made again. `made_from`: what
    else has to be the same for that, such as the state of the files that tensors come from, in JSON's terms.
    MachineError where the disk is full or not writable.
    """
    identity = {
        **{"name": name, "dtype": dtype, "partition": partition, "source": source},
        **{"pipeline": pipeline, "model": model},
    }
    journal = _Journal(root, {**identity, "made_from": made_from})
    if journal.is_of_another:
        on_note(f"{root}: begun anew; what was written there before has other sources or settings")
    with _writing_errors(root):
        (root / "store.json").unlink(missing_ok=True)
    for weights, make in blocks:
        if weights not in journal.entries:
            file = f"{weights}.safetensors"
            with replacing(root / file) as temporary:
                entry = _write_block(temporary, file, make())
            journal.add(weights, entry)
        on_block(weights, journal.entries[weights].data_bytes)
    index = StoreIndex.model_validate({**identity, "blocks": journal.entries})
    write_text(root / "store.json", index.model_dump_json(indent=1) + "\n")
    journal.path.unlink()
    return BlockStore.open(root)


class _Journal:
    """What has been written of a store that is not whole yet, and what it is going to be."""

    def __init__(self, root: Path, identity: dict[str, Any]) -> None:
        self.path = root / ".writing.json"
        self._identity = identity
        self.entries: dict[str, BlockFile] = {}
        self.is_of_another = False
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
            entries = {weights: BlockFile.model_validate(entry) for weights, entry in known["entries"].items()}
        except (OSError, ValueError, KeyError):
            return  # none, or of no use: begin anew
        self.is_of_another = bool(entries) and known["identity"] != identity
        if not self.is_of_another:
            self.entries = {w: entry for w, entry in entries.items() if _is_whole(root / entry.file, entry)}

    def add(self, weights: str, entry: BlockFile) -> None:
        """Note a block that was written whole."""
        self.entries[weights] = entry
        entries = {w: e.model_dump() for w, e in self.entries.items()}
        write_text(self.path, json.dumps({"identity": self._identity, "entries": entries}))


def _is_whole(path: Path, entry: BlockFile) -> bool:
    # A block is renamed into place only once it is complete, so its size tells enough here; its hash is
    # checked when the finished store is opened.
    return path.is_file() and path.stat().st_size == entry.file_bytes


@contextmanager
def _writing_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise MachineError(f"{root}: cannot be written ({problem.strerror})") from problem


def _write_block(path: Path, file: str, tensors: Mapping[str, Tensor]) -> BlockFile:
    import torch

    names = {f"torch.{dtype}": name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": names[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for chunk in (struct.pack("<Q", len(text)), text):
            out.write(chunk)
            digest.update(chunk)
        for tensor in tensors.values():
            data = memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            out.write(data)
            digest.update(data)
        out.flush()
        os.fsync(out.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    data_offset = len(text) + 8
    return BlockFile(
        file=file,
        data_offset=data_offset,
        data_bytes=offset,
        file_bytes=data_offset + offset,
        sha256=digest.hexdigest(),
    )


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer, if there is one in `source`. MachineError if the disk does not take them."""
    files = [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]
    if not any(file.name in (*TOKENIZER_MODELS, "vocab.json") for file in files):
        return
    try:
        target.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, target / file.name)
    except OSError as problem:
        raise MachineError(f"{target}: cannot be written ({problem.strerror})") from problem
