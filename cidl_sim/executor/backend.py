"""What the runtime asks of a machine: load a block, run it, unload it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from cidl_sim.core.trace import Origin
from cidl_sim.core.workload import Visit

Call = Callable[..., Any]
StepEvent = tuple[str, dict[str, str | int | float | bool | None]]  # kind, values


class Backend(Protocol):
    """One kind of machine. The runtime calls `reserve`, `make_room`, `grow` and `unload` under its lock, one at
    a time; `load` runs in a loader thread and `callable_for` in the executor's thread, without it.
    """  # noqa: D205

    origin: Origin
    fall_backs: list[str]

    def reserve(self, weights: str) -> None:
        """Take the memory for `weights`."""

    def load(self, weights: str) -> None:
        """Bring `weights` into the reserved memory; returns when they can be used."""

    def callable_for(self, visit: Visit) -> Call:
        """The block of a visit, its weights bound, as a function of tensors."""

    def unload(self, weights: str) -> None:
        """Give the memory of `weights` back."""

    def make_room(self, weights_bytes: int) -> None:
        """Hold at most `weights_bytes` of memory for weights, if what is in use allows it."""

    def grow(self, capacity_bytes: int) -> None:
        """The memory limit grew: weights may take so many bytes together."""

    def footprint_bytes(self) -> int:
        """Bytes held for weights now, touched but unused memory included."""

    def figures(self) -> dict[str, int | str]:
        """What the trace's header should say: `touched_bytes`, the most held for weights, and what else there is."""

    def close(self) -> None:
        """Give everything back."""


@dataclass(frozen=True)
class Outcome:
    """What a visit decided: the stage that ends early, if one does, and events for the trace."""

    end_stage: int | None = None
    events: tuple[StepEvent, ...] = ()


class Program(Protocol):
    """What is computed: it feeds each block and takes its result, in the order of the visits."""

    def run(self, visit: Visit, block: Call) -> Outcome:
        """Call `block` with the visit's inputs and keep what comes out."""
