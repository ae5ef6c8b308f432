"""LPL, TDTM, CI-DL and all of them, at two resolutions: quality, seconds here, seconds on the phone's profile.

    .venv/bin/python experiments/quality_ablation.py [--prompts 100] [--rounds 3] [--networks FOLDER]

Quality is the trained small model's, whose 11 MB need no dynamic loading; seconds here are those of the small model of
709 MB with random weights, run for real with 30 steps under a limit that the kernel holds; seconds on the phone are
simulated for Open-Sora v1.2. LPL leaps where the dynamic rule stops on average. Writes in experiments/results
quality_ablation.md, quality_ablation.png (seconds and quality) and quality_ablation_frames.png (side by side).
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from plan_vs_baselines import middle, run, spread_of, threads
from quality_lpl import stopping_step
from shared.quality_runs import (
    FRAMES,
    RESULTS,
    SEEDS,
    Made,
    asked_for,
    frames_sheet,
    load_trained,
    options,
    score_table,
    scored,
    trajectories,
    video_settings,
)
from shared.small_runs import others_load, provenance

from cidl_sim.calibration.this_machine import measure_this_machine
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.files import replacing, write_text
from cidl_sim.core.trace import Trace
from cidl_sim.core.what_if import with_value
from cidl_sim.demo import demo_limit
from cidl_sim.devices.catalog import find_device
from cidl_sim.devices.published import read_published
from cidl_sim.executor.job import Job, run_job
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import find_workload, workload_of
from cidl_sim.pipelines.model_store import build_random_store, import_checkpoints
from cidl_sim.pipelines.open_sora.pretrained import pretrained_folders
from cidl_sim.pipelines.open_sora.settings import OPENSORA_SHAPES, OPENSORA_SMALL, VideoSettings
from cidl_sim.pipelines.open_sora.whole_model import Trajectory, WholeModel, no_pairs
from cidl_sim.policies.catalog import make_plan
from cidl_sim.policies.on_device_sora import REFERENCE
from cidl_sim.quality.frechet import ClipClassifier
from cidl_sim.quality.networks import Networks
from cidl_sim.quality.shapes import caption
from cidl_sim.quality.summary import Estimate
from cidl_sim.sampling.linear_proportional_leap import STOPPING_RULES
from cidl_sim.simulator.engine import simulate

STEPS, MERGED = 30, 10
# A side of the trained model's videos, and the resolution of the full one that stands beside it.
SIDES = {48: 192, 64: 256}
RULE = STOPPING_RULES[0]


@dataclass(frozen=True)
class Technique:
    """One row: what is switched on."""

    leap: bool = False
    merging: bool = False
    policy: str = "sequential"


TECHNIQUES = {
    "none": Technique(),
    "LPL": Technique(leap=True),
    "TDTM": Technique(merging=True),
    "CI-DL": Technique(policy=REFERENCE),
    "all": Technique(leap=True, merging=True, policy=REFERENCE),
}
# Rows with a picture of their own; CI-DL's is that of none.
PICTURED = ("none", "LPL", "TDTM", "all")
COLUMNS = {"evaluations": ".1f", "attributes": ".3f", "SSIM": ".3f", "PSNR": ".1f", "Fréchet distance": ".2f"}
PUBLISHED_S = {
    "none": {},
    "LPL": {192: "lpl15.192.total", 256: "lpl15.256.total"},
    "CI-DL": {192: "ci_dl.192.total", 256: "ci_dl.256.total"},
}
Quality = Mapping[str, Mapping[str, Estimate]]


@dataclass(frozen=True)
class Timing:
    """Seconds of one technique at one resolution: measured here in each round, and simulated on the phone."""

    measured_s: Sequence[float]
    phone_s: float


def main() -> None:
    args = options(__doc__, rounds=3)
    load_before = others_load()
    model, classifier = load_trained()
    quality: dict[int, Quality] = {}
    made: dict[int, dict[str, Made]] = {}
    for side in SIDES:
        made[side] = videos(model, args.prompts, side)
        quality[side] = measured_quality(made[side], classifier, args.networks)
    evaluations = {side: {name: round(quality[side][name]["evaluations"].mean) for name in PICTURED} for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="cidl-ablation-") as folder:
        equal = same_videos(Path(folder))
        traces = timed(evaluations, args.rounds, Path(folder))
    timings = {
        side: {
            name: Timing([t.makespan_s for t in traces[side][name]], phone_s(technique, evaluations[side], edge))
            for name, technique in TECHNIQUES.items()
        }
        for side, edge in SIDES.items()
    }
    header = traces[next(iter(SIDES))]["none"][-1].header
    command = f"experiments/quality_ablation.py --prompts {args.prompts} --rounds {args.rounds}"
    report = [
        "# Ablation: LPL, TDTM, CI-DL",
        "",
        f"Command: `.venv/bin/python {command}`. {provenance(header, load_before)}",
        "",
        f"Quality: the trained small model, {args.prompts} prompts x {len(SEEDS)} seeds, {FRAMES} frames; in brackets "
        "95 % intervals (bootstrap over prompts); SSIM, PSNR and Fréchet distance (features of a classifier of these "
        f"clips) against `none`. LPL: dynamic, rule `{RULE}`; TDTM: all pairs in the first {MERGED} of {STEPS} steps. "
        "Seconds here: the small model (709 MB) with random weights, medians and ranges of "
        f"{args.rounds} rounds in turns; LPL leaps after the mean number of evaluations. Phone: Open-Sora v1.2, 68 "
        "frames, fp32, simulated with the profile of the iPhone 15 Pro, never run there. Speed-ups are those of the "
        "whole pipeline.",
        "",
        equal,
    ]
    for side, edge in SIDES.items():
        report += ["", f"## {side}x{side} (phone: {edge}x{edge})", ""]
        report += [*score_table(quality[side], COLUMNS, "techniques"), "", *timing_table(timings[side], edge)]
    report += ["", *published_lines()]
    write_text(RESULTS / "quality_ablation.md", "\n".join(report) + "\n")
    draw(quality, timings)
    sheet(made)
    print("\n".join(report))


def videos(model: WholeModel, prompts: int, side: int) -> dict[str, Made]:
    """What each technique makes of the prompts; CI-DL changes nothing."""
    every_pair = range(OPENSORA_SHAPES.stdit.depth)
    found = {name: Made() for name in PICTURED}
    asked = asked_for(prompts, seen=True)
    for merging in (False, True):
        merged = (lambda step: every_pair if step < MERGED else ()) if merging else no_pairs
        plain, leaping = ("TDTM", "all") if merging else ("none", "LPL")
        for batch, trajectory in trajectories(model, asked, video_settings(side), merged):
            found[plain].add(batch, model.decode(trajectory.after(STEPS), FRAMES), [STEPS] * len(batch))
            latents, evaluations = leapt(trajectory, len(batch))
            found[leaping].add(batch, model.decode(latents, FRAMES), evaluations)
    return found


def leapt(run: Trajectory, count: int) -> tuple[torch.Tensor, list[int]]:
    """Every video's leap where the dynamic rule stops, and the evaluations until then."""
    steps = [stopping_step(run, i, RULE) for i in range(count)]
    return torch.cat([run.leap(s)[i : i + 1] for i, s in enumerate(steps)]), [s + 1 for s in steps]


