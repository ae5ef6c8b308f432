"""Does the trained small model show what its prompts say: each attribute, seen and unseen combinations, both sizes.

    .venv/bin/python experiments/quality_accuracy.py [--prompts 100] [--networks FOLDER]

With all 30 steps and with dynamic LPL (the rule as published). Writes in experiments/results quality_accuracy.md and
quality_accuracy.png, some clips beside their prompts.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from quality_lpl import DYNAMIC, FULL, ends_of
from shared.quality_runs import (
    FRAMES,
    RESULTS,
    SEEDS,
    Asked,
    Made,
    asked_for,
    attribute_accuracy,
    by_prompt,
    load_trained,
    options,
    provenance,
    score_table,
    trajectories,
    video_settings,
)

from cidl_sim.core.files import replacing, write_text
from cidl_sim.pipelines.open_sora.whole_model import WholeModel
from cidl_sim.quality.attributes import ATTRIBUTES
from cidl_sim.quality.shapes import caption, render

SIDES = (48, 64)
RULE = next(iter(DYNAMIC))
COLUMNS = {"evaluations": ".1f", "attributes": ".3f", **dict.fromkeys(ATTRIBUTES, ".3f"), "objects": ".3f"}
SHOWN = 6  # of each kind


def main() -> None:
    args = options(__doc__)
    model, _ = load_trained()
    results, pictures = {}, {}
    for side in SIDES:
        for kind, seen in (("seen", True), ("unseen", False)):
            for name, made in videos(model, asked_for(args.prompts, seen=seen), side).items():
                scores = {**attribute_accuracy(made), "evaluations": np.array(made.evaluations, dtype=float)}
                row = f"{side}x{side}, {kind}, {name}"
                results[row] = {key: by_prompt(made, values) for key, values in scores.items()}
                pictures[row] = made
    report = [
        "# What the trained small model shows of its prompts",
        "",
        provenance(f"experiments/quality_accuracy.py --prompts {args.prompts}"),
        "",
        f"{args.prompts} prompts x {len(SEEDS)} seeds in each row, half with one object and half with two, {FRAMES} "
        "frames. Every attribute is measured in the pixels and counted as right or wrong; `attributes` is their mean, "
        "`objects` how often as many objects are there as were asked for. `unseen`: each object is of a combination of "
        "colour, shape and direction that no training clip shows. In brackets 95 % intervals, bootstrap over prompts.",
        "",
        *score_table(results, COLUMNS, "videos"),
        "",
        drawn_line(args.prompts),
    ]
    write_text(RESULTS / "quality_accuracy.md", "\n".join(report) + "\n")
    draw({kind: pictures[f"64x64, {kind}, {FULL}"] for kind in ("seen", "unseen")})
    print("\n".join(report))


def videos(model: WholeModel, asked: list[Asked], side: int) -> Mapping[str, Made]:
    """All steps, and dynamic LPL."""
    made = {FULL: Made(), RULE: Made()}
    for batch, run in trajectories(model, asked, video_settings(side)):
        ends = ends_of(run, len(batch))
        for name, group in made.items():
            latents, evaluations = ends[name]
            group.add(batch, model.decode(latents, FRAMES), evaluations)
    return made


def drawn_line(prompts: int) -> str:
    """What the measurement itself gets right, on clips as they are drawn."""
    means = {}
    for side in SIDES:
        asked = asked_for(prompts, seen=True, seeds=SEEDS[:1])
        drawn = Made(asked, [render(one.scene, height=side, width=side) for one in asked], [0] * len(asked))
        means[side] = attribute_accuracy(drawn)["attributes"].mean()
    figures = ", ".join(f"{mean:.3f} at {side}x{side}" for side, mean in means.items())
    return f"The same measurement on the generator's own clips of the seen prompts: {figures}."


def draw(kinds: Mapping[str, Made]) -> None:
    """Some clips of each kind under their prompts: five frames each."""
    figure, axes = plt.subplots(SHOWN, len(kinds), figsize=(6.4 * len(kinds), 1.65 * SHOWN), squeeze=False)
    for column, (kind, made) in zip(axes.T, kinds.items(), strict=True):
        first = [i for i, one in enumerate(made.asked) if one.seed == SEEDS[0]]
        chosen = first[:: max(1, len(first) // SHOWN)][:SHOWN]
        for axis in column:
            axis.axis("off")
        for axis, i in zip(column, chosen, strict=False):
            axis.axis("on")
            axis.imshow(np.concatenate(made.videos[i][::4], axis=1), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_title(textwrap.fill(caption(made.asked[i].scene), 75), fontsize=7)
        column[0].set_title(f"{kind} combinations\n{column[0].get_title()}", fontsize=7)
    figure.tight_layout(pad=0.5)
    with replacing(RESULTS / "quality_accuracy.png") as beside:
        figure.savefig(beside, format="png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
