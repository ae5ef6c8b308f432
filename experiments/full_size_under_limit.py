"""Open-Sora v1.2 at its published size under 3.3 GB: a whole text-to-video job that the kernel limits.

    .venv/bin/python experiments/full_size_under_limit.py [--store DIR] [--dtype fp32] [--limit 3300000000]

Builds the block store with seeded random weights (25 GB in fp32) in a temporary folder unless --store names
one (which is built if it is not there, and stays), plans, runs, and writes experiments/results/full_size_DTYPE.md,
a picture of the timeline beside it and the trace to traces/full_size/. About 15 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import matplotlib.pyplot as plt
import numpy as np
from shared.quick_rates import quick_device

from cidl_sim.core.errors import StoreError
from cidl_sim.core.trace import Trace, read_trace
from cidl_sim.core.workload import Workload
from cidl_sim.executor.job import Job, JobResult, describe_mode, run_job
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import workload_of
from cidl_sim.pipelines.model_store import build_random_store
from cidl_sim.pipelines.open_sora.settings import OPENSORA_V1_2, VideoSettings
from cidl_sim.planner.evaluate import evaluated_plan
from cidl_sim.report.timeline import draw_timelines

ROOT = Path(__file__).parent.parent
PROMPT = "a stack of dried leaves burning in a forest"
# What Python, PyTorch and the pipeline take before any weight (the run measures it and the table shows it), and what
# PyTorch's convolutions and products allocate beyond live tensors (`cidl calibrate` measures that).
BASELINE_BYTES = 600_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--limit", type=int, default=3_300_000_000)
    parser.add_argument("--policy", default="spread")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--lpl", default="15")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cidl-full-size-") as folder:
        out = Path(folder)
        store = opened(arguments.store or out / "store", arguments.dtype)
        settings = VideoSettings(
            height=192, width=192, frames=arguments.frames, lpl=arguments.lpl, dtype=arguments.dtype
        )
        workload = workload_of(OPENSORA_V1_2, settings)
        device = quick_device(store, arguments.limit, BASELINE_BYTES)
        plan, simulated = evaluated_plan(arguments.policy, workload, device)
        plan.write(out / "plan.json")
        print(f"plan {plan.policy}: {simulated.makespan_s:.0f} s predicted from quick rates", flush=True)
        job = Job(
            plan=plan,
            workload=workload,
            store=str(store.root.absolute()),
            prompts=(PROMPT,),
            outputs=(str(out / "video.mp4"),),
            trace=str(out / "trace.json.gz"),
        )
        result = run_job(job, kernel_limit_bytes=arguments.limit, on_progress=show)
        trace = read_trace(out / "trace.json.gz")
        results = ROOT / "experiments/results"
        frames = frames_of(out / "video.mp4")
        draw_frames(frames, results / f"full_size_{arguments.dtype}_frames.png")
        report = text(arguments.dtype, workload, trace, simulated, result, frames)
        print("\n" + report)
        (results / f"full_size_{arguments.dtype}.md").write_text(report)
        draw_timelines(
            [(f"measured, {plan.policy}", trace)],
            results / f"full_size_{arguments.dtype}.png",
            title=f"{workload.name} under {arguments.limit / 1e9:.1f} GB",
        )
        traces = ROOT / "traces/full_size"
        traces.mkdir(parents=True, exist_ok=True)
        trace.write(traces / f"{arguments.dtype}.json.gz")
        (traces / "README.md").write_text(
            "# traces/full_size\n\nOpen-Sora v1.2 at its published size with random weights, made by "
            "`experiments/full_size_under_limit.py`; machine, date and figures are in "
            "`experiments/results/full_size_*.md` and in each header. Origin: torch-cpu. Nothing here was recorded "
            "with Core ML.\n"
        )


def opened(root: Path, dtype: str) -> BlockStore:
    """The store in `root`, built first if there is none."""
    try:
        return BlockStore.open(root)
    except StoreError:
        began = time.perf_counter()
        store = build_random_store(root, OPENSORA_V1_2, dtype, seed=0, on_block=lambda w, _: print(w, flush=True))
        print(f"store built in {time.perf_counter() - began:.0f} s", flush=True)
        return store


def show(done: int, total: int, stage: str) -> None:
    print(f"{done}/{total} {stage}", flush=True)


def text(dtype: str, workload: Workload, trace: Trace, simulated: Trace, result: JobResult, frames: Any) -> str:
    header = trace.header
    versions = ", ".join(f"{name} {version}" for name, version in header.versions.items())
    loads = trace.of("load")
    lines = [
        f"# Full size in {dtype} under {header.memory_limit_bytes / 1e9:.1f} GB",
        "",
        f"Command: `.venv/bin/python experiments/full_size_under_limit.py --dtype {dtype}`. Date: {header.date}. "
        f"Machine: {header.machine['processor']}, {header.machine['cores']} cores "
        f"({header.machine['compute_threads']} computes), {header.machine['system']} {header.machine['release']}; "
        f"{versions}. One run; random weights.",
        "",
        f"Workload `{workload.name}`, plan `{header.policy}`. {len(workload.visits)} visits, {result.evaluations} "
        f"evaluations of the denoiser. The limit of {header.memory_limit_bytes / 1e6:.0f} MB for the whole process, "
        f"page cache included, was held by {describe_mode(header.enforced_by)}. Fall-backs: "
        f"{', '.join(header.fall_backs) or 'none'}.",
        "",
        "| group | elapsed s | executor busy s | loader busy s |",
        "|---|---|---|---|",
    ]
    for group, row in trace.groups.items():
        lines.append(
            f"| {group} | {row['elapsed_s']:.1f} | {row['executor_busy_s']:.1f} | {row['loader_busy_s']:.1f} |"
        )
    lines += [
        f"| all | {trace.makespan_s:.1f} | {trace.executor_busy_s:.1f} | {trace.loader_busy_s:.1f} |",
        "",
        "| figure | value |",
        "|---|---|",
        f"| overlap of loading and execution | {trace.overlap_s:.1f} s |",
        f"| executor waits for loads | {trace.idle_s.get('executor', {}).get('load', 0):.1f} s |",
        f"| predicted from one read and one product | {simulated.makespan_s:.1f} s |",
        f"| bytes of weights in the store's blocks that a run loads | {workload.weights_bytes / 1e9:.2f} GB |",
        f"| bytes loaded, by the spans | {sum(s.bytes for s in loads) / 1e9:.2f} GB in {len(loads)} loads |",
        f"| bytes read from the disk, by the kernel | {giga(header.machine.get('read_bytes'))} |",
        f"| peak memory, accounted | {trace.peak_resident_bytes / 1e6:.0f} MB |",
        f"| peak memory, as the kernel saw it | {mega(header.peak_kernel_bytes)} |",
        f"| baseline, planned and measured | {header.baseline_bytes / 1e6:.0f} MB, {mega(result.baseline_bytes)} |",
        f"| slots mapped from several holes | {header.machine['slots_stitched']} |",
        f"| frames of the video | {len(frames)} of {frames.shape[2]}x{frames.shape[1]}, levels {frames.min()} to "
        f"{frames.max()}, standard deviation {frames.std():.0f} (noise: the weights are random) |",
        "",
    ]
    return "\n".join(lines)


def frames_of(video: Path) -> Any:
    """The frames of a video, (F, H, W, 3) in 8-bit RGB."""
    with av.open(str(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def draw_frames(frames: Any, path: Path) -> None:
    """The first, a middle and the last frame side by side."""
    chosen = frames[[0, len(frames) // 2, len(frames) - 1]]
    plt.imsave(path, np.concatenate(list(chosen), axis=1))


def giga(count: object) -> str:
    return f"{count / 1e9:.2f} GB" if isinstance(count, int) else "not told"


def mega(count: object) -> str:
    return f"{count / 1e6:.0f} MB" if isinstance(count, int) else "not told"


if __name__ == "__main__":
    main()
