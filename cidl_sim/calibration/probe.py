"""How fast the machine is at this moment: a few loads and products, in a second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from cidl_sim.executor.arena import Arena
from cidl_sim.executor.pace import pace
from cidl_sim.executor.reading import read_block
from cidl_sim.executor.store import BlockStore

_LOADS = 8  # of the store's largest block


@dataclass(frozen=True)
class Rates:
    """Bytes loaded a second (median) and FLOPs done a second (`pace`)."""

    load: float
    execute: float


class Probe:
    """Looks how fast the machine is: what other guests do to it shows before and after a run, apart from the run."""

    def __init__(self, store: BlockStore) -> None:
        self._store = store
        self._largest = max(store.index.blocks, key=lambda weights: store.entry(weights).data_bytes)
        self._bytes = store.entry(self._largest).data_bytes

    def rates(self) -> Rates:
        """One look. StoreError if the block cannot be read."""
        arena = Arena(self._bytes)
        try:
            slot = arena.take(self._bytes)
            # The first load touches the memory.
            loads = [_seconds(lambda: read_block(self._store, self._largest, slot.buffer())) for _ in range(_LOADS + 1)]
            arena.give_back(slot)
        finally:
            arena.close()
        return Rates(self._bytes / statistics.median(loads[1:]), pace())


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
