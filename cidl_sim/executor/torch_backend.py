"""Blocks in PyTorch on the CPU: weights are views of arena slots that were read straight from disk.

A module without weights is built once for each kind of block; a visit points its parameters at the slot of
the block at hand, which costs microseconds and copies nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cidl_sim.core.errors import StoreError
from cidl_sim.core.trace import Origin
from cidl_sim.core.workload import Visit
from cidl_sim.executor.arena import PAGE, Arena, Slot
from cidl_sim.executor.backend import Call
from cidl_sim.executor.memory_limit import anonymous_bytes, trim_heap
from cidl_sim.executor.store import BlockStore
from cidl_sim.models.open_sora import TORCH_DTYPES, BlockDefinition, StageDefinition

READ_BYTES = 64 << 20  # one system call reads at most this much
# Freed memory that the heap may hold beyond a visit's workspace. Giving it back costs its page faults again.
HEAP_SLACK_BYTES = 32 << 20


class TorchBackend:
    """Loads blocks of a store into an arena and runs them on the CPU."""

    origin: Origin = "torch-cpu"

    def __init__(
        self, store: BlockStore, stages: Sequence[StageDefinition], capacity_bytes: int, token_ids: Tensor
    ) -> None:
        """`token_ids` say which rows of the token embedding are read.

        Raises StoreError if the store's blocks are not those of `stages`.
        """
        self.fall_backs: list[str] = []
        self._store = store
        self._skeletons: dict[str, _Skeleton] = {}
        dtype = TORCH_DTYPES[store.index.dtype]
        definitions = {block.name: block for stage in stages for block in stage.blocks}
        for stage in stages:
            for block in stage.blocks:
                if block.kind not in self._skeletons:
                    self._skeletons[block.kind] = _Skeleton(block, dtype)
        self._layouts = {block.weights: store.layout(block.weights) for block in definitions.values()}
        for block in definitions.values():
            found = {tensor.name: (tensor.shape, tensor.dtype) for tensor in self._layouts[block.weights]}
            self._skeletons[block.kind].check(found, str(store.path(block.weights)))
        self._rows = torch.unique(token_ids)
        self._by_row = {block.weights: block.rows[0] for block in definitions.values() if block.rows}
        # Every slot is rounded up to pages.
        everything = sum(self._bytes_to_load(weights) for weights in self._layouts)
        self._arena = Arena(capacity_bytes + PAGE * len(self._layouts), everything + PAGE * len(self._layouts))
        self._slots: dict[str, Slot] = {}
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._heap_before = anonymous_bytes()

    @property
    def arena(self) -> Arena:
        """The memory behind the weights."""
        return self._arena

    def reserve(self, weights: str) -> None:
        """Take a slot for `weights`."""
        self._slots[weights] = self._arena.take(self._bytes_to_load(weights))

    def load(self, weights: str) -> None:
        """Read `weights` into their slot in one pass and make views of the tensors. StoreError if that fails."""
        buffer = self._slots[weights].buffer()
        if weights in self._by_row:
            self._tensors[weights] = self._read_rows(str(self._store.path(weights)), weights, buffer)
            return
        if not read_block(self._store, weights, buffer) and _BUFFERED not in self.fall_backs:
            self.fall_backs.append(_BUFFERED)
        views = {}
        for tensor in self._layouts[weights]:
            count = 1
            for side in tensor.shape:
                count *= side
            flat = torch.frombuffer(buffer, dtype=tensor.dtype, count=count, offset=tensor.offset)
            views[tensor.name] = flat.view(tensor.shape)
        self._tensors[weights] = views

    def callable_for(self, visit: Visit) -> Call:
        """The module of the visit's kind with its parameters pointed at the loaded weights."""
        if anonymous_bytes() - self._heap_before > visit.block.workspace_bytes + HEAP_SLACK_BYTES:
            trim_heap()
        skeleton = self._skeletons[visit.block.kind]
        skeleton.bind(self._tensors[visit.block.weights])
        if visit.block.weights in self._by_row:
            # The slot holds only the rows of these tokens, in the order of their ids.
            return lambda ids: skeleton.module(torch.searchsorted(self._rows, ids))
        return skeleton.module

    def unload(self, weights: str) -> None:
        """Give the slot back; no copy, no write-back."""
        self._tensors.pop(weights, None)
        self._arena.give_back(self._slots.pop(weights))

    def make_room(self, weights_bytes: int) -> None:
        """Return free pages to the kernel until at most `weights_bytes` (and page rounding) are touched."""
        self._arena.trim(weights_bytes + PAGE * len(self._slots))

    def grow(self, capacity_bytes: int) -> None:
        """Let slots take more bytes together."""
        self._arena.grow(capacity_bytes + PAGE * len(self._layouts))

    def footprint_bytes(self) -> int:
        """Pages of the arena that the kernel holds."""
        return self._arena.touched_bytes

    def close(self) -> None:
        """Free the arena; the modules keep no weights."""
        for skeleton in self._skeletons.values():
            skeleton.unbind()
        for weights in list(self._slots):
            self.unload(weights)
        self._arena.close()

    def _bytes_to_load(self, weights: str) -> int:
        whole = self._store.entry(weights).data_bytes
        return whole // self._by_row[weights] * len(self._rows) if weights in self._by_row else whole

    def _read_rows(self, path: str, weights: str, buffer: memoryview) -> dict[str, Tensor]:
        (table,) = self._layouts[weights]
        row_bytes = self._store.entry(weights).data_bytes // self._by_row[weights]
        start = self._store.entry(weights).data_offset
        with _reading(path, direct=row_bytes % PAGE == 0) as (fd, _):
            for i, row in enumerate(self._rows.tolist()):
                place = buffer[i * row_bytes : (i + 1) * row_bytes]
                _read_into(fd, place, start + row * row_bytes, row_bytes)
        flat = torch.frombuffer(buffer, dtype=table.dtype, count=len(self._rows) * table.shape[1])
        return {table.name: flat.view(len(self._rows), table.shape[1])}


