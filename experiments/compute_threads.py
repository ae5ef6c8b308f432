"""What executions and loads take with so many compute threads, alone and side by side, taking turns slowly or quickly.

    .venv/bin/python experiments/compute_threads.py [--turns 3] [--seconds 8]

A pair of the small model is executed again and again. For a while pairs of 42.6 MB are read beside it, past the page
cache into huge pages, back to back, then for as long none, and so on: for a tenth of a second at a time, half a
second, two or eight. All cores compute, or all but one. On a virtual machine the column "kept" shows what share of the
cores its host used otherwise, such as for the disk (`steal` in /proc/stat). The conditions take turns. The store (0.7
GB) goes to a temporary folder. Writes experiments/results/compute_threads.md and .png; some four minutes, on a machine
that should be quiet.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
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


PERIODS_S = (0.1, 0.5, 2.0, 8.0)


@dataclass
class Seen:
    """Of one condition: seconds of executions alone and beside loads, of loads, and of each turn what the host kept."""

    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)

    @property
    def slowdown(self) -> float:
        """Of executions, by loads beside them."""
        return statistics.fmean(self.beside) / statistics.fmean(self.alone)


Found = dict[tuple[int, float], Seen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    conditions = [(threads, period) for threads in sorted({max(1, cores - 1), cores}) for period in PERIODS_S]
    with tempfile.TemporaryDirectory(prefix="cidl-threads-") as folder:
        print("building the store", flush=True)
        bench = Bench(build_random_store(Path(folder) / "store", SIZES, "fp32", seed=0))
        load_before, found = os.getloadavg()[0], {condition: Seen() for condition in conditions}
        loads_alone: list[float] = []
        for turn in range(arguments.turns):
            loads_alone += [bench.load(bench.slots[9 + i % 12]) for i in range(50)]
            for threads, period in conditions if turn % 2 else conditions[::-1]:
                phase(bench, threads, period, max(arguments.seconds, 2 * period), found[threads, period])
            print(f"turn {turn + 1} of {arguments.turns}", flush=True)
    text = report(found, loads_alone, arguments.turns, arguments.seconds, load_before)
    print(text)
    write_text(RESULTS / "compute_threads.md", text)
    draw(found, RESULTS / "compute_threads.png")


def phase(bench: Bench, threads: int, period_s: float, seconds: float, seen: Seen) -> None:
    """Execute for so long, and load in every other period."""
    torch.set_num_threads(threads)
    over, loading = threading.Event(), threading.Event()

    def load() -> None:
        while not over.is_set():
            if loading.wait(0.01):
                seen.loads.append(bench.load(bench.slots[9 + bench.turn % 12]))

    before = jiffies()
    loader = threading.Thread(target=load)
    loader.start()
    began = time.perf_counter()
    while (now := time.perf_counter() - began) < seconds:
        beside = int(now / period_s) % 2 == 1
        (loading.set if beside else loading.clear)()
        (seen.beside if beside else seen.alone).append(bench.execute(bench.slots[0]))
    loading.set()
    over.set()
    loader.join()
    took = [b - a for a, b in zip(before, jiffies(), strict=True)]
    seen.kept.append(took[7] / max(1, sum(took)))


def jiffies() -> list[int]:
    """What the kernel counted of all cores' time, by kind; the eighth is what the host took."""
    line = Path("/proc/stat").read_text().splitlines()[0]
    return [int(text) for text in line.split()[1:]]


def report(found: Found, loads_alone: list[float], turns: int, seconds: float, load_before: float) -> str:
    """The table."""
    lines = [
        "# Compute threads, and loads beside them",
        "",
        f"Command: `.venv/bin/python experiments/compute_threads.py --turns {turns} --seconds {seconds:g}`. Date: "
        f"{datetime.now(UTC).date()}. Machine: {processor()}, {os.cpu_count()} cores, load {load_before:.1f} at the "
        f"start; torch {torch.__version__}.",
        "",
        "A pair of the small model executed back to back; pairs (42.6 MB) loaded beside it back to back in every other "
        f"period. {turns} turns of at least {seconds:g} s each. Means, in ms. Kept: the share of the cores' time that "
        f"the virtual machine's host kept. A load with nothing beside it: {1000 * statistics.fmean(loads_alone):.1f}.",
        "",
        "| compute threads | a period, s | execution alone | beside loads | slowed | load beside executions | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for (threads, period), seen in found.items():
        alone, beside, load = (1000 * statistics.fmean(values) for values in (seen.alone, seen.beside, seen.loads))
        lines.append(
            f"| {threads} | {period:g} | {alone:.1f} | {beside:.1f} | {seen.slowdown:.2f} | {load:.1f} | "
            f"{statistics.fmean(seen.kept):.0%} |"
        )
    return "\n".join(lines) + "\n"


def draw(found: Found, path: Path) -> None:
    """Executions alone and beside loads, by the length of a period, for each number of threads."""
    numbers = list(dict.fromkeys(threads for threads, _ in found))
    figure, axes = plt.subplots(1, len(numbers), figsize=(5.5 * len(numbers), 4.5), sharey=True, squeeze=False)
    for axis, threads in zip(axes[0], numbers, strict=True):
        for offset, name in ((-0.2, "alone"), (0.2, "beside")):
            samples = [[1000 * s for s in getattr(found[threads, period], name)] for period in PERIODS_S]
            places = [place + offset for place in range(len(PERIODS_S))]
            boxes = axis.boxplot(samples, positions=places, widths=0.35, showfliers=False, patch_artist=True)
            for box in boxes["boxes"]:
                box.set_facecolor("#9cc3e6" if name == "alone" else "#f0b27a")
        axis.set_xticks(range(len(PERIODS_S)), [f"{period:g} s" for period in PERIODS_S])
        axis.set_title(f"{threads} compute{'s' if threads == 1 else ''}")
        axis.set_xlabel("loads beside for so long, then none for so long")
        axis.set_ylim(bottom=0)
    axes[0][0].set_ylabel("an execution (ms); blue alone, orange with loads beside it")
    figure.suptitle(f"{processor()}, {os.cpu_count()} cores, {datetime.now(UTC).date()}: conditions in turns")
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


if __name__ == "__main__":
    main()
