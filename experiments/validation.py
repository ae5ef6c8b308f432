"""Simulated against measured for policies that the calibration never saw: the small model, both partitions.

    .venv/bin/python experiments/validation.py [--repeats 5]
    .venv/bin/python experiments/validation.py --again traces/validation-2026-11-27 validation_2026-11-27

Builds two stores of opensora-small in a temporary folder, does what `cidl validate` does with them, and writes
experiments/results/validation.md, .png and .json and traces/validation/ (compare again: `cidl validate --traces
traces/validation`). With --again runs that were recorded before are compared by the model of today.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.reports import ValidationReport
from cidl_sim.demo import PROMPT, SETTINGS
from cidl_sim.pipelines.model_store import build_random_store
from cidl_sim.pipelines.open_sora.settings import OPENSORA_SMALL
from cidl_sim.report.validation_plot import draw_validation
from cidl_sim.validation.campaign import validate_machine
from cidl_sim.validation.compare import MeasuredCase, report
from cidl_sim.validation.runs import read_runs
from cidl_sim.validation.scenarios import default_targets

ROOT = Path(__file__).parent.parent
TRACES, RESULTS = ROOT / "traces/validation", ROOT / "experiments/results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--again", nargs=2, type=Path, metavar=("TRACES", "NAME"))
    arguments = parser.parse_args()
    if arguments.again:
        compare(*arguments.again)
        return
    measure(arguments.repeats)
    compare(TRACES, Path("validation"))
    (TRACES / "README.md").write_text(
        "# traces/validation\n\nThe recorded runs behind `experiments/results/validation.md`, the plans and workloads "
        "they ran, and the profile that was calibrated before them; made by `experiments/validation.py`. Compare "
        f"again, anywhere: `cidl validate --traces traces/validation`.\n\n{machine(read_runs(TRACES))}\n\n"
        "Origin: torch-cpu, random weights. Nothing here was recorded with Core ML.\n"
    )


def measure(repeats: int) -> None:
    """Record the runs, in the place of those that there are."""
    with tempfile.TemporaryDirectory(prefix="cidl-validation-") as folder:
        out = Path(folder)
        stores = [
            build_random_store(out / partition, OPENSORA_SMALL, "fp32", seed=0, partition=partition)  # type: ignore[arg-type]
            for partition in ("reference", "fine")
        ]
        targets = default_targets(stores, SETTINGS)
        validate_machine(targets, out / "runs", prompt=PROMPT, repeats=repeats, on_step=show)
        for video in (out / "runs").glob("*/video.mp4"):
            video.unlink()
        shutil.rmtree(TRACES, ignore_errors=True)
        shutil.copytree(out / "runs", TRACES)


def compare(traces: Path, name: Path) -> None:
    """Compare recorded runs with the model of today and write `name` among the results: figures, picture, text."""
    cases = read_runs(traces)
    figures = report(cases)
    (RESULTS / f"{name}.json").write_text(figures.model_dump_json(indent=1) + "\n")
    draw_validation(figures, RESULTS / f"{name}.png")
    (RESULTS / f"{name}.md").write_text(text(figures, cases))
    print((RESULTS / f"{name}.md").read_text())


def show(step: str, done: int, total: int, detail: str) -> None:
    if done == total:
        print(f"{step}: {done}/{total} {detail}", flush=True)


def machine(cases: list[MeasuredCase]) -> str:
    header = cases[0].measured[0].header
    versions = ", ".join(f"{name} {version}" for name, version in header.versions.items())
    threads = sorted({case.measured[0].header.machine["compute_threads"] for case in cases})
    return (
        f"Recorded: {header.date}. Machine: {header.machine['processor']}, {header.machine['cores']} cores, "
        f"{' or '.join(map(str, threads))} of them computing, {header.machine['system']} "
        f"{header.machine['release']}; {versions}."
    )


def contention(device: DeviceProfile) -> str:
    """How loads and executions slow each other down, by the number of threads that compute."""
    found = []
    for threads in sorted(device.thread_numbers, key=lambda number: number or 0):
        one = device.with_threads(threads)
        found.append(
            f"with {threads} computing loads x{one.loader.slowdown_while_executing:.2f} while executing, executions "
            f"x{one.executor.slowdown_while_loading:.2f} while loading"
        )
    return ", ".join(found)


def text(figures: ValidationReport, cases: list[MeasuredCase]) -> str:
    repeats = len(cases[0].measured)

    def percent(value: float | None, spec: str = ".1%") -> str:
        return "-" if value is None else format(value, spec)

    replay, prediction = figures.replay_error, figures.prediction_error
    device = cases[0].device
    lines = [
        "# Validation: simulated against measured",
        "",
        f"Command: `.venv/bin/python experiments/validation.py --repeats {repeats}`, compared on "
        f"{datetime.now(UTC).date()}. {machine(cases)}",
        "",
        f"{len(cases)} policies that the calibration never saw, {repeats} interleaved runs each, under limits held by "
        f"{cases[0].measured[0].header.enforced_by}; makespans span a factor of {figures.makespan_span:.2f}. "
        f"A round of calibration before, then one between the runs of each further repeat; {contention(device)}; noise "
        "of single loads and executions "
        f"{device.noise.load:.1%} and {device.noise.execute:.1%}, shared by a run {device.noise.load_drift:.1%} and "
        f"{device.noise.execute_drift:.1%}.",
        "",
        "| figure | value | wanted |",
        "|---|---|---|",
        f"| structure (replay with own means per kind): mean | {replay.mean:.2%} | 1 % |",
        f"| structure: largest | {replay.max:.2%} | 2 % |",
        f"| prediction: mean | {prediction.mean:.1%} | 3 %, or the spread |",
        f"| prediction: largest | {prediction.max:.1%} | |",
        f"| run-to-run spread, (p95 - p5) / median, mean | {percent(figures.run_to_run_spread)} | |",
        f"| Kendall's tau, pairs further apart than the spread | {percent(figures.kendall_tau, '.2f')} | 0.9 |",
        f"| slots accounted against touched, largest error | {percent(figures.accounting_error, '.2%')} | 1 % |",
        f"| slots predicted against touched, largest error | {percent(figures.touched_error)} | |",
        f"| kernel's peak memory, largest error | {percent(figures.peak_memory_error)} | 1 % |",
        f"| runs within the simulated p5 to p95 | {percent(figures.coverage, '.0%')} | 90 % |",
        "",
        "| policy | workload | bound by | predicted s | measured s | spread | prediction | structure | "
        "execution costs | load costs | within kinds | model |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in figures.policies:
        shares = " | ".join(f"{share:+.1%}" for share in row.shares.values())
        lines.append(
            f"| {row.plan} | {row.workload} | {row.bound_by} | {row.simulated_makespan_s:.2f} | "
            f"{row.measured_makespan_s:.2f} | {percent(row.spread)} | {row.difference:+.1%} | "
            f"{row.replay_error:+.2%} | {shares} |"
        )
    lines += [
        "",
        "The last four columns are the prediction's error by cause: the run's own mean execution costs, then its own "
        "mean load costs, then each visit's own cost are put in the profile's place one after another; what is left "
        "is the model's.",
        "",
        "| policy | group: prediction, structure | starts off by, mean and largest | accounted MB | kernel's peak MB | "
        "needed MB | range | predicted | touched MB | accounted | predicted |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in figures.policies:
        groups = "; ".join(
            f"{group} {errors.prediction:+.1%}, {errors.replay:+.1%}" for group, errors in row.group_errors.items()
        )
        spans = row.span_errors
        lines.append(
            f"| {row.plan} | {groups} | {spans.start_mean:.2%}, {spans.start_max:.1%} | "
            f"{row.peak_resident_bytes / 1e6:.0f} | {megabytes(row.peak_kernel_bytes)} | "
            f"{megabytes(row.needed_bytes)} | {percent(row.needed_spread)} | "
            f"{percent(row.kernel_error, '+.1%')} | {megabytes(row.touched_bytes)} | "
            f"{percent(row.accounting_error, '+.2%')} | {percent(row.touched_error, '+.1%')} |"
        )
    lines += [
        "",
        "Needed is the kernel's peak without page cache that it could drop at any time (files that nothing maps); "
        "range: over the runs. Touched: pages of the arena.",
    ]
    lines += ["", *[f"Flag: {flag}." for flag in figures.mismatches], ""]
    return "\n".join(lines)


def megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.0f}"


if __name__ == "__main__":
    main()
