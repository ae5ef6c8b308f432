"""Temporary folders that go even if their process is killed: with the next one that anybody makes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

_PREFIX = "cidl-tmp-"


@contextmanager
def temporary_folder(what: str) -> Iterator[Path]:
    """A folder for the body, locked while it is in use; those of processes that were killed are removed first.

    The lock is the kernel's (flock), on the folder itself: it ends with the process and tells nothing by a number that
    another process, or one in another container, may have.
    """
    base = Path(tempfile.gettempdir())
    for left in base.glob(f"{_PREFIX}*"):
        _remove_if_left(left)
    folder, lock = _made(what)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _made(what: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{what}-"))
        with suppress(FileNotFoundError):  # taken for left before it was locked
            lock = os.open(folder, os.O_RDONLY)
            if _lock(lock) != "somebody's" and folder.exists():
                return folder, lock
            os.close(lock)


def _remove_if_left(folder: Path) -> None:
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if _lock(handle) == "ours":
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


def _lock(handle: int) -> Literal["ours", "somebody's", "no lock"]:
    """Whose the folder is now; some file systems have no locks, and nothing there is known to be left."""
    import fcntl  # other systems than Unix have none; nothing runs there

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "somebody's"
    except OSError:
        return "no lock"
    return "ours"
