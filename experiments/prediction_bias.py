"""Calibrate, plan, predict, run: again and again, to see what predictions are off by, and whether to one side.

    .venv/bin/python experiments/prediction_bias.py [--rounds 5]

Each round measures this machine anew, as `cidl calibrate --repeats 1` does, then plans and runs five policies on the
small model under 640 MB that the kernel holds. Each run is predicted twice before it is made: by the calibration alone,
and with what the runs before it taught. The store (0.7 GB) goes to a temporary folder. Writes
experiments/results/prediction_bias.md and .png. The machine should be quiet.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from bench_executor import processor

from cidl_sim.calibration.this_machine import measure_this_machine
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.files import replacing, write_text
from cidl_sim.core.reports import ForeseenRun
from cidl_sim.core.trace import Trace
from cidl_sim.core.what_if import with_value
from cidl_sim.demo import PROMPT
from cidl_sim.pipelines.catalog import DEMO, parse_name, workload_of
from cidl_sim.pipelines.model_store import build_random_store
from cidl_sim.validation.foreseen import run_foreseen

RESULTS = Path(__file__).parent / "results"
SIZES, SETTINGS = parse_name(DEMO)
POLICIES = ("sequential", "next_block", "spread:3", "prefix:3", "on_device_sora")
LIMIT_BYTES = 640_000_000
SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Round:
    """One calibration and the runs after it; `alone`: by policy, the error of the calibration's own prediction."""

    device: DeviceProfile
    runs: list[ForeseenRun]
    alone: dict[str, float]
    left: dict[float, list[float]]
    structure: list[float]
    calibrated_in_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="cidl-bias-") as name:
        folder = Path(name)
        print("building the store", flush=True)
        store = build_random_store(folder / "store", SIZES, "fp32", seed=0)
        workload = workload_of(SIZES, SETTINGS)
        load_before, found = os.getloadavg()[0], []
        for number in range(1, rounds + 1):
            began = time.perf_counter()
            device = with_value(measure_this_machine([(store, SETTINGS)]), "memory_limit_bytes", LIMIT_BYTES)
            calibrated_in_s = time.perf_counter() - began
            made = run_foreseen(POLICIES, store, workload, device, folder / f"runs-{number}", prompt=PROMPT)
            alone, left, structure = {}, {share: list[float]() for share in SHARES}, []
            for case in made.cases:
                case.device = device.with_threads(case.plan.compute_threads)
                alone[case.name] = case.prediction_error
                structure += case.replay_errors
                for share in SHARES:
                    left[share] += left_errors(case.measured, share)
            found.append(Round(device, made.runs, alone, left, structure, calibrated_in_s))
            print(row(number, found[-1]), flush=True)
    text = report(found, load_before)
    print(text)
    write_text(RESULTS / "prediction_bias.md", text)
    draw(found, RESULTS / "prediction_bias.png")


def left_errors(traces: Iterable[Trace], share: float) -> list[float]:
    """By how much the whole run was misjudged when this share of its visits was done."""
    found = []
    for trace in traces:
        for event in trace.events:
            if event.kind == "time_left" and event.values["share"] == share:
                found.append((event.at_s + float(event.values["left_s"] or 0.0)) / trace.makespan_s - 1)
    return found


def row(number: int, one: Round) -> str:
    """A round's row of the first table."""
    loader, executor = one.device.loader, one.device.executor
    figures = one.device.provenance.figures
    slowed = figures["loader.slowdown_while_executing"]
    between = "" if slowed.low is None else f" ({slowed.low:.2f} to {slowed.high:.2f})"
    alone = " | ".join(f"{one.alone[policy]:+.1%}" for policy in POLICIES)
    return (
        f"| {number} | {alone} | {(loader.bandwidth_bytes_per_s or 0) / 1e9:.2f} | "
        f"{loader.slowdown_while_executing:.2f}{between} | {executor.slowdown_while_loading:.2f} |"
    )


