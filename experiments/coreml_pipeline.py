"""The small text-to-video pipeline from Core ML packages, in the interpreter, against PyTorch; both under a plan.

    PYTHONPATH=. .venv/bin/python experiments/coreml_pipeline.py

A store of the small model with random weights is built and exported in fp32 and fp16; each run is planned for what it
loads, and its process is held to the plan's limit by the kernel. Needs 2.5 GB of disk for a while; about ten minutes.
Writes experiments/results/coreml_pipeline.md. Core ML itself runs nowhere.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import av
import numpy as np
from bench_executor import processor

from cidl_sim.core.feasibility import resident_need
from cidl_sim.core.trace import read_trace
from cidl_sim.core.workload import read_workload
from cidl_sim.quality.scores import frame_ssim

RESULTS = Path(__file__).parent / "results" / "coreml_pipeline.md"
STATIC = "opensora-small-48x48-lpl15-tdtm8"
DYNAMIC = "opensora-small-48x48-20s-lpldynamic-tdtm8"
PROMPT = "a red ball rolls over green grass"
# More than the process takes by itself, libraries of the packages' reader included.
BASELINE_BYTES = 420_000_000
WEIGHTS_SHARE = 0.35


@dataclass(frozen=True)
class Row:
    """One run: the workload, who runs it, the precision of its blocks."""

    workload: str
    backend: str
    dtype: str


@dataclass(frozen=True)
class Ran:
    """What came of it; `needed_bytes` is the peak that the kernel saw, without page cache that it could drop."""

    row: Row
    weights_bytes: int
    limit_bytes: int
    accounted_bytes: int
    needed_bytes: int
    baseline_bytes: int
    enforced_by: str
    makespan_s: float
    load_s: float
    evaluations: int
    frames: np.ndarray[Any, Any]


ROWS = (
    Row(STATIC, "torch", "fp32"),
    Row(STATIC, "mil", "fp32"),
    Row(STATIC, "mil", "fp16"),
    Row(DYNAMIC, "torch", "fp32"),
    Row(DYNAMIC, "mil", "fp32"),
)


def cidl(*arguments: str | Path) -> Any:
    command = [sys.executable, "-m", "cidl_sim.cli", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def ran(row: Row, work: Path) -> Ran:
    workload, plan, trace, png = work / "workload.json", work / "plan.json", work / "trace.json", work / "png"
    if row.backend == "torch":
        store = work / "store"
        cidl("workloads", row.workload, "-o", workload)
    else:
        store = work / f"packages-{row.dtype}"
        cidl("coreml", "workload", row.workload, "--packages", store, "-o", workload)
    blocks = read_workload(workload)
    limit = BASELINE_BYTES + resident_need(blocks) - int((1 - WEIGHTS_SHARE) * blocks.weights_bytes)
    settings = ("--set", f"memory_limit_bytes={limit}", "--set", f"baseline_bytes={BASELINE_BYTES}")
    # The phone's figures stand for any device: what the run computes does not depend on them.
    cidl("plan", workload, "iphone-15-pro", *settings, "--policy", "spread", "-o", plan)
    run = ("run", "--plan", plan, "--store", store, "--prompt", PROMPT, "--backend", row.backend)
    result = cidl(*run, "-o", work / "video.mp4", "--trace", trace, "--png", png)
    recorded = read_trace(trace)
    header = recorded.header
    return Ran(
        row=row,
        weights_bytes=blocks.weights_bytes,
        limit_bytes=limit,
        accounted_bytes=result["peak_resident_bytes"],
        needed_bytes=int(header.machine["needed_bytes"]),
        baseline_bytes=int(header.machine["measured_baseline_bytes"]),
        enforced_by=header.enforced_by,
        makespan_s=result["makespan_s"],
        load_s=sum(span.end_s - span.start_s for span in recorded.spans if span.operation == "load"),
        evaluations=result["evaluations"],
        frames=np.stack([picture(path) for path in sorted(png.glob("*.png"))]),
    )


def picture(path: Path) -> np.ndarray[Any, Any]:
    with av.open(str(path)) as file:
        return next(file.decode(video=0)).to_ndarray(format="rgb24")


def video_line(run: Ran, reference: Ran) -> str:
    similar = frame_ssim(run.frames, reference.frames)
    apart = np.abs(run.frames.astype(int) - reference.frames.astype(int))
    return (
        f"| {run.row.workload} | {run.row.backend} | {run.row.dtype} | {run.evaluations} "
        f"| {min(similar):.6f} | {np.mean(similar):.6f} | {apart.max()} | {np.mean(apart > 0):.3%} |"
    )


def memory_line(run: Ran) -> str:
    beyond = run.needed_bytes - run.baseline_bytes - (run.accounted_bytes - BASELINE_BYTES)
    columns = (run.weights_bytes, run.limit_bytes, run.accounted_bytes, run.baseline_bytes, run.needed_bytes, beyond)
    megabytes = " | ".join(f"{size / 1e6:.0f}" for size in columns)
    return (
        f"| {run.row.workload} | {run.row.backend} | {run.row.dtype} | {megabytes} "
        f"| {run.makespan_s:.1f} | {run.load_s:.1f} |"
    )


def report(runs: list[Ran]) -> str:
    references = {run.row.workload: run for run in runs if run.row.backend == "torch"}
    compared = [run for run in runs if run.row.backend != "torch"]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("coremltools", "torch"))
    enforced = ", ".join(sorted({run.enforced_by for run in runs}))
    return "\n".join(
        [
            "# The small pipeline from Core ML packages",
            "",
            "Command: `PYTHONPATH=. .venv/bin/python experiments/coreml_pipeline.py`. "
            f"Date: {datetime.now(UTC).date()}. "
            f"Machine: {processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
            f"load {os.getloadavg()[0]:.1f} at the end; {versions}. **Core ML ran nowhere.**",
            "",
            "`mil`: the packages of `cidl coreml export`, run by the interpreter with every result rounded to the "
            "dtype that the package declares; `torch`: the executor, with the fp32 store that they were made from. "
            f"Random weights, one seed, one prompt, policy `spread`; each run in a process that was held "
            f"to the limit of its plan ({enforced}).",
            "",
            "Videos, compared with that of `torch` for the same workload, frame by frame: SSIM with Gaussian windows "
            "of 11x11, the largest difference of a value (of 255), and the share of values that differ.",
            "",
            "| workload | back end | dtype | evaluations | least SSIM | mean SSIM | largest difference | differ |",
            "|---|---|---|---|---|---|---|---|",
            *(video_line(run, references[run.row.workload]) for run in compared),
            "",
            f"Memory in MB. The plans have room for {WEIGHTS_SHARE:.0%} of the weights beside the largest workspace, "
            f"and {BASELINE_BYTES / 1e6:.0f} for the process itself. At the start: what the process really held before "
            "its first load. Needed: the peak that the kernel saw, less page cache that it could drop. Beyond: what "
            "was needed above the process at the start and the accounted weights and workspace. The times are those of "
            "an interpreter on a shared machine: they say nothing about a device.",
            "",
            "| workload | back end | dtype | weights | limit | accounted | at the start | needed | beyond "
            "| makespan (s) | loads (s) |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *map(memory_line, runs),
            "",
        ]
    )


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="cidl-pipeline-") as folder:
        work = Path(folder)
        cidl("model", "build", "--store", work / "store", "--size", "small")
        for dtype in ("fp32", "fp16"):
            export = ("coreml", "export", "--store", work / "store", "--out", work / f"packages-{dtype}")
            cidl(*export, "--dtype", dtype, "--workload", STATIC)
        text = report([ran(row, work) for row in ROWS])
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
