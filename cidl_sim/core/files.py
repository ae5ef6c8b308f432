"""Reading and writing the project's files: validated on the way in, never half written on the way out."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cidl_sim.core.errors import InputError, MachineError

Model = TypeVar("Model", bound="Record")


class Record(BaseModel):
    """Frozen data with no unknown fields and no infinities: the base of every noun that is a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields replaced, and without anything that was worked out from the old ones."""
        copied = super().model_copy(update=update, deep=deep)
        if update:
            # Cached properties (visits, hashes, sums) lie among the fields, and pydantic would copy them along.
            for name in set(vars(copied)) - set(type(self).model_fields):
                del vars(copied)[name]
        return copied


def first_problem(error: ValidationError) -> str:
    """One line for the first problem that pydantic found: the field, if it is about one, and what is wrong with it."""
    problem = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{field + ': ' if field else ''}{problem['msg'].removeprefix('Value error, ')}{more}"


def validated(model: type[Model], data: Any, source: str, error: type[InputError]) -> Model:
    """`data` as a `model`, or `error` with a line that names `source` and the field."""
    try:
        return model.model_validate(data)
    except ValidationError as problem:
        raise error(f"{source}: {first_problem(problem)}") from None


def read_text(path: Path, error: type[InputError]) -> str:
    """The text of `path`, a byte order mark left out, or `error` with a line that names it."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):  # some never end
            raise error(f"{path}: a device, not a file")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or "not UTF-8 text"
        raise error(f"{path}: cannot be read ({reason})") from None


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path, error: type[InputError]) -> Any:
    """The JSON document in `path`, or `error` with a line that names it."""
    text = read_text(path, error)
    try:
        document = json.loads(text)
        if _SURROGATE.search(text):
            # Half of a pair is no text: it could neither name a file nor be written out again.
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise error(f"{path}: not JSON (half of a pair of surrogates)") from None
    except (json.JSONDecodeError, RecursionError) as problem:
        raise error(f"{path}: not JSON ({problem})") from None
    return document


def cache_folder() -> Path:
    """Where things lie for later commands that can be made again: measured workloads, the profile of this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cidl_sim"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it over `path` only if the body succeeds.

    What a process that was killed has left of it is removed. Raises MachineError where the disk or the permissions
    fail; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_what_was_left(path)
        yield temporary
        temporary.replace(path)
    except OSError as problem:
        raise MachineError(f"{path}: cannot be written ({problem.strerror or problem})") from problem
    finally:
        with suppress(OSError):  # the error that kept it from being written is the one to report
            temporary.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _remove_what_was_left(path: Path) -> None:
    beginning = f".{path.name}."
    with suppress(OSError):
        for entry in os.scandir(path.parent):
            if entry.name.startswith(beginning) and entry.name.endswith(path.suffix):
                number = entry.name[len(beginning) : len(entry.name) - len(path.suffix)]
                if number.isdecimal() and not is_alive(int(number)):
                    Path(entry.path).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step: readers see the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def canonical_json(data: Any) -> str:
    """JSON with sorted keys and no spaces: one text for one value, the base of every hash."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_of(data: Any) -> str:
    """The hexadecimal SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()
