"""Commands that measure this machine and compare with it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cidl_sim.commands.console import (
    AsJson,
    ComputeDeviceOption,
    Option,
    ThreadsOption,
    compute_device_named,
    progress,
    show,
)
from cidl_sim.core.errors import InputError
from cidl_sim.core.files import write_text
from cidl_sim.devices.catalog import this_machine_file
from cidl_sim.pipelines.catalog import parse_name, pipeline_named
from cidl_sim.pipelines.matching import store_sizes
from cidl_sim.pipelines.named import merged_settings
from cidl_sim.report.tables import calibration_table, comparison_table, validation_lines

if TYPE_CHECKING:
    from cidl_sim.core.device import DeviceProfile
    from cidl_sim.executor.job import ComputeDevice
    from cidl_sim.validation.compare import MeasuredCase


def calibrate(
    out: Annotated[Path, Option("-o", help="The device file to write.")],
    store: Annotated[Path | None, Option("--store", metavar="DIR", help="The block store to make runs with.")] = None,
    from_trace: Annotated[
        list[Path] | None,
        Option("--from-trace", metavar="TRACE", help="Learn from this recorded run instead; several, oldest first."),
    ] = None,
    workload_name: Annotated[
        str | None, Option("--workload", help="Measure the blocks of this named workload.")
    ] = None,
    repeats: Annotated[int, Option("--repeats", min=1, help="Runs of each kind, interleaved.")] = 3,
    device_name: Annotated[
        str | None,
        Option(
            "--device",
            metavar="DEVICE",
            help="What computes: cpu, cuda or mps. With --from-trace: the profile that is to learn; else a new one.",
        ),
    ] = None,
    threads: ThreadsOption = None,
    as_json: AsJson = False,
) -> None:
    """Measure this machine with short runs of a store's blocks, or learn from recorded runs; write a profile."""
    if (store is None) == (not from_trace):
        raise InputError("give either --store (runs are made) or --from-trace (recorded runs)")
    if store is not None:
        device = _measured(store, workload_name, repeats, device_name or "cpu", threads)
        device.write(this_machine_file())
    else:
        device = _learned(from_trace or [], workload_name, device_name)
    device.write(out)
    summary = {
        "device": device.name,
        "file": str(out),
        "kinds": len(device.measured),
        **device.loader.model_dump(),
        **device.executor.model_dump(),
        "noise": device.noise.model_dump(),
        "baseline_bytes": device.baseline_bytes,
    }
    show(summary, as_json, lambda: [calibration_table(device), f"profile in {out}"])


def _measured(
    store: Path, workload_name: str | None, repeats: int, compute_device: str, threads: int | None
) -> DeviceProfile:
    from cidl_sim.calibration.this_machine import measure_this_machine
    from cidl_sim.executor.store import BlockStore

    compute = compute_device_named(compute_device)
    opened = BlockStore.open(store)
    targets = [(opened, _settings_for(opened, workload_name))]
    with progress() as step:
        observe = partial(step, "measure this machine")
        return measure_this_machine(targets, observe, repeats=repeats, compute_device=compute, compute_threads=threads)


def _learned(files: list[Path], workload_name: str | None, device_name: str | None) -> DeviceProfile:
    from cidl_sim.calibration.prediction import learned_from_traces
    from cidl_sim.core.trace import read_trace
    from cidl_sim.devices.catalog import find_device
    from cidl_sim.pipelines.catalog import find_workload

    device = None if device_name is None else find_device(device_name)
    workload = None if workload_name is None else find_workload(workload_name)
    return learned_from_traces(device, [read_trace(file) for file in files], workload)


def validate(
    stores: Annotated[
        list[Path] | None,
        Option("--store", metavar="DIR", help="A block store; more than one: partitions of a model."),
    ] = None,
    traces: Annotated[
        Path | None, Option("--traces", metavar="DIR", help="Compare with the runs recorded here; nothing is run.")
    ] = None,
    workload_name: Annotated[
        str | None, Option("--workload", help="A variant of the store's model to vary from.")
    ] = None,
    repeats: Annotated[int, Option("--repeats", min=1, help="Real runs of each policy, interleaved.")] = 3,
    out: Annotated[
        Path, Option("-o", metavar="DIR", help="For validation.json and .png; with --store also plans, runs, videos.")
    ] = Path("validation-out"),
    device_name: ComputeDeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: AsJson = False,
) -> None:
    """Calibrate, run policies that the calibration never saw, and compare with the simulation."""
    from cidl_sim.report.validation_plot import draw_validation
    from cidl_sim.validation.compare import report

    if (traces is None) == (not stores):
        raise InputError("give either --store (runs are made) or --traces (recorded runs)")
    if traces is not None:
        from cidl_sim.validation.runs import read_runs

        cases = read_runs(traces)
    else:
        cases = _validation_runs(stores or [], workload_name, repeats, out, compute_device_named(device_name), threads)
    with progress() as step:
        figures = report(cases, partial(step, "compare"))
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "validation.json", figures.model_dump_json(indent=1) + "\n")
    draw_validation(figures, out / "validation.png")
    show(figures, as_json, lambda: [comparison_table(figures.policies), *validation_lines(figures), f"in {out}"])


def _validation_runs(
    folders: list[Path],
    workload_name: str | None,
    repeats: int,
    out: Path,
    compute_device: ComputeDevice,
    threads: int | None,
) -> list[MeasuredCase]:
    from cidl_sim.demo import PROMPT
    from cidl_sim.executor.store import BlockStore
    from cidl_sim.validation.campaign import validate_machine
    from cidl_sim.validation.scenarios import default_targets

    stores = [BlockStore.open(folder) for folder in folders]
    targets = default_targets(stores, _settings_for(stores[0], workload_name))
    with progress() as step:
        return validate_machine(
            targets,
            out,
            prompt=PROMPT,
            repeats=repeats,
            on_step=step,
            compute_device=compute_device,
            compute_threads=threads,
        )


def _settings_for(store: Any, workload_name: str | None) -> Any:

    index = store.index
    if workload_name is not None:
        sizes, settings = parse_name(workload_name)
        if (sizes, settings.dtype, settings.partition) != (store_sizes(store), index.dtype, index.partition):
            held = f"{index.name!r} in {index.dtype}, cut as {index.partition!r}"
            raise InputError(f"--workload {workload_name!r}: the store holds {held}")
        return settings
    pipeline, name = pipeline_named(index.pipeline), store_sizes(store).name
    default = pipeline.measuring.get(name, pipeline.defaults.get(name))
    if default is None:
        raise InputError(f"{store.root}: a model without default settings; give --workload")
    return merged_settings(default, {"dtype": index.dtype, "partition": index.partition})
