"""Rates of this machine in seconds instead of the minutes of `cidl calibrate`: one read, one product."""

from __future__ import annotations

import os
import time

import torch

from cidl_sim.blocks.definition import TORCH_DTYPES
from cidl_sim.core.device import DeviceProfile, Executor, Loader, Provenance
from cidl_sim.executor.arena import Arena
from cidl_sim.executor.reading import read_block
from cidl_sim.executor.store import BlockStore

READ_BYTES = 2_000_000_000
TOKENS = 300


def rates(store: BlockStore, threads: int) -> tuple[float, float]:
    """Bytes a second from the disk past the page cache, and FLOPs a second of a product of T5's shape."""
    return read_rate(store), product_rate(store, threads)


def read_rate(store: BlockStore) -> float:
    """Bytes a second over about 2 GB of the store's largest blocks, into memory that was touched before."""
    largest = sorted(store.index.blocks, key=lambda w: -store.entry(w).data_bytes)
    arena = Arena(store.entry(largest[0]).data_bytes)
    slot = arena.take(arena.capacity_bytes)
    read_block(store, largest[0], slot.buffer())
    began, done = time.perf_counter(), 0
    for weights in largest[1:]:
        read_block(store, weights, slot.buffer())
        done += store.entry(weights).data_bytes
        if done >= READ_BYTES:
            break
    elapsed = time.perf_counter() - began
    arena.give_back(slot)
    arena.close()
    return done / elapsed


def product_rate(store: BlockStore, threads: int) -> float:
    """FLOPs a second of (tokens, 4096) x (4096, 10240) in the store's precision."""
    torch.set_num_threads(threads)
    dtype = TORCH_DTYPES[store.index.dtype]
    a, b = torch.ones(TOKENS, 4096, dtype=dtype), torch.ones(10240, 4096, dtype=dtype)
    torch.nn.functional.linear(a, b)
    began, repeats = time.perf_counter(), 0
    while time.perf_counter() - began < 1.5:
        torch.nn.functional.linear(a, b)
        repeats += 1
    return repeats * 2 * TOKENS * 4096 * 10240 / (time.perf_counter() - began)


def quick_device(store: BlockStore, memory_limit_bytes: int, baseline_bytes: int) -> DeviceProfile:
    """A profile with nothing but these two rates, to plan with."""
    threads = max(1, (os.cpu_count() or 2) - 1)
    bandwidth, flops = rates(store, threads)
    return DeviceProfile(
        name="quick-rates",
        memory_limit_bytes=memory_limit_bytes,
        baseline_bytes=baseline_bytes,
        loader=Loader(bandwidth_bytes_per_s=bandwidth),
        executor=Executor(flops_per_s=flops),
        provenance=Provenance(source="experiments/shared/quick_rates.py: one read, one product", mark="measured"),
    )
