"""How long loads and executions have to be beside each other before they cost each other what they cost a whole run.

    .venv/bin/python experiments/contention_builds_up.py [--rounds 4]

One run of the small model in plans that differ in nothing but the gates of their loads: all alone (`sequential`), all
beside an execution (`next_block`), and in rows, so many loads alone and as many beside an execution in turn, as a
calibration makes them. The plans take turns in random order. Writes experiments/results/contention_builds_up.md and
.png; the store (0.7 GB) goes to a temporary folder. Ten minutes on 2 quiet cores.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from bench_executor import processor

from cidl_sim.calibration.microbenchmark import WEIGHTS_FRACTION, alternating
from cidl_sim.core.device import DeviceProfile, Executor, Loader
from cidl_sim.core.files import replacing, write_text
from cidl_sim.core.plan import Plan
from cidl_sim.core.trace import Trace, read_trace
from cidl_sim.core.workload import Workload
from cidl_sim.executor.job import Job, run_job
from cidl_sim.pipelines.catalog import DEMO, parse_name, pipeline_of, workload_of
from cidl_sim.pipelines.model_store import build_random_store
from cidl_sim.policies.catalog import make_plan

RESULTS = Path(__file__).parent / "results"
SIZES, SETTINGS = parse_name(DEMO)
ROWS = (16, 48, 120)
KIND = "stdit.pair"
BIN_S = 0.25
Runs = dict[str, list[Trace]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    rounds = parser.parse_args().rounds
    workload = workload_of(SIZES, pipeline_of(SIZES).calibrating(SETTINGS, longer=True))
    plans = plans_of(workload)
    runs: Runs = {name: [] for name in plans}
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="cidl-contention-") as temporary:
        folder = Path(temporary)
        build_random_store(folder / "store", SIZES, "fp32", seed=0)
        for number in range(rounds):
            for name, plan in random.Random(number).sample(list(plans.items()), len(plans)):
                runs[name].append(run(plan, workload, folder))
                print(f"round {number + 1}, {name}: {runs[name][-1].makespan_s:.2f} s", flush=True)
    text = report(workload, runs, load_before)
    print(text)
    write_text(RESULTS / "contention_builds_up.md", text)
    draw(workload, runs, RESULTS / "contention_builds_up.png")


def plans_of(workload: Workload) -> dict[str, Plan]:
    """By name, all for a device with room for a share of the weights."""
    workspace = max(visit.block.workspace_bytes for visit in workload.visits)
    device = DeviceProfile(
        name="room for a share",
        memory_limit_bytes=int(WEIGHTS_FRACTION * workload.weights_bytes) + workspace,
        loader=Loader(bandwidth_bytes_per_s=1e9),
        executor=Executor(flops_per_s=1e11),
    )
    plans = {name: make_plan(name, workload, device) for name in ("sequential", "next_block")}
    return plans | {f"rows of {row}": alternating(workload, device, row) for row in ROWS}


def run(plan: Plan, workload: Workload, folder: Path) -> Trace:
    file = folder / "trace.json"
    job = Job(
        plan=plan.model_copy(update={"compute_threads": os.cpu_count() or 1}),
        workload=workload,
        store=str(folder / "store"),
        prompts=("a red circle",),
        trace=str(file),
    )
    run_job(job, kernel_limit_bytes=None)
    return read_trace(file)


def beside(name: str, visit: int) -> bool:
    """Whether the plan of this name puts a visit's load beside the execution before."""
    if name.startswith("rows of "):
        return visit // int(name.removeprefix("rows of ")) % 2 == 1
    return name == "next_block"


def times_of(workload: Workload, name: str, trace: Trace) -> dict[tuple[str, bool], list[tuple[float, float]]]:
    """By operation and whether beside: seconds since the row began, and seconds it took, of every pair's visit."""
    pairs = {visit.number for visit in workload.visits if visit.block.kind.startswith(KIND)}
    starts_s = {span.visit: span.start_s for span in trace.of("execute")}
    row = int(name.removeprefix("rows of ")) if name.startswith("rows of ") else len(starts_s)
    found = defaultdict(list)
    for operation in ("load", "execute"):
        for span in trace.of(operation):
            if span.visit in pairs:
                since_s = span.start_s - starts_s[span.visit // row * row]
                found[operation, beside(name, span.visit)].append((since_s, span.end_s - span.start_s))
    return found


def report(workload: Workload, runs: Runs, load_before: float) -> str:
    rounds = len(runs["sequential"])
    lines = [
        "# How contention builds up",
        "",
        f"Command: `.venv/bin/python experiments/contention_builds_up.py --rounds {rounds}`. Date: "
        f"{datetime.now(UTC).date()}. Machine: {processor()}, {os.cpu_count()} cores that all compute, load "
        f"{load_before:.1f} at the start; torch {torch.__version__}.",
        "",
        f"`{workload.name}`, {len(workload.visits)} visits. Of a pair of the denoiser, ms: the mean over all rounds,",
        "and in brackets the least and the most of one; then the time beside over the time alone. `next_block` is",
        "compared with `sequential` of the same round.",
        "",
        "| plan | load alone | beside | ratio | execution alone | beside | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("next_block", *(f"rows of {row}" for row in ROWS)):
        cells = []
        for operation in ("load", "execute"):
            alone = [mean_ms(workload, "sequential" if name == "next_block" else name, t, operation, False)
                     for t in runs["sequential" if name == "next_block" else name]]  # fmt: skip
            under = [mean_ms(workload, name, trace, operation, True) for trace in runs[name]]
            ratios = [b / a for a, b in zip(alone, under, strict=True)]
            cells += [between(alone, ".1f"), between(under, ".1f"), between(ratios, ".2f")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "Short rows show less contention than a run that overlaps all along; what an overlap costs is paid for later.",
        "",
        "![time of a pair since its row began](contention_builds_up.png)",
    ]
    return "\n".join(lines) + "\n"


def mean_ms(workload: Workload, name: str, trace: Trace, operation: str, under: bool) -> float:
    return 1e3 * statistics.mean(took for _, took in times_of(workload, name, trace)[operation, under])


def between(values: list[float], form: str) -> str:
    return f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def draw(workload: Workload, runs: Runs, file: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharex=True)
    for axis, (operation, title) in zip(axes, (("execute", "executions"), ("load", "loads")), strict=True):
        for under, label, color in ((False, "alone", "tab:blue"), (True, "beside each other", "tab:red")):
            for number, trace in enumerate(runs[f"rows of {ROWS[-1]}"]):
                bins = defaultdict(list)
                for since_s, took_s in times_of(workload, f"rows of {ROWS[-1]}", trace)[operation, under]:
                    bins[int(since_s / BIN_S)].append(1e3 * took_s)
                x = [(k + 0.5) * BIN_S for k in sorted(bins)]
                y = [statistics.mean(bins[k]) for k in sorted(bins)]
                axis.plot(x, y, color=color, alpha=0.6, label=label if number == 0 else None)
        axis.set(title=f"{title} of a pair, rows of {ROWS[-1]}", xlabel="s since the row began", ylim=(0, None))
    axes[0].set_ylabel("ms")
    axes[0].legend()
    with replacing(file) as beside_it:
        figure.savefig(beside_it, dpi=120, bbox_inches="tight", format="png")
    plt.close(figure)


if __name__ == "__main__":
    main()
