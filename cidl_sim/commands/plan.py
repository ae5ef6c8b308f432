"""The command that plans."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cidl_sim.commands.console import (
    AsJson,
    Option,
    SetOption,
    WorkloadArgument,
    check_picture,
    device_with,
    progress,
    show,
)
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError, InputError
from cidl_sim.core.reports import InfeasiblePlan, PlanReport
from cidl_sim.pipelines.catalog import cut_choices, find_workload
from cidl_sim.report.tables import devices_table, plan_tables

if TYPE_CHECKING:
    from cidl_sim.planner.report import FoundPlan


def plan_command(
    workload_name: WorkloadArgument,
    device_names: Annotated[list[str], typer.Argument(metavar="DEVICE...", help="Named devices or device files.")],
    policy: Annotated[str | None, Option("--policy", help="Without it: the best plan that is found.")] = None,
    out: Annotated[Path | None, Option("-o", "--output", help="The plan file (a folder, for several devices).")] = None,
    time_limit_s: Annotated[
        float, Option("--time-limit", metavar="S", min=0.0, help="Seconds to look for a better plan and bound.")
    ] = 10.0,
    target_s: Annotated[
        float | None, Option("--target-s", metavar="T", help="Also the least memory, bandwidth and compute for T.")
    ] = None,
    with_curve: Annotated[bool, Option("--memory-curve", help="Also the makespan against the memory limit.")] = False,
    partition: Annotated[
        str | None, Option("--partition", metavar="auto", help="Also choose the cut into blocks.")
    ] = None,
    plot: Annotated[Path | None, Option("--plot", help="Draw the memory curve (of one device).")] = None,
    rounds_plot: Annotated[
        Path | None, Option("--rounds-plot", help="Draw three rounds beside on_device_sora's (of one device).")
    ] = None,
    settings: SetOption = None,
    as_json: AsJson = False,
) -> None:
    """Make a plan, say what it does and what limits it, and print its bound and the baselines beside it."""
    if not math.isfinite(time_limit_s):
        raise InputError(f"--time-limit {time_limit_s}: write a number of seconds")
    if target_s is not None and not 0 < target_s < math.inf:
        raise InputError(f"--target-s {target_s}: write a positive number of seconds")
    if plot is not None and not with_curve:
        raise InputError("--plot draws the memory curve: give --memory-curve too")
    if len(device_names) > 1:
        _check_for_several_devices(out, plot, rounds_plot)
    check_picture("--plot", plot)
    check_picture("--rounds-plot", rounds_plot)
    if partition not in (None, "auto"):
        raise InputError(
            f"--partition {partition!r}: write auto; a fixed one is part of the workload's name (...-fine)"
        )
    from cidl_sim.planner.report import PlanQuestions, find_plan, infeasible_plan, plan_report

    given = find_workload(workload_name)
    choices = cut_choices(given)
    devices = [device_with(name, settings) for name in device_names]
    labels = _labels(devices)
    asked = PlanQuestions(policy, time_limit_s, partition is not None, target_s, with_curve)
    results: list[PlanReport | InfeasiblePlan] = []
    for label, device in zip(labels, devices, strict=True):
        file = out / f"{label}.json" if out is not None and len(devices) > 1 else out
        with progress(fleeting=True) as shown:
            step = _naming(label, shown)
            try:
                found = find_plan(given, device, asked, choices, step)
                if file is not None:
                    found.write(file)
                if rounds_plot is not None:
                    _draw_rounds(found, rounds_plot)
                results.append(plan_report(found, asked, file=file, on_step=step))
            except InfeasibleError as problem:
                if len(devices) == 1:
                    raise
                results.append(infeasible_plan(given, device, problem))
    refused = [report for report in results if isinstance(report, InfeasiblePlan)]
    if len(refused) == len(results):
        reasons = (f"{label}: {report.infeasible}" for label, report in zip(labels, refused, strict=True))
        raise InfeasibleError("it fits none of the devices: " + "; ".join(reasons))
    if plot is not None and isinstance(results[0], PlanReport):
        from cidl_sim.report.what_if import draw_memory_curve

        draw_memory_curve(results[0], plot)
    drawn = [f"picture in {picture}" for picture in (plot, rounds_plot) if picture is not None]
    show(results[0] if len(results) == 1 else results, as_json, lambda: [*_tables(labels, results), *drawn])


def _check_for_several_devices(out: Path | None, plot: Path | None, rounds_plot: Path | None) -> None:
    for option, picture in (("--plot", plot), ("--rounds-plot", rounds_plot)):
        if picture is not None:
            raise InputError(f"{option} draws the plan of one device")
    if out is not None and out.is_file():
        raise InputError(f"-o {out}: that is a file; for several devices -o must be a folder")


def _labels(devices: list[DeviceProfile]) -> list[str]:
    """A name of its own for each device: files, some file systems' capitals included, must not replace each other."""
    labels: list[str] = []
    for device in devices:
        label, count = device.name, 1
        while label.casefold() in (taken.casefold() for taken in labels):
            count += 1
            label = f"{device.name}-{count}"
        labels.append(label)
    return labels


def _naming(label: str, step: Any) -> Any:
    """Progress that names the device."""
    return lambda name, done, total, detail: step(f"{name} for {label}", done, total, detail)


def _tables(labels: list[str], results: list[PlanReport | InfeasiblePlan]) -> list[Any]:
    tables = [table for report in results if isinstance(report, PlanReport) for table in plan_tables(report)]
    return tables if len(results) == 1 else [*tables, devices_table(labels, results)]


def _draw_rounds(found: FoundPlan, path: Path) -> None:
    """The plan's rounds above those of the reference app's policy."""
    from cidl_sim.report.rounds import draw_rounds

    traces, title = found.beside_the_reference()
    draw_rounds(traces, path, title)
