"""The child process of a run: `python -m cidl_sim.diffusion.worker JOB.json`.

Standard output carries lines of JSON: {"done", "total", "stage"} while it runs, then one {"result"} or
{"error", "exit_code"}. It is started inside its memory group, so all it ever touches is charged there.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from cidl_sim.core.errors import CidlError, MachineError, PlanError
from cidl_sim.core.feasibility import check_plan_within
from cidl_sim.core.plan import Plan, read_plan
from cidl_sim.core.trace import Trace, header_for
from cidl_sim.core.workload import Visit, Workload
from cidl_sim.coreml.backend import PackageBackend, runner_for
from cidl_sim.coreml.packages import Packages
from cidl_sim.diffusion.job import Job, JobResult
from cidl_sim.diffusion.matching import TOKENIZER_FOLDER
from cidl_sim.diffusion.prompt import encode_prompt
from cidl_sim.diffusion.saved_run import SavedRunError, read_run, save_run
from cidl_sim.diffusion.sources import Source, open_source
from cidl_sim.diffusion.text_to_video import FRAMES_PER_SECOND, SeveralVideos, TextToVideo
from cidl_sim.diffusion.video_file import write_frames, write_video
from cidl_sim.executor.accelerator_backend import AcceleratorBackend, check_device
from cidl_sim.executor.backend import Backend, Program
from cidl_sim.executor.memory_limit import PeakMemory, charged_to_this_process, prepare_memory
from cidl_sim.executor.runtime import Limits, Runtime, run_all_resident
from cidl_sim.executor.torch_backend import TorchBackend
from cidl_sim.models.config import VideoSettings
from cidl_sim.models.open_sora import stage_definitions
from cidl_sim.workloads.catalog import workload_of

_LIBRARIES = ("cidl-sim", "torch", "transformers", "diffusers", "coremltools")


def main() -> int:
    """Do the job in the file named on the command line; returns the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    _end_with_parent()
    try:
        job = Job.model_validate_json(Path(sys.argv[1]).read_text())
        _say({"result": do(job).model_dump(mode="json")})
        return 0
    except SystemExit as stopped:
        return int(stopped.code or 0)
    except CidlError as problem:
        _say({"error": str(problem), "exit_code": problem.exit_code})
        return problem.exit_code
    except OSError as problem:
        _say({"error": f"{problem.strerror or problem}", "exit_code": MachineError.exit_code})
        return MachineError.exit_code


def do(job: Job) -> JobResult:
    """Run the plan (or the control), write videos and trace, and report."""
    check_device(job.device)
    source = open_source(job.backend, Path(job.store), verify=job.verify)
    plan = read_plan(Path(job.plan))
    workload, settings = source.workload_for_plan(plan)
    limit = job.memory_limit_bytes or plan.memory_limit_bytes
    if not job.control:
        check_plan_within(workload, plan, memory_limit_bytes=limit, baseline_bytes=plan.baseline_bytes)
    program, token_ids = _program(job, source, workload, settings)
    threads = plan.compute_threads or max(1, (os.cpu_count() or 2) - plan.channels)
    torch.set_num_threads(threads)
    _warm_up()
    make_backend = _backend_maker(job, source, workload, settings, token_ids)
    charged = charged_to_this_process()
    baseline = charged.baseline_bytes()
    prepare_memory(charged, limit)
    peak = PeakMemory(charged)
    capacity = workload.weights_bytes if job.control else limit - plan.baseline_bytes
    backend = make_backend(capacity, None if job.control else limit)
    watch = _Watch(workload, backend, peak, sample=job.sample_memory)
    trace: Trace | None = None
    try:
        if job.control:
            makespan_s, _ = run_all_resident(workload, backend, program, watch)
        else:
            limits = Limits(limit, plan.baseline_bytes, charged.wanted_limit_bytes)
            runtime = Runtime(workload, plan, limits, backend)
            keeper = _Keeper(job, source, workload, program, runtime)
            machine = _Machine(backend, threads, baseline, limit, peak)
            trace = _trace_of_run(job, plan, runtime, program, keeper, watch, machine)
            makespan_s = trace.makespan_s
        touched = int(backend.figures()["touched_bytes"])
    finally:
        backend.close()
    _write_video(job, program, len(program.videos) - 1)
    if trace is not None:
        _write_trace(job, trace)
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


