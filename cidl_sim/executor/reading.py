"""Reading blocks past the page cache, in one pass, into memory that the caller gives."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cidl_sim.core.errors import StoreError
from cidl_sim.executor.arena import PAGE
from cidl_sim.executor.store import BlockStore

READ_BYTES = 64 << 20  # one system call reads at most this much
BUFFERED = "O_DIRECT unavailable: buffered reads, page cache dropped behind"


def read_block(store: BlockStore, weights: str, buffer: memoryview) -> bool:
    """Read a whole block; `buffer` is page-aligned and rounded up to pages.

    Returns whether the page cache was bypassed. StoreError if the file cannot be read or ends early.
    """
    entry = store.entry(weights)
    with _reading(str(store.path(weights))) as (fd, direct):
        # Direct reads want whole pages; the file's end cuts them short.
        _read_into(fd, buffer, entry.data_offset, entry.data_bytes)
    return direct


def read_file(path: Path, buffer: memoryview, size: int) -> bool:
    """Read the first `size` bytes of a file; `buffer`, the result and the error are those of `read_block`."""
    with _reading(str(path)) as (fd, direct):
        _read_into(fd, buffer, 0, size)
    return direct


def read_block_in_pieces(
    store: BlockStore, weights: str, next_buffer: Callable[[], memoryview], on_piece: Callable[[int, int], None]
) -> bool:
    """Read a whole block piece by piece, each into the page-aligned buffer that `next_buffer` gives.

    `on_piece(offset, size)` is called once a piece is in its buffer. Returns and raises as `read_block`.
    """
    entry = store.entry(weights)
    with _reading(str(store.path(weights))) as (fd, direct):
        done = 0
        while done < entry.data_bytes:
            buffer = next_buffer()
            size = min(len(buffer), entry.data_bytes - done)
            _read_into(fd, buffer, entry.data_offset + done, size)
            on_piece(done, size)
            done += size
    return direct


def read_rows(store: BlockStore, weights: str, row_bytes: int, rows: Sequence[int], buffer: memoryview) -> None:
    """Read some rows of a block that is one table, one after another into `buffer`. StoreError as `read_block`."""
    start = store.entry(weights).data_offset
    with _reading(str(store.path(weights)), direct=row_bytes % PAGE == 0) as (fd, _):
        for i, row in enumerate(rows):
            _read_into(fd, buffer[i * row_bytes : (i + 1) * row_bytes], start + row * row_bytes, row_bytes)


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
