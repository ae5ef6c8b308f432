"""Linear Proportional Leap on the trained small model: quality and evaluations, beside the slides' figures.

    .venv/bin/python experiments/quality_lpl.py [--prompts 100] [--side 48] [--networks FOLDER]

Every prompt runs once with all 30 steps; each leap is taken from that run, since a leap at step n only needs the
latents and the drift there (tests hold that against the pipeline). Open-Sora spaces its steps by the size of the
video, so all of it is done twice: with the times of the small videos, and with those of 256x256 and 68 frames. Writes
in experiments/results quality_lpl.md, quality_lpl.png (the similarity of successive drifts, the stopping points) and
quality_lpl_frames.png.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from shared.quality_runs import (
    FRAMES,
    RESULTS,
    SEEDS,
    Asked,
    Made,
    asked_for,
    frames_sheet,
    load_trained,
    options,
    phone_denoiser_s,
    provenance,
    score_table,
    scored,
    seed_floor,
    trajectories,
    video_settings,
)

from cidl_sim.core.files import replacing, write_text
from cidl_sim.pipelines.open_sora.whole_model import Trajectory, WholeModel
from cidl_sim.quality.scores import STAND_INS
from cidl_sim.quality.summary import Estimate
from cidl_sim.sampling.linear_proportional_leap import STOPPING_RULES, DynamicLeap, drift_similarity, stopping_rule
from cidl_sim.sampling.rectified_flow import TIMESTEPS, time_ratio

STEPS = 30
PUBLISHED_RATIO = time_ratio(256, 256, 68)
FULL, CUT_OFF, FEWER = "30 of 30", "16 of 30, cut off", "16 of 16"
LEAPS = {f"{n} of 30": n for n in (16, 21, 23, 25)}
DYNAMIC = {f"dynamic ({rule})": rule for rule in STOPPING_RULES}
# On-device Sora (arXiv 2502.04363v2), the table of LPL, on VBench's prompts.
PUBLISHED = """
| setting | SSIM | FVD | dynamic degree | imaging quality | speed-up |
|---|---|---|---|---|---|
| 16 of 30 | 0.805 | 527.27 | 0.18 | 0.55 | 1.94x |
| 21 of 30 | 0.832 | 344.40 | 0.20 | 0.56 | 1.49x |
| 23 of 30 | 0.840 | 305.47 | 0.21 | 0.56 | 1.34x |
| 25 of 30 | 0.848 | 276.68 | 0.21 | 0.56 | 1.24x |
| 30 of 30 | - | - | 0.21 | 0.57 | 1.00x |
| dynamic, 17.73 on average | 0.827 | 370.86 | 0.20 | 0.56 | 1.53x |
"""
COLUMNS = {
    "evaluations": ".1f",
    "speed-up": ".2f",
    "attributes": ".3f",
    "SSIM": ".3f",
    "PSNR": ".1f",
    "Fréchet distance": ".2f",
    **dict.fromkeys(STAND_INS, ".3f"),
}


def main() -> None:
    args = options(__doc__)
    model, classifier = load_trained()
    asked = asked_for(args.prompts, seen=True)
    here, as_published = (videos_of(model, asked, args.side, ratio) for ratio in (None, PUBLISHED_RATIO))
    results = scored(here.made, FULL, classifier, args.networks, with_stand_ins=True)
    add_speed_ups(results, here.made)
    results_as_published = scored(as_published.made, FULL, classifier, args.networks)
    add_speed_ups(results_as_published, as_published.made)
    floor = seed_floor(here.made[FULL], classifier)
    report = [
        "# Linear Proportional Leap on the trained small model",
        "",
        provenance(f"experiments/quality_lpl.py --prompts {args.prompts} --side {args.side}"),
        "",
        f"{args.prompts} prompts x {len(SEEDS)} seeds, {args.side}x{args.side}, {FRAMES} frames, trained combinations. "
        "In brackets 95 % intervals (bootstrap over prompts). SSIM, PSNR and the Fréchet distance are against the 30 "
        "steps of the same seed. Columns with a star stand in for VBench's and are on scales of their own; the Fréchet "
        "distance is on features of a classifier of these clips, so it is not FVD. `cut off`: the steps after the 16th "
        "left out, without the leap; `16 of 16`: a schedule of 16 steps. Speed-up: of STDiT on the phone's profile "
        "(256x256, 68 frames, nothing overlapped), simulated for as many evaluations.",
        "",
        "## With the times of this size",
        "",
        f"Open-Sora's timestep transform has the ratio {ratio_of(args.side):.2f} here, so most of the 30 steps are at "
        f"little noise: a leap after 16 evaluations starts at t = {here.leap_times[16]:.2f}, after 21 at "
        f"{here.leap_times[21]:.2f}.",
        "",
        *score_table(results, COLUMNS, "steps"),
        "",
        "What the seed alone changes of the unmodified model, largest difference between two seeds: "
        + ", ".join(f"{name} {value:.3f}" for name, value in floor.items() if name in COLUMNS)
        + ".",
        "",
        "## With the times of 256x256 and 68 frames",
        "",
        f"There the ratio is {PUBLISHED_RATIO:.2f}, and the same leaps start at t = {as_published.leap_times[16]:.2f} "
        f"and {as_published.leap_times[21]:.2f}. The same prompts, seeds and weights.",
        "",
        *score_table(results_as_published, COLUMNS, "steps"),
        "",
        "On-device Sora's figures, on Open-Sora v1.2:",
        PUBLISHED,
    ]
    write_text(RESULTS / "quality_lpl.md", "\n".join(report))
    draw({f"{args.side}x{args.side}, {FRAMES} frames": here, "256x256, 68 frames": as_published})
    chosen = range(0, len(asked), max(1, len(asked) // 4))
    rows = []
    for title, videos, names in (
        ("", here.made, (FULL, CUT_OFF, "16 of 30", FEWER)),
        ("times of 256x256: ", as_published.made, (FULL, CUT_OFF, "16 of 30", FEWER, next(iter(DYNAMIC)))),
    ):
        there = {name: dict(zip(videos[name].asked, videos[name].videos, strict=True)) for name in names}
        rows += [(title + name, [there[name][asked[i]] for i in chosen]) for name in names]
    frames_sheet(RESULTS / "quality_lpl_frames.png", rows)
    print("\n".join(report))


@dataclass(frozen=True)
class Videos:
    """Of one set of times: the videos of every setting, how alike successive drifts are, and when leaps start."""

    made: dict[str, Made]
    curves: NDArray[np.float64]  # (videos, steps - 1)
    leap_times: dict[int, float]  # by evaluations; 0..1


def videos_of(model: WholeModel, asked: list[Asked], side: int, ratio: float | None) -> Videos:
    """Every prompt with all steps, every leap from there, and a schedule of fewer steps."""
    made: dict[str, Made] = {name: Made() for name in (FULL, *LEAPS, *DYNAMIC, CUT_OFF, FEWER)}
    curves: list[NDArray[np.float64]] = []
    times: list[float] = []
    for batch, run in trajectories(model, asked, video_settings(side), ratio=ratio):
        times = run.times
        curves += [similarities(run, i) for i in range(len(batch))]
        for name, (latents, evaluations) in ends_of(run, len(batch)).items():
            made[name].add(batch, model.decode(latents, FRAMES), evaluations)
    for batch, run in trajectories(model, asked, video_settings(side, steps=16), ratio=ratio):
        made[FEWER].add(batch, model.decode(run.after(16), FRAMES), [16] * len(batch))
    return Videos(made, np.array(curves), {n: times[n - 1] / TIMESTEPS for n in LEAPS.values()})


def add_speed_ups(results: dict[str, dict[str, Estimate]], made: Mapping[str, Made]) -> None:
    for name, scores in results.items():
        seconds = [phone_denoiser_s("" if n == STEPS else f"-lpl{n - 1}") for n in made[name].evaluations]
        ratio = phone_denoiser_s() / float(np.mean(seconds))
        scores["speed-up"] = Estimate(ratio, ratio, ratio)


def ratio_of(side: int) -> float:
    return time_ratio(side, side, FRAMES)


def similarities(run: Trajectory, video: int) -> NDArray[np.float64]:
    """Of the drift at each step but the first to the one before."""
    drifts = [drift[video : video + 1] for drift in run.drifts]
    return np.array([drift_similarity(now, before) for before, now in pairwise(drifts)])


def ends_of(run: Trajectory, videos: int) -> dict[str, tuple[torch.Tensor, list[int]]]:
    """The last latents of every setting that one full run gives, and the evaluations behind each."""
    ends = {FULL: (run.after(STEPS), [STEPS] * videos), CUT_OFF: (run.after(16), [16] * videos)}
    ends |= {name: (run.leap(n - 1), [n] * videos) for name, n in LEAPS.items()}
    for name, rule in DYNAMIC.items():
        steps = [stopping_step(run, i, rule) for i in range(videos)]
        ends[name] = (torch.cat([run.leap(s)[i : i + 1] for i, s in enumerate(steps)]), [s + 1 for s in steps])
    return ends


def stopping_step(run: Trajectory, video: int, rule: str) -> int:
    """The step at which dynamic LPL leaps."""
    leap = DynamicLeap(stopping_rule(rule, STEPS))
    return next(
        (step for step, drift in enumerate(run.drifts) if leap.observe(step, drift[video : video + 1])[1]), STEPS - 1
    )


def draw(sets: Mapping[str, Videos]) -> None:
    figure, axes = plt.subplots(2, len(sets), figsize=(5.6 * len(sets), 6), sharex=True, layout="constrained")
    for (above, below), (title, videos) in zip(axes.T, sets.items(), strict=True):
        steps = np.arange(2, videos.curves.shape[1] + 2)
        low, middle, high = np.quantile(videos.curves, [0.05, 0.5, 0.95], axis=0)
        above.fill_between(steps, low, high, alpha=0.25, label="5 to 95 % of the videos")
        above.plot(steps, middle, label="median")
        above.set(ylabel="cosine of successive drifts", title=f"times of {title}")
        above.legend()
        for shift, name in enumerate(DYNAMIC):
            values = videos.made[name].evaluations
            numbers, counts = np.unique(values, return_counts=True)
            below.bar(numbers + 0.27 * (shift - 1), counts, width=0.27, label=f"{name}: mean {np.mean(values):.1f}")
        below.set(xlabel="evaluations", ylabel="videos that stop")
        below.legend(loc="upper left", fontsize=8)  # nothing stops that early
    with replacing(RESULTS / "quality_lpl.png") as beside:
        figure.savefig(beside, format="png", dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
