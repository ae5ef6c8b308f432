"""The command that plans."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cidl_sim.commands.console import (
    AsJson,
    Optional,
    SetOption,
    WorkloadArgument,
    check_picture,
    device_with,
    progress,
    show,
)
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError, InputError
from cidl_sim.core.plan import Plan
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Workload
from cidl_sim.policies.on_device_sora import REFERENCE
from cidl_sim.report.tables import devices_table, plan_tables
from cidl_sim.workloads.catalog import find_workload

if TYPE_CHECKING:
    from cidl_sim.planner.partitions import ChosenPartition


def plan_command(
    workload_name: WorkloadArgument,
    device_names: Annotated[list[str], typer.Argument(metavar="DEVICE...", help="Named devices or device files.")],
    policy: Annotated[str | None, Optional("--policy", help="Without it: the best plan that is found.")] = None,
    out: Annotated[
        Path | None, Optional("-o", "--output", help="The plan file (a folder, for several devices).")
    ] = None,
    time_limit_s: Annotated[
        float, Optional("--time-limit", metavar="S", min=0.0, help="Seconds to look for a better plan and bound.")
    ] = 10.0,
    target_s: Annotated[
        float | None, Optional("--target-s", metavar="T", help="Also the least memory, bandwidth and compute for T.")
    ] = None,
    with_curve: Annotated[bool, Optional("--memory-curve", help="Also the makespan against the memory limit.")] = False,
    partition: Annotated[
        str | None, Optional("--partition", metavar="auto", help="Also choose the cut into blocks.")
    ] = None,
    plot: Annotated[Path | None, Optional("--plot", help="Draw the memory curve (of one device).")] = None,
    rounds_plot: Annotated[
        Path | None, Optional("--rounds-plot", help="Draw three rounds beside on_device_sora's (of one device).")
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
    given = find_workload(workload_name)
    devices = [device_with(name, settings) for name in device_names]
    labels = _labels(devices)
    results: list[dict[str, Any]] = []
    for label, device in zip(labels, devices, strict=True):
        target = out / f"{label}.json" if out is not None and len(devices) > 1 else out
        with progress(fleeting=True) as shown:
            step = _naming(label, shown)
            try:
                chosen = _partitioned(given, device, policy, time_limit_s, step) if partition else None
                workload = chosen.cut.workload if chosen else given
                figures = _planned(workload, device, policy, time_limit_s, target, rounds_plot, step, chosen)
                if target_s is not None:
                    from cidl_sim.planner.inverse import least_for

                    figures["target_s"] = target_s
                    figures["least"] = [asdict(row) for row in least_for(workload, device, target_s, step)]
                if with_curve:
                    figures.update(_memory_curve(workload, device, policy, step))
            except InfeasibleError as problem:
                if len(devices) == 1:
                    raise
                figures = _infeasible(given, device, problem)
        results.append(figures)
    if all(figures["makespan_s"] is None for figures in results):
        reasons = (f"{label}: {figures['infeasible']}" for label, figures in zip(labels, results, strict=True))
        raise InfeasibleError("it fits none of the devices: " + "; ".join(reasons))
    if plot is not None:
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


def _infeasible(workload: Workload, device: DeviceProfile, problem: InfeasibleError) -> dict[str, Any]:
    return {
        "workload": workload.name,
        "device": device.name,
        "makespan_s": None,
        "memory_limit_bytes": device.memory_limit_bytes,
        "infeasible": str(problem),
    }


def _tables(labels: list[str], results: list[dict[str, Any]]) -> list[Any]:
    tables = [table for figures in results if figures["makespan_s"] is not None for table in plan_tables(figures)]
    return tables if len(results) == 1 else [*tables, devices_table(labels, results)]


def _partitioned(
    workload: Workload, device: DeviceProfile, policy: str | None, time_limit_s: float, step: Any
) -> ChosenPartition:
    from cidl_sim.planner.partitions import best_partition

    observe = partial(step, "cut")
    return best_partition(workload, device, policy=policy, time_limit_s=time_limit_s, on_step=observe)


def _planned(
    workload: Workload,
    device: DeviceProfile,
    policy: str | None,
    time_limit_s: float,
    file: Path | None,
    rounds_plot: Path | None,
    step: Any,
    chosen: ChosenPartition | None,
) -> dict[str, Any]:
    from cidl_sim.planner.evaluate import baseline_makespans, evaluated_plan
    from cidl_sim.planner.explain import explain
    from cidl_sim.planner.partitions import check_fits
    from cidl_sim.planner.planner import best_plan

    check_fits(workload, device)
    notes: tuple[str, ...] = ()
    if chosen is not None:
        found = chosen.planned
        plan, trace, baselines, notes = found.plan, found.trace, found.baselines, found.notes
    elif policy is not None:
        plan, trace = evaluated_plan(policy, workload, device)
        baselines = baseline_makespans(workload, device)
    else:
        observe = partial(step, "plan")
        found = best_plan(workload, device, time_limit_s=time_limit_s, on_step=observe)
        plan, trace, baselines, notes = found.plan, found.trace, found.baselines, found.notes
    if file is not None:
        plan.write(file)
        if chosen and chosen.is_unnamed:
            workload.write(file.with_suffix(".workload.json"))
    if rounds_plot is not None:
        _draw_rounds(workload, device, plan, trace, rounds_plot)
    times = None
    if device.coreml is not None:
        from cidl_sim.coreml.cost import run_sentence, run_times

        times = run_times(workload, device, plan)
        notes = (*notes, run_sentence(times))
    return {
        "workload": workload.name,
        "device": device.name,
        "policy": plan.policy,
        "makespan_s": plan.makespan_s,
        "lower_bound_s": plan.lower_bound_s,
        "gap": plan.gap,
        "proven_optimal": plan.proven_optimal,
        "proof_scope": plan.proof_scope,
        "peak_resident_bytes": plan.peak_resident_bytes,
        "memory_limit_bytes": plan.memory_limit_bytes,
        "baselines": baselines,
        "first_run_s": times.first_s if times else None,
        "later_run_s": times.later_s if times else None,
        "fall_backs": list(trace.header.fall_backs),
        "file": str(file) if file else None,
        "explanation": [*explain(workload, device, plan, trace, baselines), *notes],
        **(chosen.figures() if chosen else {}),
    }


def _draw_rounds(workload: Workload, device: DeviceProfile, plan: Plan, trace: Trace, path: Path) -> None:
    """The plan's rounds above those of the reference app's policy, where that fits and is not the plan itself."""
    from cidl_sim.policies.catalog import make_plan
    from cidl_sim.report.rounds import draw_rounds
    from cidl_sim.simulator.engine import simulate

    traces, title = [(plan.policy, trace)], f"{workload.name} on {device.name}"
    if plan.policy != REFERENCE:
        try:
            traces.append((REFERENCE, simulate(workload, device, make_plan(REFERENCE, workload, device))))
        except InfeasibleError:
            title += f" ({REFERENCE} does not fit)"
    draw_rounds(traces, path, title)


def _memory_curve(workload: Workload, device: DeviceProfile, policy: str | None, step: Any) -> dict[str, Any]:
    from cidl_sim.planner.break_points import memory_curve, memory_points
    from cidl_sim.planner.reruns import Reruns, best_policy

    reruns = Reruns(workload, device, policy or best_policy(workload, device))
    points = memory_points(reruns, step)
    return {
        "curve_policy": reruns.policy,
        "memory_points": [asdict(point) for point in points],
        "memory_curve": [asdict(point) for point in memory_curve(reruns, points, step)],
    }