MakeBackend = Callable[[int, int | None], Backend]  # of the bytes for weights, and of the limit for everything


def _backend_maker(
    job: Job, source: Source, workload: Workload, settings: VideoSettings, token_ids: torch.Tensor
) -> MakeBackend:
    """What makes the back end; the libraries that it needs are in memory after this."""
    if isinstance(source, Packages):
        runner = runner_for(job.backend, source, job.compute_units)
        return lambda capacity, limit: PackageBackend(source, workload, runner)
    store, stages = source.store, stage_definitions(source.sizes, settings, source.sizes.nominal_text_tokens)
    if job.device == "cpu":
        return lambda capacity, limit: TorchBackend(store, stages, capacity, token_ids, rotate_slots=job.rotate_slots)
    return lambda capacity, limit: AcceleratorBackend(store, stages, token_ids, job.device, limit)


def _trace_of_run(
    job: Job, plan: Plan, runtime: Runtime, program: Program, keeper: _Keeper, watch: _Watch, machine: _Machine
) -> Trace:
    """Run the plan; where a signal stops it, what was recorded until then is written first."""

    def observe(visit: Visit) -> None:
        watch(visit)
        keeper(visit)

    def trace() -> Trace:
        return runtime.recorder.finish(header_for(runtime.schedule.workload, plan, **machine.header_fields()))

    keeper.resume()
    try:
        with _stopped_by_signals(runtime):
            runtime.run(program, observe)
    except SystemExit:
        _write_trace(job, trace())
        raise
    return trace()


def _program(
    job: Job, source: Source, workload: Workload, settings: VideoSettings
) -> tuple[SeveralVideos, torch.Tensor]:
    """One video for each prompt, and the token ids of all prompts."""
    sizes = source.sizes
    if len(job.prompts) != settings.prompts:
        raise PlanError(f"the plan was made for {settings.prompts} prompts, {len(job.prompts)} were given")
    tokenizer = source.root / TOKENIZER_FOLDER
    folder = tokenizer if tokenizer.is_dir() else None
    tokens = [encode_prompt(prompt, sizes.text_encoder_tokens, folder) for prompt in job.prompts]
    alone = settings.model_copy(update={"prompts": 1})
    one = workload if settings.prompts == 1 else workload_of(sizes, alone)
    videos = [TextToVideo(one, sizes, alone, t, job.seed, lpl_rule=job.lpl_rule, device=job.device) for t in tokens]
    return SeveralVideos(workload, videos), torch.cat([ids for ids, _ in tokens])


class _Keeper:
    """Saves the run after each denoising step, goes on from where one was saved, and writes finished videos."""

    def __init__(self, job: Job, source: Source, workload: Workload, program: SeveralVideos, runtime: Runtime) -> None:
        self._job = job
        self._program = program
        self._runtime = runtime
        self._identity = {
            "workload": workload.sha256,
            "store": source.sha256,
            "backend": job.backend,
            "prompts": list(job.prompts),
            "seed": job.seed,
            "lpl_rule": job.lpl_rule,
        }

    def resume(self) -> None:
        """Go on from the saved run, if that is asked for and there is one."""
        path = Path(self._job.saved_run) if self._job.saved_run else None
        if not (self._job.resume and path is not None and path.exists()):
            return
        video, next_visit, state = read_run(path, self._identity)
        for finished in self._job.videos[:video]:
            if not Path(finished).is_file():
                raise SavedRunError(f"{path}: saved after {finished} was written, which is not there any more")
        self._program.videos[video].restore(state)
        self._runtime.resume_at(next_visit)

    def __call__(self, visit: Visit) -> None:
        index = self._program.index_of(visit)
        if self._job.saved_run and self._program.ends_step(visit):
            state = self._program.videos[index].state()
            save_run(Path(self._job.saved_run), self._identity, index, self._runtime.schedule.current, state)
        if self._program.ends_video(visit) and index + 1 < len(self._program.videos):
            _write_video(self._job, self._program, index)


