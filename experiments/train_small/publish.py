"""Write what was trained as checkpoints in Open-Sora's keys: `publish.py --out FOLDER --target CHECKPOINTS`.

The mean parameters are taken, in fp16; the classifier comes along, if it was trained. `cidl model import --size shapes`
makes a block store of them.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from checkpoints import mean_state
from data import load_clips
from network import TextToLatent
from safetensors.torch import save_file
from torch import Tensor
from train_flow import latent_statistics

from cidl_sim.models.config import OPENSORA_SHAPES, OpenSoraSizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where train_vae.py and train_flow.py wrote")
    parser.add_argument("--target", type=Path, required=True)
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
        save_file(_half(mean_state(out / "classifier.pt")), target / "classifier.safetensors")
    for file in (out / "tokenizer").iterdir():
        shutil.copyfile(file, target / "t5" / file.name)
    total = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {total / 1e6:.1f} MB")


def _half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items()}


if __name__ == "__main__":
    main()
