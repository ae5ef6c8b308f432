"""Commands about Core ML."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from cidl_sim.commands.console import (
    AsJson,
    Option,
    StoreOption,
    print_json_text,
    progress,
    rows_as_object,
    screen,
    show,
)
from cidl_sim.core.errors import InputError, PackageError
from cidl_sim.coreml.manifest import Compression, ExportSummary, Precision, export_summary
from cidl_sim.report.rows_table import rows_table
from cidl_sim.report.tables import workload_table

if TYPE_CHECKING:
    from cidl_sim.coreml.check_export import CheckedFunction


PackagesOption = Annotated[Path, Option("--packages", metavar="DIR", help="The folder of an export.")]


def export(
    store: StoreOption,
    out: Annotated[Path, Option("--out", metavar="DIR", help="The folder of packages.")],
    dtype: Annotated[str, Option("--dtype", help="fp16 or fp32.")] = "fp16",
    workloads: Annotated[
        list[str] | None,
        Option("--workload", metavar="NAME", help="Whose shapes; more than one: a function of the package for each."),
    ] = None,
    compress: Annotated[
        str, Option("--compress", help="Weights: none, int8, palette8, palette6, palette4 or mixed4.")
    ] = "none",
    blocks: Annotated[
        list[str] | None, Option("--blocks", metavar="PATTERN", help="Only these blocks, such as 't5.*'.")
    ] = None,
    workers: Annotated[int, Option("--workers", min=1, help="So many processes, each with a block in memory.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Export the blocks of a store as Core ML packages; a second call goes on where the first stopped."""
    precision, compression = _chosen("--dtype", dtype, Precision), _chosen("--compress", compress, Compression)
    from cidl_sim.executor.store import BlockStore
    from cidl_sim.worker.exporting import export_store

    made: list[str] = []
    with progress() as step:

        def on_package(done: int, total: int, weights: str) -> None:
            made.append(weights)
            step("export blocks", done, total, weights)

        manifest = export_store(
            BlockStore.open(store),
            out,
            precision,
            workloads=workloads or (),
            compression=compression,
            blocks=blocks or (),
            workers=workers,
            on_package=on_package,
        )
    summary = export_summary(manifest, out, made)
    show(summary, as_json, lambda: _lines(summary))


def check(
    store: StoreOption,
    packages: PackagesOption,
    blocks: Annotated[
        list[str] | None, Option("--blocks", metavar="PATTERN", help="Only these blocks, such as 't5.*'.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run every function of an export in the interpreter and compare it with PyTorch; exit code 2 if one is wrong."""
    from cidl_sim.executor.store import BlockStore
    from cidl_sim.worker.exporting import check_export

    with progress() as step:
        checks = check_export(packages, BlockStore.open(store), blocks or (), partial(step, "check functions"))
    rows = [check.figures for check in checks]
    show(rows_as_object("functions", rows), as_json, lambda: rows_table(f"{packages} against PyTorch", _shown(rows)))
    wrong = [row for row in rows if not row.passed]
    if wrong:
        first = f"{wrong[0].weights} ({wrong[0].kind})"
        raise PackageError(
            f"{packages}: {len(wrong)} of {len(rows)} functions are flagged or further off than allowed, first {first}"
        )


def workload(
    name: Annotated[
        str | None, typer.Argument(help="A named workload of the model; without it the first that was exported.")
    ] = None,
    *,
    packages: PackagesOption,
    out: Annotated[Path | None, Option("-o", help="Write the workload file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the workload of an export, its weights as large as the packages; what a run of them is planned for."""
    from cidl_sim.coreml.packages import Packages
    from cidl_sim.worker.sources import PackageSource

    made = PackageSource(Packages.open(packages), "mil").named_workload(name)
    if out is not None:
        made.write(out)
    if as_json:
        print_json_text(made.to_json())
    else:
        screen.print(workload_table(made))


def _shown(rows: list[CheckedFunction]) -> list[dict[str, Any]]:
    shown = []
    for row in rows:
        flags = {
            "overflow": row.overflow,
            "not_a_number": row.not_a_number,
            "too_many_dimensions": row.too_many_dimensions,
        }
        shown.append(
            {
                "weights": row.weights,
                "kind": row.kind,
                "relative error": "not finite" if row.relative_error is None else f"{row.relative_error:.1e}",
                "allowed": "any" if row.allowed is None else f"{row.allowed:.0e}",
                "flags": ", ".join(f"{flag}: {found[0]}" for flag, found in flags.items() if found) or "none",
                "": "passed" if row.passed else "WRONG",
            }
        )
    return shown


def _chosen(option: str, given: str, choices: Any) -> Any:
    if given not in get_args(choices):
        raise InputError(f"{option} {given!r}: choose one of {', '.join(get_args(choices))}")
    return given


def _lines(summary: ExportSummary) -> list[str]:
    lines = [
        f"{summary.packages} package(s) with {summary.functions} functions, {summary.bytes / 1e6:.1f} MB, "
        f"in {summary.out}; {len(summary.exported)} of them made now"
    ]
    if summary.weight_error is not None:
        lines.append(f"compressed weights differ by at most {summary.weight_error:.2%} of a block's norm")
    if summary.missing:
        lines.append(f"not exported: {len(summary.missing)} blocks, the first is {summary.missing[0]}")
    return lines
