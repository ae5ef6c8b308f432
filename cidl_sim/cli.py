"""The command line: parse, call, print. Exit codes are in docs/reference.md."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import CidlError, InputError, PlanError
from cidl_sim.core.files import read_text
from cidl_sim.core.plan import Plan, read_plan
from cidl_sim.core.trace import Trace, read_trace
from cidl_sim.core.workload import Workload
from cidl_sim.devices.catalog import THIS_MACHINE, find_device, shipped_devices, this_machine_file
from cidl_sim.models.config import (
    LPL_RULES,
    OPENSORA_SMALL,
    OPENSORA_TINY,
    OPENSORA_V1_2,
    Dtype,
    OpenSoraSizes,
    Partition,
)
from cidl_sim.policies.catalog import POLICIES, make_plan
from cidl_sim.report.tables import (
    comparison_table,
    error_line,
    plan_table,
    rows_table,
    summary_table,
    workload_table,
)
from cidl_sim.workloads.catalog import SHIPPED, find_workload, merged_settings

app = typer.Typer(
    name="cidl",
    help="Simulate, plan and run generative models that are larger than the memory of the device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
model_app = typer.Typer(help="Make block stores.", no_args_is_help=True)
trace_app = typer.Typer(help="Look at traces.", no_args_is_help=True)
app.add_typer(model_app, name="model")
app.add_typer(trace_app, name="trace")

# A pipe has no width of its own; names would be cut at 80 columns.
screen = Console(width=None if sys.stdout.isatty() else 132)
messages = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else there.")]
WorkloadArgument = Annotated[str, typer.Argument(metavar="WORKLOAD", help="A named workload or a workload file.")]
DeviceArgument = Annotated[str, typer.Argument(metavar="DEVICE", help="A named device or a device file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a figure of the device profile.")
]
StoreOption = Annotated[Path, typer.Option("--store", metavar="DIR", help="The block store.")]
Optional = typer.Option


# Looking things up


@app.command()
def workloads(
    name: Annotated[str | None, typer.Argument(help="A named workload or a workload file.")] = None,
    from_torch: Annotated[
        str | None, Optional("--from-torch", metavar="MODULE:FACTORY", help="Measure your own torch module.")
    ] = None,
    block_limit: Annotated[
        int | None, Optional("--block-limit", metavar="BYTES", min=1, help="Largest block. Default: the largest layer.")
    ] = None,
    depth: Annotated[int | None, Optional("--depth", min=0, help="Levels of submodules to cut between.")] = None,
    rounds: Annotated[int | None, Optional("--rounds", min=1, help="How often the module runs.")] = None,
    out: Annotated[Path | None, Optional("-o", help="Write the workload file.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the named workloads, show one block by block, or make one from a torch module."""
    if from_torch is None and (block_limit, depth, rounds) != (None, None, None):
        raise InputError("--block-limit, --depth and --rounds go with --from-torch")
    if from_torch is not None and name is not None:
        raise InputError("give either a NAME or --from-torch")
    if from_torch is not None:
        from cidl_sim.workloads.from_torch import graph_from_torch
        from cidl_sim.workloads.partition import partition, workload_of_graph

        graph = graph_from_torch(from_torch, depth=depth)
        blocks = partition(graph, block_limit)
        workload = workload_of_graph(graph, blocks, name=from_torch, rounds=rounds or 1)
    elif name is None:
        if out is not None:
            raise InputError("-o goes with a NAME or --from-torch")
        found = [find_workload(shipped) for shipped in SHIPPED]
        rows = [
            {"name": w.name, "weights_bytes": w.weights_bytes, "visits": len(w.visits), "flops": _total_flops(w)}
            for w in found
        ]
        _show(rows_as_object("workloads", rows), as_json, lambda: rows_table("named workloads", rows))
        return
    else:
        workload = find_workload(name)
    if out is not None:
        workload.write(out)
    if as_json:
        print_json_text(workload.to_json())
    else:
        screen.print(workload_table(workload))


