"""A run as a job for a child process, so that the kernel can limit it and, if need be, kill it.

The parent puts the child into its memory group and reads lines of JSON from it: progress, then a result or
an error. The child is `python -m cidl_sim.worker`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from cidl_sim.core.errors import CidlError, InfeasibleError, InputError, MachineError
from cidl_sim.core.files import Record
from cidl_sim.core.forecast import Forecast, Prediction
from cidl_sim.core.plan import Plan
from cidl_sim.core.progress import Progress, silent
from cidl_sim.core.temporary import temporary_folder
from cidl_sim.core.trace import EnforcedBy
from cidl_sim.core.workload import Workload
from cidl_sim.executor.memory_limit import MemoryGroup

ComputeDevice = Literal["cpu", "cuda", "mps"]
BackendName = Literal["torch", "mil", "coreml"]
ComputeUnits = Literal["all", "cpu_only", "cpu_and_gpu", "cpu_and_ne"]
# A worker that was asked to stop ends after the visit under way.
_GRACE_S = 60
_ERRORS: dict[int, type[CidlError]] = {2: InputError, 3: InfeasibleError, 4: MachineError}


class Job(Record):
    """What a worker has to do. `control` loads everything and heeds no plan (`plan` only names the workload).

    `workload`: that of the plan, where the parent has made it already. `outputs` and `picture_folders` name one file
    and folder for each prompt, or are empty. `options` are those of the model's family. `saved_run`: the file that
    keeps the run's state after each denoising step; with `resume` the run goes on from it. `device`: "cpu", or an
    accelerator whose memory the plan's limit is then about. `backend`: PyTorch with the blocks of a store, or what runs
    the packages of the export that `store` then is, on `compute_units` (of Core ML). `sample_memory` is for
    calibration. `forecast`: what the run is expected to take; with it progress says how long it will still take, and
    the trace what was estimated on the way.
    """

    plan: Plan
    workload: Workload | None = None
    store: str
    prompts: tuple[str, ...]
    seed: int = 42
    control: bool = False
    verify: bool = False
    memory_limit_bytes: int | None = None
    options: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    picture_folders: tuple[str, ...] = ()
    trace: str | None = None
    saved_run: str | None = None
    resume: bool = False
    device: ComputeDevice = "cpu"
    backend: BackendName = "torch"
    compute_units: ComputeUnits = "all"
    sample_memory: bool = False
    forecast: Forecast | None = None


class JobResult(Record):
    """What came of it. Byte counts as the kernel saw them are None where it does not tell.

    `workspace_bytes`, by kind, and `excess_bytes` only with `sample_memory`: the most that a visit took beside the
    weights, and the most that any visit took beyond its accounted workspace.
    """

    makespan_s: float = 0.0
    enforced_by: EnforcedBy = "accounting"
    baseline_bytes: int = 0
    excess_bytes: int = 0
    workspace_bytes: dict[str, int] = Field(default_factory=dict)
    peak_resident_bytes: int = 0
    peak_kernel_bytes: int | None = None
    touched_bytes: int = 0
    evaluations: int = 0
    threads: int = 1
    fall_backs: tuple[str, ...] = ()
    killed: bool = False


class RunSummary(JobResult):
    """What `cidl run` says: the result, `output` as it was named, the files that were written, and the limit.

    `video` and `videos` are the same again where videos were made; earlier versions knew nothing else. `predicted`:
    before the run, if this machine was known; `learned`: what its kept profile made of the run.
    """

    output: str
    outputs: tuple[str, ...]
    video: str | None = None
    videos: tuple[str, ...] | None = None
    memory_limit_bytes: int
    predicted: Prediction | None = None
    learned: str | None = None

    @model_serializer(mode="wrap")
    def _videos_only(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        return data if self.video is not None else {k: v for k, v in data.items() if k not in ("video", "videos")}


class JobInterruptedError(CidlError):
    """The run ended by a signal that was sent to it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {signal.Signals(number).name}")
        self.exit_code = 128 + number


def run_job(
    job: Job,
    *,
    kernel_limit_bytes: int | None,
    on_progress: Progress = silent,
    tolerate_kill: bool = False,
) -> JobResult:
    """Run `job` in a child under a limit that the kernel enforces (None: only measured).

    With `tolerate_kill` a child that the kernel killed for its memory gives a result with `killed` set;
    otherwise that is an InfeasibleError. Other failures come back as the errors that the child raised.
    """
    with MemoryGroup(kernel_limit_bytes) as group, temporary_folder("job") as folder:
        file = folder / "job.json"
        file.write_text(job.model_dump_json())
        command = group.command([sys.executable, "-m", "cidl_sim.worker", str(file)])
        environment = {
            **os.environ,
            **group.environment(),
            "PYTHONUNBUFFERED": "1",
            "CIDL_PARENT": str(os.getpid()),
            **_allocator_settings(job),
        }
        # Not a pipe: nobody reads it while the child runs, and a full pipe would stop the child.
        errors = folder / "stderr.txt"
        with (
            errors.open("w") as stderr,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment) as child,
        ):
            try:
                last = _follow(child, on_progress)
                code = child.wait()
            except BaseException:
                child.terminate()
                try:
                    child.wait(_GRACE_S)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
                raise
        message = _last_line(errors.read_text(errors="replace"))
        killed = code in (-signal.SIGKILL, 128 + signal.SIGKILL)
        if killed and (group.was_killed_by_limit() or group.enforced_by == "systemd-scope"):
            if tolerate_kill:
                return JobResult(enforced_by=group.enforced_by, killed=True)
            raise InfeasibleError(
                f"the kernel killed the run: it needed more than the limit of {kernel_limit_bytes} bytes "
                f"({group.enforced_by})"
            )
    if "result" in last:
        return JobResult.model_validate(last["result"])
    if "error" in last:
        raise _ERRORS.get(last["exit_code"], CidlError)(last["error"])
    if code < 0:
        raise JobInterruptedError(-code)
    if code in (130, 143):
        raise JobInterruptedError(code - 128)
    raise CidlError(f"the worker failed with exit code {code}: {message}")


def _follow(child: subprocess.Popen[str], on_progress: Progress) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for line in child.stdout or ():
        message = json.loads(line)
        if "done" in message:
            on_progress(message["done"], message["total"], message["stage"])
        else:
            last = message
    return last


def _allocator_settings(job: Job) -> dict[str, str]:
    if job.device == "cuda":
        # Free pages of any segments serve a block together; read when the process first touches CUDA.
        return {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    # Few heaps, and free memory beyond 16 MiB goes back to the kernel: what was one block's workspace must
    # not stay charged when another's weights take its place. Smaller thresholds cost up to 10 % of the
    # executor's time in page faults.
    return {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "16777216", "MALLOC_MMAP_THRESHOLD_": "16777216"}


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def describe_mode(enforced_by: EnforcedBy | Literal["none"]) -> str:
    """What held the limit, in words."""
    return {
        "cgroup-v1": "the kernel (cgroup v1)",
        "cgroup-v2": "the kernel (cgroup v2)",
        "systemd-scope": "the kernel (user scope of systemd)",
        "accounting": "nothing: the limit was only accounted",
        "none": "nothing",
    }[enforced_by]