def measured_quality(made: Mapping[str, Made], classifier: ClipClassifier, networks: Networks) -> Quality:
    """The scores of every row."""
    found = scored(made, "none", classifier, networks)
    return {name: found["none" if name == "CI-DL" else name] for name in TECHNIQUES}


def same_videos(folder: Path) -> str:
    """Run one prompt of the trained model under two policies, and say whether the files are equal."""
    store = import_checkpoints(folder / "shapes", OPENSORA_SHAPES, "fp32", pretrained_folders())
    settings = video_settings(48)
    workload, prompt = workload_of(OPENSORA_SHAPES, settings), caption(asked_for(1, seen=True)[0].scene)
    device = with_value(find_device("iphone-15-pro"), "memory_limit_bytes", 2_000_000_000)
    files = []
    for policy in ("sequential", REFERENCE):
        plan, video = make_plan(policy, workload, device), folder / f"{policy}.mp4"
        run_job(
            Job(plan=plan, store=str(store.root), prompts=(prompt,), seed=0, outputs=(str(video),)),
            kernel_limit_bytes=None,
        )
        files.append(video.read_bytes())
    told = "the same file, byte for byte" if files[0] == files[1] else "DIFFERENT files"
    return f"CI-DL changes when blocks are loaded, not what they compute. One prompt, run without and with it: {told}."


def timed(evaluations: Mapping[int, Mapping[str, int]], rounds: int, folder: Path) -> dict[int, dict[str, list[Trace]]]:
    """Every technique at both sizes once in each round, under one limit for each size."""
    print("building the store", flush=True)
    store = build_random_store(folder / "small", OPENSORA_SMALL, "fp32", seed=0)
    plain = {side: settings_of(Technique(), {}, side) for side in SIDES}
    print("measuring this machine", flush=True)
    device = measure_this_machine([(store, one) for one in plain.values()], compute_threads=threads())
    found = {side: {name: list[Trace]() for name in TECHNIQUES} for side in SIDES}
    for number in range(rounds):
        names = list(TECHNIQUES)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            for side in SIDES:
                settings = settings_of(TECHNIQUES[name], evaluations[side], side)
                trace = run_once(store, settings, TECHNIQUES[name].policy, device, plain[side], folder)
                print(f"round {number + 1} of {rounds}, {side}x{side}, {name}: {trace.makespan_s:.1f} s", flush=True)
                found[side][name].append(trace)
    return found


def settings_of(technique: Technique, evaluations: Mapping[str, int], side: int) -> VideoSettings:
    """The small model's run; LPL leaps after the evaluations of the row that has the same merging."""
    row = "all" if technique.merging else "LPL"
    return VideoSettings(
        height=side,
        width=side,
        frames=FRAMES,
        steps=STEPS,
        lpl=str(evaluations[row] - 1) if technique.leap else "off",
        tdtm=MERGED if technique.merging else 0,
    )


