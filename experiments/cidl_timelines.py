"""Concurrent inference (CI) and dynamic loading (DL) step by step: the first step and the later ones.

    .venv/bin/python experiments/cidl_timelines.py [--rounds 3] [--quick]

Simulated on the phone's profile at full size, the denoiser alone; and run for real here: a small model of as many pairs
as the full one, whose limit the kernel holds and leaves room for as many retained pairs as the phone's. Two sizes of
the picture, one bound by executions as the phone is, one with loads and executions nearer to each other. Beside them
simulations with this machine's profile, the published figures, and the paper's formula for what a step saves. Writes
experiments/results/cidl_timelines.md and three pictures when everything has run; --quick runs a tiny model once and
writes to a temporary folder. About 10 minutes on 2 cores, --quick one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from plan_vs_baselines import middle, spread_of
from shared.cidl_cases import (
    CI,
    CI_DL,
    NEXT,
    NONE,
    PLANNED,
    Case,
    formula_lines,
    limit_retaining,
    plans_for,
    retention_lines,
    share,
)
from shared.small_runs import SmallJob, others_load, provenance, run_in_turns, small_jobs

from cidl_sim.core.costs import load_cost
from cidl_sim.core.files import write_text
from cidl_sim.devices.catalog import find_device
from cidl_sim.devices.published import Rows, read_published
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.pipelines.open_sora.predictions import denoiser_alone
from cidl_sim.pipelines.open_sora.settings import OPENSORA_SMALL, OPENSORA_TINY, OpenSoraSizes, VideoSettings
from cidl_sim.policies.catalog import make_plan
from cidl_sim.policies.on_device_sora import REFERENCE, retained_blocks
from cidl_sim.report.rounds import draw_rounds
from cidl_sim.simulator.engine import simulate

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments/results"
DRAWN = (NONE, CI, CI_DL, PLANNED)
WORDS = {
    NONE: "`sequential`",
    CI: "the app's prefetch, nothing retained",
    CI_DL: "`on_device_sora`",
    NEXT: "one block ahead, across steps too",
    PLANNED: "`cidl plan`",
}
PHONE_STEPS = 30
EDGES = (96, 48)
# As many pairs as the full model and, of these, as many retained as on the phone.
RETAINED = 11
SMALL = OPENSORA_SMALL.model_copy(
    update={"name": "opensora-small-28", "stdit": OPENSORA_SMALL.stdit.model_copy(update={"depth": 28})}
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    sizes, retained = (OPENSORA_TINY, 1) if arguments.quick else (SMALL, RETAINED)
    rows = read_published(ROOT / "traces/published/on_device_sora.toml")
    load_before = others_load()
    phones = [phone_case(resolution) for resolution in ("256x256", "192x192")]
    with tempfile.TemporaryDirectory(prefix="cidl-timelines-") as folder:
        here = executor_cases(sizes, retained, EDGES[-1:] if arguments.quick else EDGES, rounds, Path(folder))
    results = Path(tempfile.mkdtemp(prefix="cidl-quick-")) if arguments.quick else RESULTS
    command = "--quick" if arguments.quick else f"--rounds {rounds}"
    report = text(rows, phones, here, command, load_before)
    draw_rounds([(n, phones[0].simulated[n]) for n in DRAWN], results / "cidl_timelines_phone.png", phones[0].title)
    for case in here:
        last = [(n, case.measured[n][-1]) for n in DRAWN if case.measured[n]]
        draw_rounds(last, results / picture_of(case), case.title)
    write_text(results / "cidl_timelines.md", report)
    print(f"\n{report}\n{results}")


def phone_case(resolution: str) -> Case:
    workload, device = denoiser_alone(resolution, plain=PHONE_STEPS), find_device("iphone-15-pro")
    plans = plans_for(workload, device)
    simulated = {name: simulate(workload, device, plan) for name, plan in plans.items()}
    title = f"Simulated on iphone-15-pro: STDiT at {resolution}, 68 frames, fp32, {PHONE_STEPS} steps"
    return Case(title, workload, device, plans, simulated, {})


def executor_cases(sizes: OpenSoraSizes, retained: int, edges: Sequence[int], rounds: int, folder: Path) -> list[Case]:
    """A small model at some sizes of the picture, planned, run and simulated with this machine's profile."""
    settings = [VideoSettings(height=edge, width=edge, frames=17, steps=6) for edge in edges]
    jobs = small_jobs(sizes, settings, settings, lambda w, d: limit_retaining(retained, w, d), folder)
    return [executor_case(job, rounds, folder) for job in jobs]