@app.command()
def devices(
    name: Annotated[str | None, typer.Argument(help="A named device or a device file.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the device profiles, or show one with the source of each figure."""
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
    _show(rows_as_object("devices", rows), as_json, lambda: rows_table("device profiles", rows))
    if not as_json and THIS_MACHINE not in names:
        messages.print(f"'{THIS_MACHINE}' appears here once 'cidl demo' or 'cidl calibrate' has measured it.")


@app.command()
def policies(as_json: AsJson = False) -> None:
    """List the policies."""
    rows = [
        {"name": p.name + (":d" if p.takes_number else ""), "takes_number": p.takes_number, "summary": p.summary}
        for p in POLICIES.values()
    ]
    _show(rows_as_object("policies", rows), as_json, lambda: rows_table("policies", rows, skip=("takes_number",)))


# Simulating and planning


@app.command()
def simulate(
    workload_name: WorkloadArgument,
    device_name: DeviceArgument,
    policy: Annotated[str | None, Optional("--policy", help="See 'cidl policies'.")] = None,
    plan_file: Annotated[Path | None, Optional("--plan", help="Simulate this plan instead of a policy.")] = None,
    settings: SetOption = None,
    seed: Annotated[int | None, Optional("--seed", help="Switch the device's noise on.")] = None,
    limit_changes: Annotated[
        list[str] | None,
        Optional("--limit-change", metavar="SECONDS:BYTES", help="At that time the memory limit becomes another."),
    ] = None,
    trace_file: Annotated[Path | None, Optional("--trace", help="Write the simulated trace.")] = None,
    plot: Annotated[Path | None, Optional("--plot", help="Draw the timeline.")] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a policy or a plan on a device."""
    from cidl_sim.simulator.engine import simulate as run_simulation

    workload, device = find_workload(workload_name), _device_with(device_name, settings)
    if (policy is None) == (plan_file is None):
        raise InputError("give either --policy or --plan")
    if plan_file is not None:
        plan = read_plan(plan_file)
        plan.check(workload, device)
    else:
        plan = make_plan(policy or "", workload, device)
    changes = [_limit_change(text) for text in limit_changes or ()]
    trace = run_simulation(workload, device, plan, seed=seed, limit_changes=changes)
    if trace_file is not None:
        trace.write(trace_file)
    if plot is not None:
        _draw([(f"simulated, {plan.policy}", trace)], plot, f"{workload.name} on {device.name}")
    summary = {"workload": workload.name, "device": device.name, **trace.summary()}
    _show(summary, as_json, lambda: summary_table(f"{workload.name} on {device.name}", trace))


@app.command(name="plan")
def plan_command(
    workload_name: WorkloadArgument,
    device_names: Annotated[list[str], typer.Argument(metavar="DEVICE...", help="Named devices or device files.")],
    policy: Annotated[str | None, Optional("--policy", help="Without it: the best of all policies.")] = None,
    out: Annotated[Path | None, Optional("-o", help="The plan file (a folder, for several devices).")] = None,
    settings: SetOption = None,
    as_json: AsJson = False,
) -> None:
    """Make a plan and print its bound and the baselines beside it."""
    from cidl_sim.planner.evaluate import baseline_makespans, evaluated_plan

    workload = find_workload(workload_name)
    results = []
    for name in device_names:
        device = _device_with(name, settings)
        if policy is not None:
            evaluated_plan(policy, workload, device)  # fail before the baselines are worked out
        baselines = baseline_makespans(workload, device)
        chosen = policy or min((p for p in baselines if baselines[p] is not None), key=lambda p: baselines[p] or 0.0)
        plan, _ = evaluated_plan(chosen, workload, device)
        target = out / f"{device.name}.json" if out is not None and len(device_names) > 1 else out
        if target is not None:
            plan.write(target)
        results.append(_plan_figures(plan, workload, device, baselines, target))
    _show(results[0] if len(results) == 1 else results, as_json, lambda: [plan_table(r) for r in results])


@app.command()
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
    with _progress() as step:
        settings = _settings_for(opened, workload_name)
        device = measure_this_machine(opened, settings, lambda *state: step("measure this machine", *state))
    device.write(out)
    device.write(this_machine_file())
    summary = {"device": device.name, "file": str(out), "kinds": len(device.measured), **device.loader.model_dump()}
    _show(summary, as_json, lambda: f"{len(device.measured)} kinds of blocks measured, profile in {out}")


@app.command()
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
    with _progress() as step, tempfile.TemporaryDirectory(prefix="cidl-validate-") as temporary:
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
    _show(figures, as_json, lambda: [comparison_table(figures["policies"]), error_line(figures)])


# Making and running


@model_app.command("build")
def model_build(
    store: StoreOption,
    size: Annotated[str, Optional("--size", help="full, small or tiny.")] = "small",
    seed: Annotated[int, Optional("--random", help="Seed of the random weights.")] = 0,
    dtype: Annotated[str, Optional("--dtype", help="fp32, bf16 or fp16.")] = "fp32",
    partition: Annotated[str, Optional("--partition", help="reference or fine; see docs/techniques.md.")] = "reference",
    as_json: AsJson = False,
) -> None:
    """Build a block store with seeded random weights; an interrupted build goes on where it stopped."""
    sizes, chosen, cut = _sizes(size), _dtype(dtype), _partition(partition)
    from cidl_sim.diffusion.model_store import build_random_store, distinct_blocks

    count = len(distinct_blocks(sizes, chosen, cut))
    with _progress() as step:
        counted = _Counted(lambda done, weights: step("write blocks", done, count, weights))
        built = build_random_store(store, sizes, chosen, seed, counted, partition=cut)
    _show(counted.summary(built, sizes.name, dtype), as_json, lambda: counted.line(built))


@model_app.command("import")
def model_import(
    t5: Annotated[Path, Optional("--t5", help="Folder of DeepFloyd/t5-v1_1-xxl.")],
    stdit: Annotated[Path, Optional("--stdit", help="Folder of hpcai-tech/OpenSora-STDiT-v3.")],
    vae: Annotated[Path, Optional("--vae", help="Folder of hpcai-tech/OpenSora-VAE-v1.2.")],
    store: StoreOption,
    dtype: Annotated[str, Optional("--dtype", help="fp32, bf16 or fp16.")] = "fp32",
    partition: Annotated[str, Optional("--partition", help="reference or fine; see docs/techniques.md.")] = "reference",
    size: Annotated[str, Optional("--size", help="full, small or tiny.")] = "full",
    as_json: AsJson = False,
) -> None:
    """Build a block store from published checkpoints; an interrupted import goes on where it stopped."""
    sizes, chosen, cut = _sizes(size), _dtype(dtype), _partition(partition)
    from cidl_sim.diffusion.model_store import distinct_blocks, import_checkpoints

    folders = {"t5": t5, "stdit": stdit, "vae": vae}
    count = len(distinct_blocks(sizes, chosen, cut))
    with _progress() as step:
        counted = _Counted(lambda done, weights: step("import blocks", done, count, weights))
        built = import_checkpoints(store, sizes, chosen, folders, counted, partition=cut)
    _show(counted.summary(built, sizes.name, dtype), as_json, lambda: counted.line(built))


@app.command()
def run(
    plan_file: Annotated[Path, Optional("--plan", help="The plan to run.")],
    store: StoreOption,
    out: Annotated[Path, Optional("-o", help="The video to write (mp4); several get numbers: video-1.mp4, ...")],
    prompt: Annotated[str | None, Optional("--prompt", help="What the video should show.")] = None,
    prompts_file: Annotated[
        Path | None, Optional("--prompts", help="A prompt a line; the plan must be for as many (workload ...-3p).")
    ] = None,
    seed: Annotated[int, Optional("--seed", help="Seed of the initial noise.")] = 42,
    steps: Annotated[int | None, Optional("--steps", help="Must be what the plan was made for.")] = None,
    resolution: Annotated[str | None, Optional("--resolution", help="HEIGHTxWIDTH; likewise.")] = None,
    frames: Annotated[int | None, Optional("--frames", help="Likewise.")] = None,
    lpl: Annotated[str | None, Optional("--lpl", help="off, a step, or dynamic; likewise.")] = None,
    tdtm: Annotated[int | None, Optional("--tdtm", help="Merged steps; likewise.")] = None,
    memory_limit: Annotated[int | None, Optional("--memory-limit", help="Bytes; default: the plan's.")] = None,
    trace_file: Annotated[Path | None, Optional("--trace", help="Write the recorded trace.")] = None,
    lpl_rule: Annotated[str, Optional("--lpl-rule", help="When dynamic LPL leaps; see docs/techniques.md.")] = "paper",
    frames_folder: Annotated[Path | None, Optional("--png", help="Also write each frame to this folder.")] = None,
    verify: Annotated[bool, Optional("--verify", help="Check every hash of the store again.")] = False,
    resume: Annotated[bool, Optional("--resume", help="Go on from the last denoising step of a killed run.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a video with the real executor, under a memory limit that the kernel enforces."""
    from cidl_sim.diffusion.job import Job, describe_mode, run_job
    from cidl_sim.diffusion.matching import workload_for_plan
    from cidl_sim.executor.store import BlockStore

    if lpl_rule not in LPL_RULES:
        raise InputError(f"--lpl-rule {lpl_rule!r}: choose one of {', '.join(LPL_RULES)}")
    plan = read_plan(plan_file)
    prompts = _prompts(plan, prompt, prompts_file)
    videos = _numbered(out, len(prompts))
    saved_run = out.with_name(out.name + ".resume")
    if resume and not saved_run.is_file():
        messages.print(f"{saved_run}: nothing was saved, so the run starts from its beginning", highlight=False)
    _check_asked(plan, steps=steps, resolution=resolution, frames=frames, lpl=lpl, tdtm=tdtm)
    opened = BlockStore.open(store, verify=verify)
    workload, _ = workload_for_plan(opened, plan)
    limit = memory_limit or plan.memory_limit_bytes
    plan.check_within(workload, memory_limit_bytes=limit, baseline_bytes=plan.baseline_bytes)
    job = Job(
        plan=str(plan_file.absolute()),
        store=str(store.absolute()),
        prompts=prompts,
        seed=seed,
        memory_limit_bytes=limit,
        lpl_rule=lpl_rule,
        videos=tuple(str(video.absolute()) for video in videos),
        frames_folders=tuple(str(f.absolute()) for f in _numbered(frames_folder, len(prompts)))
        if frames_folder
        else (),
        trace=str(trace_file.absolute()) if trace_file else None,
        saved_run=str(saved_run.absolute()),
        resume=resume,
    )
    with _progress() as step:
        result = run_job(job, kernel_limit_bytes=limit, on_progress=lambda *state: step("run", *state))
    summary = {
        "video": str(out),
        "videos": [str(v) for v in videos],
        "memory_limit_bytes": limit,
        **result.model_dump(mode="json"),
    }
    kernel = f", {result.peak_kernel_bytes / 1e6:.0f} MB as the kernel saw it" if result.peak_kernel_bytes else ""
    _show(
        summary,
        as_json,
        lambda: (
            f"{', '.join(map(str, videos))}: {result.makespan_s:.2f} s, {result.evaluations} evaluations, peak "
            f"{result.peak_resident_bytes / 1e6:.0f} MB accounted{kernel}, limit {limit / 1e6:.0f} MB held by "
            f"{describe_mode(result.enforced_by)}"
        ),
    )


@trace_app.command("show")
def trace_show(
    file: Annotated[Path, typer.Argument(help="A trace file (.json or .json.gz).")],
    plot: Annotated[Path | None, Optional("--plot", help="Draw the timeline.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a trace: busy times, idle times by cause, memory."""
    trace = read_trace(file)
    if plot is not None:
        _draw([(f"{trace.header.origin}, {trace.header.policy}", trace)], plot, trace.header.workload_name)
    _show(trace.summary(), as_json, lambda: summary_table(str(file), trace))


@app.command()
def demo(
    out: Annotated[Path, Optional("--out", help="The folder for everything the demo makes.")],
    prompt: Annotated[str | None, Optional("--prompt", help="What the video should show.")] = None,
    seed: Annotated[int, Optional("--seed", help="Seed of the initial noise.")] = 42,
    as_json: AsJson = False,
) -> None:
    """The main job end to end: build, measure, plan, run under a real limit, simulate, compare."""
    from cidl_sim.demo import PROMPT, run_demo
    from cidl_sim.diffusion.job import describe_mode

    with _progress() as step:
        made = run_demo(out, prompt or PROMPT, seed, step)
    summary = made.summary

    def lines() -> list[Any]:
        killed = made.control.killed
        return [
            f"\n{summary['weights_bytes'] / 1e6:.0f} MB of weights, {summary['memory_limit_bytes'] / 1e6:.0f} MB for "
            f"everything, held by {describe_mode(summary['enforced_by'])}",
            "control, everything resident: "
            + ("[bold]killed by the kernel[/bold]" if killed else "finished: nothing held the limit"),
            comparison_table(list(summary["policies"].values())),
            f"in {out}: video.mp4 timeline.png trace.json plan.json summary.json (of {summary['best_policy']})",
        ]

    _show(summary, as_json, lines)


# Helpers


class _Counted:
    """Counts the blocks of a store as they are written."""

    def __init__(self, show: Callable[[int, str], None]) -> None:
        self._show = show
        self.blocks = self.bytes = 0

    def __call__(self, weights: str, data_bytes: int) -> None:
        self.blocks, self.bytes = self.blocks + 1, self.bytes + data_bytes
        self._show(self.blocks, weights)

    def summary(self, store: Any, model: str, dtype: str) -> dict[str, Any]:
        return {"store": str(store.root), "model": model, "dtype": dtype, "blocks": self.blocks, "bytes": self.bytes}

    def line(self, store: Any) -> str:
        return f"{self.blocks} blocks, {self.bytes / 1e6:.1f} MB, in {store.root}"


def _sizes(size: str) -> OpenSoraSizes:
    known = {"full": OPENSORA_V1_2, "small": OPENSORA_SMALL, "tiny": OPENSORA_TINY}
    if size not in known:
        raise InputError(f"--size {size!r}: choose full, small or tiny")
    return known[size]


def _dtype(dtype: str) -> Dtype:
    if dtype not in get_args(Dtype):
        raise InputError(f"--dtype {dtype!r}: choose one of {', '.join(get_args(Dtype))}")
    return cast(Dtype, dtype)


def _device_with(name: str, settings: list[str] | None) -> DeviceProfile:
    device = find_device(name)
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting!r}: write KEY=VALUE")
        try:
            device = device.with_value(key, json.loads(value))
        except json.JSONDecodeError:
            raise InputError(f"--set {setting!r}: {value!r} is not a number") from None
    return device


def _partition(partition: str) -> Partition:
    if partition not in get_args(Partition):
        raise InputError(f"--partition {partition!r}: choose one of {', '.join(get_args(Partition))}")
    return cast(Partition, partition)


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


def _limit_change(text: str) -> tuple[float, int]:
    at_s, colon, limit = text.partition(":")
    try:
        change = (float(at_s), int(limit))
    except ValueError:
        change = (-1.0, 0)
    if not colon or not 0 <= change[0] < float("inf") or change[1] <= 0:
        raise InputError(f"--limit-change {text!r}: write SECONDS:BYTES, such as 2.5:1500000000")
    return change


def _prompts(plan: Plan, prompt: str | None, file: Path | None) -> tuple[str, ...]:
    """The prompts of a run, one from the command line or several from a file."""
    if (prompt is None) == (file is None):
        raise InputError("give either --prompt or --prompts")
    prompts = [prompt or ""]
    if file is not None:
        prompts = [line.strip() for line in read_text(file, InputError).splitlines() if line.strip()]
    wanted = plan.workload_settings.get("prompts", 1)
    if len(prompts) != wanted:
        raise InputError(
            f"the plan was made for {wanted} prompts, {len(prompts)} were given; plan for the workload "
            f"'...-{len(prompts)}p'"
        )
    return tuple(prompts)


def _numbered(path: Path, count: int) -> list[Path]:
    return [path] if count == 1 else [path.with_name(f"{path.stem}-{i + 1}{path.suffix}") for i in range(count)]


def _check_asked(plan: Plan, *, resolution: str | None, **asked: str | int | None) -> None:
    if resolution is not None:
        height, x, width = resolution.partition("x")
        if not (x and height.isdigit() and width.isdigit()):
            raise InputError(f"--resolution {resolution!r}: write HEIGHTxWIDTH")
        asked.update(height=int(height), width=int(width))
    for name, value in asked.items():
        made_for = plan.workload_settings.get(name)
        if value is not None and value != made_for:
            raise PlanError(
                f"the plan was made for another workload: {name} is {made_for} there, {value} was asked for"
            )


def _plan_figures(
    plan: Plan, workload: Workload, device: DeviceProfile, baselines: dict[str, float | None], file: Path | None
) -> dict[str, Any]:
    return {
        "workload": workload.name,
        "device": device.name,
        "policy": plan.policy,
        "makespan_s": plan.makespan_s,
        "lower_bound": plan.lower_bound,
        "gap": plan.gap,
        "proven_optimal": plan.proven_optimal,
        "proof_scope": plan.proof_scope,
        "peak_resident_bytes": plan.peak_resident_bytes,
        "memory_limit_bytes": plan.memory_limit_bytes,
        "baselines": baselines,
        "file": str(file) if file else None,
    }


def _draw(traces: list[tuple[str, Trace]], path: Path, title: str) -> None:
    from cidl_sim.report.timeline import draw_timelines

    draw_timelines(traces, path, title)


def _total_flops(workload: Workload) -> float:
    return sum(visit.block.flops for visit in workload.visits)


# Printing


def rows_as_object(key: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One JSON object around a list."""
    return {key: rows}


def print_json_text(text: str) -> None:
    """Put JSON on standard output untouched."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def _show(data: Any, as_json: bool, for_people: Callable[[], Any]) -> None:
    if as_json:
        print_json_text(json.dumps(data, indent=1))
        return
    shown = for_people()
    for part in shown if isinstance(shown, list) else [shown]:
        screen.print(part)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int, str], None]]:
    """A progress bar on standard error; gives a function (step, done, total, detail)."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("[dim]{task.fields[detail]}[/dim]"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=messages) as progress:
        tasks: dict[str, Any] = {}

        def step(name: str, done: int, total: int, detail: str) -> None:
            if name not in tasks:
                for task in tasks.values():
                    progress.stop_task(task)
                tasks[name] = progress.add_task(name, total=total, detail=detail)
            progress.update(tasks[name], completed=done, total=total, detail=detail)

        yield step


def main() -> None:
    """Run the command line and leave with the documented exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    # A shell that starts us in the background has SIGINT ignored; whoever sends it means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(_exit_code())


def _exit_code() -> int:  # noqa: PLR0911
    try:
        result = app(standalone_mode=False)
        return result if isinstance(result, int) else 0
    except CidlError as problem:
        return _fail(str(problem), problem.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else 1
    except Exception as problem:
        if hasattr(problem, "format_message"):  # what the argument parser raises
            return _fail(problem.format_message(), 2)
        if type(problem).__name__ == "Abort":
            return _fail("interrupted", 128 + signal.SIGINT)
        if isinstance(problem, OSError):
            return _fail(f"{problem.filename or ''}: {problem.strerror or problem}".lstrip(": "), 4)
        if os.environ.get("CIDL_DEBUG"):
            traceback.print_exc()
        return _fail(f"internal fault: {type(problem).__name__}: {problem} (CIDL_DEBUG=1 shows where)", 1)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"cidl: {message}\n")
    return code


def _terminate(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
