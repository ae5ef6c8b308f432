"""Commands about traces: show, convert, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cidl_sim.commands.console import AsJson, Option, check_picture, draw, show
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InputError
from cidl_sim.core.plan import read_plan
from cidl_sim.core.trace import read_trace
from cidl_sim.devices.catalog import find_device
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.report.tables import summary_table, trace_difference_tables

TraceArgument = Annotated[Path, typer.Argument(help="A trace file (.json or .json.gz).")]


def show_trace(
    file: TraceArgument,
    plot: Annotated[Path | None, Option("--plot", help="Draw the timeline.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a trace: busy times, idle times by cause, memory."""
    check_picture("--plot", plot)
    trace = read_trace(file)
    if plot is not None:
        draw([(f"{trace.header.origin}, {trace.header.policy}", trace)], plot, trace.header.workload_name)
    show(trace.summary(), as_json, lambda: summary_table(str(file), trace))


def convert(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="A trace file; with --from the files of a recording.")
    ],
    to: Annotated[str | None, Option("--to", metavar="FORMAT", help="chrome (JSON) or perfetto (protobuf).")] = None,
    source: Annotated[
        str | None, Option("--from", metavar="FORMAT", help="instruments: XML that xctrace export wrote.")
    ] = None,
    workload_name: Annotated[
        str | None, Option("--workload", metavar="WORKLOAD", help="What the recorded app ran: a name or a file.")
    ] = None,
    plan_file: Annotated[
        Path | None, Option("--plan", help="The plan that it followed; without it the recording's own is taken.")
    ] = None,
    device_name: Annotated[
        str | None,
        Option("--device", metavar="DEVICE", help="What it ran on; needed without --plan, and for --runs."),
    ] = None,
    out: Annotated[Path | None, Option("-o", help="The file to write.")] = None,
    runs: Annotated[
        Path | None, Option("--runs", metavar="DIR", help="File a recording for cidl validate --traces DIR.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a trace as chrome://tracing and ui.perfetto.dev read it, or make one of a recording of Instruments."""
    if (to is None) == (source is None):
        raise InputError("give either --to chrome or perfetto, or --from instruments")
    if source is not None:
        _import(source, files, workload_name, plan_file, device_name, out, runs, as_json)
        return
    if any((workload_name, plan_file, device_name, runs)):
        raise InputError("--workload, --plan, --device and --runs go with --from")
    if len(files) > 1 or out is None:
        raise InputError("--to takes one trace file, and -o the file to write")
    _export(files[0], to or "", out, as_json)


def _export(file: Path, to: str, out: Path, as_json: bool) -> None:
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


def _import(
    source: str,
    files: list[Path],
    workload_name: str | None,
    plan_file: Path | None,
    device_name: str | None,
    out: Path | None,
    runs: Path | None,
    as_json: bool,
) -> None:
    from cidl_sim.recordings.instruments import read_recording
    from cidl_sim.recordings.recorded_run import recorded_plan, trace_of_recording
    from cidl_sim.validation.runs import file_run

    if source != "instruments":
        raise InputError(f"--from {source!r}: choose instruments")
    if workload_name is None:
        raise InputError("give --workload: what the recorded app ran, a name or a workload file")
    if (out is None) == (runs is None):
        raise InputError("give either -o FILE or --runs DIR")
    if runs is not None and runs.is_file():
        raise InputError(f"--runs {runs}: that is a file; name a folder")
    workload = find_workload(workload_name)
    recording = read_recording(files, workload)
    plan = (
        recorded_plan(recording, workload, _device_of_recording(device_name, "without --plan"))
        if plan_file is None
        else read_plan(plan_file)
    )
    trace = trace_of_recording(recording, workload, plan)
    if runs is not None:
        file = file_run(trace, workload, plan, _device_of_recording(device_name, "with --runs"), runs)
    elif out is not None:
        file = out
        trace.write(file)
    figures = {"file": str(file), **trace.summary(), "machine": dict(trace.header.machine)}
    show(figures, as_json, lambda: summary_table(str(file), trace))


def _device_of_recording(name: str | None, where: str) -> DeviceProfile:
    if name is None:
        raise InputError(f"give --device, what the app ran on: {where} it is needed")
    return find_device(name)


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A trace file.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another, of the same workload.")],
    as_json: AsJson = False,
) -> None:
    """Compare two traces: what moved, and where the difference in makespan comes from."""
    from cidl_sim.report.trace_diff import trace_difference

    figures = trace_difference(read_trace(first), read_trace(second))
    show(figures, as_json, lambda: trace_difference_tables(figures))
