"""What a page cache does: read ahead as deep as memory allows, evict the least recently used."""

from __future__ import annotations

from collections import OrderedDict

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import Plan
from cidl_sim.core.workload import Workload
from cidl_sim.policies.build import deep_prefetch


def lru(workload: Workload, device: DeviceProfile) -> Plan:
    """Keep exactly the weights that an LRU cache of the device's size would still hold at their next visit.

    Weights that the cache would evict before that are dropped at once instead: the hits are the same,
    and eviction costs nothing. On a cyclic sweep over more than fits there are no hits at all.
    """
    keep: set[int] = set()
    cache: OrderedDict[str, int] = OrderedDict()
    last_visit: dict[str, int] = {}
    room = device.memory_limit_bytes - device.baseline_bytes
    for visit in workload.visits:
        block = visit.block
        if block.weights in cache:
            keep.add(last_visit[block.weights])
            cache.move_to_end(block.weights)
        else:
            cache[block.weights] = block.weight_bytes
        while len(cache) > 1 and sum(cache.values()) + block.workspace_bytes > room:
            evicted, _ = cache.popitem(last=False)
            keep.discard(last_visit.get(evicted, -1))
        last_visit[block.weights] = visit.number
    return deep_prefetch("lru", workload, device, keep)