def executor_case(job: SmallJob, rounds: int, folder: Path) -> Case:
    plans = plans_for(job.workload, job.device)
    measured = run_in_turns(job, plans, rounds, folder)
    simulated = {name: simulate(job.workload, job.device, plan) for name, plan in plans.items()}
    s, weights = job.settings, job.workload.weights_bytes / 1e6
    title = (
        f"Measured here: {job.store.index.name} at {s.height}x{s.width}, {s.frames} frames, fp32, {s.steps} steps; "
        f"{weights:.0f} MB of weights under {job.device.memory_limit_bytes / 1e6:.0f} MB in all"
    )
    return Case(title, job.workload, job.device, plans, simulated, measured)


def text(rows: Rows, phones: Sequence[Case], here: Sequence[Case], command: str, load_before: float) -> str:
    header = here[0].measured[NONE][-1].header
    lines = [
        "# Timelines of concurrent inference and dynamic loading",
        "",
        f"Command: `.venv/bin/python experiments/cidl_timelines.py {command}`. {provenance(header, load_before)} "
        "Random weights. Nothing was run on a phone or with Core ML.",
        "",
        "A step lasts from the end of the visit before it to the end of its last visit. "
        + "; ".join(f"{name}: {words}" for name, words in WORDS.items())
        + ". Published: On-device Sora (arXiv 2502.04363v2 and its slides), resolution not printed.",
    ]
    for case in (*phones, *here):
        lines += ["", f"## {case.title}", "", *case_lines(case, rows)]
        lines += [] if case is phones[1] else ["", f"![First, middle and last step]({picture_of(case)})"]
    lines += ["", "## Trends", "", *trend_lines(rows, phones, here), "", *why_lines(rows, phones)]
    lines += ["", *formula_lines([*phones, *here])]
    return "\n".join([*lines, "", *retention_lines(rows, phones[0])])


def picture_of(case: Case) -> str:
    """The name of a case's picture: the phone's, or by the size of the video."""
    return f"cidl_timelines_{case.workload.settings['height'] if case.measured else 'phone'}.png"


