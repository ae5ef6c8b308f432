"""Are the files of a folder those that its index lists? Hashed once for each state of the files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cidl_sim.core.errors import InputError, MachineError
from cidl_sim.core.files import write_text

STAMP = ".verified.json"
Listed = Mapping[str, tuple[int, str]]  # bytes and SHA-256 of each file, by its path in the folder


def check_files(root: Path, listed: Listed, *, index: str, error: type[InputError], verify: bool = False) -> None:
    """Raise `error`, which names the file, for one that is missing, truncated or altered; `index` lists them.

    Sizes are checked always; hashes once for each state (size, time, inode) of the files, or always with `verify`.
    """
    for name, (size, _) in listed.items():
        _check_size(root / name, size, error)
    states = {name: (root / name).stat() for name in listed}
    stamp = {
        name: [sha256, states[name].st_size, states[name].st_mtime_ns, states[name].st_ino]
        for name, (_, sha256) in listed.items()
    }
    try:
        known = json.loads((root / STAMP).read_text()) == stamp
    except (OSError, ValueError):
        known = False
    if verify or not known:
        for name, (_, sha256) in listed.items():
            _check_hash(root / name, sha256, index, error)
        with suppress(MachineError):  # the stamp only saves time; the disk may be full or not ours
            write_text(root / STAMP, json.dumps(stamp))


def _check_size(path: Path, size: int, error: type[InputError]) -> None:
    try:
        found = path.stat().st_size
    except OSError as problem:
        raise error(f"{path}: missing or unreadable ({problem.strerror})") from None
    if found != size:
        raise error(f"{path}: truncated or altered ({found} bytes instead of {size})")


def _check_hash(path: Path, sha256: str, index: str, error: type[InputError]) -> None:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror})") from None
    if digest != sha256:
        raise error(f"{path}: altered (its SHA-256 is not the one in {index})")
