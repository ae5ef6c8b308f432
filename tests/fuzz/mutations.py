"""Seeded damage: to bytes, to what text says, and to the structure of a document."""

from __future__ import annotations

import copy
import json
import random
import re
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

# Where a number, a text or a list was expected.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, -0.0, 0.5, 1e-320, 1e-12, 1e12, 1e100, 1e300, 1e308, -1e308,
    2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**30,
    "", " ", "x", "0", "-1", "1e400", "nan", "\u0000", "../../etc/passwd", "/dev/zero", "a" * 5000, "\ud800", "é\u202f",
    [], {}, [[]], [None], [0] * 50, {"a": {"a": {"a": []}}},
)  # fmt: skip
TEXTS = (
    "nan", "NaN", "Infinity", "-Infinity", "1e400", "1e-400", "-1", "0", "99999999999999999999", "0x10", "1_000",
    "\u0663", "1.000.000", "640\u202f000", "true", "null", "''", '"', "]]>", "<!ENTITY", "&amp;",
    "\x00", "\ufeff", "\r", "\t", " " * 100, "..", "/", "\\", "%n%s",
)  # fmt: skip
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
DEEPEST = 3000


def of_bytes(data: bytes, chance: random.Random) -> bytes:
    """A few bytes flipped, cut out, doubled, put elsewhere, or the end missing."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        if not found:
            return bytes(chance.randrange(256) for _ in range(chance.randrange(20)))
        at = chance.randrange(len(found))
        length = min(len(found) - at, chance.choice((1, 2, 4, 8, 64, 1024)))
        match chance.randrange(7):
            case 0:
                found[at] ^= 1 << chance.randrange(8)
            case 1:
                found[at : at + length] = bytes(chance.randrange(256) for _ in range(length))
            case 2:
                del found[at : at + length]
            case 3:
                found[at:at] = found[at : at + length]
            case 4:
                piece = bytes(found[at : at + length])
                del found[at : at + length]
                found[chance.randrange(len(found) + 1) :][:0] = piece
            case 5:
                del found[at:]
            case _:
                found[at : at + length] = b"\xff" * length if chance.random() < 0.5 else b"\x00" * length
    return bytes(found)


def of_text(data: bytes, chance: random.Random) -> bytes:
    """A number or a word of the text replaced by something that is none, or is too large."""
    places = [match.span() for match in _NUMBER.finditer(data)]
    text = chance.choice(TEXTS).encode("utf-8", "surrogatepass")
    if not places or chance.random() < 0.2:
        at = chance.randrange(len(data) + 1)
        return data[:at] + text + data[at:]
    start, end = chance.choice(places)
    return data[:start] + text + data[end:]


def of_document(document: Any, chance: random.Random) -> Any:
    """One or two places of a document taken out, doubled, renamed, or replaced by what does not belong there."""
    document = copy.deepcopy(document)
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = [*_places(document, ())]
        if not places:
            return chance.choice(VALUES)
        *path, last = chance.choice(places)
        holder = document
        for step in path:
            holder = holder[step]
        match chance.randrange(6):
            case 0:
                del holder[last]
            case 1 if isinstance(holder, dict):
                holder[chance.choice(("", "x", "format", str(last) + " ", f"{last}\n", "\x1b[2J"))] = holder.pop(last)
            case 1 | 2 if isinstance(holder, list):
                holder.insert(last, copy.deepcopy(holder[last]))
            case 3:
                other = chance.choice(places)
                value = document
                try:
                    for step in other:
                        value = value[step]
                except (KeyError, IndexError, TypeError):
                    continue
                holder[last] = copy.deepcopy(value)
            case 4 if isinstance(holder[last], int | float) and not isinstance(holder[last], bool):
                holder[last] = chance.choice((-holder[last], holder[last] * 10, holder[last] + 1, holder[last] / 3, 0))
            case _:
                holder[last] = copy.deepcopy(chance.choice(VALUES))
    return document


def json_of(document: Any, chance: random.Random) -> bytes:
    """The document as JSON, now and then with a byte order mark, a key twice, or nested beyond reason."""
    text = json.dumps(document, indent=chance.choice((None, 1)))
    match chance.randrange(30):
        case 0:
            text = "\ufeff" + text
        case 1:
            text = text.replace("{", '{"format": "x", ', 1)
        case 2:
            text = "[" * DEEPEST + text + "]" * DEEPEST
        case 3:
            text = re.sub(r"\d+", lambda m: chance.choice((m[0], "9" * 400)), text, count=1)
    return text.encode("utf-8", "surrogatepass")


def gzipped(data: bytes, chance: random.Random) -> bytes:
    """The data as gzip, now and then broken inside, or a bomb of a thousand times its size."""
    kind = chance.randrange(12)
    packed = _packed(data)
    if kind == 0:
        return packed + _bomb()
    return of_bytes(packed, chance) if kind == 1 else packed


def _packed(data: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


@cache
def _bomb() -> bytes:
    """A member of a gzip file, which may have several, that is a thousand times as long as it looks."""
    return _packed(b" " * (64 << 20))


Mutation = Callable[[bytes, random.Random], bytes]


def of_json(data: bytes, chance: random.Random) -> bytes:
    """JSON broken in one of the ways above."""
    match chance.randrange(10):
        case 0 | 1:
            return of_bytes(data, chance)
        case 2 | 3:
            return of_text(data, chance)
        case _:
            return json_of(of_document(json.loads(data), chance), chance)


def _places(document: Any, path: tuple[Any, ...]) -> Any:
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from _places(value, (*path, key))
