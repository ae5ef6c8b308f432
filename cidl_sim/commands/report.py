"""The command that makes pictures and pages of results."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cidl_sim.commands.console import AsJson, Optional, SetOption, device_with, progress, show
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError, InputError, PlanError, TraceError
from cidl_sim.core.files import read_json, validated
from cidl_sim.core.plan import Plan
from cidl_sim.core.timed import timed
from cidl_sim.core.trace import Trace, read_trace
from cidl_sim.core.workload import Workload, describe_difference
from cidl_sim.devices.catalog import find_device
from cidl_sim.workloads.catalog import find_workload

if TYPE_CHECKING:
    from cidl_sim.report.run_page import Comparison

PAGE = "report.html"


def report(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A sweep's results folder, a plan or a trace.")],
    workload_name: Annotated[
        str | None, typer.Argument(metavar="WORKLOAD", help="That of the plan or trace, if its name does not tell.")
    ] = None,
    device_name: Annotated[
        str | None, typer.Argument(metavar="DEVICE", help="That of the plan or trace, likewise.")
    ] = None,
    out: Annotated[Path, Optional("-o", metavar="DIR", help="The folder for the page and the pictures.")] = Path(
        "report"
    ),
    settings: SetOption = None,
    as_json: AsJson = False,
) -> None:
    """Make one self-contained page (and of a sweep also pictures) of results, a plan or a trace."""
    if (workload_name is None) != (device_name is None):
        raise InputError("give both WORKLOAD and DEVICE, or neither")
    if settings and device_name is None:
        raise InputError("--set goes with WORKLOAD and DEVICE")
    if out.is_file():
        raise InputError(f"-o {out}: that is a file; name a folder")
    if not source.exists():
        raise InputError(f"{source}: there is no such file or folder")
    if source.is_dir():
        if workload_name is not None:
            raise InputError(f"{source}: a sweep's results name their own workloads and devices")
        figures = _sweep_report(source, out)
    else:
        given = None
        if workload_name is not None and device_name is not None:
            given = find_workload(workload_name), device_with(device_name, settings)
        figures = _run_report(source, given, out)
    show(figures, as_json, lambda: [f"{file}" for file in figures["files"]])


# A sweep


def _sweep_report(folder: Path, out: Path) -> dict[str, Any]:
    from cidl_sim.report.page import write_page
    from cidl_sim.report.sweep_page import SweepPage
    from cidl_sim.report.sweep_plots import draw_sweep
    from cidl_sim.sweep.reproduce import trace_of_row
    from cidl_sim.sweep.results import read_sweep, scan
    from cidl_sim.sweep.shown import figures_of

    rows, is_sample = scan(folder), read_sweep(folder).sample is not None
    with progress(fleeting=True) as step:
        step("reading", 0, 1, str(folder))
        figures = figures_of(rows, is_sample=is_sample)
    with progress() as step:
        page = SweepPage(figures)
        for done, (index, row) in enumerate(figures.points.items()):
            step("simulating what is shown", done, len(figures.points), f"row {index}")
            page.add(index, trace_of_row(row))
        step("simulating what is shown", len(figures.points), len(figures.points), "")
    files = [*draw_sweep(figures, page.stalls_s, out), out / PAGE]
    write_page(page.page(f"Sweep {folder.name}"), out / PAGE)
    return {
        "kind": "sweep",
        "rows": figures.rows,
        "feasible_rows": figures.feasible,
        "shown_rows": len(figures.points),
        "best": list(figures.best),
        "pareto": [{"title": front.title, "rows": list(front.rows)} for front in figures.fronts],
        "regrets": list(figures.regrets),
        "sensitivities": list(figures.sensitivities),
        "files": [str(file) for file in files],
    }


# A plan or a run

Setting = tuple[Workload, DeviceProfile]


def _run_report(source: Path, given: Setting | None, out: Path) -> dict[str, Any]:
    from cidl_sim.report.page import write_page
    from cidl_sim.report.run_page import run_page

    found, notes = _read(source), [str(source)]
    with progress(fleeting=True) as step:
        if isinstance(found, Plan):
            workload, device = given or _setting_of(source, found)
            kind, trace = "plan", _simulated(found, workload, device, step)
            comparison = _comparison(workload, device, found, step)
            notes += _first_and_later_runs(workload, device, found)
        else:
            kind, trace = "trace", found
            comparison, note = _comparison_of_trace(source, found, given, step)
            notes += [note] if note else []
    write_page(run_page(trace, comparison, notes), out / PAGE)
    return {
        "kind": kind,
        "workload": trace.header.workload_name,
        "device": trace.header.device_name,
        **trace.summary(),
        "bounds": dict(comparison.bounds),
        "baselines": dict(comparison.baselines),
        "files": [str(out / PAGE)],
    }


def _read(source: Path) -> Plan | Trace:
    """The plan or the trace in a file. InputError for anything else."""
    if source.suffix == ".gz":
        return read_trace(source)
    data = read_json(source, InputError)
    kind = data.get("format") if isinstance(data, dict) else None
    if kind == Plan.model_fields["format"].default:
        return validated(Plan, data, str(source), PlanError)
    if kind == Trace.model_fields["format"].default:
        return validated(Trace, data, str(source), TraceError)
    raise InputError(f"{source}: neither a plan (cidl-plan/1) nor a trace (cidl-trace/1), nor a sweep's results folder")


def _setting_of(source: Path, found: Plan | Trace) -> Setting:
    """The workload and the device that a plan or trace names. InputError if these are others by now, or files."""
    names = found if isinstance(found, Plan) else found.header
    with suppress(InputError):
        workload, device = find_workload(names.workload_name), find_device(names.device_name)
        if (workload.sha256, device.sha256) == (names.workload_sha256, names.device_sha256):
            return workload, device
    raise InputError(
        f"{source}: made for {names.workload_name!r} on {names.device_name!r}, which the catalogs do not have as it "
        f"was; write cidl report {source} WORKLOAD DEVICE"
    )


def _simulated(plan: Plan, workload: Workload, device: DeviceProfile, step: Any) -> Trace:
    from cidl_sim.simulator.engine import simulate

    plan.check(workload, device)
    step("simulating", 0, 1, plan.policy)
    return simulate(workload, device, plan)


def _first_and_later_runs(workload: Workload, device: DeviceProfile, plan: Plan) -> list[str]:
    """What a plan takes when a device with Core ML loads everything for the first time, and afterwards."""
    if device.coreml is None:
        return []
    from cidl_sim.coreml.cost import run_sentence, run_times

    return [run_sentence(run_times(workload, device, plan))]


def _comparison_of_trace(source: Path, trace: Trace, given: Setting | None, step: Any) -> tuple[Comparison, str]:
    """What a run is compared with, or nothing and why."""
    from cidl_sim.report.run_page import Comparison

    try:
        workload, device = given or _setting_of(source, trace)
    except InputError as problem:
        return Comparison(), f"No bounds and no policies beside it: {problem}"
    if workload.sha256 != trace.header.workload_sha256:
        ours = describe_difference(workload, trace.header.workload_name, trace.header.workload_sha256)
        raise InputError(f"{source}: the trace was {ours}")
    limit = trace.header.memory_limit_bytes
    note = f"Bounds and policies: simulated on {device.name} under the run's limit of {limit} bytes."
    try:
        return _comparison(workload, device.with_value("memory_limit_bytes", limit), None, step), note
    except InfeasibleError as problem:
        return Comparison(), f"No bounds and no policies beside it: {problem}"


def _comparison(workload: Workload, device: DeviceProfile, plan: Plan | None, step: Any) -> Comparison:
    """Bounds and policies; of a plan for this very device also the bound that was found with it."""
    from cidl_sim.planner.bounds import (
        first_load_bound_s,
        least_loading_s,
        loading_bound_s,
        loading_then_executing_bound_s,
    )
    from cidl_sim.planner.evaluate import baseline_makespans
    from cidl_sim.report.run_page import Comparison

    step("bounds", 0, 1, "")
    priced = timed(workload, device)
    least_s = least_loading_s(priced)
    bounds = {
        "first load, then execution": first_load_bound_s(priced),
        "loading": loading_bound_s(priced, least_s),
        "loading, then the rest": loading_then_executing_bound_s(priced, least_s),
    }
    if plan is not None and plan.lower_bound is not None and plan.device_sha256 == device.sha256:
        bounds["found by the planner"] = plan.lower_bound
    step("policies", 0, 1, "")
    return Comparison(bounds, baseline_makespans(workload, device))
