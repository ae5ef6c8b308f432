"""How fast the machine is at this moment: a few loads and products, in half a second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from cidl_sim.executor.arena import Arena
from cidl_sim.executor.reading import read_block
from cidl_sim.executor.store import BlockStore

# Loads of the store's largest block and products, in turns.
_TURNS = 8
_TOKENS, _WIDTH, _PRODUCTS = 64, 1024, 4


@dataclass(frozen=True)
class Rates:
    """Bytes loaded and FLOPs done a second, medians."""

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
        import torch

        arena, threads = Arena(self._bytes), torch.get_num_threads()
        torch.set_num_threads(1)
        loads, products = [], []
        try:
            slot = arena.take(self._bytes)
            weights, tokens = torch.ones(_WIDTH, _WIDTH), torch.ones(_TOKENS, _WIDTH)
            # The first turn touches the memory.
            for _ in range(_TURNS + 1):
                loads.append(_seconds(lambda: read_block(self._store, self._largest, slot.buffer())))
                products.append(_seconds(lambda: [tokens @ weights for _ in range(_PRODUCTS)]))
            arena.give_back(slot)
        finally:
            arena.close()
            torch.set_num_threads(threads)
        flops = 2 * _TOKENS * _WIDTH * _WIDTH * _PRODUCTS
        return Rates(self._bytes / statistics.median(loads[1:]), flops / statistics.median(products[1:]))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
