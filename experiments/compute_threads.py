"""What executions and loads take with so many compute threads, alone and side by side, for seconds on end.

    .venv/bin/python experiments/compute_threads.py [--turns 4] [--seconds 5]

A pair of the small model is executed again and again, and pairs of 42.6 MB are read past the page cache into huge
pages back to back, each alone and both together, with all cores computing and with all but one. The conditions take
turns. On a virtual machine the column "taken" shows what share of the cores its host used otherwise, such as for the
disk (`steal` in /proc/stat). The store (0.7 GB) goes to a temporary folder. Writes
experiments/results/compute_threads.md and .png; some three minutes, on a machine that should be quiet.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from bench_executor import processor
from load_conditions import SIZES, Bench

from cidl_sim.core.files import replacing, write_text
from cidl_sim.pipelines.model_store import build_random_store

RESULTS = Path(__file__).parent / "results"


@dataclass
class Seen:
    """Of one condition: when each execution and load of any turn began (s from the start) and how long it took."""

    executions: list[tuple[float, float]] = field(default_factory=list)
    loads: list[tuple[float, float]] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    numbers = sorted({max(1, cores - 1), cores})
    conditions = [(0, True), *((n, loads) for n in numbers for loads in (False, True))]
    with tempfile.TemporaryDirectory(prefix="cidl-threads-") as folder:
        print("building the store", flush=True)
        bench = Bench(build_random_store(Path(folder) / "store", SIZES, "fp32", seed=0))
        load_before, began = os.getloadavg()[0], time.perf_counter()
        found = {condition: Seen() for condition in conditions}
        for turn in range(arguments.turns):
            for threads, loads in conditions if turn % 2 else conditions[::-1]:
                phase(bench, threads, loads, arguments.seconds, began, found[threads, loads])
            print(f"turn {turn + 1} of {arguments.turns}", flush=True)
    text = report(found, arguments.turns, arguments.seconds, load_before)
    print(text)
    write_text(RESULTS / "compute_threads.md", text)
    draw(found, RESULTS / "compute_threads.png")


def phase(bench: Bench, threads: int, loads: bool, seconds: float, began: float, seen: Seen) -> None:
    """Execute (unless `threads` is 0) and load (if `loads`) for so long."""
    torch.set_num_threads(max(1, threads))
    over = threading.Event()

    def again(work: Callable[[], float], samples: list[tuple[float, float]]) -> None:
        while not over.is_set():
            at = time.perf_counter() - began
            samples.append((at, work()))

    def load() -> float:
        return bench.load(bench.slots[9 + bench.turn % 12])

    before = jiffies()
    loader = threading.Thread(target=again, args=(load, seen.loads))
    if loads:
        loader.start()
    timer = threading.Timer(seconds, over.set)
    timer.start()
    if threads:
        again(lambda: bench.execute(bench.slots[0]), seen.executions)
    timer.join()
    if loads:
        loader.join()
    took = [b - a for a, b in zip(before, jiffies(), strict=True)]
    seen.taken.append(took[7] / max(1, sum(took)))


def jiffies() -> list[int]:
    """What the kernel counted of all cores' time, by kind; the eighth is what the host took."""
    line = Path("/proc/stat").read_text().splitlines()[0]
    return [int(text) for text in line.split()[1:]]


def report(found: dict[tuple[int, bool], Seen], turns: int, seconds: float, load_before: float) -> str:
    """The table."""
    lines = [
        "# Compute threads, and loads beside them",
        "",
        f"Command: `.venv/bin/python experiments/compute_threads.py --turns {turns} --seconds {seconds:g}`. Date: "
        f"{datetime.now(UTC).date()}. Machine: {processor()}, {os.cpu_count()} cores, load {load_before:.1f} at the "
        f"start; torch {torch.__version__}.",
        "",
        f"A pair of the small model executed, and pairs (42.6 MB) loaded, back to back for {seconds:g} s, {turns} "
        "times in turns. Medians with quartiles, in ms. Taken: the share of the cores' time that the virtual machine's "
        "host kept.",
        "",
        "| compute threads | loads beside | execution | load | taken | executions a second | GB/s loaded |",
        "|---|---|---|---|---|---|---|",
    ]
    for (threads, loads), seen in found.items():
        over_s = turns * seconds
        rates = [f"{len(seen.executions) / over_s:.1f}", f"{0.0426 * len(seen.loads) / over_s:.2f}"]
        lines.append(
            f"| {threads or 'none'} | {'yes' if loads else 'no'} | {middle(seen.executions)} | {middle(seen.loads)} | "
            f"{statistics.median(seen.taken):.0%} | {' | '.join(rates)} |"
        )
    return "\n".join(lines) + "\n"


def middle(samples: list[tuple[float, float]]) -> str:
    """Median and quartiles in ms."""
    if len(samples) < 2:
        return "-"
    low, median, high = statistics.quantiles([1000 * took for _, took in samples], n=4)
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


def draw(found: dict[tuple[int, bool], Seen], path: Path) -> None:
    """Every execution and every load against when it began."""
    figure, axes = plt.subplots(2, 1, figsize=(12, 7), sharex=True, constrained_layout=True)
    for axis, name in zip(axes, ("executions", "loads"), strict=True):
        for (threads, loads), seen in found.items():
            samples = getattr(seen, name)
            if samples:
                label = f"{threads or 'no'} threads{', loads beside' if loads else ''}"
                axis.plot([at for at, _ in samples], [1000 * s for _, s in samples], ".", markersize=3, label=label)
        axis.set_ylabel(f"{name} (ms)")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8, loc="upper right")
    axes[1].set_xlabel("seconds from the start")
    figure.suptitle(f"{processor()}, {datetime.now(UTC).date()}: conditions in turns")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


if __name__ == "__main__":
    main()
