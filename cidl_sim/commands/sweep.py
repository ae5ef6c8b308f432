"""The command that explores: many policies on many devices."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cidl_sim.commands.console import AsJson, Optional, WorkloadArgument, messages, progress, show
from cidl_sim.core.errors import InputError

MOST_SHOWN = 30


def sweep(
    workload_name: WorkloadArgument,
    device_names: Annotated[list[str], typer.Argument(metavar="DEVICE...", help="Named devices or device files.")],
    grid: Annotated[Path | None, Optional("--grid", help="A TOML file with [axes] and [sample].")] = None,
    axes: Annotated[
        list[str] | None,
        Optional("--axis", metavar="NAME=VALUES", help="Values as 1,2,4 or 0..28 or 1e9..4e9/8log; see the reference."),
    ] = None,
    sample: Annotated[str | None, Optional("--sample", metavar="random|lhs", help="A sample, not the grid.")] = None,
    points: Annotated[int | None, Optional("--points", min=1, help="Points of the sample.")] = None,
    seed: Annotated[int, Optional("--seed", min=0, help="Of the sample.")] = 0,
    no_bound: Annotated[bool, Optional("--no-bound", help="Leave the lower bounds out.")] = False,
    workers: Annotated[int | None, Optional("--workers", min=1, help="A Dask cluster of so many processes.")] = None,
    cluster: Annotated[str | None, Optional("--cluster", metavar="ADDRESS", help="A Dask scheduler.")] = None,
    output: Annotated[Path, Optional("-o", "--output", help="The folder of results.")] = Path("results.parquet"),
    as_json: AsJson = False,
) -> None:
    """Simulate a grid or a sample of policies, workload settings and devices; a second call goes on."""
    from cidl_sim.report.tables import rows_table
    from cidl_sim.sweep.results import best_rows
    from cidl_sim.sweep.run import run_sweep
    from cidl_sim.sweep.spec import Sample, SweepError, make_sweep, read_axes

    if workers is not None and cluster is not None:
        raise InputError("give either --workers or --cluster")
    if (sample is None) != (points is None):
        raise SweepError("--sample and --points go together")
    chosen, drawn = read_axes(grid) if grid else ({}, None)
    chosen.update(_axis(text) for text in axes or ())
    if sample is not None:
        if sample not in {"random", "lhs"}:
            raise SweepError(f"--sample {sample!r}: choose random or lhs")
        drawn = Sample.model_validate({"method": sample, "points": points, "seed": seed})
    wanted = make_sweep([workload_name], device_names, chosen, sample=drawn, bound=not no_bound)
    began = time.monotonic()
    with progress() as step:
        done = run_sweep(
            wanted,
            output,
            workers=workers,
            cluster=cluster,
            on_rows=lambda rows, total: step("sweep", rows, total, _rate(rows, total, began)),
        )
    best = best_rows(output)
    summary: dict[str, Any] = {
        "rows": done.rows,
        "resumed_rows": done.resumed_rows,
        "file": str(output),
        "best": best,
    }
    show(summary, as_json, lambda: rows_table("the fastest of each workload and device", _shown(best)))
    if not as_json:
        messages.print(f"{done.rows:,} rows in {output}; pictures: cidl report {output} -o report", markup=False)


def _axis(text: str) -> tuple[str, str]:
    name, equals, values = text.partition("=")
    if not equals or not name:
        raise InputError(f"--axis {text!r}: write NAME=VALUES")
    return name, values


def _rate(rows: int, total: int, began: float) -> str:
    return f"{rows:,} of {total:,} rows, {time.monotonic() - began:.0f} s"


def _shown(best: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For people: what was set in short, and what would say the same in each row left out."""
    rows = []
    for row in best[:MOST_SHOWN]:
        values = ", ".join(
            f"{key.rpartition('.')[2]} {value:.4g}" for key, value in json.loads(row["settings"]).items()
        )
        shown = {**row, "settings": values}
        rows.append({name: value for name, value in shown.items() if name not in {"lower_bound_s", "index"}})
    same = [name for name in ("workload", "settings", "lookahead") if len({row[name] for row in rows}) == 1]
    return [{name: value for name, value in row.items() if name not in same} for row in rows]
