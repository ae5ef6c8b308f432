"""Token merging by step and by depth with the times of 256x256 and 68 frames, on the trained small model.

    .venv/bin/python experiments/quality_merging.py [--prompts 100] [--side 48] [--networks FOLDER]

quality_beyond.py does the same with the times of the small videos, where the last steps are all at little noise. Half
of the denoiser's visits are merged in every row. Writes in experiments/results quality_merging.md and .png.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
from quality_beyond import COLUMNS, FULL, MERGING, merged
from quality_lpl import PUBLISHED_RATIO
from shared.quality_runs import (
    FRAMES,
    RESULTS,
    SEEDS,
    asked_for,
    load_trained,
    options,
    provenance,
    score_table,
    scored,
)

from cidl_sim.core.files import replacing, write_text
from cidl_sim.pipelines.open_sora.whole_model import no_pairs
from cidl_sim.quality.summary import Estimate


def main() -> None:
    args = options(__doc__)
    model, classifier = load_trained()
    asked = asked_for(args.prompts, seen=True)
    rows = {FULL: no_pairs, **MERGING}
    made = {name: merged(model, asked, args.side, pairs, ratio=PUBLISHED_RATIO) for name, pairs in rows.items()}
    results = scored(made, FULL, classifier, args.networks)
    report = [
        "# Token merging by step and by depth, with the times of 256x256 and 68 frames",
        "",
        provenance(f"experiments/quality_merging.py --prompts {args.prompts} --side {args.side}"),
        "",
        f"{args.prompts} prompts x {len(SEEDS)} seeds, {args.side}x{args.side}, {FRAMES} frames, trained combinations; "
        "in brackets 95 % intervals (bootstrap over prompts); SSIM, PSNR and Fréchet distance against no merging with "
        "the same seed. Every row merges tokens in half of the denoiser's visits, so all cost the same.",
        "",
        *score_table(results, COLUMNS, "merged"),
    ]
    write_text(RESULTS / "quality_merging.md", "\n".join(report) + "\n")
    draw(results)
    print("\n".join(report))


def draw(results: Mapping[str, Mapping[str, Estimate]]) -> None:
    names = [FULL, *MERGING]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3), sharey=True, layout="constrained")
    for axis, column in zip(axes, ("attributes", "SSIM"), strict=True):
        found = {name: results[name][column] for name in names if column in results[name]}
        spread = [[e.mean - e.low for e in found.values()], [e.high - e.mean for e in found.values()]]
        axis.barh([names.index(name) for name in found], [e.mean for e in found.values()], xerr=spread, capsize=2)
        axis.set(xlabel=column, xlim=(0, 1))
    axes[0].set_yticks(range(len(names)), [name.replace(FULL, "nothing merged") for name in names])
    axes[0].invert_yaxis()
    with replacing(RESULTS / "quality_merging.png") as beside:
        figure.savefig(beside, format="png", dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
