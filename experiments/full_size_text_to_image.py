"""Stable Diffusion and SDXL at full size under a memory limit that the kernel holds, beside the control that is killed.

    .venv/bin/python experiments/full_size_text_to_image.py [--only sd|sdxl] [--steps N] [--folder DIR]

SD v1.5 in fp32 (4.1 GB) under 1.2 GB makes an image of 512x512, SDXL in bf16 (6.7 GB) under 2 GB one of 1024x1024, both
with guidance, seeded random weights (so the images are noise), the decoder in tiles. Every block's costs come from one
step that is run first. The stores go to a temporary folder, or to --folder, where they stay. Writes
experiments/results/full_size_MODEL.md and pictures, and traces to traces/text_to_image/. A quarter of an hour on 2
cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image
from shared.quick_rates import quick_device

from cidl_sim.core.device import DeviceProfile, Measured
from cidl_sim.core.errors import InfeasibleError, StoreError
from cidl_sim.core.plan import Plan
from cidl_sim.core.trace import Trace, read_trace
from cidl_sim.core.workload import Workload
from cidl_sim.executor.job import Job, JobResult, describe_mode, run_job
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import find_workload, parse_name
from cidl_sim.pipelines.model_store import build_random_store
from cidl_sim.planner.evaluate import evaluated_plan
from cidl_sim.report.timeline import draw_timelines

ROOT = Path(__file__).parent.parent
RESULTS, TRACES = ROOT / "experiments/results", ROOT / "traces/text_to_image"
PROMPT, UNLIKE = "a stack of dried leaves burning in a forest", "blurred"
POLICIES = ("sequential", "next_block", "spread", "lru", "whole_model")


@dataclass(frozen=True)
class Case:
    """One model under one limit. `baseline_bytes`: what the process takes before weights, with PyTorch's scratch."""

    name: str
    workload: str
    limit_bytes: int
    baseline_bytes: int


