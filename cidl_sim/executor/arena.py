"""The memory that weights live in: one range of addresses, reserved once, touched as it comes into use.

A block needs a contiguous range of addresses, not of memory. So the arena hands out extents of its range: where one
hole is large enough the block lies there; where only several holes together are, or only they are touched already,
their pages are moved side by side to a new address, and back when the slot is given back. Blocks of any sizes therefore
fit whenever their bytes fit, no load ever waits for fragmentation, and none costs memory.

On Linux it is anonymous memory in huge pages: what is read past the page cache into scattered pages of 4 KiB goes to
the disk in that many pieces, and takes half as long again (experiments/results/load_conditions.md).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

PAGE = 4096
# Names the mmap module of Python 3.11 lacks.
_PROT_NONE, _MAP_FIXED, _MADV_POPULATE_WRITE = 0x0, 0x10, 23
_MREMAP_MAYMOVE, _MREMAP_FIXED, _MREMAP_DONTUNMAP = 1, 2, 4
_PR_SET_VMA, _PR_SET_VMA_ANON_NAME = 0x53564D41, 0
_HUGE = 2 << 20
# A smaller arena stays in small pages: rounding up to a huge one would cost more than it gains.
_HUGE_FROM = 64 << 20
_POPULATE_BYTES = 8 << 20  # touched by one system call; no reader waits longer than that takes

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
if sys.platform == "linux":
    _libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    _libc.mremap.restype = ctypes.c_void_p
    _libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    _libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_char_p]
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANON


Extent = tuple[int, int]  # offset in the arena, length; both in bytes and whole pages


@dataclass(frozen=True, slots=True)
class Slot:
    """A contiguous, page-aligned range of addresses backed by extents (offset, length) of the arena."""

    address: int
    bytes: int
    extents: tuple[Extent, ...]
    is_fresh: bool = False  # some of its pages were never touched, or trimmed since

    def buffer(self) -> memoryview:
        """The slot as writable bytes."""
        return memoryview((ctypes.c_char * self.bytes).from_address(self.address)).cast("B")


class Arena:
    """`capacity_bytes` of address space; physical memory is taken when a slot is first written.

    `maximum_bytes` is how far it may grow. Not thread-safe: the caller's lock guards every method.
    """

    def __init__(self, capacity_bytes: int, maximum_bytes: int = 0) -> None:
        self.capacity_bytes = _round_up(max(capacity_bytes, PAGE))
        self._mapped_bytes = max(self.capacity_bytes, _round_up(maximum_bytes))
        self._memory: _Memory = (_Anonymous if sys.platform == "linux" else _File)(self._mapped_bytes)
        self._is_open = True
        self._holes: list[Extent] = [(0, self.capacity_bytes)]
        self._touched: list[Extent] = []
        self.peak_touched_bytes = 0
        self.stitched_slots = 0

    @property
    def touched_bytes(self) -> int:
        """Bytes that the kernel holds for the arena: every page written and not trimmed since."""
        return sum(length for _, length in self._touched)

    def take(self, size: int) -> Slot:
        """A slot of at least `size` bytes, rounded up to pages. MemoryError if the holes together are smaller.

        No page is touched for the first time while a touched one is free: what the kernel holds is the peak of
        what was in use at once.
        """
        needed = _round_up(max(size, 1))
        if sum(length for _, length in self._holes) < needed:
            raise MemoryError(f"the arena of {self.capacity_bytes} bytes has no room for {needed} more")
        free_touched = _intersection(self._holes, self._touched)
        extent = self._contiguous(needed, free_touched)
        if extent is not None:
            self._holes = _without(self._holes, extent)
            return self._taken(Slot(self._memory.base + extent[0], needed, (extent,)))
        return self._taken(self._stitch(needed, free_touched))

    def _contiguous(self, needed: int, free_touched: list[Extent]) -> Extent | None:
        """The lowest place in one hole that uses all the touched bytes it can, or None if only several holes do."""
        wanted = min(needed, sum(length for _, length in free_touched))
        for offset, length in self._holes:
            if length < needed:
                continue
            inside = _intersection([(offset, length)], free_touched)
            last = offset + length - needed
            for start in (offset, *(min(piece, last) for piece, _ in inside)):
                if sum(size for _, size in _intersection([(start, needed)], inside)) >= wanted:
                    return start, needed
        return None

    def give_back(self, slot: Slot) -> None:
        """Return a slot's extents; neighbouring holes grow together. The pages stay with the arena."""
        if len(slot.extents) > 1:
            self._memory.put_back(slot)
        self._holes = _merged([*self._holes, *slot.extents])

    def trim(self, keep_bytes: int) -> None:
        """Give free pages back to the kernel until at most `keep_bytes` are touched, if that many are free."""
        excess = self.touched_bytes - keep_bytes
        for offset, length in reversed(_intersection(self._holes, self._touched)):
            if excess <= 0:
                break
            piece = min(length, _round_up(excess))
            at = offset + length - piece
            if not self._memory.drop(at, piece):
                return
            self._touched = _without(self._touched, (at, piece))
            excess -= piece

    def grow(self, capacity_bytes: int) -> None:
        """Hand out slots up to this many bytes from now on, at most the maximum."""
        capacity = min(_round_up(capacity_bytes), self._mapped_bytes)
        if capacity > self.capacity_bytes:
            self._holes = _merged([*self._holes, (self.capacity_bytes, capacity - self.capacity_bytes)])
            self.capacity_bytes = capacity

    def close(self) -> None:
        """Give the memory back to the system. No slot may be in use."""
        if self._is_open:
            self._memory.close()
            self._is_open = False

    def _taken(self, slot: Slot) -> Slot:
        before = self.touched_bytes
        self._touched = _merged(_united([*self._touched, *slot.extents]))
        self.peak_touched_bytes = max(self.peak_touched_bytes, self.touched_bytes)
        return replace(slot, is_fresh=self.touched_bytes > before)

    def _stitch(self, needed: int, free_touched: list[Extent]) -> Slot:
        untouched = self._holes
        for touched in free_touched:
            untouched = _without(untouched, touched)
        extents: list[Extent] = []
        missing = needed
        # Touched pages first, and the largest pieces of each: the fewest mappings.
        for offset, length in [*sorted(free_touched, key=_length, reverse=True), *untouched]:
            piece = min(length, missing)
            extents.append((offset, piece))
            missing -= piece
            if not missing:
                break
        for used in extents:
            self._holes = _without(self._holes, used)
        self.stitched_slots += 1
        return Slot(self._memory.side_by_side(extents), needed, tuple(extents))


