"""The command that explores: many policies on many devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cidl_sim.commands.console import AsJson, Option, WorkloadArgument, messages, progress, show
from cidl_sim.core.errors import InputError

if TYPE_CHECKING:
    from cidl_sim.sweep.run import Done

MOST_SHOWN = 30


def sweep(
    workload_name: WorkloadArgument,
    device_names: Annotated[list[str], typer.Argument(metavar="DEVICE...", help="Named devices or device files.")],
    grid: Annotated[Path | None, Option("--grid", help="A TOML file with axes and a sample.")] = None,
    axes: Annotated[
        list[str] | None,
        Option(
            "--axis",
            metavar="NAME=VALUES",
            help="Values: 1,2,4 or 0..28 or 1GB..4GB/8log (docs/reference/sweeps.md).",
        ),
    ] = None,
    sample: Annotated[str | None, Option("--sample", metavar="random|lhs", help="A sample, not the grid.")] = None,
    points: Annotated[int | None, Option("--points", min=1, help="Points of the sample.")] = None,
    seed: Annotated[int, Option("--seed", min=0, help="Of the sample.")] = 0,
    no_bound: Annotated[bool, Option("--no-bound", help="Leave the lower bounds out.")] = False,
    workers: Annotated[int | None, Option("--workers", min=1, help="A Dask cluster of so many processes.")] = None,
    cluster: Annotated[str | None, Option("--cluster", metavar="ADDRESS", help="A Dask scheduler.")] = None,
    output: Annotated[Path, Option("-o", "--output", help="The folder of results.")] = Path("results.parquet"),
    as_json: AsJson = False,
) -> None:
    """Simulate a grid or a sample of policies, workload settings and devices; a second call goes on."""
    from cidl_sim.report.rows_table import rows_table
    from cidl_sim.sweep.results import best_rows
    from cidl_sim.sweep.run import run_sweep
    from cidl_sim.sweep.spec import Sample, SweepError, make_sweep, read_axes

    if workers is not None and cluster is not None:
        raise InputError("give either --workers or --cluster")
    if (sample is None) != (points is None):
        raise SweepError("--sample and --points go together")
    chosen, drawn = read_axes(grid) if grid else ({}, None)
    chosen.update(_axes(axes or ()))
    if sample is not None:
        if sample not in {"random", "lhs"}:
            raise SweepError(f"--sample {sample!r}: choose random or lhs")
        drawn = Sample.model_validate({"method": sample, "points": points, "seed": seed})
    with progress(fleeting=True) as step:
        # Variants of a workload that were never measured take a second each.
        wanted = make_sweep(
            [workload_name],
            device_names,
            chosen,
            sample=drawn,
            bound=not no_bound,
            on_workload=partial(step, "workloads"),
        )
    with progress() as step:
        done = run_sweep(
            wanted,
            output,
            workers=workers,
            cluster=cluster,
            on_rows=lambda rows, total: step("sweep", rows, total, f"{rows:,} of {total:,} rows"),
        )
    best = best_rows(output)
    summary: dict[str, Any] = {
        "rows": done.rows,
        "resumed_rows": done.resumed_rows,
        "file": str(output),
        "best": best,
    }
    show(summary, as_json, lambda: rows_table("the fastest rows", _shown(best)))
    if as_json:
        return
    for line in _remarks(done, best, output):
        messages.print(line, markup=False)


def _remarks(done: Done, best: list[dict[str, Any]], output: Path) -> Iterator[str]:
    if len(best) > MOST_SHOWN:
        yield f"shown are {MOST_SHOWN} of {len(best):,} combinations of workload, device and figures set"
    nothing = sum(row["makespan_s"] is None for row in best)
    if nothing:
        index = next(row["index"] for row in best if row["makespan_s"] is None)
        yield f"in {nothing:,} combinations nothing fits the memory; why: cidl simulate --row {output}:{index}"
    resumed = f" ({done.resumed_rows:,} were there already)" if done.resumed_rows else ""
    yield f"rows in {output}: {done.rows:,}{resumed}; pictures: cidl report {output} -o report"


def _axes(texts: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name:
            raise InputError(f"--axis {text!r}: write NAME=VALUES")
        if name in given:
            raise InputError(f"--axis {name} is given twice; write {name}={given[name]},{values}")
        given[name] = values
    return given


def _shown(best: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For people, the fastest first: what was set in short, and what would say the same in each row left out."""
    rows = []
    for row in sorted(best, key=lambda row: (row["makespan_s"] is None, row["makespan_s"]))[:MOST_SHOWN]:
        values = ", ".join(f"{key.rpartition('.')[2]} {value:.4g}" for key, value in row["settings"].items())
        shown = {**row, "settings": values}
        rows.append({name: value for name, value in shown.items() if name != "lower_bound_s"})
    same = [name for name in ("workload", "settings", "lookahead") if len({row[name] for row in rows}) == 1]
    return [{name: value for name, value in row.items() if name not in same} for row in rows]