CASES = {
    "sd": Case("sd-v1.5", "sd-v1.5-512x512-{steps}s-ddim-fp32-tile32", 1_200_000_000, 480_000_000),
    "sdxl": Case("sdxl", "sdxl-1024x1024-{steps}s-euler-bf16-tile64", 2_000_000_000, 560_000_000),
}
STEPS = {"sd": 10, "sdxl": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cidl-images-") as temporary:
        for key in [arguments.only] if arguments.only else CASES:
            one(CASES[key], arguments.steps or STEPS[key], arguments.folder or Path(temporary), Path(temporary))


def one(case: Case, steps: int, folder: Path, out: Path) -> None:
    """Measure, plan, run, show."""
    workload = find_workload(case.workload.format(steps=steps))
    store = opened(folder / workload.name.partition("-")[0], workload.name)
    device = measured(store, case, out)
    plan, simulated = best(workload, device)
    plan.write(out / "plan.json")
    print(f"plan {plan.policy}: {simulated.makespan_s:.0f} s predicted", flush=True)
    job = job_of(plan, workload, store, out / "trace.json.gz")
    job = job.model_copy(update={"outputs": (str(out / f"{case.name}.png"),)})
    result = run_job(job, kernel_limit_bytes=case.limit_bytes, on_progress=show)
    killed = control(job, case)
    trace = read_trace(out / "trace.json.gz")
    RESULTS.mkdir(exist_ok=True)
    # It is noise: a small one shows that.
    Image.open(out / f"{case.name}.png").resize((192, 192)).save(RESULTS / f"full_size_{case.name}_image.png")
    report = text(case, steps, trace, simulated, result, killed)
    print("\n" + report)
    (RESULTS / f"full_size_{case.name}.md").write_text(report)
    draw_timelines(
        [(f"simulated, {plan.policy}", simulated), (f"measured, {plan.policy}", trace)],
        RESULTS / f"full_size_{case.name}.png",
        title=f"{workload.name} under {case.limit_bytes / 1e9:.1f} GB",
    )
    TRACES.mkdir(parents=True, exist_ok=True)
    trace.write(TRACES / f"{case.name}.json.gz")
    (TRACES / "README.md").write_text(
        "# traces/text_to_image\n\nStable Diffusion v1.5 and SDXL at full size with random weights, made by\n"
        "`experiments/full_size_text_to_image.py`; machine, date and figures are in\n"
        "`experiments/results/full_size_sd*.md` and in each header. Origin: torch-cpu. Nothing here was recorded with\n"
        "Core ML.\n"
    )


def opened(root: Path, name: str) -> BlockStore:
    """The store in `root`, built first if there is none."""
    sizes, settings = parse_name(name)
    try:
        return BlockStore.open(root)
    except StoreError:
        return build_random_store(root, sizes, settings.dtype, seed=0, partition=settings.partition)


def measured(store: BlockStore, case: Case, out: Path) -> DeviceProfile:
    """What loads and executions of each kind take, from one step run block after block."""
    device = quick_device(store, case.limit_bytes, case.baseline_bytes)
    # Loads are a tenth of a step here, and read past the page cache: all cores compute.
    executor = device.executor.model_copy(update={"threads": os.cpu_count()})
    device = device.model_copy(update={"executor": executor})
    workload = find_workload(case.workload.format(steps=1))
    plan, _ = evaluated_plan("sequential", workload, device)
    job = job_of(plan, workload, store, out / "first.json")
    run_job(job, kernel_limit_bytes=case.limit_bytes, on_progress=show)
    trace = read_trace(out / "first.json")
    taken: dict[str, dict[str, list[float]]] = {}
    for span in trace.spans:
        if span.operation in ("load", "execute"):
            kind = workload.visits[span.visit].block.kind
            taken.setdefault(kind, {}).setdefault(span.operation, []).append(span.end_s - span.start_s)
    kinds = {visit.block.kind: visit.block for visit in workload.visits}
    found = {
        kind: Measured(
            load_s=statistics.median(spans["load"]) if "load" in spans else None,
            exec_s=statistics.median(spans["execute"]),
            weight_bytes=kinds[kind].weight_bytes,
            flops=kinds[kind].flops,
            samples=len(spans["execute"]),
        )
        for kind, spans in taken.items()
    }
    return device.model_copy(update={"name": "one-step", "measured": found})


def job_of(plan: Plan, workload: Workload, store: BlockStore, trace: Path) -> Job:
    """A run of a plan that makes no file but its trace."""
    return Job(
        plan=plan,
        workload=workload,
        store=str(store.root.absolute()),
        prompts=(PROMPT,),
        options={"negative_prompt": UNLIKE},
        trace=str(trace),
    )


def best(workload: Workload, device: DeviceProfile) -> tuple[Plan, Trace]:
    """The fastest policy's plan, and its simulated trace."""
    found = []
    for policy in POLICIES:
        try:
            found.append(evaluated_plan(policy, workload, device))
        except InfeasibleError:
            continue
    return min(found, key=lambda planned: planned[1].makespan_s)


def control(job: Job, case: Case) -> bool:
    """Whether the kernel kills the run with everything resident under the same limit."""
    everything = job.model_copy(update={"control": True, "outputs": (), "trace": None})
    try:
        run_job(everything, kernel_limit_bytes=case.limit_bytes)
    except InfeasibleError:
        return True
    return False


def show(done: int, total: int, stage: str) -> None:
    print(f"{done}/{total} {stage}", flush=True)


def text(case: Case, steps: int, trace: Trace, simulated: Trace, result: JobResult, control_was_killed: bool) -> str:
    header, loads = trace.header, trace.of("load")
    versions = ", ".join(f"{name} {version}" for name, version in header.versions.items())
    key = next(key for key, other in CASES.items() if other is case)
    control_said = "killed by the kernel" if control_was_killed else "finished"
    waits = trace.idle_s.get("executor", {}).get("load", 0)
    rows = [
        f"| {group} | {row['elapsed_s']:.1f} | {row['executor_busy_s']:.1f} | {row['loader_busy_s']:.1f} |"
        for group, row in trace.groups.items()
    ]
    return "\n".join(
        [
            f"# {case.name} at full size under {case.limit_bytes / 1e9:.1f} GB",
            "",
            f"Command: `.venv/bin/python experiments/full_size_text_to_image.py --only {key} --steps {steps}`. Date: "
            f"{datetime.now(UTC):%Y-%m-%d}. Machine: {header.machine['processor']}, {header.machine['cores']} cores "
            f"({header.machine['compute_threads']} compute); {versions}. One run; random weights: the image is noise.",
            "",
            f"Workload `{header.workload_name}`, plan `{header.policy}`: the fastest in simulation of "
            f"{', '.join(POLICIES)}. The limit for the whole process, page cache included, was held by "
            f"{describe_mode(header.enforced_by)}. The same with everything resident: {control_said}.",
            "",
            "| group | elapsed s | executor busy s | loader busy s |",
            "|---|---|---|---|",
            *rows,
            f"| all | {trace.makespan_s:.1f} | {trace.executor_busy_s:.1f} | {trace.loader_busy_s:.1f} |",
            "",
            "| figure | value |",
            "|---|---|",
            f"| predicted from one step | {simulated.makespan_s:.1f} s "
            f"({simulated.makespan_s / trace.makespan_s - 1:+.1%}) |",
            f"| executor waits for loads | {waits:.1f} s |",
            f"| bytes loaded, by the spans | {sum(s.bytes for s in loads) / 1e9:.2f} GB in {len(loads)} loads |",
            f"| peak memory, accounted | {trace.peak_resident_bytes / 1e6:.0f} MB |",
            f"| peak memory, as the kernel saw it | {(header.peak_kernel_bytes or 0) / 1e6:.0f} MB of "
            f"{case.limit_bytes / 1e6:.0f} MB |",
            f"| baseline, planned and measured | {header.baseline_bytes / 1e6:.0f} MB, "
            f"{(result.baseline_bytes or 0) / 1e6:.0f} MB |",
            f"| live beyond what was counted, at most | {(result.excess_bytes or 0) / 1e6:.0f} MB |",
            "",
        ]
    )


if __name__ == "__main__":
    main()