class _Memory(Protocol):
    """Where an arena's bytes are."""

    base: int

    def side_by_side(self, extents: list[Extent]) -> int:
        """The address at which these extents follow each other; nobody uses them elsewhere until they are put back."""

    def put_back(self, slot: Slot) -> None:
        """End that."""

    def drop(self, offset: int, size: int) -> bool:
        """Give pages that nobody uses to the kernel, keeping their addresses; False where the system cannot."""

    def close(self) -> None:
        """Give everything back."""


class _Anonymous:
    """Anonymous memory, whose pages are moved from address to address without copying them (Linux)."""

    def __init__(self, size: int) -> None:
        # Aligned to huge pages; the ends that are too much take no memory.
        self._start, self._bytes = _mapped(None, size + _HUGE, _PRIVATE), size + _HUGE
        self.base = -(-self._start // _HUGE) * _HUGE
        self._cuts: set[int] = set()
        if size >= _HUGE_FROM:
            _libc.madvise(self.base, size, mmap.MADV_HUGEPAGE)
        _libc.prctl(_PR_SET_VMA, _PR_SET_VMA_ANON_NAME, self._start, self._bytes, b"cidl-arena")

    def side_by_side(self, extents: list[Extent]) -> int:
        address = at = _reserve(sum(length for _, length in extents))
        for offset, length in extents:
            for start, size in self._uncut(offset, length):
                # Its place stays mapped, empty: nobody else may settle there.
                _move(self.base + start, size, at, _MREMAP_DONTUNMAP)
                at += size
        self._cuts.update(edge for offset, length in extents for edge in (offset, offset + length))
        return address

    def put_back(self, slot: Slot) -> None:
        at = slot.address
        for offset, length in slot.extents:
            for start, size in self._uncut(offset, length):
                _move(at, size, self.base + start, 0)
                at += size

    def _uncut(self, offset: int, length: int) -> Iterator[Extent]:
        """An extent in pieces that were moved as one each time: the kernel moves no two mappings at once."""
        edges = [offset, *sorted(cut for cut in self._cuts if offset < cut < offset + length), offset + length]
        return ((start, end - start) for start, end in pairwise(edges))

    def drop(self, offset: int, size: int) -> bool:
        return bool(_libc.madvise(self.base + offset, size, mmap.MADV_DONTNEED) == 0)

    def close(self) -> None:
        _libc.munmap(self._start, self._bytes)


class _File:
    """An anonymous file, whose pages can be mapped at several addresses (other systems)."""

    def __init__(self, size: int) -> None:
        self._bytes = size
        self._fd = _anonymous_file(size)
        self.base = _mapped(None, size, mmap.MAP_SHARED, self._fd)

    def side_by_side(self, extents: list[Extent]) -> int:
        address = at = _reserve(sum(length for _, length in extents))
        for offset, length in extents:
            _mapped(at, length, mmap.MAP_SHARED | _MAP_FIXED, self._fd, offset)
            at += length
        return address

    def put_back(self, slot: Slot) -> None:
        _libc.munmap(slot.address, slot.bytes)

    def drop(self, offset: int, size: int) -> bool:
        return False

    def close(self) -> None:
        _libc.munmap(self.base, self._bytes)
        os.close(self._fd)


@contextmanager
def populating(slot: Slot) -> Iterator[None]:
    """Touch a fresh slot's pages from another thread while the caller fills them.

    First touch, a fault and a page of zeros each time, can take longer than the read that follows it; read
    and touched at once the slot is ready after the longer of the two. Where the system cannot (before Linux
    5.14, elsewhere) the caller touches them itself.
    """
    madvise = getattr(_libc, "madvise", None)
    if not slot.is_fresh or madvise is None or sys.platform != "linux":
        yield
        return
    filled = threading.Event()

    def touch() -> None:
        for at in range(0, slot.bytes, _POPULATE_BYTES):
            size = min(_POPULATE_BYTES, slot.bytes - at)
            failed = madvise(ctypes.c_void_p(slot.address + at), ctypes.c_size_t(size), _MADV_POPULATE_WRITE)
            if failed or filled.is_set():
                return

    thread = threading.Thread(target=touch, name="populate")
    thread.start()
    try:
        yield
    finally:
        filled.set()
        thread.join()


def _length(extent: Extent) -> int:
    return extent[1]


def _round_up(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _merged(extents: list[Extent]) -> list[Extent]:
    """Sorted, with extents that touch each other joined. They must not overlap."""
    result: list[Extent] = []
    for offset, length in sorted(extents):
        if result and sum(result[-1]) == offset:
            result[-1] = (result[-1][0], result[-1][1] + length)
        else:
            result.append((offset, length))
    return result


def _united(extents: list[Extent]) -> list[Extent]:
    """The same bytes as sorted extents without overlaps."""
    result: list[Extent] = []
    for offset, length in sorted(extents):
        reached = sum(result[-1]) if result else 0
        end = offset + length
        if end > reached:
            start = max(offset, reached)
            result.append((start, end - start))
    return result


def _intersection(a: list[Extent], b: list[Extent]) -> list[Extent]:
    pieces = []
    for offset, length in a:
        for other, other_length in b:
            start, end = max(offset, other), min(offset + length, other + other_length)
            if start < end:
                pieces.append((start, end - start))
    return sorted(pieces)


def _without(extents: list[Extent], removed: Extent) -> list[Extent]:
    start, end = removed[0], sum(removed)
    result = []
    for offset, length in extents:
        if offset < start:
            result.append((offset, min(length, start - offset)))
        if offset + length > end:
            result.append((max(offset, end), offset + length - max(offset, end)))
    return result


def _anonymous_file(size: int) -> int:
    import _posixshmem

    name = f"/cidl-{os.getpid()}-{size}"
    fd = _posixshmem.shm_open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=0o600)
    _posixshmem.shm_unlink(name)
    os.ftruncate(fd, size)
    return int(fd)


def _mapped(address: int | None, size: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    return _checked(_libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, offset))


def _move(address: int, size: int, to: int, flags: int) -> None:
    _checked(_libc.mremap(address, size, size, _MREMAP_MAYMOVE | _MREMAP_FIXED | flags, to))


def _reserve(size: int) -> int:
    return _checked(_libc.mmap(None, size, _PROT_NONE, _PRIVATE, -1, 0))


def _checked(address: int | None) -> int:
    if address is None or address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise MemoryError(f"mmap failed: {os.strerror(code)}")
    return address
