"""Short real runs from which a device profile is fitted, each made for one figure.

- `LOADS`: sequential, so that loads have the machine to themselves, each into memory that was not just in use.
- `EXECUTIONS`: everything stays in memory after the first round, so that executions have the machine to
  themselves and find weights where a plan that holds many blocks leaves them: not in a cache.
- `OVERLAP`: a lookahead of one block, for how much the two slow each other down.

All use the real executor on every kind of block of the workload, over a few denoising steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cidl_sim.core.device import DeviceProfile, Executor, Loader
from cidl_sim.core.trace import Trace, read_trace
from cidl_sim.core.workload import Workload
from cidl_sim.diffusion.job import ComputeDevice, Job, JobResult, run_job
from cidl_sim.diffusion.matching import store_sizes
from cidl_sim.executor.store import BlockStore
from cidl_sim.models.config import VideoSettings
from cidl_sim.policies.catalog import make_plan
from cidl_sim.workloads.catalog import workload_of

CALIBRATION_STEPS = 6
LOADS, EXECUTIONS, OVERLAP = "sequential", "prefix:999", "next_block"  # the policies of the runs
PROMPT = "calibration"
OnProgress = Callable[[int, int, str], None]


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
    settings: VideoSettings,
    policy: str,
    threads: int,
    on_progress: OnProgress = lambda done, total, stage: None,
    *,
    compute_device: ComputeDevice = "cpu",
) -> Observation:
    """Run the calibration workload under `policy`, computing with `threads`; nothing is limited."""
    merged = CALIBRATION_STEPS // 2 if settings.tdtm else 0
    short = settings.model_copy(update={"steps": CALIBRATION_STEPS, "lpl": "off", "tdtm": merged, "prompts": 1})
    workload = workload_of(store_sizes(store), short)
    plan = make_plan(policy, workload, _roomy_device(workload)).model_copy(update={"compute_threads": threads})
    with tempfile.TemporaryDirectory(prefix="cidl-calibrate-") as folder:
        plan_file, trace_file = Path(folder) / "plan.json", Path(folder) / "trace.json"
        plan.write(plan_file)
        job = Job(
            plan=str(plan_file),
            store=str(store.root.absolute()),
            prompts=(PROMPT,),
            trace=str(trace_file),
            sample_memory=True,
            rotate_slots=policy == LOADS,
            device=compute_device,
        )
        result = run_job(job, kernel_limit_bytes=None, on_progress=on_progress)
        return Observation(workload, read_trace(trace_file), result)


def _roomy_device(workload: Workload) -> DeviceProfile:
    """A stand-in to plan the calibration runs with; neither policy depends on its figures."""
    largest = max(visit.block.workspace_bytes for visit in workload.visits)
    return DeviceProfile(
        name="uncalibrated",
        memory_limit_bytes=workload.weights_bytes + largest,
        loader=Loader(bandwidth_bytes_per_s=1e9),
        executor=Executor(flops_per_s=1e11),
    )
