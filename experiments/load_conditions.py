"""What makes one load, or one execution, take longer than another: each suspect measured visit by visit.

    .venv/bin/python experiments/load_conditions.py [--turns 30]

Blocks of the small model (42.6 MB in fp32) are read past the page cache as runs read them, and a pair is executed,
under conditions that take turns within seconds, so that what the machine does in the meantime falls on all of them
alike: bytes that went through memory since the slot was last used, idle time before, pages of 4 KiB or 2 MiB, an
execution or a load beside it, the kernel's limit, a young process. The store (0.7 GB) goes to a temporary folder.
Writes experiments/results/load_conditions.md and .png; some five minutes on 2 cores, which should be quiet.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from bench_executor import processor

from cidl_sim.core.files import replacing, write_text
from cidl_sim.core.workload import Visit
from cidl_sim.executor.arena import PAGE, Arena
from cidl_sim.executor.memory_limit import MemoryGroup
from cidl_sim.executor.reading import read_block
from cidl_sim.executor.store import BlockStore
from cidl_sim.executor.torch_backend import BlockModules
from cidl_sim.pipelines.catalog import DEMO, parse_name, workload_of
from cidl_sim.pipelines.model_store import build_random_store
from cidl_sim.pipelines.open_sora.stages import stage_definitions

RESULTS = Path(__file__).parent / "results"
SIZES, SETTINGS = parse_name(DEMO)
BLOCKS = tuple(f"stdit.{i:02}" for i in range(8))
MIB = 1 << 20
REUSE_MIB = (0, 48, 96, 192, 384, 768)
IDLE_S = (0.0, 0.02, 0.1, 0.4)
PAIR = "stdit.00"
Samples = dict[str, list[float]]  # seconds by condition


class Bench:
    """A store's pairs, memory that was touched, and one pair ready to be executed with weights of its own."""

    def __init__(self, store: BlockStore, ring_bytes: int = 1024 * MIB) -> None:
        self.store = store
        self.bytes = -(-store.entry(PAIR).data_bytes // PAGE) * PAGE
        self.arena = Arena(ring_bytes)
        self.slots = [self.arena.take(self.bytes) for _ in range(ring_bytes // self.bytes - 1)]
        self.turn = 0
        stages = stage_definitions(SIZES, SETTINGS, 8)
        self.modules = BlockModules(store, stages, torch.zeros(1, dtype=torch.int64))
        workload = workload_of(SIZES, SETTINGS)
        self.visit: Visit = next(v for v in workload.visits if v.block.name == PAIR)
        stage = next(s for s in stages if s.name == workload.stages[self.visit.stage].name)
        generator = torch.Generator().manual_seed(0)
        example = next(block for block in stage.blocks if block.name == PAIR).example()
        self.inputs = [torch.randn(t.shape, generator=generator) for t in example]
        for slot in self.slots:
            self.load(slot)

    def load(self, slot: Any) -> float:
        """Seconds of reading the next pair into `slot`."""
        self.turn += 1
        buffer = slot.buffer()
        began = time.perf_counter()
        read_block(self.store, BLOCKS[self.turn % len(BLOCKS)], buffer)
        return time.perf_counter() - began

    def execute(self, slot: Any) -> float:
        """Seconds of executing the pair whose weights lie in `slot`."""
        views = self.modules.tensors(PAIR, torch.frombuffer(slot.buffer(), dtype=torch.uint8))
        call = self.modules.bound(self.visit, views)
        with torch.no_grad():
            began = time.perf_counter()
            call(*self.inputs)
            return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--as-process", metavar="STORE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.as_process:
        answer(BlockStore.open(Path(arguments.as_process)))
        return
    with tempfile.TemporaryDirectory(prefix="cidl-conditions-") as folder:
        print("building the store", flush=True)
        store = build_random_store(Path(folder) / "store", SIZES, "fp32", seed=0)
        load_before = os.getloadavg()[0]
        bench = Bench(store)
        found = {}
        for title, measure in SUSPECTS.items():
            print(title, flush=True)
            found[title] = measure(bench, arguments.turns)
    text = report(found, arguments.turns, load_before)
    print(text)
    write_text(RESULTS / "load_conditions.md", text)
    draw(found, RESULTS / "load_conditions.png")


# The suspects


def turns_of(conditions: dict[str, Callable[[], float]], turns: int) -> Samples:
    """Every condition once a turn, in an order of its own each time."""
    order, samples, chance = list(conditions), defaultdict(list), random.Random(0)
    for _ in range(turns):
        chance.shuffle(order)
        for name in order:
            samples[name].append(conditions[name]())
    return {name: samples[name] for name in conditions}


def reuse_distance(bench: Bench, turns: int) -> Samples:
    """Loads into the slot that was used so many bytes ago."""

    def after(mib: int) -> float:
        slot, others = bench.slots[0], bench.slots[1:]
        bench.load(slot)
        for i in range(round(mib * MIB / bench.bytes)):
            bench.load(others[i])
        return bench.load(slot)

    return turns_of({f"{mib} MiB": lambda mib=mib: after(mib) for mib in REUSE_MIB}, turns)


def executed_between(bench: Bench, turns: int) -> Samples:
    """Loads into the slot that was used last, with an execution of other weights, or of these, between."""

    def after(executed: int | None) -> float:
        bench.load(bench.slots[0])
        if executed is not None:
            bench.execute(bench.slots[executed])
        return bench.load(bench.slots[0])

    conditions = {"nothing": None, "of these weights": 0, "of others": 5}
    return turns_of({name: lambda slot=slot: after(slot) for name, slot in conditions.items()}, turns)


def idle_before(bench: Bench, turns: int) -> Samples:
    """Loads through all the memory, the loader idle before."""

    def after(seconds: float) -> float:
        time.sleep(seconds)
        return bench.load(bench.slots[bench.turn % len(bench.slots)])

    return turns_of({f"{1000 * s:.0f} ms": lambda s=s: after(s) for s in IDLE_S}, turns)


def page_size(bench: Bench, turns: int) -> Samples:
    """Loads through 256 MiB of the arena's kind of memory, in huge pages, and of memory in small ones."""
    small = mmap.mmap(-1, 256 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    small.madvise(mmap.MADV_NOHUGEPAGE)
    whole = memoryview(small)
    whole[::PAGE] = bytes(len(whole) // PAGE)
    places = 256 * MIB // bench.bytes

    class Piece:
        def __init__(self, number: int) -> None:
            self.number = number

        def buffer(self) -> memoryview:
            return whole[self.number * bench.bytes : (self.number + 1) * bench.bytes]

    return turns_of(
        {
            "2 MiB": lambda: bench.load(bench.slots[bench.turn % places]),
            "4 KiB": lambda: bench.load(Piece(bench.turn % places)),
        },
        turns * 3,
    )


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """While another thread repeats `work`."""
    over, begun = threading.Event(), threading.Event()

    def repeat() -> None:
        while not over.is_set():
            begun.set()
            work()

    thread = threading.Thread(target=repeat)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


def loads_beside(bench: Bench, turns: int) -> Samples:
    """Loads through all the memory, alone and while a pair is executed again and again."""

    def beside_an_execution() -> float:
        with beside(lambda: bench.execute(bench.slots[0])):
            return load_of_ring(bench)

    return turns_of({"alone": lambda: load_of_ring(bench), "an execution beside": beside_an_execution}, turns * 2)


def load_of_ring(bench: Bench) -> float:
    """A load into the memory that was used longest ago, the first slot left out."""
    return bench.load(bench.slots[1 + bench.turn % (len(bench.slots) - 1)])


def executions_beside(bench: Bench, turns: int) -> Samples:
    """Executions of weights that have been in memory for long, alone and while other weights are loaded."""

    def alone() -> float:
        return bench.execute(bench.slots[bench.turn % 8 + 1])

    def beside_a_load() -> float:
        ring = iter(range(9, 10**9))
        with beside(lambda: bench.load(bench.slots[9 + next(ring) % 12])):
            return bench.execute(bench.slots[bench.turn % 8 + 1])

    return turns_of({"alone": alone, "loads beside": beside_a_load}, turns * 2)


def executions_after(bench: Bench, turns: int) -> Samples:
    """Executions straight after the load of their weights, and after so many bytes of other loads."""

    def after(mib: int) -> float:
        bench.load(bench.slots[0])
        for i in range(round(mib * MIB / bench.bytes)):
            bench.load(bench.slots[1 + i])
        return bench.execute(bench.slots[0])

    def again() -> float:
        bench.execute(bench.slots[0])
        return bench.execute(bench.slots[0])

    conditions = {f"{mib} MiB": lambda mib=mib: after(mib) for mib in (0, 48, 192)}
    return turns_of({**conditions, "the same execution": again}, turns)


class Process:
    """Another process of this script that loads when it is told to, under a limit or not."""

    def __init__(self, store: BlockStore, limit_bytes: int | None) -> None:
        self._group = MemoryGroup(limit_bytes)
        self._group.__enter__()
        command = [sys.executable, __file__, "--as-process", str(store.root)]
        self._child = subprocess.Popen(
            self._group.command(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.loads()  # once it answers, its memory is touched

    def loads(self, count: int = 4) -> list[float]:
        """Seconds of some loads, one after another."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{count}\n")
        self._child.stdin.flush()
        return list(json.loads(self._child.stdout.readline()))

    def close(self) -> None:
        """End it."""
        self._child.communicate()
        self._group.__exit__()


def answer(store: BlockStore) -> None:
    """What the other process does: as many loads as each line says, through 256 MiB."""
    bench = Bench(store, 256 * MIB)
    for line in sys.stdin:
        print(
            json.dumps([bench.load(bench.slots[bench.turn % len(bench.slots)]) for _ in range(int(line))]), flush=True
        )


def kernel_limit(bench: Bench, turns: int) -> Samples:
    """Loads in two processes that take turns, one under the kernel's limit."""
    processes = {"no limit": Process(bench.store, None), "limit of 640 MB": Process(bench.store, 640_000_000)}
    samples: Samples = {name: [] for name in processes}
    for turn in range(turns // 2):
        names = list(processes)
        for name in names if turn % 2 else names[::-1]:
            samples[name] += processes[name].loads()
    for process in processes.values():
        process.close()
    return samples


def young_process(bench: Bench, turns: int) -> Samples:
    """Loads of an old process, beside the first ones of a process that was just started."""
    old = Process(bench.store, None)
    for _ in range(8):
        old.loads()
    samples: Samples = {"old": [], "its 5th to 8th load": [], "its 9th to 16th load": []}
    for _ in range(max(3, turns // 6)):
        samples["old"] += old.loads()
        young = Process(bench.store, None)
        samples["its 5th to 8th load"] += young.loads()
        samples["its 9th to 16th load"] += young.loads(8)
        young.close()
    old.close()
    return samples


SUSPECTS: dict[str, Callable[[Bench, int], Samples]] = {
    "a load: bytes through memory since its slot was used": reuse_distance,
    "a load into the slot used last: executed between": executed_between,
    "a load: the loader idle before": idle_before,
    "a load: pages of its memory": page_size,
    "a load: beside": loads_beside,
    "a load: the kernel's limit": kernel_limit,
    "a load: age of the process": young_process,
    "an execution: beside": executions_beside,
    "an execution: bytes loaded since its weights were": executions_after,
}


# What came out


def report(found: dict[str, Samples], turns: int, load_before: float) -> str:
    """The table of every suspect."""
    lines = [
        "# What a load and an execution depend on",
        "",
        f"Command: `.venv/bin/python experiments/load_conditions.py --turns {turns}`. Date: "
        f"{datetime.now(UTC).date()}. Machine: {processor()}, {os.cpu_count()} cores, one thread computes, load "
        f"{load_before:.1f} at the start; torch {torch.__version__}.",
        "",
        "Pairs of the small model, 42.6 MB in fp32, read past the page cache. The conditions of a suspect take turns. "
        "The last column compares medians with the first condition of the suspect.",
        "",
        "| suspect | condition | samples | median ms | quartiles ms | against the first |",
        "|---|---|---|---|---|---|",
    ]
    for title, samples in found.items():
        first = statistics.median(next(iter(samples.values())))
        for i, (name, seconds) in enumerate(samples.items()):
            low, middle, high = statistics.quantiles(seconds, n=4)
            lines.append(
                f"| {'' if i else title} | {name} | {len(seconds)} | {1000 * middle:.1f} | "
                f"{1000 * low:.1f} to {1000 * high:.1f} | {middle / first - 1:+.0%} |"
            )
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Samples], path: Path) -> None:
    """Every suspect's samples as boxes, in ms."""
    figure, axes = plt.subplots(3, 3, figsize=(15, 10), constrained_layout=True)
    for axis, (title, samples) in zip(axes.flat, found.items(), strict=True):
        axis.boxplot([[1000 * s for s in seconds] for seconds in samples.values()], showfliers=False)
        axis.set_xticks(range(1, len(samples) + 1), list(samples), fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.set_ylim(bottom=0)
        axis.set_ylabel("ms")
    figure.suptitle(f"{processor()}, {datetime.now(UTC).date()}: medians, quartiles and whiskers, conditions in turns")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


if __name__ == "__main__":
    main()
