"""The command that varies the device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cidl_sim.commands.console import (
    AsJson,
    DeviceArgument,
    Option,
    SetOption,
    WorkloadArgument,
    check_picture,
    device_with,
    progress,
    show,
)
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.report.tables import what_if_tables


def whatif(
    workload_name: WorkloadArgument,
    device_name: DeviceArgument,
    policy: Annotated[str | None, Option("--policy", help="Without it: the best of all policies.")] = None,
    settings: SetOption = None,
    out: Annotated[Path | None, Option("-o", help="Draw sensitivities and the memory curve.")] = None,
    as_json: AsJson = False,
) -> None:
    """Which figures of a device matter for a workload, and where more of them stops paying."""
    check_picture("-o", out)
    from cidl_sim.planner.what_if import what_if

    workload, device = find_workload(workload_name), device_with(device_name, settings)
    with progress() as step:
        found = what_if(workload, device, policy, step).model_copy(update={"file": str(out) if out else None})
    if out is not None:
        from cidl_sim.report.what_if import draw_what_if

        draw_what_if(found, out)
    show(found, as_json, lambda: what_if_tables(found))