def run_once(
    store: BlockStore,
    settings: VideoSettings,
    policy: str,
    device: DeviceProfile,
    plain: VideoSettings,
    folder: Path,
) -> Trace:
    """One run under the limit of the plain run. RuntimeError if the kernel killed it."""
    limited = with_value(device, "memory_limit_bytes", demo_limit(workload_of(OPENSORA_SMALL, plain), device))
    plan = make_plan(policy, workload_of(OPENSORA_SMALL, settings), limited)
    trace = run(store, plan, settings, limited.memory_limit_bytes, folder)
    if trace is None:
        raise RuntimeError(f"{policy} was killed for its memory")
    return trace


def phone_s(technique: Technique, evaluations: Mapping[str, int], edge: int) -> float:
    """Simulated seconds of Open-Sora v1.2 on the phone."""
    settings = settings_of(technique, evaluations, edge)
    name = f"opensora-v1.2-{edge}x{edge}-68f"
    name += f"-lpl{settings.lpl}" if technique.leap else ""
    name += f"-tdtm{MERGED}" if technique.merging else ""
    workload, device = find_workload(name), find_device("iphone-15-pro")
    return simulate(workload, device, make_plan(technique.policy, workload, device)).makespan_s


def timing_table(timings: Mapping[str, Timing], edge: int) -> list[str]:
    lines = [
        f"| techniques | seconds here | range | speed-up | range | phone at {edge}x{edge}, s | speed-up |",
        "|---" * 7 + "|",
    ]
    base = timings["none"]
    for name, timing in timings.items():
        ratios = [one / other for one, other in zip(base.measured_s, timing.measured_s, strict=True)]
        lines.append(
            f"| {name} | {middle(timing.measured_s)} | {spread_of(timing.measured_s)} | "
            f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} | {timing.phone_s:.0f} | "
            f"{base.phone_s / timing.phone_s:.2f} |"
        )
    return lines


def published_lines() -> list[str]:
    """The slides' totals; without any technique there is none at these settings."""
    rows = read_published(Path(__file__).parents[1] / "traces/published/on_device_sora.toml")
    lines = [
        "On-device Sora, measured on the phone (30 steps, frames not printed; no row has no technique, TDTM alone or "
        "everything at these settings):",
        "",
        "| techniques | " + " | ".join(f"{edge}x{edge}, s" for edge in SIDES.values()) + " |",
        "|---" * (1 + len(SIDES)) + "|",
    ]
    for name, ids in PUBLISHED_S.items():
        cells = [f"{rows[ids[edge]].seconds:g}" if edge in ids else "-" for edge in SIDES.values()]
        lines.append(f"| {'LPL at step 15' if name == 'LPL' else name} | {' | '.join(cells)} |")
    return lines


def draw(quality: Mapping[int, Quality], timings: Mapping[int, Mapping[str, Timing]]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    width = 0.8 / len(SIDES)
    places = range(len(TECHNIQUES))
    for i, side in enumerate(SIDES):
        at = [place + (i - 0.5) * width for place in places]
        seconds = [statistics.median(timings[side][name].measured_s) for name in TECHNIQUES]
        low = [s - min(timings[side][n].measured_s) for s, n in zip(seconds, TECHNIQUES, strict=True)]
        high = [max(timings[side][n].measured_s) - s for s, n in zip(seconds, TECHNIQUES, strict=True)]
        left.bar(at, seconds, width, yerr=[low, high], capsize=2, label=f"{side}x{side}")
        right_values = [quality[side][name]["attributes"] for name in TECHNIQUES]
        spread = [[e.mean - e.low for e in right_values], [e.high - e.mean for e in right_values]]
        right.bar(at, [e.mean for e in right_values], width, yerr=spread, capsize=2, label=f"{side}x{side}")
    left.set(title="seconds here (small model, random weights)", xticks=list(places), ylabel="s")
    right.set(title="attributes right (trained model)", xticks=list(places), ylim=(0, 1))
    for axis in (left, right):
        axis.set_xticklabels(list(TECHNIQUES))
    left.legend()
    with replacing(RESULTS / "quality_ablation.png") as beside:
        figure.savefig(beside, format="png", dpi=130)
    plt.close(figure)


def sheet(made: Mapping[int, Mapping[str, Made]]) -> None:
    """Some prompts under every technique at the larger size."""
    largest = made[max(SIDES)]
    there = {name: dict(zip(group.asked, group.videos, strict=True)) for name, group in largest.items()}
    asked = sorted(there["none"], key=lambda one: (one.seed, caption(one.scene)))
    first = [one for one in asked if one.seed == SEEDS[0]]
    chosen = first[:: max(1, len(first) // 4)][:4]
    rows = [(name, [there[name][one] for one in chosen]) for name in PICTURED]
    frames_sheet(RESULTS / "quality_ablation_frames.png", rows)


if __name__ == "__main__":
    main()
