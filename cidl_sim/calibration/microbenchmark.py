"""Short real runs from which a device profile is fitted, each made for one figure.

- `LOADS`: sequential, so that loads have the machine to themselves, each into memory that was touched before but not
  just now.
- `EXECUTIONS`: everything that fits stays in memory after the first round, so that executions have the machine to
  themselves and find weights where a plan that holds many blocks leaves them: not in a cache. Its loads are the
  first to touch their memory.
- `OVERLAP`: a lookahead of one block, into memory as in `LOADS`, for how much the two slow each other down.

All use the real executor on every kind of block of the workload, over a short run of it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from cidl_sim.core.device import DeviceProfile, Executor, Loader
from cidl_sim.core.progress import Progress, silent
from cidl_sim.core.trace import Trace, read_trace
from cidl_sim.core.workload import Workload
from cidl_sim.executor.job import ComputeDevice, Job, JobResult, run_job
from cidl_sim.executor.memory_limit import physical_memory_bytes
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import pipeline_of, workload_of
from cidl_sim.pipelines.matching import store_sizes
from cidl_sim.pipelines.pipeline import RunSettings
from cidl_sim.policies.catalog import make_plan

LOADS, EXECUTIONS, OVERLAP = "sequential", "prefix:999", "next_block"  # the policies of the runs
PURPOSES = (LOADS, EXECUTIONS, OVERLAP)
ROTATING = (LOADS, OVERLAP)  # whose loads go round through memory that was touched before the run
PROMPT = "calibration"
# Loads go round through this much memory, more than a cache holds; touching it takes a second where memory is new.
ROTATION_BYTES = 256 << 20


@dataclass(frozen=True)
class Observation:
    """One calibration run: its workload, trace and what the worker reported."""

    workload: Workload
    trace: Trace
    result: JobResult

    @property
    def purpose(self) -> str:
        """One of `LOADS`, `EXECUTIONS`, `OVERLAP`."""
        return self.trace.header.policy


def observe(
    store: BlockStore,
    settings: RunSettings,
    policy: str,
    threads: int,
    on_progress: Progress = silent,
    *,
    compute_device: ComputeDevice = "cpu",
) -> Observation:
    """Run the calibration workload under `policy`, computing with `threads`; the kernel limits nothing.

    A store larger than half of the machine's memory is not kept whole in it.
    """
    sizes = store_sizes(store)
    workload = workload_of(sizes, pipeline_of(sizes).calibrating(settings))
    rotates = policy in ROTATING
    room = ROTATION_BYTES if rotates else physical_memory_bytes() // 2
    plan = make_plan(policy, workload, _roomy_device(workload, room)).model_copy(update={"compute_threads": threads})
    with tempfile.TemporaryDirectory(prefix="cidl-calibrate-") as folder:
        trace_file = Path(folder) / "trace.json"
        job = Job(
            plan=plan,
            workload=workload,
            store=str(store.root.absolute()),
            prompts=(PROMPT,),
            trace=str(trace_file),
            # Looking takes time between visits, which must not pass for the driver's own.
            sample_memory=policy == OVERLAP,
            rotate_slots=rotates,
            device=compute_device,
        )
        result = run_job(job, kernel_limit_bytes=None, on_progress=on_progress)
        return Observation(workload, read_trace(trace_file), result)


def _roomy_device(workload: Workload, room_bytes: int) -> DeviceProfile:
    """A stand-in to plan the calibration runs with: `room_bytes` for weights, never less than three blocks need."""
    blocks = [visit.block for visit in workload.visits]
    weights = max(room_bytes, 3 * max(block.weight_bytes for block in blocks))
    return DeviceProfile(
        name="uncalibrated",
        memory_limit_bytes=min(weights, workload.weights_bytes) + max(block.workspace_bytes for block in blocks),
        loader=Loader(bandwidth_bytes_per_s=1e9),
        executor=Executor(flops_per_s=1e11),
    )
