"""What policies leave on the table: blocks of one size with known optima, and seeded blocks of mixed sizes.

    .venv/bin/python experiments/reference_optima.py [--time-limit 60]

n blocks swept K times, C of them fit into memory, each loads in l and executes in e units of time. The optimum is
the planner's plan as the engine times it, `proven` if it equals the bound. Mixed sizes: 28 blocks of 4 to 14 bytes,
which load at one byte a second, execute in 2 to 6 s, and are swept 6 times; the planner has 10 s for each. Writes
experiments/results/reference_optima.md and .png; about two minutes.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import matplotlib.pyplot as plt
from bench_executor import processor
from matplotlib.axes import Axes

from cidl_sim.core.device import DeviceProfile, Executor, Loader, Measured
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.planner.bounds import lower_bound_s
from cidl_sim.planner.planner import best_plan
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import makespan_s

RESULTS = Path(__file__).parent / "results"
CASES = (
    (8, 4, 4, 10, 5),
    (8, 4, 4, 10, 10),
    (10, 4, 5, 12, 8),
    (12, 4, 6, 12, 8),
    (28, 30, 10, 12, 8),
    (28, 30, 16, 12, 8),
)


MIXED_CASES, MIXED_LIMIT_S = 6, 10.0


@dataclass(frozen=True)
class Row:
    """One case: makespans of the policies, the planner's makespan, the bounds and the seconds it took."""

    case: tuple[int, ...]
    makespans: dict[str, float]
    planned_s: float
    quick_bound_s: float
    bound_s: float
    proven: bool
    policy: str
    took_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=60.0)
    limit_s = parser.parse_args().time_limit
    rows = []
    for case in CASES:
        rows.append(solved(case, *uniform(*case), limit_s))
        print(rows[-1], flush=True)
    mixed_rows = []
    for number in range(MIXED_CASES):
        workload, device = mixed(number)
        room = round(100 * device.memory_limit_bytes / workload.weights_bytes)
        mixed_rows.append(solved((number, room), workload, device, MIXED_LIMIT_S))
        print(mixed_rows[-1], flush=True)
    report = text(rows, mixed_rows, limit_s)
    (RESULTS / "reference_optima.md").write_text(report)
    draw(rows, mixed_rows, RESULTS / "reference_optima.png")
    print("\n" + report)


def uniform(n: int, rounds: int, slots: int, load_s: int, exec_s: int) -> tuple[Workload, DeviceProfile]:
    blocks = [Block(name=f"b{i}", kind="b", weight_bytes=1) for i in range(n)]
    workload = Workload(name="uniform", stages=[Stage(name="denoiser", rounds=rounds, blocks=blocks)])
    costs = {"b": Measured(load_s=load_s, exec_s=exec_s)}
    return workload, DeviceProfile(name="uniform", memory_limit_bytes=slots, measured=costs)


def mixed(number: int) -> tuple[Workload, DeviceProfile]:
    chance = random.Random(number)
    blocks = [
        Block(name=f"b{i}", kind=f"b{i}", weight_bytes=chance.randint(4, 14), flops=chance.randint(2, 6))
        for i in range(28)
    ]
    workload = Workload(name=f"mixed-{number}", stages=[Stage(name="denoiser", rounds=6, blocks=blocks)])
    device = DeviceProfile(
        name="mixed",
        memory_limit_bytes=int(workload.weights_bytes * chance.uniform(0.2, 0.7)),
        loader=Loader(bandwidth_bytes_per_s=1.0),
        executor=Executor(flops_per_s=1.0),
    )
    return workload, device


def solved(case: tuple[int, ...], workload: Workload, device: DeviceProfile, limit_s: float) -> Row:
    nothing_kept = makespan_s(workload, device, make_plan("prefix:0", workload, device))
    began = time.perf_counter()
    found = best_plan(workload, device, time_limit_s=limit_s)
    took_s = time.perf_counter() - began
    makespans = {name: seconds for name, seconds in found.baselines.items() if seconds is not None}
    return Row(
        case,
        {"nothing kept": nothing_kept, **makespans},
        found.trace.makespan_s,
        lower_bound_s(workload, device),
        found.plan.lower_bound_s or 0.0,
        found.plan.proven_optimal,
        found.plan.policy,
        took_s,
    )


def text(rows: list[Row], mixed_rows: list[Row], limit_s: float) -> str:
    lines = [
        "# Policies against proven optima: uniform blocks",
        "",
        f"Command: `.venv/bin/python experiments/reference_optima.py --time-limit {limit_s:g}`. "
        f"Date: {datetime.now(UTC).date()}. Machine: {processor()}, {os.cpu_count()} cores; scipy "
        f"{metadata.version('scipy')}.",
        "",
        "n blocks swept K times, room for C, load l, execution e; prefix and spread with their best number of blocks, "
        "prefetching as deep as memory allows. Quick bound: without the interval model.",
        "",
        "| n, K, C, l, e | nothing kept | on_device_sora | best prefix | best spread | planned | bound | quick bound | "
        "proven | plan | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shown = (row.makespans[name] for name in ("nothing kept", "on_device_sora", "prefix", "spread"))
        lines.append(
            f"| {', '.join(map(str, row.case))} | {' | '.join(f'{s:g}' for s in shown)} | {row.planned_s:g} | "
            f"{row.bound_s:g} | {row.quick_bound_s:g} | {'yes' if row.proven else 'no'} | {row.policy} | "
            f"{row.took_s:.1f} |"
        )
    lines += [
        "",
        f"28 blocks of mixed sizes, 6 rounds, bound by the loader; {MIXED_LIMIT_S:g} s for the planner.",
        "",
        "| seed | room / weights | on_device_sora | best prefix | best spread | planned | against policies | bound | "
        "gap | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in mixed_rows:
        best = min(row.makespans.values())
        shown = " | ".join(f"{row.makespans[name]:g}" for name in ("on_device_sora", "prefix", "spread"))
        lines.append(
            f"| {row.case[0]} | {row.case[1]} % | {shown} | {row.planned_s:g} | {row.planned_s / best - 1:+.1%} | "
            f"{row.bound_s:g} | {row.planned_s / row.bound_s - 1:.1%} | {row.took_s:.1f} |"
        )
    return "\n".join([*lines, ""])


def draw(rows: list[Row], mixed_rows: list[Row], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.2), layout="constrained", sharey=True)
    bars(left, rows, ["n={} K={}\nC={} l={} e={}".format(*row.case) for row in rows])
    bars(right, mixed_rows, ["seed {}\nroom {} %".format(*row.case) for row in mixed_rows])
    left.set_ylabel("makespan / lower bound")
    left.set_title("blocks of one size", fontsize=10)
    right.set_title("blocks of mixed sizes", fontsize=10)
    left.legend(fontsize=8)
    figure.suptitle("Policies against the bound that no plan beats")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def bars(axes: Axes, rows: list[Row], labels: list[str]) -> None:
    shown = {
        "nothing kept": "#999999",
        "on_device_sora": "#d55e00",
        "prefix": "#e69f00",
        "spread": "#56b4e9",
        "planned": "#0072b2",
    }
    for k, (name, color) in enumerate(shown.items()):
        heights = [(row.planned_s if name == "planned" else row.makespans[name]) / row.bound_s for row in rows]
        places = [i + 0.16 * (k - 2) for i in range(len(rows))]
        axes.bar(places, [height - 1 for height in heights], 0.15, bottom=1, color=color, label=name)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), labels, fontsize=8)


if __name__ == "__main__":
    main()