def report(found: Sequence[Round], load_before: float) -> str:
    """Both tables and what they say."""
    lines = [
        "# Predictions, round after round",
        "",
        f"Command: `.venv/bin/python experiments/prediction_bias.py --rounds {len(found)}`. Date: "
        f"{datetime.now(UTC).date()}. Machine: {processor()}, {os.cpu_count()} cores, "
        f"{found[0].device.executor.threads} computes, load {load_before:.1f} at the start; torch {torch.__version__}.",
        "",
        f"Workload `{DEMO}`, {LIMIT_BYTES / 1e6:.0f} MB held by the kernel; calibration took "
        f"{statistics.fmean(one.calibrated_in_s for one in found):.0f} s a round.",
        "",
        "## By the calibration before the round alone",
        "",
        f"| round | {' | '.join(POLICIES)} | fitted GB/s | loads slowed while executing | executions while loading |",
        "|---|" + "---|" * (len(POLICIES) + 3),
        *(row(number, one) for number, one in enumerate(found, start=1)),
        "",
        summary([one.alone for one in found]),
        "",
        "## With what the runs before taught as well",
        "",
        "Predicted s, between which two in nine of ten runs, measured s, error, and how fast a probe before and after "
        "found loads and products.",
        "",
        "| round | policy | predicted | nine in ten | measured | off | probe: loads | products |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {number} | {run.policy} | {run.predicted_s:.2f} | {run.low_s:.2f} to {run.high_s:.2f} | "
            f"{run.measured_s:.2f} | {run.error:+.1%} | {run.load_rate:.2f} | {run.execute_rate:.2f} |"
            for number, one in enumerate(found, start=1)
            for run in one.runs
        ),
        "",
        summary([dict(zip(POLICIES, (run.error for run in one.runs), strict=True)) for one in found]),
        f"Inside their interval: {inside(found)}.",
        "",
        "## On the way",
        "",
        "| visits done | mean error of the whole run's time | largest |",
        "|---|---|---|",
    ]
    for share in SHARES:
        errors = [abs(error) for one in found for error in one.left[share]]
        lines.append(f"| {share:.0%} | {statistics.fmean(errors):.1%} | {max(errors):.1%} |")
    spreads = [spread([one.runs[i].measured_s for one in found]) for i in range(len(POLICIES))]
    structure = [abs(error) for one in found for error in one.structure]
    slowdowns = [one.device.loader.slowdown_while_executing for one in found]
    lines += [
        "",
        f"Identical runs differ from round to round by {statistics.fmean(spreads):.1%} ((p95 - p5) / median, mean of "
        f"the policies; {', '.join(f'{s:.0%}' for s in spreads)}). Structure error (replay with a run's own costs): "
        f"mean {statistics.fmean(structure):.2%}, largest {max(structure):.2%}. Fitted contention of loads differs by "
        f"{max(slowdowns) / min(slowdowns) - 1:.0%} between rounds.",
    ]
    return "\n".join(lines) + "\n"


def summary(rounds: Sequence[dict[str, float]]) -> str:
    """Mean signed error, mean and largest magnitude, and policies whose errors all have one sign."""
    errors = [errors[policy] for errors in rounds for policy in POLICIES]
    one_sided = [
        policy
        for policy in POLICIES
        if len({errors[policy] > 0 for errors in rounds}) == 1 and max(abs(errors[policy]) for errors in rounds) > 0.03
    ]
    return (
        f"Mean signed error {statistics.fmean(errors):+.1%}, mean error {statistics.fmean(map(abs, errors)):.1%}, "
        f"largest {max(map(abs, errors)):.1%}; errors of one sign in every round: {', '.join(one_sided) or 'none'}."
    )


def inside(found: Sequence[Round]) -> str:
    """How many runs lay between the ends that were said."""
    runs = [run for one in found for run in one.runs]
    return f"{sum(run.low_s <= run.measured_s <= run.high_s for run in runs)} of {len(runs)} runs"


def spread(values: Sequence[float]) -> float:
    """(p95 - p5) / median."""
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return float((high - low) / middle)


def draw(found: Sequence[Round], path: Path) -> None:
    """Predicted against measured in the order of the runs, with the intervals, and the errors of both predictions."""
    runs = [run for one in found for run in one.runs]
    alone = [one.alone[policy] for one in found for policy in POLICIES]
    places = np.arange(len(runs))
    figure, (above, below) = plt.subplots(2, 1, figsize=(13, 8), sharex=True, constrained_layout=True)
    low, high = ([abs(getattr(r, name) - r.predicted_s) for r in runs] for name in ("low_s", "high_s"))
    above.errorbar(
        places, [r.predicted_s for r in runs], [low, high], fmt="o", capsize=3, label="predicted, nine runs in ten"
    )
    above.plot(places, [r.measured_s for r in runs], "kx", label="measured")
    above.set_ylabel("makespan (s)")
    above.set_ylim(bottom=0)
    above.legend()
    below.bar(places - 0.2, [100 * e for e in alone], 0.4, label="by the calibration alone")
    below.bar(places + 0.2, [100 * r.error for r in runs], 0.4, label="with what the runs before taught")
    below.axhline(0, color="black", linewidth=0.8)
    below.set_ylabel("off by (%)")
    below.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    below.set_xticks(places, [r.policy for r in runs], rotation=60, ha="right", fontsize=8)
    for border in range(len(POLICIES), len(runs), len(POLICIES)):
        for axis in (above, below):
            axis.axvline(border - 0.5, color="gray", linestyle=":")
    figure.suptitle(f"{len(found)} rounds of calibrate, plan, predict, run; {processor()}, {datetime.now(UTC).date()}")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


if __name__ == "__main__":
    main()
