"""Commands about devices with Core ML: what a workload costs there, and profiles measured there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cidl_sim.commands.console import (
    AsJson,
    DeviceArgument,
    Option,
    SetOption,
    WorkloadArgument,
    device_with,
    messages,
    progress,
    show,
    some_bytes,
    some_bytes_per_s,
)
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InputError
from cidl_sim.core.feasibility import check_plan
from cidl_sim.core.plan import Plan, read_plan
from cidl_sim.core.workload import Workload
from cidl_sim.coreml.manifest import read_manifest
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.report.tables import calibration_table, coreml_cost_table

if TYPE_CHECKING:
    from cidl_sim.coreml.profile import CostRecording


def profile(
    out: Annotated[Path, Option("-o", help="The device file to write.")],
    packages: Annotated[
        Path | None, Option("--packages", metavar="DIR", help="The export whose blocks are measured (on macOS).")
    ] = None,
    recorded: Annotated[
        Path | None, Option("--from-samples", metavar="FILE", help="Samples recorded before; nothing is measured.")
    ] = None,
    device_name: Annotated[
        str | None, Option("--device", metavar="NAME", help="A connected device instead of this Mac.")
    ] = None,
    team: Annotated[
        str | None, Option("--team", metavar="ID", help="The development team that signs the runner on it.")
    ] = None,
    compute_units: Annotated[str, Option("--compute-units", help="all, cpu_only, cpu_and_gpu or cpu_and_ne.")] = "all",
    repeats: Annotated[int, Option("--repeats", min=1, help="Later loads and predictions of each block.")] = 10,
    per_kind: Annotated[
        int, Option("--per-kind", min=1, help="So many blocks of each kind, each loaded cold once.")
    ] = 1,
    samples: Annotated[
        Path | None, Option("--samples", metavar="FILE", help="Write the samples here, after each block.")
    ] = None,
    memory_limit: Annotated[
        int | None,
        Option("--memory-limit", metavar="BYTES", parser=some_bytes, help="The profile's. Default: room for all."),
    ] = None,
    later_load_rate: Annotated[
        float | None,
        Option(
            "--later-load-rate",
            metavar="BYTES_PER_S",
            parser=some_bytes_per_s,
            help="To assume where none can be measured.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure cold and later loads and predictions with Core ML, block by block, and write a device profile."""
    from cidl_sim.coreml.profile import build_profile, read_recording

    if (packages is None) == (recorded is None):
        raise InputError("give either --packages (measure, on macOS) or --from-samples (a profile of recorded samples)")
    if recorded is not None:
        if device_name or samples:
            raise InputError("--device and --samples go with --packages")
        recording = read_recording(recorded)
    elif packages is not None:
        if device_name is not None and later_load_rate is None:
            raise InputError(
                "--device: the remote benchmarker loads each time from a new place, so later loads cannot be measured; "
                "give --later-load-rate BYTES_PER_S, which the profile will call assumed"
            )
        recording = _recorded(packages, device_name, team, compute_units, repeats, per_kind, samples)
    device = build_profile(recording, out.stem, memory_limit_bytes=memory_limit, later_bytes_per_s=later_load_rate)
    device.write(out)
    failed = {f"{block.weights} ({block.kind})": block.problem for block in recording.blocks if block.problem}
    for block, problem in failed.items():
        messages.print(f"not measured: {block}: {problem}", markup=False)
    summary = {
        "device": device.name,
        "file": str(out),
        "samples": None if samples is None else str(samples),
        "measured_on": recording.device,
        "kinds": len(device.measured),
        "failed": failed,
        **device.loader.model_dump(),
        "noise": device.noise.model_dump(),
    }
    show(summary, as_json, lambda: [calibration_table(device), f"profile in {out}"])


def _recorded(
    packages: Path,
    device_name: str | None,
    team: str | None,
    compute_units: str,
    repeats: int,
    per_kind: int,
    samples: Path | None,
) -> CostRecording:
    from cidl_sim.coreml.measuring import (
        COMPUTE_UNITS,
        record_connected,
        record_this_mac,
        require_macos,
    )
    from cidl_sim.worker.exporting import targets_of

    if compute_units not in COMPUTE_UNITS:
        raise InputError(f"--compute-units {compute_units!r}: choose one of {', '.join(COMPUTE_UNITS)}")
    manifest = read_manifest(packages)
    require_macos()
    targets = targets_of(packages, manifest, per_kind)
    with progress() as step:

        def on_block(recording: CostRecording, total: int) -> None:
            if samples is not None:
                recording.write(samples)
            step("measure blocks", len(recording.blocks), total, recording.blocks[-1].weights)

        measured = packages, manifest, targets, compute_units, repeats, on_block
        if device_name is None:
            return record_this_mac(*measured)
        return record_connected(*measured, device_name=device_name, team=team)


def cost(
    workload_name: WorkloadArgument,
    device_name: DeviceArgument,
    packages: Annotated[
        Path | None, Option("--packages", metavar="DIR", help="The export that would be put on the device.")
    ] = None,
    policy: Annotated[str | None, Option("--policy", help="Without it and --plan: the best policy.")] = None,
    plan_file: Annotated[Path | None, Option("--plan", help="The times of this plan.")] = None,
    settings: SetOption = None,
    as_json: AsJson = False,
) -> None:
    """Disk, first run and later runs of a workload on a device with Core ML, each figure with its mark."""
    from cidl_sim.coreml.cost import coreml_cost

    if policy is not None and plan_file is not None:
        raise InputError("give either --policy or --plan")
    workload, device = find_workload(workload_name), device_with(device_name, settings)
    manifest = None if packages is None else read_manifest(packages)
    found = coreml_cost(workload, device, _plan(workload, device, policy, plan_file), manifest)
    show(found, as_json, lambda: coreml_cost_table(found))


def _plan(workload: Workload, device: DeviceProfile, policy: str | None, plan_file: Path | None) -> Plan:
    if plan_file is not None:
        plan = read_plan(plan_file)
        check_plan(workload, device, plan)
        return plan
    from cidl_sim.policies.catalog import make_plan

    if policy is None:
        from cidl_sim.planner.reruns import best_policy

        policy = best_policy(workload, device)
    return make_plan(policy, workload, device)
