"""The memory that weights live in: one anonymous file, allocated once, touched as it comes into use.

A block needs a contiguous range of addresses, not of memory. So the arena hands out extents of its file:
where one hole is large enough the block lies there; where only several holes together are, or only they
are touched already, they are mapped side by side at a new address. Blocks of any sizes therefore fit whenever
their bytes fit, no load ever waits for fragmentation, and none costs memory. A new mapping costs a fault for each
page, so mappings outlive their slots and serve the next one of the same size.
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

PAGE = 4096
# Names the mmap module of Python 3.11 lacks.
_PROT_NONE, _MAP_FIXED, _MADV_POPULATE_WRITE = 0x0, 0x10, 23
_MOST_SPARE = 32  # mappings kept of slots that were given back
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


Extent = tuple[int, int]  # offset in the arena's file, length; both in bytes and whole pages


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
        self._fd = _anonymous_file(self._mapped_bytes)
        self._base = _map(None, self._mapped_bytes, self._fd, 0)
        _prefer_huge_pages(self._base, self._mapped_bytes)
        self._holes: list[Extent] = [(0, self.capacity_bytes)]
        self._touched: list[Extent] = []
        self._spare: list[Slot] = []
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
            return self._taken(Slot(self._base + extent[0], needed, (extent,)))
        return self._taken(self._reuse(needed, free_touched) or self._stitch(needed, free_touched))

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
            self._spare.append(slot)
            if len(self._spare) > _MOST_SPARE:
                oldest = self._spare.pop(0)
                _libc.munmap(oldest.address, oldest.bytes)
        self._holes = _merged([*self._holes, *slot.extents])

    def trim(self, keep_bytes: int) -> None:
        """Give free pages back to the kernel until at most `keep_bytes` are touched, if that many are free."""
        excess = self.touched_bytes - keep_bytes
        for offset, length in reversed(_intersection(self._holes, self._touched)):
            if excess <= 0:
                break
            piece = min(length, _round_up(excess))
            at = offset + length - piece
            if not _punch(self._fd, at, piece):
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
        if self._fd >= 0:
            for slot in self._spare:
                _libc.munmap(slot.address, slot.bytes)
            self._spare = []
            _libc.munmap(self._base, self._mapped_bytes)
            os.close(self._fd)
            self._fd = -1

    def _taken(self, slot: Slot) -> Slot:
        before = self.touched_bytes
        self._touched = _merged(_united([*self._touched, *slot.extents]))
        self.peak_touched_bytes = max(self.peak_touched_bytes, self.touched_bytes)
        return replace(slot, is_fresh=self.touched_bytes > before)

    def _reuse(self, needed: int, free_touched: list[Extent]) -> Slot | None:
        """A mapping given back whose pages are all free and touched, the latest first."""
        for slot in reversed(self._spare):
            if slot.bytes == needed and _length_of(_intersection(list(slot.extents), free_touched)) == needed:
                self._spare.remove(slot)
                for used in slot.extents:
                    self._holes = _without(self._holes, used)
                return slot
        return None

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
        address = _reserve(needed)
        at = address
        for offset, length in extents:
            _map(at, length, self._fd, offset)
            at += length
        self.stitched_slots += 1
        return Slot(address, needed, tuple(extents))


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


def _length_of(extents: list[Extent]) -> int:
    return sum(length for _, length in extents)


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


def _punch(fd: int, offset: int, size: int) -> bool:
    """Free the pages of a range of the file, keeping its size; False where the system cannot."""
    fallocate = getattr(_libc, "fallocate", None)
    if fallocate is None:
        return False
    keep_size_and_punch_hole = 0x01 | 0x02
    return bool(fallocate(fd, keep_size_and_punch_hole, ctypes.c_long(offset), ctypes.c_long(size)) == 0)


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("cidl-arena")
    else:
        import _posixshmem

        name = f"/cidl-{os.getpid()}-{size}"
        fd = _posixshmem.shm_open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=0o600)
        _posixshmem.shm_unlink(name)
    os.ftruncate(fd, size)
    return fd


def _map(address: int | None, size: int, fd: int, offset: int) -> int:
    flags = mmap.MAP_SHARED | (_MAP_FIXED if address is not None else 0)
    return _checked(_libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, offset))


def _prefer_huge_pages(address: int, size: int) -> None:
    # First touch in pages of 2 MiB costs a fraction of what it costs in 4 KiB; where the kernel does not
    # offer them for shared memory, nothing changes.
    madvise, huge = getattr(_libc, "madvise", None), getattr(mmap, "MADV_HUGEPAGE", None)
    if madvise is not None and huge is not None:
        madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), huge)


def _reserve(size: int) -> int:
    return _checked(_libc.mmap(None, size, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANON, -1, 0))


def _checked(address: int | None) -> int:
    if address is None or address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise MemoryError(f"mmap failed: {os.strerror(code)}")
    return address