def case_lines(case: Case, rows: Rows) -> list[str]:
    load_s, exec_s = case.costs()
    b, d = len(case.pairs), retained_blocks(case.device, case.pairs)
    published = {
        NONE: ("ci.first_step_without", "ci.step_without"),
        CI: ("ci.first_step_with", "ci.step_with"),
    }
    lines = [
        f"A pair loads in {load_s:.4f} s and runs in {exec_s:.4f} s by the profile (load / execution "
        f"{load_s / exec_s:.2f}); CI-DL retains {d} of {b} pairs, the plan is `{case.plans[PLANNED].policy}`.",
        "",
    ]
    if not case.measured:
        lines += [
            "| plan | first step s | later steps s | later steps less than without | all steps s | published: first, "
            "later s |",
            "|---|---|---|---|---|---|",
        ]
        for name, trace in case.simulated.items():
            first, later = case.steps_s(name, measured=False)[0]
            print_s = " and ".join(f"{rows[i].seconds:g}" for i in published.get(name, ())) or "-"
            lines.append(
                f"| {name} | {first:.2f} | {later:.2f} | {share(case, 1, name, measured=False):.1%} | "
                f"{trace.makespan_s:.1f} | {print_s} |"
            )
        return lines
    lines += [
        "| plan | first step s, median | range | simulated | later steps s, median | range | simulated | later steps "
        "less than without | simulated |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in case.plans:
        runs, (first, later) = case.steps_s(name, measured=True), case.steps_s(name, measured=False)[0]
        if runs:
            firsts, laters = [run[0] for run in runs], [run[1] for run in runs]
            lines.append(
                f"| {name} | {middle(firsts)} | {spread_of(firsts)} | {first:.2f} | {middle(laters)} | "
                f"{spread_of(laters)} | {later:.2f} | {share(case, 1, name, measured=True):.1%} | "
                f"{share(case, 1, name, measured=False):.1%} |"
            )
    return lines


def trend_lines(rows: Rows, phones: Sequence[Case], here: Sequence[Case]) -> list[str]:
    """What the slides say of CI and DL, and what the four cases say of the same."""
    seconds = {row_id: row.seconds for row_id, row in rows.items() if row.is_time}
    step, first = seconds["ci.step_without"], seconds["ci.first_step_without"]
    dl_s = seconds["dl.gain"] / PHONE_STEPS

    def line(what: str, published: float, values: Sequence[float], form: str) -> str:
        return f"| {what} | {published:{form}} | " + " | ".join(f"{value:{form}}" for value in values) + " |"

    def all_cases(step_number: int, name: str, base: str = NONE) -> list[float]:
        return [share(c, step_number, name, measured=bool(c.measured), base=base) for c in (*phones, *here)]

    def first_over_later(case: Case) -> float:
        runs = case.steps_s(NONE, measured=bool(case.measured))
        return statistics.median(run[0] / run[1] for run in runs)

    text_s = [text_encoder_share(find_phone_pipeline())] * len(phones) + [text_encoder_share(case) for case in here]
    heads = [f"phone, {case.title.split('STDiT at ')[1][:7]}" for case in phones]
    heads += [f"here, {case.workload.settings['height']}x{case.workload.settings['width']}" for case in here]
    return [
        f"| trend | published | {' | '.join(heads)} |",
        f"|---|---|{'---|' * len(heads)}",
        line("CI shortens a later step by", 1 - seconds["ci.step_with"] / step, all_cases(1, CI), ".1%"),
        line("CI shortens the first step by", 1 - seconds["ci.first_step_with"] / first, all_cases(0, CI), ".1%"),
        line(
            "first step / later step, no technique",
            first / step,
            [first_over_later(c) for c in (*phones, *here)],
            ".2f",
        ),
        line("DL on top shortens a later step by", dl_s / seconds["ci.step_with"], all_cases(1, CI_DL, CI), ".1%"),
        line("CI shortens T5 by", 1 - seconds["t5.ci"] / seconds["t5.sequential"], text_s, ".1%"),
    ]


def why_lines(rows: Rows, phones: Sequence[Case]) -> list[str]:
    """Where the trends differ from the published ones, and what was found about it."""
    phone = phones[0]
    (load_s, exec_s), pairs = phone.costs(), len(phone.pairs)
    step, with_ci = rows["ci.step_without"].seconds, rows["ci.step_with"].seconds
    first, overlapped = (phone.steps_s(name, measured=False)[0][0] for name in (NONE, NEXT))
    later = [case.steps_s(NONE, measured=False)[0][1] for case in phones]
    gains = [share(case, 1, CI, measured=False) for case in phones]
    printed = [
        rows[f"lpl15.{size}.stdit"].seconds / 16 - rows[f"ci_dl.{size}.stdit"].seconds / 30 for size in (256, 192)
    ]
    cold_s = load_cost(phone.pairs[0], phone.device, cold=True).seconds
    first_s, first_ci_s = rows["ci.first_step_without"].seconds, rows["ci.first_step_with"].seconds
    return [
        f"- **A later step** gains {gains[0]:.0%} and {gains[1]:.0%} on the phone's profile, {1 - with_ci / step:.0%} "
        f"are published. CI saves no more than the loads, {pairs * load_s:.1f} s a step by the profile, and {step:g} "
        f"to {with_ci:g} s needs a load of {(step - with_ci) / pairs:.2f} s or more. The profile's load follows from "
        f"the times that are printed with their resolution; between those lie {printed[0]:.1f} s a step at 256x256 and "
        f"{printed[1]:.1f} s at 192x192, slow first steps included ([what "
        f"disagrees](published_measurements.md#published-figures-that-disagree)). And {step:g} s lie between the "
        f"simulated {later[0]:.1f} and {later[1]:.1f} s, so they belong to neither resolution.",
        f"- **The first step** is long because first loads are: {cold_s:.2f} s a pair against {load_s:.2f} s later. "
        "The app prefetches nothing in it, so in the simulation CI does not shorten it; the published difference of "
        f"{first_s - first_ci_s:g} s no rule of the app explains. Had first loads overlapped, {overlapped:.0f} s would "
        f"be left of {first:.0f} (`next_block`); on the phone they did not. On this machine a first load costs what "
        "any load costs, so its first step is not the phone's; with CI-DL it is longer than without, because "
        "weights that stay take memory that has to be touched for the first time, which the simulation knows. "
        "CI and no technique do the same in it: what they differ by here is the spread of the runs.",
        f"- **DL** saves next to nothing on the phone's profile: executions ({exec_s:.2f} s) hide loads ({load_s:.2f} "
        "s), so that with CI only the first pair's load is waited for. What would make it more is below. Where a load "
        "takes longer than an execution, as here at 48x48, DL saves more. The app's rule sets the baseline aside "
        "twice, which weighs more here than on the phone: under the same limit the plan retains more pairs.",
        "- **T5** on the phone is fitted to both figures, so that its agreement is no evidence.",
    ]


def find_phone_pipeline() -> Case:
    """T5 on the phone needs the whole pipeline, of which the other phone cases have only the denoiser."""
    workload, device = find_workload("opensora-v1.2-256x256-68f"), find_device("iphone-15-pro")
    plans = {name: make_plan(policy, workload, device) for name, policy in ((NONE, "sequential"), (CI, REFERENCE))}
    simulated = {name: simulate(workload, device, plan) for name, plan in plans.items()}
    return Case("", workload, device, plans, simulated, {})


def text_encoder_share(case: Case) -> float:
    """By how much of its time the text encoder is shorter with CI."""
    without, with_ci = (
        statistics.median(
            trace.groups["text_encoder"]["elapsed_s"] for trace in case.measured.get(name) or [case.simulated[name]]
        )
        for name in (NONE, CI)
    )
    return 1 - with_ci / without


if __name__ == "__main__":
    main()
