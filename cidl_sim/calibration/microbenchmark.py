"""Short real runs from which a device profile is fitted, made as the runs that it predicts are made.

- `RETAINED`: everything that fits stays in memory after the first round, so that executions have the machine to
  themselves and find weights where a plan that holds many blocks leaves them: not in a cache. Nothing limits it, so it
  also shows what the process takes.
- `ALTERNATING`: under the kernel's limit, in an arena with room for a share of the weights. For some five seconds all
  loads lie beside an execution, then as many alone: what the two cost each other is seen on neighbours. The first
  second of each row does not count, because a machine may lend what it takes back a moment later: of a virtual
  machine's cores the host uses some of the time for its disk, and where all of them compute, short rows show less of
  what loads and executions cost each other than a run does (experiments/contention_builds_up.py).

Both use the real executor on every kind of block of the workload, over a short run of it.
"""

from __future__ import annotations

import numpy as np

from cidl_sim.calibration.fit import Seen
from cidl_sim.calibration.profile import BASELINE_MARGIN_BYTES, Observation
from cidl_sim.core.device import DeviceProfile, Executor, Loader
from cidl_sim.core.plan import Gate, Load, Plan
from cidl_sim.core.progress import Progress, silent
from cidl_sim.core.temporary import temporary_folder
from cidl_sim.core.timed import timed
from cidl_sim.core.trace import Trace, read_trace
from cidl_sim.core.workload import Workload
from cidl_sim.executor.job import ComputeDevice, Job, JobResult, run_job
from cidl_sim.executor.memory_limit import physical_memory_bytes
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import pipeline_of, workload_of
from cidl_sim.pipelines.matching import store_sizes
from cidl_sim.pipelines.pipeline import RunSettings
from cidl_sim.policies.build import build_plan
from cidl_sim.policies.catalog import make_plan

RETAINED, ALTERNATING = "prefix:999", "alternating"  # the policies of the runs
PURPOSES = (RETAINED, ALTERNATING)
PROMPT = "calibration"
# For about so long all loads lie beside an execution, or all alone, but for a quarter of the run at most and for so
# many visits at least; what comes in the first second of a row, of half of it at most, is left out.
ROW_S, LEAST_ROW, SETTLING_S = 5.0, 8, 1.0
# A run that alternates is made of twice as many steps where it is expected to take less than this.
LONG_ENOUGH_S = 20.0
# Of the weights, this much has room in the run that alternates: as in the runs that people make.
WEIGHTS_FRACTION = 0.3


def observe(
    store: BlockStore,
    settings: RunSettings,
    purpose: str,
    threads: int,
    on_progress: Progress = silent,
    *,
    process: JobResult | None = None,
    compute_device: ComputeDevice = "cpu",
) -> Observation:
    """Run the calibration workload for one of `PURPOSES`, computing with `threads`.

    `process`: what an earlier run said of the memory of the process; without it the kernel limits nothing. A store
    larger than half of the machine's memory is not kept whole in it.
    """
    sizes = store_sizes(store)
    pipeline = pipeline_of(sizes)
    workload = workload_of(sizes, pipeline.calibrating(settings))
    limit, row = None, 0
    if purpose == RETAINED:
        plan = make_plan(RETAINED, workload, _device(workload, physical_memory_bytes() // 2, 0))
    else:
        if _usual_visit_s(workload) * len(workload.visits) < LONG_ENOUGH_S:
            workload = workload_of(sizes, pipeline.calibrating(settings, longer=True))
        room = int(WEIGHTS_FRACTION * workload.weights_bytes)
        # With a margin to spare: the kernel is to hold a limit here, not to end the run.
        margin = 2 * BASELINE_MARGIN_BYTES
        baseline = process.baseline_bytes + process.excess_bytes + margin if process else 0
        device = _device(workload, room, baseline)
        row = visits_in_a_row(workload)
        plan = alternating(workload, device, row)
        limit = device.memory_limit_bytes if process and compute_device == "cpu" else None
    with temporary_folder("calibrate") as folder:
        trace_file = folder / "trace.json"
        job = Job(
            plan=plan.model_copy(update={"compute_threads": threads}),
            workload=workload,
            store=str(store.root.absolute()),
            prompts=(PROMPT,),
            trace=str(trace_file),
            sample_memory=True,
            device=compute_device,
        )
        result = run_job(job, kernel_limit_bytes=limit, on_progress=on_progress)
        trace = read_trace(trace_file)
        return Observation(Seen(workload, trace, unsettled=unsettled(trace, row)), result)


def alternating(workload: Workload, device: DeviceProfile, row: int) -> Plan:
    """`row` loads from the end of the visit before their own, then as many from its start, in turn; nothing is kept."""
    loads = []
    for visit in workload.visits:
        beside = visit.number // row % 2 == 1
        gate = Gate(visit=visit.number - 1, edge="start" if beside else "end") if visit.number else None
        loads.append(Load(visit=visit.number, gate=gate))
    return build_plan(ALTERNATING, workload, device, loads, ())


def visits_in_a_row(workload: Workload) -> int:
    """How many visits take some `ROW_S` on a machine that nobody measured; a quarter of the run at most."""
    most, visit_s = len(workload.visits) // 4, _usual_visit_s(workload)
    return max(LEAST_ROW, min(most, round(ROW_S / visit_s)) if visit_s > 0 else most)


def unsettled(trace: Trace, row: int) -> frozenset[int]:
    """The visits in the first `SETTLING_S` of each row but the first; `row` 0: none."""
    starts_s = {span.visit: span.start_s for span in trace.of("execute")}
    found = set[int]()
    for first in range(row, len(starts_s), row) if row else ():
        half = range(first, min(first + row // 2, len(starts_s)))
        found.update(visit for visit in half if starts_s[visit] < starts_s[first] + SETTLING_S)
    return frozenset(found)


def _usual_visit_s(workload: Workload) -> float:
    priced = timed(workload, _device(workload, workload.weights_bytes, 0))
    return float(np.maximum(priced.least_load_s, priced.least_execute_s).mean())


def _device(workload: Workload, room_bytes: int, baseline_bytes: int) -> DeviceProfile:
    """A stand-in to plan the calibration runs with: `room_bytes` for weights, never less than three blocks need."""
    blocks = [visit.block for visit in workload.visits]
    weights = max(room_bytes, 3 * max(block.weight_bytes for block in blocks))
    workspace = max(block.workspace_bytes for block in blocks)
    return DeviceProfile(
        name="uncalibrated",
        memory_limit_bytes=baseline_bytes + min(weights, workload.weights_bytes) + workspace,
        baseline_bytes=baseline_bytes,
        loader=Loader(bandwidth_bytes_per_s=1e9),
        executor=Executor(flops_per_s=1e11),
    )
