"""How much the planner gains over the reference app's policy, and how far that is from any plan's bound.

    .venv/bin/python experiments/planner_gains.py [--time-limit 10]

First 28 blocks of one size over 30 rounds, for loads of 1 to 12 times an execution and room for 6 to 24 of the blocks;
then every named workload of Open-Sora v1.2 on every shipped profile. Writes experiments/results/planner_gains.md and
.png; some ten minutes, less where plans are proven optimal early.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from bench_executor import processor
from reference_optima import uniform

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.workload import Workload
from cidl_sim.devices.catalog import find_device, shipped_devices
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.planner.planner import best_plan

RESULTS = Path(__file__).parent / "results"
RATIOS = ((8, 8), (12, 8), (16, 8), (24, 8), (48, 8), (96, 8))  # units of a load and of an execution
SLOTS = (3, 6, 10, 13, 16, 20, 24)
WORKLOADS = (
    "opensora-v1.2-192x192-17f-30s-fp32",
    "opensora-v1.2-192x192-68f-30s-fp32-lpl15",
    "opensora-v1.2-256x256-68f-30s-fp32",
    "opensora-v1.2-256x256-68f-30s-fp32-lpl15-tdtm10",
    "opensora-v1.2-256x256-68f-30s-bf16",
)


@dataclass(frozen=True)
class Row:
    """One case: makespans in s, the bound's gap, and when the first plan and the last one were there."""

    app_s: float
    policy_s: float
    policy: str
    planned_s: float
    gap: float
    first_s: float
    took_s: float

    @property
    def gain(self) -> float:
        """How much faster than the app."""
        return 1 - self.planned_s / self.app_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=10.0)
    limit_s = parser.parse_args().time_limit
    grid = {}
    for load, execution in RATIOS:
        for slots in SLOTS:
            grid[load / execution, slots] = planned(*uniform(28, 30, slots, load, execution), limit_s)
            print(load / execution, slots, grid[load / execution, slots], flush=True)
    named = {}
    for workload_name in WORKLOADS:
        for device_name in shipped_devices():
            workload, device = find_workload(workload_name), find_device(device_name)
            try:
                named[workload_name, device_name] = planned(workload, device, limit_s)
            except InfeasibleError as problem:
                print(workload_name, device_name, problem, flush=True)
                continue
            print(workload_name, device_name, named[workload_name, device_name], flush=True)
    report = text(grid, named, limit_s)
    (RESULTS / "planner_gains.md").write_text(report)
    draw(grid, RESULTS / "planner_gains.png")
    print("\n" + report)


def planned(workload: Workload, device: DeviceProfile, limit_s: float) -> Row:
    moments: list[float] = []
    began = time.perf_counter()
    found = best_plan(
        workload, device, time_limit_s=limit_s, on_step=lambda *_: moments.append(time.perf_counter() - began)
    )
    policy_s, policy = min((s, name) for name, s in found.baselines.items() if s is not None)
    return Row(
        app_s=found.baselines["on_device_sora"] or float("nan"),
        policy_s=policy_s,
        policy=policy,
        planned_s=found.trace.makespan_s,
        gap=found.plan.gap or 0.0,
        first_s=moments[1],
        took_s=moments[-1],
    )


def text(grid: dict[tuple[float, int], Row], named: dict[tuple[str, str], Row], limit_s: float) -> str:
    lines = [
        "# The planner against the reference app's policy",
        "",
        f"Command: `.venv/bin/python experiments/planner_gains.py --time-limit {limit_s:g}`. "
        f"Date: {datetime.now(UTC).date()}. Machine: {processor()}, {os.cpu_count()} cores.",
        "",
        "28 blocks of one size, 30 rounds; a load takes l/e times an execution, C blocks fit into memory. Each "
        "cell: how much less time the plan takes than on_device_sora's (and the gap to a bound that no plan beats).",
        "",
        "| l/e | " + " | ".join(f"C = {slots}" for slots in SLOTS) + " |",
        "|---|" + "---|" * len(SLOTS),
    ]
    for load, execution in RATIOS:
        cells = (grid[load / execution, slots] for slots in SLOTS)
        shown = (f"{row.gain:.1%} ({'optimal' if row.gap <= 1e-9 else f'{row.gap:.2%}'})" for row in cells)
        lines.append(f"| {load / execution:g} | {' | '.join(shown)} |")
    took = [row.took_s for row in grid.values()]
    lines += [
        "",
        f"Seconds to plan: median {np.median(took):.1f}, at most {max(took):.1f}; a first plan (the best policy's) "
        f"after at most {max(row.first_s for row in grid.values()):.1f}.",
        "",
        "Named workloads on the shipped profiles, simulated:",
        "",
        "| workload | device | on_device_sora s | best policy s | planned s | less than the app | gap | "
        "first plan after s | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (workload_name, device_name), row in named.items():
        lines.append(
            f"| {workload_name} | {device_name} | {row.app_s:.2f} | {row.policy_s:.2f} ({row.policy}) | "
            f"{row.planned_s:.2f} | {row.gain:.1%} | {'optimal' if row.gap <= 1e-9 else f'{row.gap:.2%}'} | "
            f"{row.first_s:.1f} | {row.took_s:.1f} |"
        )
    return "\n".join([*lines, ""])


def draw(grid: dict[tuple[float, int], Row], path: Path) -> None:
    figure, both = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    titles = "less time than on_device_sora (%)", "gap to a bound that no plan beats (%)"
    for axes, title, value in zip(both, titles, (lambda row: row.gain, lambda row: row.gap), strict=True):
        values = [[100 * value(grid[load / e, slots]) for slots in SLOTS] for load, e in RATIOS]
        image = axes.imshow(values, cmap="cividis", aspect="auto", vmin=0)
        for i, row in enumerate(values):
            for j, number in enumerate(row):
                dark = number < 0.6 * max(1e-9, np.max(values))
                axes.text(
                    j, i, f"{number:.1f}", ha="center", va="center", fontsize=8, color="white" if dark else "black"
                )
        axes.set_xticks(range(len(SLOTS)), [str(slots) for slots in SLOTS])
        axes.set_yticks(range(len(RATIOS)), [f"{load / e:g}" for load, e in RATIOS])
        axes.set_xlabel("blocks that fit into memory, of 28")
        axes.set_ylabel("load / execution")
        axes.set_title(title, fontsize=10)
        figure.colorbar(image, ax=axes)
    figure.suptitle("The planner on 28 blocks of one size, 30 rounds")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
