"""Beyond the paper: other leaps and stopping rules, token merging by depth and by step, on the trained small model.

    .venv/bin/python experiments/quality_beyond.py [--prompts 100] [--side 48] [--networks FOLDER]

Leaps and rules are taken from full runs, so each costs nothing but its decoding (the halved leap one evaluation);
schedules are sampled from the same noise. They are compared with the times of 256x256 and 68 frames: with those of
small videos even an early leap starts at little noise (quality_lpl.md). At each number of evaluations:

- the paper's leap, along the last drift;
- a second-order leap: along the drift that the last two extrapolate to, at the middle of what is left;
- a halved leap: one evaluation earlier half of the way that is left, the last evaluation there, then the rest;
- no leap at all, a plain schedule of as many steps;
- such a schedule with second-order steps (Adams-Bashforth: the drift and its change since the step before).

Rules decide per video: dynamic LPL as published, and one that stops when the predicted end point (the latents after a
leap) moves by less than a share of its size from one step to the next. Merging: the first half of the pairs, the second
half, the first or the last steps. Writes in experiments/results quality_beyond.md and .png.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import matplotlib.pyplot as plt
import torch
from quality_lpl import PUBLISHED_RATIO, stopping_step
from shared.quality_runs import (
    FRAMES,
    RESULTS,
    SEEDS,
    Asked,
    Made,
    asked_for,
    load_trained,
    options,
    provenance,
    score_table,
    scored,
    trajectories,
    video_settings,
)
from torch import Tensor

from cidl_sim.core.files import replacing, write_text
from cidl_sim.pipelines.open_sora.settings import OPENSORA_SHAPES, VideoSettings
from cidl_sim.pipelines.open_sora.whole_model import Trajectory, WholeModel, no_pairs
from cidl_sim.quality.summary import Estimate
from cidl_sim.sampling import rectified_flow as flow
from cidl_sim.sampling.linear_proportional_leap import STOPPING_RULES

STEPS = 30
FULL = "30 of 30"
EVALUATIONS = (4, 8, 12, 16, 21)
END_POINT_SHARES = (0.1, 0.05, 0.03, 0.02)
COLUMNS = {"evaluations": ".1f", "attributes": ".3f", "SSIM": ".3f", "PSNR": ".1f", "Fréchet distance": ".2f"}
Ends = Mapping[str, tuple[Tensor, list[int]]]


def main() -> None:
    args = options(__doc__)
    model, classifier = load_trained()
    asked = asked_for(args.prompts, seen=True)
    leaps: dict[str, Made] = {}
    for batch, run in trajectories(model, asked, video_settings(args.side), ratio=PUBLISHED_RATIO):
        for name, (latents, evaluations) in ends_of(model, run, len(batch), video_settings(args.side)).items():
            leaps.setdefault(name, Made()).add(batch, model.decode(latents, FRAMES), evaluations)
    leap_scores = scored(leaps, FULL, classifier, args.networks)
    merging = {FULL: no_pairs, **MERGING}
    merging = {name: merged(model, asked, args.side, pairs) for name, pairs in merging.items()}
    merging_scores = scored(merging, FULL, classifier, args.networks)
    report = [
        "# Beyond the paper: leaps, stopping rules, merging by depth and step",
        "",
        provenance(f"experiments/quality_beyond.py --prompts {args.prompts} --side {args.side}"),
        "",
        f"{args.prompts} prompts x {len(SEEDS)} seeds, {args.side}x{args.side}, {FRAMES} frames, trained combinations; "
        "in brackets 95 % intervals (bootstrap over prompts); SSIM, PSNR and Fréchet distance against 30 steps of the "
        "same seed.",
        "",
        "## Leaps and rules, with the times of 256x256 and 68 frames",
        "",
        *score_table(leap_scores, COLUMNS, "leap or rule"),
        "",
        "## Token merging, 30 steps, with the times of this size",
        "",
        *score_table(merging_scores, COLUMNS, "merged"),
    ]
    write_text(RESULTS / "quality_beyond.md", "\n".join(report) + "\n")
    draw(leap_scores)
    print("\n".join(report))


def ends_of(model: WholeModel, run: Trajectory, videos: int, settings: VideoSettings) -> Ends:
    """The latents of every leap and rule, and the evaluations behind each."""
    ends = {FULL: (run.after(STEPS), [STEPS] * videos)}
    for n in EVALUATIONS:
        ends[f"paper's leap, {n}"] = (run.leap(n - 1), [n] * videos)
        ends[f"second-order leap, {n}"] = (second_order_leap(run, n - 1), [n] * videos)
        ends[f"halved leap, {n}"] = (halved_leap(model, run, n - 2, settings), [n] * videos)
        ends[f"plain schedule, {n}"] = (schedule(model, run, n, settings), [n] * videos)
        ends[f"second-order schedule, {n}"] = (schedule(model, run, n, settings, second_order=True), [n] * videos)
    for rule in STOPPING_RULES:
        steps = [stopping_step(run, i, rule) for i in range(videos)]
        ends[f"dynamic ({rule})"] = leaps_at(run, steps)
    for share in END_POINT_SHARES:
        steps = [end_point_step(run, i, share) for i in range(videos)]
        ends[f"end point, {share:g}"] = leaps_at(run, steps)
    return ends


def leaps_at(run: Trajectory, steps: list[int]) -> tuple[Tensor, list[int]]:
    """The paper's leap of each video at a step of its own."""
    return torch.cat([run.leap(s)[i : i + 1] for i, s in enumerate(steps)]), [s + 1 for s in steps]


