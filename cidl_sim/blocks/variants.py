"""Which kinds of block use which weights: a package holds the one, and a function for each of the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from cidl_sim.blocks.definition import BlockDefinition
from cidl_sim.core.workload import kind_without_widths

Value = TypeVar("Value")


@dataclass(frozen=True)
class Variant:
    """A kind of block at the longest prompt, at a prompt of one token, and at the length that workloads count on."""

    longest: BlockDefinition
    shortest: BlockDefinition
    nominal: BlockDefinition


Variants = dict[str, dict[str, Variant]]  # by weights, then by kind
MakeVariants = Callable[[], Variants]  # in a process of its own: definitions cannot be sent to one


def variants_by_weights(blocks: Iterable[Variant]) -> Variants:
    """For each set of weights the kinds of block that use it, the plain one before other variants."""
    found: Variants = {}
    for block in blocks:
        found.setdefault(block.longest.weights, {}).setdefault(block.longest.kind, block)
    return {
        weights: dict(sorted(kinds.items(), key=lambda kind: bool(kind[1].longest.variant)))
        for weights, kinds in found.items()
    }


def of_kind(kinds: Mapping[str, Value], kind: str) -> Value:
    """The value of a kind as an export names it: those from before kinds knew widths are of one model each."""
    return next(value for name, value in kinds.items() if kind in (name, kind_without_widths(name)))
