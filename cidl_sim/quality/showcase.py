"""The trained small model by the real executor: some prompts in full and accelerated, and what the videos show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import MachineError
from cidl_sim.core.files import Record, replacing
from cidl_sim.core.progress import StepProgress, silent
from cidl_sim.executor.job import Job, JobResult, run_job
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import SHOWCASE, find_workload, parse_name, pipeline_of
from cidl_sim.policies.catalog import make_plan
from cidl_sim.policies.on_device_sora import REFERENCE
from cidl_sim.quality.attributes import ATTRIBUTES, attribute_scores, measure_clip
from cidl_sim.quality.scores import ssim
from cidl_sim.quality.shapes import Frames, MovingShape, Scene, caption

# The last two hold combinations of colour, shape and direction that training never showed.
SCENES = (
    Scene("black", (MovingShape("large", "red", "circle", "right", "quickly"),)),
    Scene("white", (MovingShape("small", "blue", "square", "down", "slowly"),)),
    Scene(
        "gray",
        (
            MovingShape("small", "yellow", "triangle", "up", "quickly"),
            MovingShape("small", "green", "cross", "down", "quickly"),
        ),
    ),
    Scene(
        "brown",
        (
            MovingShape("small", "cyan", "circle", "left", "slowly"),
            MovingShape("small", "purple", "square", "right", "quickly"),
        ),
    ),
    Scene("black", (MovingShape("large", "blue", "triangle", "up", "quickly"),)),
    Scene("gray", (MovingShape("large", "red", "circle", "left", "slowly"),)),
)
UNSEEN = 2
FULL, ACCELERATED = "full", "accelerated"
WORKLOADS = dict(zip((FULL, ACCELERATED), SHOWCASE, strict=True))
SETTINGS: dict[str, Any] = {name: parse_name(workload)[1] for name, workload in WORKLOADS.items()}
SHOWN = (0, 4, 8, 12, 16)  # frames of each video on the sheet


@dataclass(frozen=True)
class Run:
    """One setting: what the executor said, and the videos of all scenes."""

    result: JobResult
    videos: list[Frames]

    @property
    def scores(self) -> list[dict[str, float]]:
        """Of each video, which part of each attribute is right."""
        return [attribute_scores(s, measure_clip(v)) for s, v in zip(SCENES, self.videos, strict=True)]

    @property
    def accuracy(self) -> float:
        """Attributes right, the mean over videos."""
        return float(np.mean([[score[name] for name in ATTRIBUTES] for score in self.scores]))


class ShowcaseFigures(Record):
    """One setting: evaluations a video, seconds for all videos, and the part of all attributes that is right."""

    lpl: str
    tdtm: int
    evaluations_mean: float
    makespan_s: float
    attributes_right: float


class ShowcaseSummary(Record):
    """The figures of all settings by name; `ssim_mean`: how alike full and accelerated videos are."""

    prompts: tuple[str, ...]
    unseen_prompts: int
    ssim_mean: float
    settings: dict[str, ShowcaseFigures]


def run_showcase(out: Path, device: DeviceProfile, seed: int = 42, on_step: StepProgress = silent) -> ShowcaseSummary:
    """Make all videos, the sheet `trained.png` and the summary, under the device's limit, in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    store = _store(out / "store", on_step)
    runs = {name: _run(name, store, device, out, seed, on_step) for name in WORKLOADS}
    draw_sheet(runs, out / "trained.png")
    return summary_of(runs)


def summary_of(runs: Mapping[str, Run]) -> ShowcaseSummary:
    """Figures of both settings, and how alike their videos are."""
    full, accelerated = runs[FULL], runs[ACCELERATED]
    pairs = zip(accelerated.videos, full.videos, strict=True)
    return ShowcaseSummary(
        prompts=tuple(caption(scene) for scene in SCENES),
        unseen_prompts=UNSEEN,
        ssim_mean=float(np.mean([ssim(one, other) for one, other in pairs])),
        settings={
            name: ShowcaseFigures(
                lpl=SETTINGS[name].lpl,
                tdtm=SETTINGS[name].tdtm,
                evaluations_mean=run.result.evaluations / len(SCENES),
                makespan_s=run.result.makespan_s,
                attributes_right=run.accuracy,
            )
            for name, run in runs.items()
        },
    )


