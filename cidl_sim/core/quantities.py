"""Sizes as people write them: 3.3GB, 512MiB, 6e9. Exact, however many decimals they have."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

from cidl_sim.core.errors import InputError

# What a file size can be; beyond it sums are no longer exact in other languages' readers.
MAX_BYTES = 2**63 - 1
UNITS = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", 1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)},
}
_BYTES_OF = {unit.lower(): size for unit, size in UNITS.items()}
_SIZE = re.compile(r"\s*(?P<number>([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,9})?)\s*(?P<unit>[a-z]*)\s*", re.I | re.A)
# Beyond it no exponent is multiplied out.
_MOST_DIGITS = 30


def is_size(key: str) -> bool:
    """Whether a figure of that name is in bytes, or in bytes a second, and may be written with a unit."""
    return key.endswith(("_bytes", "_bytes_per_s"))


def parse_bytes(text: str) -> int:
    """The bytes that `text` says: a number from 0 on, alone or with a unit of `UNITS` (capitals do not matter).

    InputError for anything else, and for what is no whole number of bytes.
    """
    amount = _amount(text)
    if amount.denominator != 1:
        raise InputError(f"{text.strip()!r} is not a whole number of bytes")
    return amount.numerator


def parse_bytes_per_s(text: str) -> float:
    """Bytes a second, written as `parse_bytes` takes them; they need not be whole. InputError for anything else."""
    return float(_amount(text))


def parse_size(key: str, text: str) -> int | float:
    """What `text` says for the figure `key`, one that `is_size`. InputError for anything else."""
    return parse_bytes_per_s(text) if key.endswith("_per_s") else parse_bytes(text)


def _amount(text: str) -> Fraction:
    match = _SIZE.fullmatch(text)
    size = _BYTES_OF.get((match["unit"] or "B").lower()) if match else None
    if match is None or size is None:
        raise InputError(
            f"{text.strip()!r} is not a number of bytes: write 3300000000, 3.3GB or 512MiB ({', '.join(UNITS)})"
        )
    number = Decimal(match["number"])
    if not number:
        return Fraction(0)
    if abs(number.adjusted()) > _MOST_DIGITS:
        raise InputError(f"{text.strip()!r} is not a number of bytes that anything holds")
    return Fraction(number) * Fraction(size)
