"""The main job end to end: a model larger than its memory, planned, run under a real limit, simulated.

Its weights are random, so that it can be of any size; what videos look like is shown by the small trained model.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from cidl_sim.calibration.this_machine import measure_this_machine
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import StoreError
from cidl_sim.core.files import Record, write_text
from cidl_sim.core.progress import StepProgress, silent
from cidl_sim.core.reports import ComparedPolicy, ErrorFigures, ForeseenRun
from cidl_sim.core.trace import EnforcedBy
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Workload
from cidl_sim.devices.catalog import this_machine_file
from cidl_sim.executor.job import Job, JobResult, run_job
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import DEMO, find_workload, parse_name
from cidl_sim.policies.catalog import make_plan
from cidl_sim.quality import showcase
from cidl_sim.report.timeline import draw_timelines
from cidl_sim.validation.compare import MeasuredCase, report
from cidl_sim.validation.foreseen import Foreseen, run_foreseen

PROMPT = "a red ball rolls over green grass"
SIZES, SETTINGS = parse_name(DEMO)
# The policies that it compares; prefix and spread with their best numbers.
POLICIES_TO_COMPARE = ("sequential", "next_block", "on_device_sora", "lru", "prefix", "spread")
# Of the weights, this much may be in memory at a time.
WEIGHTS_FRACTION = 0.3


class ControlFigures(Record):
    """The run that loads everything; it has no makespan where the kernel killed it."""

    outcome: Literal["killed by the kernel", "finished"]
    enforced_by: EnforcedBy
    makespan_s: float | None


class DemoSummary(Record):
    """What `cidl demo` says: the main job, every policy simulated and measured, and the small trained model."""

    prompt: str
    workload: str
    weights_bytes: int
    memory_limit_bytes: int
    enforced_by: EnforcedBy
    peak_memory_bytes: int
    peak_resident_bytes: int
    control: ControlFigures
    best_policy: str
    lpl: str
    tdtm: int
    prediction_error: ErrorFigures
    replay_error: ErrorFigures
    kendall_tau: float | None
    policies: dict[str, ComparedPolicy]
    runs: tuple[ForeseenRun, ...]
    trained: showcase.ShowcaseSummary


@dataclass
class Demo:
    """What the demo made: the summary that goes to summary.json, and the runs behind it."""

    summary: DemoSummary
    cases: list[MeasuredCase]
    control: JobResult
    device: DeviceProfile
    video_hashes: dict[str, str]


def run_demo(
    out: Path, prompt: str = PROMPT, seed: int = 42, on_step: StepProgress = silent, *, repeats: int = 1
) -> Demo:
    """Build, measure, plan, run (each policy `repeats` times, interleaved) and compare, all in the folder `out`.

    `on_step(step, done, total, detail)` observes. Raises the package's errors; files appear whole or not.
    """
    out.mkdir(parents=True, exist_ok=True)
    store = _store(out / "store", on_step)
    workload = find_workload(DEMO)
    unlimited = measure_this_machine([(store, SETTINGS)], partial(on_step, "measure this machine"))
    limit = demo_limit(workload, unlimited)
    device = with_value(unlimited, "memory_limit_bytes", limit)
    device.write(out / "device.toml")
    device.write(this_machine_file())
    workload.write(out / "workload.json")
    runs = out / "runs"
    control = _control(store, workload, device, runs, prompt, seed, on_step)
    foreseen = run_foreseen(
        POLICIES_TO_COMPARE,
        store,
        workload,
        device,
        runs,
        prompt=prompt,
        seed=seed,
        repeats=repeats,
        on_run=lambda policy, done, total, stage: on_step(f"run {policy}", done, total, stage),
        on_learned=lambda known: known.write(this_machine_file()),
    )
    cases, best = foreseen.cases, foreseen.best
    for file in ("plan.json", "video.mp4"):
        shutil.copyfile(runs / best.name / file, out / file)
    best.measured[-1].write(out / "trace.json")
    draw_timelines(
        [(f"simulated, {best.name}", best.simulated), (f"measured, {best.name}", best.measured[-1])],
        out / "timeline.png",
        title=f"{workload.weights_bytes / 1e6:.0f} MB of weights under {device.memory_limit_bytes / 1e6:.0f} MB in all",
    )
    trained = _trained(out / "trained", foreseen.device, seed, on_step)
    summary = _summary(prompt, workload, device, control, foreseen, trained)
    write_text(out / "summary.json", summary.model_dump_json(indent=1) + "\n")
    hashes = {case.name: _sha256(runs / case.name / "video.mp4") for case in cases}
    return Demo(summary, cases, control, device, hashes)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def demo_limit(workload: Workload, device: DeviceProfile) -> int:
    """A limit that leaves `WEIGHTS_FRACTION` of the weights beside the baseline and the largest workspace."""
    workspace = max(visit.block.workspace_bytes for visit in workload.visits)
    return device.baseline_bytes + workspace + int(WEIGHTS_FRACTION * workload.weights_bytes)


def _store(root: Path, on_step: StepProgress) -> BlockStore:
    """The demo's store, built once: a second run reuses it if it is whole."""
    try:
        store = BlockStore.open(root)
        if store.index.model == SIZES.model_dump(mode="json"):
            return store
    except StoreError:
        pass  # none yet, or a damaged one: build it anew
    total = len({visit.block.weights for visit in find_workload(DEMO).visits})
    written = 0

    def observe_block(weights: str, _: int) -> None:
        nonlocal written
        written += 1
        on_step("build the block store", written, total, weights)

    from cidl_sim.pipelines.model_store import build_random_store  # builds networks: seconds of imports

    return build_random_store(root, SIZES, "fp32", seed=0, on_block=observe_block)


