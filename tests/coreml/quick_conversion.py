"""Conversions without what coremltools does for itself alone: that takes half of their time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def without_self_checks() -> Iterator[None]:
    """Convert without the checks of a program after each pass, which change nothing in it.

    Nor is it written out for a log that nobody keeps, nor searched for compressed weights where it has none.
    """
    from coremltools.converters.mil.mil.block import Block
    from coremltools.converters.mil.mil.program import Program

    mark_compressed = Block._propagate_nonreplaceable_vars

    def mark(block: Block) -> None:
        if _has_compressed_weights(block):
            mark_compressed(block)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "validate", lambda *_, **__: None)
        patch.setattr(Program, "__str__", object.__repr__)
        patch.setattr(Block, "_propagate_nonreplaceable_vars", mark)
        yield


def _has_compressed_weights(block) -> bool:
    return any(
        op.op_type.startswith("constexpr_") or any(map(_has_compressed_weights, op.blocks)) for op in block.operations
    )
