"""The child process of a run: `python -m cidl_sim.worker JOB.json`.

Standard output carries lines of JSON: {"done", "total", "stage"} while it runs, then one {"result"} or
{"error", "exit_code"}; whatever else is printed goes to standard error. It is started inside its memory group, so all
it ever touches is charged there.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch

from cidl_sim.core.answers import answers_alone
from cidl_sim.core.errors import CidlError, MachineError, PlanError
from cidl_sim.core.extras import missing_extra
from cidl_sim.core.feasibility import check_plan_within
from cidl_sim.core.progress import Progress, silent
from cidl_sim.core.trace import Trace, header_for
from cidl_sim.core.workload import Visit
from cidl_sim.executor.accelerator_backend import check_device
from cidl_sim.executor.job import Job, JobResult
from cidl_sim.executor.memory_limit import PeakMemory, charged_to_this_process, prepare_memory
from cidl_sim.executor.runtime import Limits, Runtime, run_all_resident
from cidl_sim.executor.source import Prepared, Source, Wanted
from cidl_sim.pipelines.catalog import pipeline_named
from cidl_sim.pipelines.pipeline import Feed, Pipeline
from cidl_sim.pipelines.several import SeveralPrompts, of_one_prompt
from cidl_sim.worker.estimating import Estimates
from cidl_sim.worker.machine import Machine, Watch, warm_up
from cidl_sim.worker.saving import Keeper, write_result, write_trace
from cidl_sim.worker.sources import open_source


def main() -> int:
    """Do the job in the file named on the command line; returns the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    with answers_alone() as answers:
        return _answered(answers)


def _answered(answers: TextIO) -> int:
    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    def say_progress(done: int, total: int, stage: str) -> None:
        say({"done": done, "total": total, "stage": stage})

    def failed(problem: CidlError) -> int:
        say({"error": str(problem), "exit_code": problem.exit_code})
        return problem.exit_code

    try:
        job = Job.model_validate_json(Path(sys.argv[1]).read_text())
        say({"result": do(job, say_progress).model_dump(mode="json")})
        return 0
    except SystemExit as stopped:
        return int(stopped.code or 0)
    except CidlError as problem:
        return failed(problem)
    except ModuleNotFoundError as problem:
        missing = missing_extra(problem)
        if missing is None:
            raise
        return failed(missing)
    except OSError as problem:
        return failed(MachineError(f"{problem.strerror or problem}"))


def do(job: Job, on_progress: Progress = silent) -> JobResult:
    """Run the plan (or the control), write results and trace, and report. `on_progress`: after each round."""
    check_device(job.device)
    source = open_source(job.backend, Path(job.store), verify=job.verify)
    plan, prepared = job.plan, source.prepare(job.plan, job.workload)
    workload, pipeline = prepared.workload, pipeline_named(prepared.pipeline)
    limit = job.memory_limit_bytes or plan.memory_limit_bytes
    if not job.control:
        check_plan_within(workload, plan, memory_limit_bytes=limit, baseline_bytes=plan.baseline_bytes)
    program = _program(job, source, prepared, pipeline)
    threads = plan.compute_threads or max(1, (os.cpu_count() or 2) - plan.channels)
    torch.set_num_threads(threads)
    warm_up()
    make_backend = prepared.backend(Wanted(program.token_ids, job.device, job.compute_units))
    charged = charged_to_this_process()
    baseline = charged.baseline_bytes()
    # A small model under a large limit never takes it all.
    most = workload.weights_bytes + max(visit.block.workspace_bytes for visit in workload.visits)
    prepare_memory(charged, min(limit, most))
    peak = PeakMemory(charged)
    capacity = workload.weights_bytes if job.control else limit - plan.baseline_bytes
    backend = make_backend(capacity, None if job.control else limit)
    if not gc.isenabled():
        # All is imported. It stays, and no collection has to go through it between two visits.
        gc.freeze()
        gc.enable()
    estimates = Estimates(workload, job.forecast)
    watch = Watch(
        workload,
        backend,
        peak,
        lambda done, total, stage: on_progress(done, total, stage + estimates.words),
        sample=job.sample_memory,
    )
    trace: Trace | None = None
    try:
        if job.control:
            makespan_s, _ = run_all_resident(workload, backend, program, watch)
        else:
            limits = Limits(limit, plan.baseline_bytes, charged.wanted_limit_bytes)
            runtime = Runtime(workload, plan, limits, backend)
            keeper = Keeper(job, pipeline, source.sha256, program, runtime)
            machine = Machine(backend, threads, baseline, limit, peak)
            trace = _trace_of_run(job, runtime, program, keeper, watch, machine, estimates)
            makespan_s = trace.makespan_s
        touched = int(backend.figures()["touched_bytes"])
    finally:
        backend.close()
    write_result(job, pipeline, program, len(program.programs) - 1)
    if trace is not None:
        write_trace(job, trace)
    if job.saved_run is not None:
        Path(job.saved_run).unlink(missing_ok=True)
    return JobResult(
        makespan_s=makespan_s,
        enforced_by=charged.enforced_by,
        baseline_bytes=baseline,
        excess_bytes=watch.excess_bytes,
        workspace_bytes=watch.workspace_bytes,
        peak_resident_bytes=trace.peak_resident_bytes if trace else 0,
        peak_kernel_bytes=peak.charged_bytes(),
        touched_bytes=touched,
        evaluations=program.evaluations,
        threads=threads,
        fall_backs=tuple(backend.fall_backs),
    )


def _trace_of_run(
    job: Job,
    runtime: Runtime,
    program: SeveralPrompts,
    keeper: Keeper,
    watch: Watch,
    machine: Machine,
    estimates: Estimates,
) -> Trace:
    """Run the plan; where a signal stops it, what was recorded until then is written first."""

    def observe(visit: Visit) -> None:
        estimates(visit)
        watch(visit)
        keeper(visit)

    def trace() -> Trace:
        return runtime.recorder.finish(header_for(runtime.schedule.workload, job.plan, **machine.header_fields()))

    keeper.resume()
    estimates.begin(runtime)
    try:
        with _stopped_by_signals(runtime):
            runtime.run(program, observe)
    except SystemExit:
        write_trace(job, trace())
        raise
    return trace()


def _program(job: Job, source: Source, prepared: Prepared, pipeline: Pipeline) -> SeveralPrompts:
    """One program for each prompt."""
    settings, sizes = prepared.settings, prepared.sizes
    if len(job.prompts) != settings.prompts:
        raise PlanError(f"the plan was made for {settings.prompts} prompts, {len(job.prompts)} were given")
    options = pipeline.options_type.model_validate(job.options)
    alone = settings.model_copy(update={"prompts": 1})
    one = of_one_prompt(prepared.workload, settings.prompts)
    programs = [
        pipeline.program(Feed(one, sizes, alone, prompt, job.seed, options, source.root, job.device))
        for prompt in job.prompts
    ]
    return SeveralPrompts(prepared.workload, programs)


def _stop(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _stopped_by_signals(runtime: Runtime) -> Iterator[None]:
    """While threads share locks a signal asks the runtime to end instead of raising wherever it arrives."""

    def ask(number: int, _: FrameType | None) -> None:
        runtime.interrupt(SystemExit(128 + number))

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
