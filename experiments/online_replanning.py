"""Replanning while a run goes on, in simulation: against the fixed plan and against plans made with hindsight.

    .venv/bin/python experiments/online_replanning.py

Three kinds of workloads: 28 equal blocks swept 12 times, the seeded blocks of mixed sizes of reference_optima.py, and
the main job's workload on the profile that was measured for it (with its contention and first touch). On each the
memory limit shrinks and grows, the executor heats up, the disk slows down or speeds up, alone and together, at seeded
moments and by seeded factors. Writes experiments/results/online_replanning.md and .png; about two minutes.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import matplotlib.pyplot as plt
from bench_executor import processor
from reference_optima import mixed, uniform

from cidl_sim.core.device import DeviceProfile, read_device
from cidl_sim.core.files import replacing, write_text
from cidl_sim.core.workload import Workload
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.planner.online_comparison import Change, Compared, compare_online

RESULTS = Path(__file__).parent / "results"
MAIN_JOB = Path(__file__).parent.parent / "traces/main_job/device.toml"
SEEDS = 3
Case = tuple[Workload, DeviceProfile]
Make = Callable[[random.Random, DeviceProfile], tuple[Change, ...]]


@dataclass(frozen=True)
class Row:
    """One run of a scenario."""

    workload: str
    scenario: str
    seed: int
    compared: Compared

    @property
    def fixed(self) -> float:
        """The fixed plan's makespan over the online one's."""
        return self.compared.fixed_s / self.compared.online_s

    @property
    def hindsight(self) -> float:
        """The makespan of hindsight over the online one's."""
        return self.compared.hindsight_s / self.compared.online_s


def scaled(device: DeviceProfile, share: float) -> int:
    """The limit that leaves such a share of the room beside the baseline."""
    return device.baseline_bytes + int(share * (device.memory_limit_bytes - device.baseline_bytes))


def nothing(chance: random.Random, device: DeviceProfile) -> tuple[Change, ...]:
    return (Change(chance.uniform(0.1, 0.5), device.memory_limit_bytes),)


def limit_shrinks(chance: random.Random, device: DeviceProfile) -> tuple[Change, ...]:
    return (Change(chance.uniform(0.1, 0.5), scaled(device, chance.uniform(0.6, 0.85))),)


def limit_grows(chance: random.Random, device: DeviceProfile) -> tuple[Change, ...]:
    return (Change(chance.uniform(0.1, 0.5), scaled(device, chance.uniform(1.2, 1.6))),)


def limit_dips(chance: random.Random, device: DeviceProfile) -> tuple[Change, ...]:
    began = chance.uniform(0.1, 0.3)
    return (Change(began, scaled(device, chance.uniform(0.6, 0.85))), Change(began + 0.3, device.memory_limit_bytes))


def heat(chance: random.Random, device: DeviceProfile) -> tuple[Change, ...]:
    first = chance.uniform(1.3, 2.0)
    began = chance.uniform(0.1, 0.4)
    return (
        Change(began, device.memory_limit_bytes, executions=first),
        Change(began + 0.3, device.memory_limit_bytes, executions=2 * first),
    )


def disk_slows_down(chance: random.Random, device: DeviceProfile) -> tuple[Change, ...]:
    return (Change(chance.uniform(0.1, 0.4), device.memory_limit_bytes, loads=chance.uniform(2.0, 6.0)),)


def disk_speeds_up(chance: random.Random, device: DeviceProfile) -> tuple[Change, ...]:
    return (Change(chance.uniform(0.1, 0.4), device.memory_limit_bytes, loads=chance.uniform(0.2, 0.6)),)


def limit_and_disk(chance: random.Random, device: DeviceProfile) -> tuple[Change, ...]:
    smaller = scaled(device, chance.uniform(0.6, 0.85))
    return (Change(chance.uniform(0.1, 0.4), smaller, loads=chance.uniform(2.0, 6.0)),)


SCENARIOS: tuple[Make, ...] = (
    nothing, limit_shrinks, limit_grows, limit_dips, heat, disk_slows_down, disk_speeds_up, limit_and_disk,
)  # fmt: skip


def main() -> None:
    rows = []
    for name, (workload, device) in cases():
        for scenario in SCENARIOS:
            for seed in range(SEEDS):
                chance = random.Random(f"{name} {scenario.__name__} {seed}")
                changes = scenario(chance, device)
                rows.append(Row(name, scenario.__name__, seed, compare_online(workload, device, changes)))
                print(f"{name}, {rows[-1].scenario}, {seed}: fixed / online {rows[-1].fixed:.3f}", flush=True)
    draw(rows, RESULTS / "online_replanning.png")
    write_text(RESULTS / "online_replanning.md", text(rows))
    print("\n" + text(rows))


