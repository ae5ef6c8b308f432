"""One colour and one marker for each policy in every picture, told apart by colour-blind readers."""

from __future__ import annotations

from typing import NamedTuple


class PolicyStyle(NamedTuple):
    """A colour, and the marker's names in matplotlib and plotly."""

    color: str
    marker: str
    symbol: str


# Okabe and Ito's palette; the markers tell more policies apart than it has colours.
_STYLES = (
    PolicyStyle("#0072B2", "o", "circle"),
    PolicyStyle("#E69F00", "s", "square"),
    PolicyStyle("#009E73", "^", "triangle-up"),
    PolicyStyle("#CC79A7", "D", "diamond"),
    PolicyStyle("#56B4E9", "v", "triangle-down"),
    PolicyStyle("#D55E00", "P", "cross"),
    PolicyStyle("#7F7F7F", "X", "x"),
    PolicyStyle("#000000", "<", "triangle-left"),
)
_ORDER = ("spread", "prefix", "rotating", "on_device_sora", "next_block", "lru", "sequential", "random")


def policy_style(pattern: str) -> PolicyStyle:
    """The style of a policy without its number. One that the catalog does not have looks like any."""
    place = _ORDER.index(pattern) if pattern in _ORDER else sum(pattern.encode())
    return _STYLES[place % len(_STYLES)]
