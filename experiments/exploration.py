"""The pictures of docs/guides/sweeps.md, from rows that are committed.

    .venv/bin/python experiments/exploration.py [--again]

Four devices with 1.6 to 8 GB for the model, every policy, with and without LPL: the rows in
experiments/results/exploration.parquet, which --again makes anew from experiments/exploration.toml (half a minute).
Writes docs/images/sweep_*.png and, with --again, experiments/results/exploration.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from bench_executor import processor

from cidl_sim.commands.report import report
from cidl_sim.core.files import write_text
from cidl_sim.sweep.analysis import regrets
from cidl_sim.sweep.results import scan
from cidl_sim.sweep.run import run_sweep
from cidl_sim.sweep.spec import make_sweep, read_axes

HERE = Path(__file__).parent
ROWS = HERE / "results" / "exploration.parquet"
IMAGES = HERE.parent / "docs" / "images"
WORKLOAD, DEVICES = "opensora-v1.2-192x192-17f", ("iphone-15-pro", "ipad-pro-m2", "macbook-pro-m1-max", "nvidia-a6000")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true")
    if parser.parse_args().again:
        sweep_again()
    with tempfile.TemporaryDirectory() as folder:
        report(ROWS, out=Path(folder))
        for picture in Path(folder).glob("*.png"):
            shutil.copyfile(picture, IMAGES / f"sweep_{picture.name}")


def sweep_again() -> None:
    axes, sample = read_axes(HERE / "exploration.toml")
    shutil.rmtree(ROWS, ignore_errors=True)
    began = time.perf_counter()
    done = run_sweep(make_sweep([WORKLOAD], DEVICES, axes, sample=sample), ROWS)
    took_s = time.perf_counter() - began
    lines = [
        "# An exploration: how much slower each policy is than the best of the sweep",
        "",
        f"Command: `.venv/bin/python experiments/exploration.py --again`. Date: {datetime.now(UTC).date()}. "
        f"Machine: {processor()}, {os.cpu_count()} cores. {done.rows:,} rows in {took_s:.0f} s, bounds included.",
        "",
        "Longer than the best row of the same device, memory and LPL, each policy at its best number and lookahead:",
        "",
        "| device | policy | on average | at most | cases in which it fits |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['device']} | {row['pattern']} | {row['mean_regret']:.1%} | {row['worst_regret']:.1%} | "
        f"{row['feasible_cases']} of {row['cases']} |"
        for row in regrets(scan(ROWS)).iter_rows(named=True)
    ]
    write_text(HERE / "results" / "exploration.md", "\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