def cases() -> Iterator[tuple[str, Case]]:
    yield "equal, loader-bound", uniform(28, 12, 10, 12, 4)
    yield "equal, balanced", uniform(28, 12, 10, 12, 10)
    yield "mixed 0", mixed(0)
    yield "mixed 1", mixed(1)
    yield "main job", (find_workload("opensora-small-48x48-lpl15-tdtm8"), read_device(MAIN_JOB))


def text(rows: list[Row]) -> str:
    planning = [seconds for row in rows for seconds in row.compared.planning_s]
    worse = [row for row in rows if row.fixed < 1 - 1e-9]
    lines = [
        "# Replanning while a run goes on",
        "",
        f"Command: `.venv/bin/python experiments/online_replanning.py`. Date: {datetime.now(UTC).date()}. Machine: "
        f"{processor()}, {os.cpu_count()} cores; cidl-sim {metadata.version('cidl-sim')}. Simulation, no noise.",
        "",
        f"{len(rows)} runs, {SEEDS} seeds of each scenario. All plans are the best policy's. The fixed plan is made "
        "for the profile and changed by the schedule's own rule where the limit changes; the online one begins with it "
        "and is made again where the limit or a rate moved. Hindsight: the best of the fixed plan, the plan made for "
        "each stretch between changes, and those one after another; it is no optimum, so the online plan may beat it. "
        "The bound takes the most memory and the shortest durations that ever hold, so it is far away where those hold "
        "only for a part of the run. Medians and ranges over the seeds.",
        "",
        "| workload | scenario | fixed s | fixed / online | hindsight / online | bound / online | adopted of sought |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row.workload for row in rows):
        for scenario in SCENARIOS:
            found = [row for row in rows if (row.workload, row.scenario) == (name, scenario.__name__)]
            lines.append(
                f"| {name} | {scenario.__name__.replace('_', ' ')} | "
                f"{statistics.median(row.compared.fixed_s for row in found):.4g} | "
                f"{spread([row.fixed for row in found])} | {spread([row.hindsight for row in found])} | "
                f"{spread([row.compared.bound_s / row.compared.online_s for row in found])} | "
                f"{sum(row.compared.adopted for row in found)} of {sum(row.compared.replans for row in found)} |"
            )
    exceptions = "; ".join(f"{row.workload}, {row.scenario}, seed {row.seed}: {row.fixed:.4f}" for row in worse)
    lines += [
        "",
        f"Worse than the fixed plan: {len(worse)} of {len(rows)} runs{f' ({exceptions})' if worse else ''}. Better by "
        f"more than 1 %: {sum(row.fixed > 1.01 for row in rows)}. Worse than hindsight by more than 1 %: "
        f"{sum(row.hindsight < 0.99 for row in rows)}. Planning took {statistics.median(planning) * 1e3:.0f} ms in the "
        f"median and {max(planning) * 1e3:.0f} ms at most, {len(planning)} times; simulated time does not count it.",
        "",
    ]
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def draw(rows: list[Row], path: Path) -> None:
    """Fixed and hindsight over online, a panel for each workload."""
    names = list(dict.fromkeys(row.workload for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(2.9 * len(names), 4.2), layout="constrained", sharey=True)
    for panel, name in zip(axes, names, strict=True):
        for place, scenario in enumerate(SCENARIOS):
            found = [row for row in rows if (row.workload, row.scenario) == (name, scenario.__name__)]
            panel.plot(
                [row.fixed for row in found], [place - 0.12] * len(found), "o", color="#0072B2", label="fixed plan"
            )
            panel.plot(
                [row.hindsight for row in found], [place + 0.12] * len(found), "D", color="#D55E00", label="hindsight"
            )
        panel.axvline(1.0, color="#444444", linewidth=0.8)
        panel.set_title(name, fontsize=10)
        panel.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(SCENARIOS)), [scenario.__name__.replace("_", " ") for scenario in SCENARIOS])
    axes[0].invert_yaxis()
    axes[len(names) // 2].set_xlabel("makespan / that of the online plan")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[:2], labels[:2], loc="outside upper right", ncols=2, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


if __name__ == "__main__":
    main()