def _control(
    store: BlockStore,
    workload: Workload,
    device: DeviceProfile,
    runs: Path,
    prompt: str,
    seed: int,
    on_step: StepProgress,
) -> JobResult:
    """Load everything under the same limit: the kernel is expected to kill it."""
    runs.mkdir(exist_ok=True)
    plan = make_plan("sequential", workload, device)
    root = str(store.root.absolute())
    job = Job(plan=plan, workload=workload, store=root, prompts=(prompt,), seed=seed, control=True)
    step, total = "control: all resident", len(workload.visits)
    on_step(step, 0, total, "loading everything")
    result = run_job(
        job,
        kernel_limit_bytes=device.memory_limit_bytes,
        on_progress=partial(on_step, step),
        tolerate_kill=True,
    )
    on_step(step, total, total, "killed by the kernel" if result.killed else "finished")
    return result


def _trained(out: Path, device: DeviceProfile, seed: int, on_step: StepProgress) -> showcase.ShowcaseSummary:
    """The small trained model, in full and accelerated, under a limit below its own weights."""
    workload = find_workload(showcase.WORKLOADS[showcase.FULL])
    limited = with_value(device, "memory_limit_bytes", demo_limit(workload, device))
    return showcase.run_showcase(out, limited, seed, on_step)


def _summary(
    prompt: str,
    workload: Workload,
    device: DeviceProfile,
    control: JobResult,
    foreseen: Foreseen,
    trained: showcase.ShowcaseSummary,
) -> DemoSummary:
    cases, best = foreseen.cases, foreseen.best
    figures = report(cases)
    kernel_peaks = [case.peak_kernel_bytes for case in cases if case.peak_kernel_bytes is not None]
    accounted = max(case.simulated.peak_resident_bytes for case in cases)
    return DemoSummary(
        prompt=prompt,
        workload=workload.name,
        weights_bytes=workload.weights_bytes,
        memory_limit_bytes=device.memory_limit_bytes,
        enforced_by=best.measured[-1].header.enforced_by,
        peak_memory_bytes=max(kernel_peaks) if kernel_peaks else accounted,
        peak_resident_bytes=accounted,
        control=ControlFigures(
            outcome="killed by the kernel" if control.killed else "finished",
            enforced_by=control.enforced_by,
            makespan_s=None if control.killed else control.makespan_s,
        ),
        best_policy=best.name,
        lpl=SETTINGS.lpl,
        tdtm=SETTINGS.tdtm,
        prediction_error=foreseen.error,
        replay_error=figures.replay_error,
        kendall_tau=figures.kendall_tau,
        policies={row.policy: row for row in figures.policies},
        runs=tuple(foreseen.runs),
        trained=trained,
    )
