"""The child process of a run: `python -m cidl_sim.diffusion.worker JOB.json`.

Standard output carries lines of JSON: {"done", "total", "stage"} while it runs, then one {"result"} or
{"error", "exit_code"}. It is started inside its memory group, so all it ever touches is charged there.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from cidl_sim.core.errors import CidlError, MachineError
from cidl_sim.core.plan import read_plan
from cidl_sim.core.trace import Trace, header_for
from cidl_sim.core.workload import Visit, Workload
from cidl_sim.diffusion.job import Job, JobResult
from cidl_sim.diffusion.matching import TOKENIZER_FOLDER, store_sizes, workload_for_plan
from cidl_sim.diffusion.prompt import encode_prompt
from cidl_sim.diffusion.text_to_video import FRAMES_PER_SECOND, TextToVideo
from cidl_sim.diffusion.video_file import write_frames, write_video
from cidl_sim.executor.memory_limit import PeakResident, charged_to_this_process, push_out_page_cache
from cidl_sim.executor.runtime import Limits, Runtime, run_all_resident
from cidl_sim.executor.store import BlockStore
from cidl_sim.executor.torch_backend import TorchBackend
from cidl_sim.models.open_sora import stage_definitions


def main() -> int:
    """Do the job in the file named on the command line; returns the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
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
    """Run the plan (or the control), write video and trace, and report."""
    store = BlockStore.open(Path(job.store), verify=job.verify)
    plan = read_plan(Path(job.plan))
    workload, settings = workload_for_plan(store, plan)
    limit = job.memory_limit_bytes or plan.memory_limit_bytes
    if not job.control:
        plan.check_within(workload, memory_limit_bytes=limit, baseline_bytes=plan.baseline_bytes)
    sizes = store_sizes(store)
    tokenizer = store.root / TOKENIZER_FOLDER
    tokens = encode_prompt(job.prompt, sizes.text_encoder_tokens, tokenizer if tokenizer.is_dir() else None)
    program = TextToVideo(workload, sizes, settings, tokens, job.seed, lpl_rule=job.lpl_rule)
    # One core is left to each loader channel.
    threads = max(1, (os.cpu_count() or 2) - plan.channels)
    torch.set_num_threads(threads)
    stages = stage_definitions(sizes, settings, sizes.nominal_text_tokens)
    _warm_up()
    charged = charged_to_this_process()
    baseline = charged.baseline_bytes()
    push_out_page_cache(charged, limit)
    capacity = (
        sum(store.entry(w).data_bytes for w in store.index.blocks) if job.control else limit - plan.baseline_bytes
    )
    backend = TorchBackend(store, stages, capacity, tokens[0])
    watch = _Watch(workload, backend, sample=job.sample_memory)
    trace: Trace | None = None
    bytes_read_before = _bytes_read_from_disk()
    try:
        if job.control:
            makespan_s, _ = run_all_resident(workload, backend, program, watch)
        else:
            runtime = Runtime(workload, plan, Limits(limit, plan.baseline_bytes), backend, program)
            with _stopped_by_signals(runtime):
                runtime.run(watch)
            touched = backend.arena.peak_touched_bytes
            fields = _header_fields(backend, threads, baseline, touched, limit, bytes_read_before)
            trace = runtime.recorder.finish(header_for(workload, plan, **fields))
            makespan_s = trace.makespan_s
        touched = backend.arena.peak_touched_bytes
    finally:
        backend.close()
    if job.video:
        write_video(Path(job.video), program.frames, FRAMES_PER_SECOND)
    if job.frames_folder:
        write_frames(Path(job.frames_folder), program.frames)
    if job.trace and trace is not None:
        trace.write(Path(job.trace))
    return JobResult(
        makespan_s=makespan_s,
        enforced_by=charged.enforced_by,
        baseline_bytes=baseline,
        excess_bytes=watch.excess_bytes,
        peak_resident_bytes=trace.peak_resident_bytes if trace else 0,
        peak_kernel_bytes=charged.peak_bytes(),
        touched_bytes=touched,
        evaluations=program.evaluations,
        threads=threads,
        fall_backs=tuple(backend.fall_backs),
    )


class _Watch:
    """Reports progress after each visit; on request also measures what is needed beyond what is accounted.

    That is the peak of resident memory during each visit, less what was there before the run, the arena's
    pages and the visit's workspace: buffers of the libraries, and holes in the heap.
    """

    def __init__(self, workload: Workload, backend: TorchBackend, *, sample: bool) -> None:
        self._workload = workload
        self._backend = backend
        self._peak = PeakResident() if sample and PeakResident().reset() else None
        self._before = (self._peak.peak_bytes() or 0) if self._peak else 0
        self.excess_bytes = 0

    def __call__(self, visit: Visit) -> None:
        stage = self._workload.stages[visit.stage]
        if visit.position == len(stage.blocks) - 1:
            _say({"done": visit.number + 1, "total": len(self._workload.visits), "stage": stage.name})
        if self._peak is not None:
            grown = (self._peak.peak_bytes() or 0) - self._before
            accounted = self._backend.footprint_bytes() + visit.block.workspace_bytes
            self.excess_bytes = max(self.excess_bytes, grown - accounted)
            self._peak.reset()


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


def _header_fields(
    backend: TorchBackend, threads: int, baseline: int, touched: int, limit: int, bytes_read_before: int
) -> dict[str, Any]:
    charged = charged_to_this_process()
    enforced = charged.enforced_by if charged.limit_bytes() is not None else "accounting"
    return {
        "origin": backend.origin,
        "enforced_by": enforced,
        "clock": "perf_counter",
        "memory_limit_bytes": limit,
        "peak_kernel_bytes": charged.peak_bytes(),
        "fall_backs": tuple(backend.fall_backs),
        "machine": {
            "system": platform.system(),
            "release": platform.release(),
            "processor": _processor(),
            "cores": os.cpu_count() or 0,
            "compute_threads": threads,
            "measured_baseline_bytes": baseline,
            "arena_touched_bytes": touched,
            "slots_stitched": backend.arena.stitched_slots,
            "read_bytes": _bytes_read_from_disk() - bytes_read_before,
        },
        "versions": {name: metadata.version(name) for name in ("cidl-sim", "torch", "transformers", "diffusers")},
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
