"""The smallest limit or rate at which something holds, and how such values are written for people."""

from __future__ import annotations

from collections.abc import Callable

# Memory limits are found to a thousandth, rates to a hundredth.
LIMIT_RESOLUTION = 1000
RATE_RESOLUTION = 1.01
# Rates are searched up to a million times above and below the profile's.
DOUBLINGS = 20


def smallest_limit(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest limit from `low` on that holds, to a thousandth, given that `high` does."""
    if holds(low):
        return low
    while high - low > max(1, high // LIMIT_RESOLUTION):
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def smallest_rate(holds: Callable[[float], bool], start: float) -> float | None:
    """The smallest rate that holds, to a hundredth; None where all rates do or none does."""
    step = 0.5 if holds(start) else 2.0
    low = high = start
    for _ in range(DOUBLINGS):
        tried = (low if step < 1 else high) * step
        if holds(tried) == (step > 1):
            low, high = (tried / step, tried) if step > 1 else (tried, tried / step)
            break
        low = high = tried
    else:
        return None
    while high / low > RATE_RESOLUTION:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def bytes_text(count: float) -> str:
    """A number of bytes for people."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def rate_text(parameter: str, rate: float) -> str:
    """A rate of the loader or the executor for people."""
    if parameter.endswith("_bytes_per_s"):
        return f"{bytes_text(rate)}/s"
    for unit, size in (("TFLOPS", 1e12), ("GFLOPS", 1e9)):
        if rate >= size:
            return f"{rate / size:.3g} {unit}"
    return f"{rate:.3g} FLOPS"