def read_block(store: BlockStore, weights: str, buffer: memoryview) -> bool:
    """Read a whole block in one pass; `buffer` is page-aligned and rounded up to pages.

    Returns whether the page cache was bypassed. StoreError if the file cannot be read or ends early.
    """
    entry = store.entry(weights)
    with _reading(str(store.path(weights))) as (fd, direct):
        # Direct reads want whole pages; the file's end cuts them short.
        _read_into(fd, buffer, entry.data_offset, entry.data_bytes)
    return direct


_BUFFERED = "O_DIRECT unavailable: buffered reads, page cache dropped behind"


@contextmanager
def _reading(path: str, *, direct: bool = True) -> Iterator[tuple[int, bool]]:
    """A descriptor and whether it bypasses the page cache; what it brings into the cache is dropped behind it."""
    try:
        fd, bypasses = _open(path, direct=direct)
        try:
            yield fd, bypasses
            if not bypasses:
                _drop_from_page_cache(fd)
        finally:
            os.close(fd)
    except OSError as problem:
        raise StoreError(f"{path}: cannot be read ({problem.strerror})") from None
    except EOFError as problem:
        raise StoreError(f"{path}: truncated ({problem})") from None


def _read_into(fd: int, buffer: memoryview, offset: int, size: int) -> None:
    """Fill `buffer` with at least `size` bytes from `offset` on. EOFError if the file is shorter."""
    done = 0
    while done < size:
        wanted = min(READ_BYTES, len(buffer) - done)
        count = os.preadv(fd, [buffer[done : done + wanted]], offset + done)
        if count == 0:
            raise EOFError(f"ends {size - done} bytes early")
        done += count


def _open(path: str, *, direct: bool) -> tuple[int, bool]:
    """A descriptor for reading, and whether it bypasses the page cache."""
    if direct and hasattr(os, "O_DIRECT"):
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC), True
        except OSError as problem:
            if problem.errno != 22:  # EINVAL: this file system has no direct reads
                raise
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        import fcntl

        fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)  # type: ignore[attr-defined, unused-ignore]
    except (ImportError, AttributeError):
        pass  # only macOS has it
    return fd, False


def _drop_from_page_cache(fd: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


class _Skeleton:
    """A module whose parameters and buffers can be pointed at weights."""

    def __init__(self, definition: BlockDefinition, dtype: torch.dtype) -> None:
        with torch.device("meta"):
            module = definition.build().to(dtype).eval()
        self._expected = {name: (tuple(t.shape), t.dtype) for name, t in module.state_dict().items()}
        self._empty = torch.empty(0, dtype=dtype)
        self._targets: dict[str, Tensor] = {}
        for prefix, child in module.named_modules():
            for table in (child._parameters, child._buffers):
                for name in [n for n, t in table.items() if t is not None]:
                    target: Any = torch.empty(0, dtype=dtype)
                    if table is child._parameters:
                        target = nn.Parameter(target, requires_grad=False)
                    table[name] = target
                    self._targets[f"{prefix}.{name}" if prefix else name] = target
        self.module = module

    def check(self, found: Mapping[str, tuple[tuple[int, ...], torch.dtype]], path: str) -> None:
        """StoreError unless the file holds exactly the tensors of this kind of block."""
        if found != self._expected:
            different = sorted({name for name, _ in set(found.items()) ^ set(self._expected.items())})
            raise StoreError(f"{path}: made for another model (differs in {different[0]!r})")

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        """Point every parameter and buffer at `tensors`."""
        for name, target in self._targets.items():
            target.data = tensors[name]

    def unbind(self) -> None:
        """Let go of the weights."""
        for target in self._targets.values():
            target.data = self._empty
