"""Commands that measure this machine and compare with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cidl_sim.commands.console import (
    AsJson,
    Optional,
    StoreOption,
    progress,
    show,
)
from cidl_sim.core.errors import InputError
from cidl_sim.devices.catalog import this_machine_file
from cidl_sim.report.tables import (
    comparison_table,
    error_line,
)
from cidl_sim.workloads.catalog import merged_settings


def calibrate(
    store: StoreOption,
    out: Annotated[Path, Optional("-o", help="The device file to write.")],
    workload_name: Annotated[
        str | None, Optional("--workload", help="Measure the blocks of this named workload.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure this machine with short real runs of a store's blocks and write a device profile."""
    from cidl_sim.calibration.this_machine import measure_this_machine
    from cidl_sim.executor.store import BlockStore

    opened = BlockStore.open(store)
    with progress() as step:
        settings = _settings_for(opened, workload_name)
        device = measure_this_machine(opened, settings, lambda *state: step("measure this machine", *state))
    device.write(out)
    device.write(this_machine_file())
    summary = {"device": device.name, "file": str(out), "kinds": len(device.measured), **device.loader.model_dump()}
    show(summary, as_json, lambda: f"{len(device.measured)} kinds of blocks measured, profile in {out}")


def validate(
    store: StoreOption,
    workload_name: Annotated[str | None, Optional("--workload", help="A variant of the store's model.")] = None,
    repeats: Annotated[int, Optional("--repeats", min=1, help="Real runs of each policy, interleaved.")] = 1,
    out: Annotated[Path | None, Optional("-o", help="Keep plans, traces and videos in this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Calibrate, run every policy for real, and compare with the simulation."""
    import tempfile

    from cidl_sim.calibration.this_machine import measure_this_machine
    from cidl_sim.demo import PROMPT, demo_limit
    from cidl_sim.diffusion.matching import store_sizes
    from cidl_sim.executor.store import BlockStore
    from cidl_sim.validation.compare import compare_policies, report
    from cidl_sim.workloads.catalog import workload_of

    opened = BlockStore.open(store)
    video = _settings_for(opened, workload_name)
    workload = workload_of(store_sizes(opened), video)
    with progress() as step, tempfile.TemporaryDirectory(prefix="cidl-validate-") as temporary:
        unlimited = measure_this_machine(opened, video, lambda *state: step("measure this machine", *state))
        device = unlimited.with_value("memory_limit_bytes", demo_limit(workload, unlimited))
        comparisons = compare_policies(
            opened,
            workload,
            device,
            out or Path(temporary),
            prompt=PROMPT,
            repeats=repeats,
            on_run=lambda policy, *state: step(f"run {policy}", *state),
        )
    figures = report(comparisons)
    show(figures, as_json, lambda: [comparison_table(figures["policies"]), error_line(figures)])


def _settings_for(store: Any, workload_name: str | None) -> Any:
    from cidl_sim.demo import SETTINGS
    from cidl_sim.workloads.catalog import DEFAULTS, parse_name

    if workload_name is not None:
        sizes, settings = parse_name(workload_name)
        index = store.index
        if (sizes.name, settings.dtype, settings.partition) != (index.name, index.dtype, index.partition):
            held = f"{index.name!r} in {index.dtype}, cut as {index.partition!r}"
            raise InputError(f"--workload {workload_name!r}: the store holds {held}")
        return settings
    default = SETTINGS if store.index.name == "opensora-small" else DEFAULTS.get(store.index.name)
    if default is None:
        raise InputError(f"{store.root}: a model without default settings; give --workload")
    return merged_settings(default, {"dtype": store.index.dtype, "partition": store.index.partition})