def second_order_leap(run: Trajectory, step: int) -> Tensor:
    """Leap along the drift expected half-way to the end: that of this step and its change since the one before.

    With the drift linear in time this is exact, where the paper's leap takes it for constant.
    """
    t, before = run.times[step], run.times[step - 1]
    slope = (run.drifts[step] - run.drifts[step - 1]) / (t - before)
    return run.latents[step] + (run.drifts[step] - slope * (t / 2)) * (t / 1000)


def halved_leap(model: WholeModel, run: Trajectory, step: int, settings: VideoSettings) -> Tensor:
    """Leap half of the way at `step`, evaluate there, and leap the rest: `step` + 2 evaluations."""
    half = run.times[step] / 2
    there = flow.moved(run.latents[step], run.drifts[step], half)
    return flow.moved(there, model.guided_drift(there, half, run.texts, settings), half)


def end_point_step(run: Trajectory, video: int, share: float) -> int:
    """The first step whose predicted end differs by less than `share` of its norm from the one predicted before."""
    previous = run.leap(0)[video]
    for step in range(1, STEPS):
        now = run.leap(step)[video]
        if (now - previous).norm() < share * now.norm():
            return step
        previous = now
    return STEPS - 1


def schedule(
    model: WholeModel, run: Trajectory, steps: int, settings: VideoSettings, *, second_order: bool = False
) -> Tensor:
    """The latents after `steps` steps of their own schedule, from the noise and texts of `run`."""
    times, z = flow.timesteps(steps, PUBLISHED_RATIO), run.latents[0]
    before: Tensor | None = None
    for i, t in enumerate(times):
        drift, length = model.guided_drift(z, t, run.texts, settings), flow.step_length(times, i)
        middle = drift
        if second_order and before is not None:
            middle = drift + (drift - before) * (length / (2 * flow.step_length(times, i - 1)))
        z, before = flow.moved(z, middle, length), drift
    return z


PAIRS = OPENSORA_SHAPES.stdit.depth
MERGING: dict[str, Callable[[int], Collection[int]]] = {
    "all pairs, first 15 steps": lambda step: range(PAIRS) if step < 15 else (),
    "all pairs, last 15 steps": lambda step: range(PAIRS) if step >= 15 else (),
    "first half of the pairs, all steps": lambda step: range(PAIRS // 2),
    "second half of the pairs, all steps": lambda step: range(PAIRS // 2, PAIRS),
    "every second pair, all steps": lambda step: range(0, PAIRS, 2),
    "all pairs, every second step": lambda step: range(PAIRS) if step % 2 else (),
}


def merged(
    model: WholeModel,
    asked: list[Asked],
    side: int,
    pairs: Callable[[int], Collection[int]],
    *,
    ratio: float | None = None,
) -> Made:
    made = Made()
    for batch, run in trajectories(model, asked, video_settings(side), pairs, ratio=ratio):
        made.add(batch, model.decode(run.after(STEPS), FRAMES), [STEPS] * len(batch))
    return made


def draw(results: Mapping[str, Mapping[str, Estimate]]) -> None:
    families = {
        "the paper's leap": "paper's leap",
        "second-order leap": "second-order leap",
        "halved leap": "halved",
        "plain schedule": "plain",
        "second-order schedule": "second-order schedule",
        "stop at the end point": "end point",
        "dynamic, published rules": "dynamic",
    }
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, column in zip(axes, ("SSIM", "attributes"), strict=True):
        for label, beginning in families.items():
            found = [s for name, s in results.items() if name.startswith(beginning)]
            found.sort(key=lambda s: s["evaluations"].mean)
            y = [s[column] for s in found]
            axis.errorbar(
                [s["evaluations"].mean for s in found],
                [e.mean for e in y],
                yerr=[[e.mean - e.low for e in y], [e.high - e.mean for e in y]],
                marker="o",
                capsize=2,
                label=label,
                linestyle="none" if beginning == "dynamic" else "-",
            )
        axis.set(xlabel="evaluations of the denoiser, of 30", ylabel=column)
    axes[1].axhline(results[FULL]["attributes"].mean, color="gray", linestyle=":", label="all 30 steps")
    axes[1].legend()
    with replacing(RESULTS / "quality_beyond.png") as beside:
        figure.savefig(beside, format="png", dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
