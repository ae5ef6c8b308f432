"""Commands that run for real."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from pydantic import ValidationError

from cidl_sim.commands.console import (
    AsJson,
    ComputeDeviceOption,
    Option,
    compute_device_named,
    messages,
    progress,
    show,
    some_bytes,
)
from cidl_sim.commands.extra_options import extra_options
from cidl_sim.core.errors import CidlError, InputError, did_you_mean
from cidl_sim.core.feasibility import check_plan_within
from cidl_sim.core.files import read_text
from cidl_sim.core.forecast import Forecast
from cidl_sim.core.plan import Plan, read_plan
from cidl_sim.core.temporary import temporary_folder
from cidl_sim.core.trace import read_trace
from cidl_sim.core.workload import Workload
from cidl_sim.coreml.macos import check_macos
from cidl_sim.executor.job import BackendName, ComputeUnits, Job, JobResult, RunSummary, describe_mode, run_job
from cidl_sim.pipelines.catalog import pipeline_of_plan, settings_in
from cidl_sim.pipelines.pipeline import Pipeline
from cidl_sim.report.foreseen import foreseen_table
from cidl_sim.report.tables import comparison_table


def run(
    context: typer.Context,
    plan_file: Annotated[Path, Option("--plan", help="The plan to run.")],
    store: Annotated[
        Path, Option("--store", metavar="DIR", help="The block store; of --backend mil and coreml, the export.")
    ],
    out: Annotated[
        Path, Option("-o", help="What to write: a video (.mp4), an image (.png); several get numbers: out-1.mp4, ...")
    ],
    prompt: Annotated[str | None, Option("--prompt", help="What it should show.")] = None,
    prompts_file: Annotated[
        Path | None, Option("--prompts", help="A prompt a line; the plan must be for as many (workload ...-3p).")
    ] = None,
    seed: Annotated[int, Option("--seed", help="Seed of the initial noise.")] = 42,
    memory_limit: Annotated[
        int | None, Option("--memory-limit", metavar="BYTES", parser=some_bytes, help="Default: the plan's.")
    ] = None,
    trace_file: Annotated[Path | None, Option("--trace", help="Write the recorded trace.")] = None,
    pictures_folder: Annotated[
        Path | None, Option("--png", help="Also write each frame of a video to this folder.")
    ] = None,
    device: ComputeDeviceOption = "cpu",
    backend: Annotated[
        str, Option("--backend", help="torch; mil: packages, interpreted; coreml: packages, by Core ML (macOS).")
    ] = "torch",
    compute_units: Annotated[
        str | None, Option("--compute-units", help="Of Core ML: all, cpu_only, cpu_and_gpu or cpu_and_ne.")
    ] = None,
    verify: Annotated[bool, Option("--verify", help="Check every hash of the store again.")] = False,
    resume: Annotated[bool, Option("--resume", help="Go on from the last denoising step of a killed run.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a plan with the real executor, under a memory limit that the kernel enforces.

    What more a run may be told depends on the model: `--lpl-rule paper|reference-python|reference-app` says when
    dynamic LPL of a text-to-video model leaps (docs/background/techniques.md).
    """
    compute_device = compute_device_named(device)
    chosen, units = _backend_named(backend, compute_units, device)
    plan = read_plan(plan_file)
    pipeline = pipeline_of_plan(plan)
    options = _options(pipeline, context, plan)
    _check_output(pipeline, out)
    prompts = _prompts(plan, prompt, prompts_file)

    # What is refused above needs no torch, which takes seconds to import.
    from cidl_sim.worker.sources import open_source

    outputs = _numbered(out, len(prompts))
    saved_run = out.with_name(out.name + ".resume")
    if resume and not saved_run.is_file():
        messages.print(f"{saved_run}: nothing was saved, so the run starts from its beginning", highlight=False)
    workload = open_source(chosen, store, verify=verify).prepare(plan).workload
    limit = memory_limit or plan.memory_limit_bytes
    check_plan_within(workload, plan, memory_limit_bytes=limit, baseline_bytes=plan.baseline_bytes)
    pictures = _numbered(pictures_folder, len(prompts)) if pictures_folder else []
    job = Job(
        plan=plan,
        workload=workload,
        store=str(store.absolute()),
        prompts=prompts,
        seed=seed,
        memory_limit_bytes=limit,
        options=options,
        outputs=_absolute(outputs),
        picture_folders=_absolute(pictures),
        trace=str(trace_file.absolute()) if trace_file else None,
        saved_run=str(saved_run.absolute()),
        resume=resume,
        device=compute_device,
        backend=chosen,
        compute_units=units,
    )
    result, more = _predicted_and_run(job, workload, limit)
    summary = _summary(pipeline, out, outputs, limit, result, more)
    show(summary, as_json, lambda: _told(outputs, summary, limit))