def _write_video(job: Job, program: SeveralVideos, index: int) -> None:
    if job.videos:
        write_video(Path(job.videos[index]), program.videos[index].frames, FRAMES_PER_SECOND)
    if job.frames_folders:
        write_frames(Path(job.frames_folders[index]), program.videos[index].frames)


def _write_trace(job: Job, trace: Trace) -> None:
    if job.trace:
        trace.write(Path(job.trace))


class _Watch:
    """Reports progress and looks at the memory after each round; on request after each visit.

    Then it also measures what is needed beyond what is accounted: the peak of memory during each visit, less what
    was there before the run, the arena's pages and the visit's workspace. That is buffers of the libraries, and holes
    in the heap.
    """

    def __init__(self, workload: Workload, backend: Backend, peak: PeakMemory, *, sample: bool) -> None:
        self._workload = workload
        self._backend = backend
        self._peak = peak
        self._sample = sample
        self.excess_bytes = 0
        self.workspace_bytes: dict[str, int] = {}

    def __call__(self, visit: Visit) -> None:
        stage = self._workload.stages[visit.stage]
        ends_round = visit.position == len(stage.blocks) - 1
        if ends_round:
            _say({"done": visit.number + 1, "total": len(self._workload.visits), "stage": stage.name})
        peak_bytes = self._peak.look() if ends_round or self._sample else None
        if self._sample and peak_bytes is not None:
            block = visit.block
            beside_weights = peak_bytes - self._peak.start_bytes - self._backend.footprint_bytes()
            self.workspace_bytes[block.kind] = max(self.workspace_bytes.get(block.kind, 0), beside_weights)
            self.excess_bytes = max(self.excess_bytes, beside_weights - block.workspace_bytes)


def _warm_up() -> None:
    """Let the libraries take their own buffers before the baseline is read."""
    a = torch.ones(256, 256)
    torch.nn.functional.conv2d(torch.ones(1, 4, 8, 8), torch.ones(4, 4, 3, 3))
    torch.nn.functional.conv3d(torch.ones(1, 4, 3, 8, 8), torch.ones(4, 4, 3, 3, 3))
    torch.nn.functional.scaled_dot_product_attention(a[None, None], a[None, None], a[None, None])
    (a @ a).softmax(-1)


def _bytes_read_from_disk() -> int:
    """What the kernel fetched from disks for this process so far; 0 where it does not tell."""
    try:
        words = Path("/proc/self/io").read_text().split()
    except OSError:
        return 0
    return int(words[words.index("read_bytes:") + 1])


class _Machine:
    """What a trace's header says about the machine; made just before the run."""

    def __init__(self, backend: Backend, threads: int, baseline_bytes: int, limit_bytes: int, peak: PeakMemory) -> None:
        self._backend = backend
        self._threads = threads
        self._baseline_bytes = baseline_bytes
        self._limit_bytes = limit_bytes
        self._peak = peak
        self._read_before = _bytes_read_from_disk()

    def header_fields(self) -> dict[str, Any]:
        """The fields of a header that the plan and the workload do not know."""
        charged = charged_to_this_process()
        return {
            "origin": self._backend.origin,
            "enforced_by": charged.enforced_by if charged.limit_bytes() is not None else "accounting",
            "clock": "perf_counter",
            "memory_limit_bytes": self._limit_bytes,
            "peak_kernel_bytes": self._peak.charged_bytes(),
            "fall_backs": tuple(self._backend.fall_backs),
            "machine": {
                "system": platform.system(),
                "release": platform.release(),
                "processor": _processor(),
                "cores": os.cpu_count() or 0,
                "compute_threads": self._threads,
                "measured_baseline_bytes": self._baseline_bytes,
                "needed_bytes": self._peak.needed_bytes,
                **self._backend.figures(),
                "read_bytes": _bytes_read_from_disk() - self._read_before,
            },
            "versions": {name: metadata.version(name) for name in _LIBRARIES},
            "date": datetime.now(UTC).date().isoformat(),
        }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _stop(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM here when the parent dies, however it dies (Linux only)."""
    set_parent_death_signal = 1
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGTERM))


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


if __name__ == "__main__":
    sys.exit(main())
