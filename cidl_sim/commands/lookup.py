"""Commands that look things up: workloads, devices, policies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cidl_sim.commands.console import (
    AsJson,
    Option,
    messages,
    print_json_text,
    rows_as_object,
    screen,
    show,
    some_bytes,
)
from cidl_sim.core.errors import InputError
from cidl_sim.report.rows_table import rows_table

# Three verbs that need nothing of each other: each imports its own catalog.
if TYPE_CHECKING:
    from cidl_sim.core.workload import Workload


def workloads(
    name: Annotated[str | None, typer.Argument(help="A named workload or a workload file.")] = None,
    from_torch: Annotated[
        str | None, Option("--from-torch", metavar="MODULE:FACTORY", help="Measure your own torch module.")
    ] = None,
    block_limit: Annotated[
        int | None,
        Option("--block-limit", metavar="BYTES", parser=some_bytes, help="Largest block. Default: the largest layer."),
    ] = None,
    depth: Annotated[int | None, Option("--depth", min=0, help="Levels of submodules to cut between.")] = None,
    rounds: Annotated[int | None, Option("--rounds", min=1, help="How often the module runs.")] = None,
    out: Annotated[Path | None, Option("-o", help="Write the workload file.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the named workloads, show one block by block, or make one from a torch module."""
    from cidl_sim.pipelines.catalog import find_workload, shipped
    from cidl_sim.report.tables import workload_table

    if from_torch is None and (block_limit, depth, rounds) != (None, None, None):
        raise InputError("--block-limit, --depth and --rounds go with --from-torch")
    if from_torch is not None and name is not None:
        raise InputError("give either a NAME or --from-torch")
    if from_torch is not None:
        from cidl_sim.blocks.from_torch import graph_from_torch
        from cidl_sim.blocks.partition import partition, workload_of_graph

        graph = graph_from_torch(from_torch, depth=depth)
        blocks = partition(graph, block_limit)
        workload = workload_of_graph(graph, blocks, name=from_torch, rounds=rounds or 1)
    elif name is None:
        if out is not None:
            raise InputError("-o goes with a NAME or --from-torch")
        found = [find_workload(name) for name in shipped()]
        rows = [
            {"name": w.name, "weights_bytes": w.weights_bytes, "visits": len(w.visits), "flops": _total_flops(w)}
            for w in found
        ]
        show(rows_as_object("workloads", rows), as_json, lambda: rows_table("named workloads", rows))
        return
    else:
        workload = find_workload(name)
    if out is not None:
        workload.write(out)
    if as_json:
        print_json_text(workload.to_json())
    else:
        screen.print(workload_table(workload))


def devices(
    name: Annotated[str | None, typer.Argument(help="A named device or a device file.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the device profiles, or show one with the source of each figure."""
    from cidl_sim.devices.catalog import THIS_MACHINE, find_device, shipped_devices, this_machine_file

    if name is not None:
        device = find_device(name)
        if as_json:
            print_json_text(device.model_dump_json(indent=1, exclude_none=True))
        else:
            screen.print(device.to_toml(), markup=False, highlight=False)
        return
    names = [*shipped_devices(), *([THIS_MACHINE] if this_machine_file().is_file() else [])]
    rows = [
        {
            "name": d.name,
            "memory_limit_bytes": d.memory_limit_bytes,
            "flops_per_s": d.executor.flops_per_s,
            "bandwidth_bytes_per_s": d.loader.bandwidth_bytes_per_s,
            "device": d.provenance.device,
        }
        for d in map(find_device, names)
    ]
    show(rows_as_object("devices", rows), as_json, lambda: rows_table("device profiles", rows))
    if not as_json and THIS_MACHINE not in names:
        messages.print(f"'{THIS_MACHINE}' appears here once 'cidl demo' or 'cidl calibrate' has measured it.")


def policies(as_json: AsJson = False) -> None:
    """List the policies."""
    from cidl_sim.policies.catalog import POLICIES

    rows = [
        {"name": p.name + (":d" if p.takes_number else ""), "takes_number": p.takes_number, "summary": p.summary}
        for p in POLICIES.values()
    ]
    show(rows_as_object("policies", rows), as_json, lambda: rows_table("policies", rows, skip=("takes_number",)))


def _total_flops(workload: Workload) -> float:
    return sum(visit.block.flops for visit in workload.visits)