def _predicted_and_run(job: Job, workload: Workload, limit_bytes: int) -> tuple[JobResult, dict[str, Any]]:
    """Say what the run will take, run it, and let the kept profile of this machine learn from it."""
    # That profile is of PyTorch on the processor; of anything else nothing is known.
    is_known = job.device == "cpu" and job.backend == "torch"
    predicted = _forecast(job.plan, workload, limit_bytes) if is_known else None
    with temporary_folder("run") as folder, progress() as step:
        trace = job.trace or str(folder / "trace.json")
        result = run_job(
            job.model_copy(update={"forecast": predicted, "trace": trace}),
            # On an accelerator the limit is about its memory, which PyTorch is told to stay within.
            kernel_limit_bytes=limit_bytes if job.device == "cpu" else None,
            on_progress=lambda *state: step("run", *state),
        )
        said = _learned(workload, Path(trace), result) if is_known else None
    return result, {"predicted": predicted.prediction if predicted else None, "learned": said}


def _forecast(plan: Plan, workload: Workload, limit_bytes: int) -> Forecast | None:
    """What the kept profile of this machine says of the run; said before it starts."""
    from cidl_sim.calibration.prediction import compute_threads, forecast, known_machine

    device = known_machine(compute_threads(plan))
    if device is None:
        messages.print("not predicted: this machine has not been measured, this run will do that", highlight=False)
        return None
    try:
        found = forecast(workload, plan, device, limit_bytes)
    except CidlError as problem:
        messages.print(f"not predicted: {problem}; this run will teach it", highlight=False)
        return None
    messages.print(
        f"predicted: {found.makespan_s:.2f} s ({found.low_s:.2f} to {found.high_s:.2f} s in nine of ten runs), by the "
        f"profile {device.name}",
        highlight=False,
    )
    return found


def _learned(workload: Workload, trace: Path, result: JobResult) -> str | None:
    from cidl_sim.calibration.prediction import learn

    try:
        said = learn(workload, read_trace(trace), result)
    except (CidlError, ValueError, ArithmeticError) as problem:
        # The run is whole: what cannot be learned from it, or kept, takes nothing away.
        said = f"nothing was learned from this run ({str(problem).splitlines()[0]})"
    if said:
        messages.print(said, highlight=False)
    return said


def demo(
    out: Annotated[Path, Option("--out", help="The folder for everything the demo makes.")],
    prompt: Annotated[str | None, Option("--prompt", help="What the video should show.")] = None,
    seed: Annotated[int, Option("--seed", help="Seed of the initial noise.")] = 42,
    as_json: AsJson = False,
) -> None:
    """The main job end to end: build, measure, plan, run under a real limit, simulate, compare."""
    from cidl_sim.demo import PROMPT, run_demo
    from cidl_sim.quality import showcase

    with progress() as step:
        made = run_demo(out, prompt or PROMPT, seed, step)
    summary = made.summary

    def lines() -> list[Any]:
        killed = made.control.killed
        return [
            f"\n{summary.weights_bytes / 1e6:.0f} MB of weights, {summary.memory_limit_bytes / 1e6:.0f} MB for "
            f"everything, held by {describe_mode(summary.enforced_by)}",
            "control, everything resident: "
            + ("[bold]killed by the kernel[/bold]" if killed else "finished: nothing held the limit"),
            comparison_table(list(summary.policies.values())),
            foreseen_table(summary.runs),
            f"predictions were made before each run with all that was known then: mean error "
            f"{summary.prediction_error.mean:.1%}, largest {summary.prediction_error.max:.1%}; this machine's profile "
            "has learned from every run (docs/background/validation.md)",
            f"in {out}: video.mp4 timeline.png trace.json plan.json summary.json (of {summary.best_policy})",
            *showcase.words(summary.trained, out / "trained"),
        ]

    show(summary, as_json, lines)


