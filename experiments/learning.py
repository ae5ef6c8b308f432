"""How a profile learns from runs, replayed over recorded ones: each is predicted with what those before it taught.

    .venv/bin/python experiments/learning.py

The runs of traces/validation and traces/validation-2026-11-27 in the order in which they were made, from the profile
that was calibrated for them. Then again with runs that count more or less than they do. Nothing is measured: the same
tables on every machine. Writes experiments/results/learning.md and .png; some three minutes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from cidl_sim.calibration import profile
from cidl_sim.calibration.fit import Seen
from cidl_sim.core.files import replacing, write_text
from cidl_sim.simulator.engine import simulate
from cidl_sim.validation.runs import read_runs

RESULTS = Path(__file__).parent / "results"
TRACES = Path(__file__).parent.parent / "traces"
SETS = ("validation", "validation-2026-11-27")
COUNTS = (0.15, 0.25, 0.4, 0.5, 0.6)


@dataclass(frozen=True)
class Row:
    """A run, what it was off by, and the slowdowns that the profile had until then."""

    policy: str
    repeat: int
    threads: int
    took_s: float
    calibrated: float
    taught: float
    load_slowdown: float
    execution_slowdown: float


def replay(folder: Path) -> list[Row]:
    """The runs of a folder in turns, as they were made."""
    cases = read_runs(folder)
    calibrated = taught = cases[0].device
    rows = []
    for repeat in range(max(len(case.measured) for case in cases)):
        for case in cases:
            trace = case.measured[repeat]
            threads = int(trace.header.machine.get("compute_threads", calibrated.executor.threads or 1))
            calibrated, taught = calibrated.with_threads(threads), taught.with_threads(threads)
            off = [
                simulate(
                    case.workload,
                    device.model_copy(update={"memory_limit_bytes": case.plan.memory_limit_bytes}),
                    case.plan,
                    stage_rounds=trace.stage_rounds,
                ).makespan_s
                / trace.makespan_s
                - 1
                for device in (calibrated, taught)
            ]
            slowdowns = taught.loader.slowdown_while_executing, taught.executor.slowdown_while_loading
            rows.append(Row(case.name, repeat + 1, threads, trace.makespan_s, *off, *slowdowns))
            taught = profile.learned(taught, [Seen(case.workload, trace)])
    return rows


def scan() -> list[str]:
    """A row for each share that a run might count for: the mean errors of all folders."""
    rows, kept = [], profile.RECENT
    for share in COUNTS:
        profile.RECENT = 1 - share
        errors = [[row.taught for row in replay(TRACES / name)] for name in SETS]
        rows.append(f"| {share:.2f} | {' | '.join(summary(some) for some in errors)} |")
    profile.RECENT = kept
    return rows


def report(found: dict[str, list[Row]], scanned: Sequence[str]) -> str:
    """A table for each folder, and what it says; and what it would say if runs counted otherwise."""
    lines = [
        "# Learning from runs, replayed",
        "",
        f"Command: `.venv/bin/python experiments/learning.py`. Date: {datetime.now(UTC).date()}; nothing is measured. "
        "Each recorded run is predicted by the profile that was calibrated, and by what that profile had learned from "
        "the runs before this one (of runs that ended early, with the rounds that they made). The slowdowns are those "
        "that the learned profile had before the run.",
    ]
    for name, rows in found.items():
        lines += [
            "",
            f"## traces/{name}",
            "",
            "| run | policy | threads | took | calibrated | taught | loads slowed | executions slowed |",
            "|---|---|---|---|---|---|---|---|",
            *(
                f"| {row.repeat} | {row.policy} | {row.threads} | {row.took_s:.2f} s | {row.calibrated:+.1%} | "
                f"{row.taught:+.1%} | {row.load_slowdown:.2f} | {row.execution_slowdown:.2f} |"
                for row in rows
            ),
            "",
            f"Calibrated: {summary([row.calibrated for row in rows])}.",
            "",
            f"Taught: {summary([row.taught for row in rows])}.",
        ]
    lines += [
        "",
        "## How much a run counts",
        "",
        f"Against all before it; it is {1 - profile.RECENT:.1f}.",
        "",
        f"| a run counts | {' | '.join(SETS)} |",
        "|---|" + "---|" * len(SETS),
        *scanned,
    ]
    return "\n".join(lines) + "\n"


def summary(errors: Sequence[float]) -> str:
    """Signed mean, mean and largest magnitude."""
    sizes = [abs(error) for error in errors]
    return f"signed {statistics.fmean(errors):+.1%}, mean {statistics.fmean(sizes):.1%}, largest {max(sizes):.1%}"


def draw(found: dict[str, list[Row]], path: Path) -> None:
    """The errors in the order of the runs."""
    figure, axes = plt.subplots(len(found), 1, figsize=(12, 7), constrained_layout=True)
    for axis, (name, rows) in zip(axes, found.items(), strict=True):
        places = np.arange(len(rows))
        axis.bar(places - 0.2, [100 * row.calibrated for row in rows], 0.4, label="by the calibration")
        axis.bar(places + 0.2, [100 * row.taught for row in rows], 0.4, label="with what the runs before taught")
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(places, [row.policy for row in rows], rotation=60, ha="right", fontsize=8)
        axis.set_ylabel("off by (%)")
        axis.set_title(f"traces/{name}", loc="left")
        axis.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def main() -> None:
    found = {name: replay(TRACES / name) for name in SETS}
    text = report(found, scan())
    print(text)
    write_text(RESULTS / "learning.md", text)
    draw(found, RESULTS / "learning.png")


if __name__ == "__main__":
    main()
