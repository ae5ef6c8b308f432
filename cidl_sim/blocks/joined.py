"""Neighbouring blocks as one block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn


class Joined(nn.Module):
    """Blocks called one after another: hidden states pass through, what else one makes, all later ones are given.

    So the T5 block that computes the position bias may be among them, and gives it on to the blocks after them too.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    @classmethod
    def of(cls, builds: Sequence[Callable[[], nn.Module]]) -> Joined:
        """The blocks that these functions build."""
        return cls([build() for build in builds])

    def forward(self, hidden: Tensor, *others: Tensor) -> Any:
        """Hidden states, and what every part takes beside them -> hidden states, and what parts made beside them."""
        made: tuple[Tensor, ...] = ()
        for part in self.parts:
            given = part(hidden, *others, *made)
            hidden, *new = given if isinstance(given, tuple) else (given,)
            made = (*made, *new)
        return (hidden, *made) if made else hidden
