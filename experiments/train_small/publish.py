"""Write what was trained as checkpoints in Open-Sora's keys: `experiments/train_small/publish.py --out FOLDER`.

The mean parameters are taken, in fp16; the classifier comes along, if it was trained. `cidl model build --size shapes`
makes a block store of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from checkpoints import mean_state
from data import load_clips
from network import TextToLatent
from safetensors.torch import save_file
from torch import Tensor
from train_flow import latent_statistics

from cidl_sim.core.files import replacing
from cidl_sim.pipelines.open_sora.pretrained import CLASSIFIER, FOLDER
from cidl_sim.pipelines.open_sora.settings import OPENSORA_SHAPES, OpenSoraSizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where train_vae.py and train_flow.py wrote")
    parser.add_argument("--target", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=0, help="that of the training")
    args = parser.parse_args()
    publish(args.out, args.target, args.seed)


def publish(out: Path, target: Path, seed: int, sizes: OpenSoraSizes = OPENSORA_SHAPES) -> None:
    """Write t5/, stdit/ and vae/ under `target`, the tokenizer beside T5's weights."""
    flow = mean_state(out / "flow.pt")
    encoder = TextToLatent(sizes).text_encoder
    text = {name.removeprefix("text_encoder."): t for name, t in flow.items() if name.startswith("text_encoder.")}
    denoiser = {name.removeprefix("denoiser."): t for name, t in flow.items() if name.startswith("denoiser.")}
    scale, shift = latent_statistics(load_clips(out, seed, sizes.vae))
    vae = {"scale": scale, "shift": shift}
    vae |= {f"spatial_vae.module.{name}": t for name, t in mean_state(out / "spatial.pt").items()}
    vae |= {f"temporal_vae.{name}": t for name, t in mean_state(out / "temporal.pt").items()}
    for part, tensors in (("t5", encoder.published(text)), ("stdit", denoiser), ("vae", vae)):
        (target / part).mkdir(parents=True, exist_ok=True)
        save_file(_half(tensors), target / part / "model.safetensors")
    if (out / "classifier.pt").is_file():
        save_file(_half(mean_state(out / "classifier.pt")), target / CLASSIFIER)
    draw_losses(out, target / "loss.png")
    for file in (out / "tokenizer").iterdir():
        shutil.copyfile(file, target / "t5" / file.name)
    for log in sorted(out.glob("*.log.jsonl")):
        name = log.name.partition(".")[0]
        state = torch.load(out / f"{name}.pt", weights_only=True)
        print(f"{name}: {state['step']:,} steps in {state['seconds'] / 60:.0f} minutes")
    total = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {total / 1e6:.1f} MB")


def draw_losses(out: Path, picture: Path) -> None:
    """What the training runs logged, a panel for each."""
    logs = sorted(out.glob("*.log.jsonl"))
    figure, axes = plt.subplots(1, len(logs), figsize=(3.6 * len(logs), 2.8), layout="constrained", squeeze=False)
    for axis, log in zip(axes[0], logs, strict=True):
        # A run that was interrupted logged some steps twice.
        rows = list({row["step"]: row for row in map(json.loads, log.read_text().splitlines())}.values())
        rows.sort(key=lambda row: row["step"])
        for name in sorted({name for row in rows for name in row} - {"step"}):
            found = [(row["step"], row[name]) for row in rows if name in row]
            axis.plot(*zip(*found, strict=True), linewidth=1, label=name)
        axis.set(title=log.name.partition(".")[0], xlabel="step", yscale="log")
        axis.set_ylim(bottom=max(1e-4, axis.get_ylim()[0]))
        axis.legend(fontsize=7)
    with replacing(picture) as beside:
        figure.savefig(beside, format="png", dpi=110)
    plt.close(figure)


def _half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items()}


if __name__ == "__main__":
    main()