def _backend_named(backend: str, compute_units: str | None, device: str) -> tuple[BackendName, ComputeUnits]:
    """The arguments of --backend and --compute-units. InputError: unknown; MachineError: no Core ML here."""
    if backend not in get_args(BackendName):
        raise InputError(f"--backend {backend!r}: choose one of {', '.join(get_args(BackendName))}")
    if backend != "torch" and device != "cpu":
        raise InputError("--device goes with --backend torch; Core ML takes --compute-units")
    if backend != "coreml" and compute_units is not None:
        raise InputError("--compute-units goes with --backend coreml")
    if compute_units is not None and compute_units not in get_args(ComputeUnits):
        raise InputError(f"--compute-units {compute_units!r}: choose one of {', '.join(get_args(ComputeUnits))}")
    if backend == "coreml":
        check_macos()
    return cast(BackendName, backend), cast(ComputeUnits, compute_units or "all")


def _told(outputs: list[Path], result: RunSummary, limit_bytes: int) -> str:
    """A finished run in one sentence."""
    seconds = f"{result.makespan_s:.2f} s"
    if result.predicted is not None and result.makespan_s:
        off = result.predicted.makespan_s / result.makespan_s - 1
        seconds += f" (predicted {result.predicted.makespan_s:.2f} s, {off:+z.0%})"
    kernel = f", {result.peak_kernel_bytes / 1e6:.0f} MB as the kernel saw it" if result.peak_kernel_bytes else ""
    return (
        f"{', '.join(map(str, outputs))}: {seconds}, {result.evaluations} evaluations, peak "
        f"{result.peak_resident_bytes / 1e6:.0f} MB accounted{kernel}, limit {limit_bytes / 1e6:.0f} MB held by "
        f"{describe_mode(result.enforced_by)}"
    )


def _prompts(plan: Plan, prompt: str | None, file: Path | None) -> tuple[str, ...]:
    """The prompts of a run, one from the command line or several from a file."""
    if (prompt is None) == (file is None):
        raise InputError("give either --prompt or --prompts")
    prompts = [prompt or ""]
    if file is not None:
        prompts = [line.strip() for line in read_text(file, InputError).splitlines() if line.strip()]
    if not all(text.strip() for text in prompts):
        raise InputError("the prompt is empty")
    wanted = plan.workload_settings.get("prompts", 1)
    if len(prompts) != wanted:
        raise InputError(
            f"the plan was made for {wanted} prompts, {len(prompts)} were given; plan for the workload "
            f"'...-{len(prompts)}p'"
        )
    return tuple(prompts)


def _summary(
    pipeline: Pipeline, out: Path, outputs: list[Path], limit_bytes: int, result: JobResult, more: dict[str, Any]
) -> RunSummary:
    named, files = str(out), tuple(map(str, outputs))
    videos = {"video": named, "videos": files} if pipeline.output == "video" else {}
    return RunSummary.model_validate(
        {**dict(result), **videos, **more, "output": named, "outputs": files, "memory_limit_bytes": limit_bytes}
    )


def _absolute(paths: list[Path]) -> tuple[str, ...]:
    return tuple(str(path.absolute()) for path in paths)


def _numbered(path: Path, count: int) -> list[Path]:
    return [path] if count == 1 else [path.with_name(f"{path.stem}-{i + 1}{path.suffix}") for i in range(count)]


def _options(pipeline: Pipeline, context: typer.Context, plan: Plan) -> dict[str, Any]:
    """The options of the model's family.

    InputError for one that it has not, or a value that it does not take, at all or under this plan.
    """
    given, arguments = extra_options(context)
    if arguments:
        raise InputError(f"unexpected argument {arguments[0]!r}")
    known = pipeline.options_type.model_fields
    for name in given:
        if name not in known:
            there_are = ", ".join(f"--{field.replace('_', '-')}" for field in known) or "none"
            written = f"--{name.replace('_', '-')}"
            near = did_you_mean(name, known)
            raise InputError(f"no such option: {written} (options of this model's family: {there_are}){near}")
    try:
        options = pipeline.options_type.model_validate(given)
    except ValidationError as problem:
        field = str(problem.errors()[0]["loc"][0])
        raise InputError(f"--{field.replace('_', '-')} {given[field]!r}: {problem.errors()[0]['msg']}") from None
    with contextlib.suppress(ValueError):  # what settings cannot be read is refused where the plan is matched
        pipeline.check_options(settings_in(plan.workload_settings, pipeline), options)
    return options.model_dump(mode="json")


def _check_output(pipeline: Pipeline, out: Path) -> None:
    if out.suffix.lower() not in pipeline.suffixes:
        endings = " or ".join(pipeline.suffixes)
        raise InputError(f"-o {out}: the {pipeline.output} is written as {endings}; give it a name that ends so")