def _store(root: Path, on_step: StepProgress) -> BlockStore:
    """The trained weights, written anew: an old store could hold those of another version, and it takes a second."""
    step = "store of the trained model"
    total = len({visit.block.weights for visit in find_workload(WORKLOADS[ACCELERATED]).visits})
    written = 0
    on_step(step, written, total, "")

    def observe_block(weights: str, _: int) -> None:
        nonlocal written
        written += 1
        on_step(step, written, total, weights)

    from cidl_sim.pipelines.model_store import import_checkpoints  # builds networks: seconds of imports

    sizes, _ = parse_name(WORKLOADS[FULL])
    folders = pipeline_of(sizes).trained(sizes.name)
    if folders is None:
        raise MachineError(f"{sizes.name}: no trained weights are installed")
    return import_checkpoints(root, sizes, "fp32", folders, observe_block)


def _run(name: str, store: BlockStore, device: DeviceProfile, out: Path, seed: int, on_step: StepProgress) -> Run:
    workload = find_workload(WORKLOADS[name])
    plan = make_plan(REFERENCE, workload, device)
    plan.write(out / f"plan-{name}.json")
    folders = tuple(out / f"{name}-{i + 1}" for i in range(len(SCENES)))
    job = Job(
        plan=plan,
        workload=workload,
        store=str(store.root.absolute()),
        prompts=tuple(caption(scene) for scene in SCENES),
        seed=seed,
        outputs=tuple(f"{folder.absolute()}.mp4" for folder in folders),
        picture_folders=tuple(str(folder.absolute()) for folder in folders),
    )
    step = f"trained model, {name}"
    result = run_job(
        job,
        kernel_limit_bytes=device.memory_limit_bytes,
        on_progress=partial(on_step, step),
    )
    return Run(result, [read_frames(folder) for folder in folders])


def read_frames(folder: Path) -> NDArray[np.uint8]:
    """The frames of a folder that a run wrote, (frames, height, width, 3) in 8-bit RGB."""
    from PIL import Image

    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in sorted(folder.glob("frame-*.png"))])


def draw_sheet(runs: Mapping[str, Run], path: Path) -> None:
    """A row for each prompt: the full video beside the accelerated one, with what is wrong under each."""
    figure, axes = plt.subplots(
        len(SCENES), len(runs), figsize=(6.2 * len(runs), 1.65 * len(SCENES) + 0.4), layout="constrained"
    )
    for row, scene in zip(axes, SCENES, strict=True):
        i = SCENES.index(scene)
        title = caption(scene) + (" (never trained on)" if i >= len(SCENES) - UNSEEN else "")
        row[0].set_title(title, fontsize=8, loc="left")
        for axis, run in zip(row, runs.values(), strict=True):
            axis.imshow(np.concatenate([run.videos[i][frame] for frame in SHOWN], axis=1), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(_told(run.scores[i]), fontsize=7)
    names = [
        f"{name}: {run.result.evaluations / len(SCENES):.1f} evaluations a video, {run.result.makespan_s:.1f} s for all"
        for name, run in runs.items()
    ]
    figure.suptitle("          |          ".join(names), fontsize=9)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=110)
    plt.close(figure)


def _told(scores: Mapping[str, float]) -> str:
    wrong = [name for name in ATTRIBUTES if scores[name] < 1]
    return f"wrong: {', '.join(wrong)}" if wrong else "all attributes right"


def words(summary: ShowcaseSummary, folder: Path) -> Sequence[str]:
    """The summary for people."""
    full, fast = summary.settings[FULL], summary.settings[ACCELERATED]
    count = len(summary.prompts)
    return [
        f"trained small model, {count} prompts: full, {full.attributes_right:.0%} of the attributes right in "
        f"{full.makespan_s:.1f} s; LPL {fast.lpl}, TDTM in {fast.tdtm} steps: "
        f"{fast.attributes_right:.0%} right in {fast.makespan_s:.1f} s ({fast.evaluations_mean:.1f} of 30 "
        f"evaluations, SSIM {summary.ssim_mean:.2f} against full)",
        f"its videos: {folder / 'trained.png'}",
    ]
