"""Workloads that an earlier command measured: torch and the networks' libraries take seconds to import.

A workload is known by all that it follows from: settings and sizes, this package's sources, the libraries' versions.
Its file begins with a line that is the SHA-256 of the rest: what was edited or damaged since is measured again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cidl_sim.core.errors import CidlError
from cidl_sim.core.files import cache_folder, sha256_of, write_text
from cidl_sim.core.workload import Workload

LIBRARIES = ("torch",)
MOST_FILES = 300  # of some 20 kB; beyond it those go that were read the longest time ago
_PACKAGE = Path(__file__).parents[1]
_SOURCES = ("blocks", "core", "models", "pipelines", "sampling")


def kept_or_made(follows_from: dict[str, Any], make: Callable[[], Workload]) -> Workload:
    """The workload that follows from these values, read from the cache or made and kept there.

    `follows_from`: everything but sources and libraries, as JSON. A cache that cannot be used is none.
    """
    made_by = _made_by()
    if made_by is None:
        return make()
    file = cache_folder() / "workloads" / f"{sha256_of({**follows_from, **made_by})}.jsonl"
    with suppress(OSError, ValueError):
        kept = _read(file)
        with suppress(OSError):
            os.utime(file)
        return kept
    made = make()
    with suppress(CidlError, OSError):
        text = made.model_dump_json()
        write_text(file, f"{_digest(text)}\n{text}")
        _keep_the_latest(file.parent)
    return made


def _read(file: Path) -> Workload:
    """The workload in `file`; ValueError if it is not as it was written."""
    digest, _, text = file.read_text(encoding="utf-8").partition("\n")
    if digest != _digest(text):
        raise ValueError(f"{file}: changed since it was written")
    return Workload.model_validate_json(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _made_by() -> dict[str, str] | None:
    """What measures: sources and versions; None where a library is missing, which whoever measures will say."""
    try:
        versions = {library: version(library) for library in LIBRARIES}
    except PackageNotFoundError:
        return None
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for source in sorted((_PACKAGE / folder).rglob("*.py")):
            digest.update(source.read_bytes())
    return {**versions, "sources": digest.hexdigest()}


def _keep_the_latest(folder: Path) -> None:
    files = sorted(folder.glob("*.json*"), key=lambda file: file.stat().st_mtime)
    for file in files[:-MOST_FILES]:
        file.unlink(missing_ok=True)
