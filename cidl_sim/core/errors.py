"""The exception families of the package, each with the exit code the command line gives it.

An error is raised where the fact is known and says, in one line, what is wrong and (where that is
possible) what would put it right. The command line prints that line and leaves with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from unicodedata import category

# Control characters, and what ends a line or a paragraph.
_CONTROLS = {"Cc", "Zl", "Zp"}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What to add to a line that refuses `name`: the known name nearest to it, or nothing if none is near."""
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def one_line(text: str) -> str:
    """A text without line breaks or other control characters: what files name may hold any."""
    return "".join(repr(c)[1:-1] if category(c) in _CONTROLS else c for c in text)


class CidlError(Exception):
    """Base of everything the package raises on purpose. Its words are one line, whatever a file put into them."""

    exit_code = 1

    def __init__(self, words: str = "") -> None:
        super().__init__(one_line(str(words)))


class InputError(CidlError):
    """A file, a name or a value that the user gave is wrong."""

    exit_code = 2


class WorkloadError(InputError):
    """A workload that cannot be read or makes no sense."""


class DeviceError(InputError):
    """A device profile that cannot be read or lacks a figure that is needed."""


class PlanError(InputError):
    """A plan that cannot be read, belongs to another workload or breaks a rule of execution."""


class TraceError(InputError):
    """A trace that cannot be read."""


class PublishedError(InputError):
    """A file of published measurements that cannot be read, or lacks a row that is asked for."""


class StoreError(InputError):
    """A block store that is missing, damaged or made for another model."""


class PackageError(InputError):
    """A Core ML package that cannot be read, or that holds what the interpreter does not know."""


class InfeasibleError(CidlError):
    """No room: the limit is below what the plan, or any plan, needs."""

    exit_code = 3


class MachineError(CidlError):
    """The environment failed: disk full, I/O error, no permission."""

    exit_code = 4
