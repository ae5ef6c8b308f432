"""Commands about traces: show, convert, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cidl_sim.commands.console import AsJson, Optional, check_picture, draw, show
from cidl_sim.core.errors import InputError
from cidl_sim.core.trace import read_trace
from cidl_sim.report.tables import summary_table, trace_difference_tables

TraceArgument = Annotated[Path, typer.Argument(help="A trace file (.json or .json.gz).")]


def show_trace(
    file: TraceArgument,
    plot: Annotated[Path | None, Optional("--plot", help="Draw the timeline.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a trace: busy times, idle times by cause, memory."""
    check_picture("--plot", plot)
    trace = read_trace(file)
    if plot is not None:
        draw([(f"{trace.header.origin}, {trace.header.policy}", trace)], plot, trace.header.workload_name)
    show(trace.summary(), as_json, lambda: summary_table(str(file), trace))


def convert(
    file: TraceArgument,
    to: Annotated[str, Optional("--to", metavar="FORMAT", help="chrome (JSON) or perfetto (protobuf).")],
    out: Annotated[Path, Optional("-o", help="The file to write.")],
    as_json: AsJson = False,
) -> None:
    """Write a trace as chrome://tracing and ui.perfetto.dev read it."""
    from cidl_sim.report.trace_export import FORMATS, export_trace

    if to not in FORMATS:
        raise InputError(f"--to {to!r}: choose one of {', '.join(FORMATS)}")
    if out.resolve() == file.resolve():
        raise InputError(f"-o {out}: that is the trace itself")
    export_trace(read_trace(file), to, out)
    show(
        {"file": str(out), "format": to, "bytes": out.stat().st_size},
        as_json,
        lambda: f"{out}: open it at ui.perfetto.dev",
    )


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A trace file.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another, of the same workload.")],
    as_json: AsJson = False,
) -> None:
    """Compare two traces: what moved, and where the difference in makespan comes from."""
    from cidl_sim.report.trace_diff import trace_difference

    figures = trace_difference(read_trace(first), read_trace(second))
    show(figures, as_json, lambda: trace_difference_tables(figures))
