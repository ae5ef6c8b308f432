"""The main job with repeats: simulated against measured makespan of every policy, runs interleaved.

    .venv/bin/python experiments/main_job.py [--repeats 5]

Writes experiments/results/main_job.md, docs/images/main_job.png and traces/main_job/. Takes about a minute a
repeat on 2 cores.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from cidl_sim.core.trace import Trace
from cidl_sim.demo import Demo, run_demo

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory(prefix="cidl-main-job-") as folder:
        out = Path(folder)
        made = run_demo(out, on_step=show, repeats=repeats)
        report = text(made, repeats)
        print("\n" + report)
        (ROOT / "experiments/results/main_job.md").write_text(report)
        images = ROOT / "docs/images"
        images.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / "timeline.png", images / "main_job.png")
        traces = ROOT / "traces/main_job"
        traces.mkdir(parents=True, exist_ok=True)
        for case in made.cases:
            case.measured[-1].write(traces / f"{case.name}.json.gz")
        shutil.copyfile(out / "device.toml", traces / "device.toml")
        (traces / "README.md").write_text(provenance(made))


def show(step: str, done: int, total: int, detail: str) -> None:
    if done in (0, total):
        print(f"{step}: {done}/{total} {detail}", flush=True)


def text(made: Demo, repeats: int) -> str:
    summary = made.summary
    lines = [
        "# The main job: simulated against measured",
        "",
        f"Command: `.venv/bin/python experiments/main_job.py --repeats {repeats}`. {machine(made)}",
        "",
        f"{summary.weights_bytes / 1e6:.0f} MB of weights in blocks under a limit of "
        f"{summary.memory_limit_bytes / 1e6:.0f} MB for the whole process, enforced by {summary.enforced_by}. "
        f"Workload `{summary.workload}`. Control, everything resident: {summary.control.outcome}.",
        "",
        "| policy | foreseen s | measured s, median | range | difference | replay | accounted MB | kernel MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in summary.policies.values():
        low, high = min(row.runs_s), max(row.runs_s)
        kernel = row.peak_kernel_bytes
        lines.append(
            f"| {row.plan} | {row.simulated_makespan_s:.2f} | {row.measured_makespan_s:.2f} | "
            f"{low:.2f} to {high:.2f} | {row.difference:+.1%} | {row.replay_error:+.1%} | "
            f"{row.peak_resident_bytes / 1e6:.0f} | {kernel / 1e6:.0f} |"
            if kernel
            else f"| {row.plan} | not enforced |"
        )
    prediction, replay = summary.prediction_error, summary.replay_error
    lines += [
        "",
        f"Predictions of the {len(summary.runs)} runs, each made before the run with all that was known then: mean "
        f"error {prediction.mean:.1%}, largest {prediction.max:.1%}. Replay with each run's own rates (the largest "
        f"over its runs): mean {replay.mean:.1%}, largest {replay.max:.1%}. Kendall's tau of the two orders: "
        f"{summary.kendall_tau:.2f}.",
        "",
        "| run | predicted s | in nine of ten | measured s | off | probe: loads | products |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {run.repeat}: {run.policy} | {run.predicted_s:.2f} | {run.low_s:.2f} to {run.high_s:.2f} | "
            f"{run.measured_s:.2f} | {run.error:+.1%} | {run.load_rate:.2f} | {run.execute_rate:.2f} |"
            for run in summary.runs
        ),
        "",
        "Every policy's video is the same, byte for byte." if same_videos(made) else "The videos differ.",
        "",
    ]
    return "\n".join(lines)


def machine(made: Demo) -> str:
    header = last_trace(made).header
    versions = ", ".join(f"{name} {version}" for name, version in header.versions.items())
    threads = sorted({case.measured[-1].header.machine["compute_threads"] for case in made.cases})
    return (
        f"Date: {header.date}. Machine: {header.machine['processor']}, {header.machine['cores']} cores "
        f"({' or '.join(map(str, threads))} compute, as each plan says), {header.machine['system']} "
        f"{header.machine['release']}; {versions}."
    )


def last_trace(made: Demo) -> Trace:
    return made.cases[0].measured[-1]


def same_videos(made: Demo) -> bool:
    return len(set(made.video_hashes.values())) == 1


def provenance(made: Demo) -> str:
    return (
        "# traces/main_job\n\nOne recorded run of each policy (the last repeat) and the profile that was calibrated "
        f"before them, made by `experiments/main_job.py`.\n\n{machine(made)}\n\nOrigin: torch-cpu, random weights. "
        "Nothing here was recorded with Core ML.\n"
    )


if __name__ == "__main__":
    main()
