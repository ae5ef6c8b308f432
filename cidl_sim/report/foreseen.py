"""Runs beside what was predicted of them, and what the machine did meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from cidl_sim.core.reports import ForeseenRun


def foreseen_table(runs: Sequence[ForeseenRun]) -> Table:
    """A row for each run, in the order in which they were made."""
    table = Table(title="each run, predicted before it was made", title_justify="left")
    for heading in (
        "policy",
        "predicted (s)",
        "in nine of ten runs",
        "measured (s)",
        "off",
        "machine: loads",
        "products",
    ):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for run in runs:
        table.add_row(
            run.policy,
            f"{run.predicted_s:.2f}",
            f"{run.low_s:.2f} to {run.high_s:.2f}",
            f"{run.measured_s:.2f}",
            f"{run.error:+.1%}",
            f"x{run.load_rate:.2f}",
            f"x{run.execute_rate:.2f}",
        )
    table.caption = "machine: how fast a short probe before and after the run found it, against the first look"
    return table
