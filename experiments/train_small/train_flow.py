"""Train text encoder and denoiser: `python experiments/train_small/train_flow.py --out FOLDER`, after train_vae.py.

The rectified flow from noise to the latents of the clips that train_vae.py encoded. Goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from checkpoints import RunningMean, Training, learning_rate
from data import Captions, Clips, batches, load_clips
from network import TextToLatent, flow_loss
from tokenizer import train_tokenizer
from torch import Tensor

from cidl_sim.diffusion.rectified_flow import TIMESTEPS, time_ratio, transformed
from cidl_sim.models.config import OPENSORA_SHAPES, OpenSoraSizes
from cidl_sim.models.vae import LATENT_CHANNELS
from cidl_sim.quality.shapes import CLIP_FRAMES

DROPPED = 0.1  # captions replaced by the null text, for classifier-free guidance
PEAK = 1e-3


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train_tokenizer(args.out / "tokenizer", args.seed)
    train_flow(args.out, args.steps, args.batch, args.seed)


def latent_statistics(clips: list[Clips]) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean of each channel, (1, 4, 1, 1, 1): the VAE's buffers `scale` and `shift`."""
    everything = torch.cat([c.latents.transpose(0, 1).flatten(1) for c in clips], dim=1)
    shape = (1, LATENT_CHANNELS, 1, 1, 1)
    return everything.std(dim=1).view(shape), everything.mean(dim=1).view(shape)


def train_flow(out: Path, steps: int, batch: int, seed: int, sizes: OpenSoraSizes = OPENSORA_SHAPES) -> float:
    """Noise -> latents. Returns the mean loss of the last steps."""
    clips = load_clips(out, seed, sizes.vae)
    scale, shift = latent_statistics(clips)
    model = TextToLatent(sizes)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    training = Training(out, "flow", model, optimizer, ema=0.999)
    training.resume()
    mean_loss = RunningMean(50)
    drawn = batches(clips, Captions(out / "tokenizer"), batch, seed, training.step)
    for side, latents, ids in itertools.islice(drawn, steps - training.step):
        torch.manual_seed(seed + training.step)
        dropped = torch.rand(batch) < DROPPED
        z = (latents - shift) / scale
        losses = flow_loss(model, z, random_times(batch, side), torch.randn_like(z), ids, dropped, side * side)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training.step, steps, PEAK)
        optimizer.zero_grad(set_to_none=True)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        training.ema.update()
        training.step += 1
        mean_loss.add(losses.mean().item())
        if training.step % 50 == 0:
            training.log(loss=mean_loss.value)
        if training.step % 250 == 0 or training.step == steps:
            training.save()
    return mean_loss.value


def random_times(count: int, side: int) -> Tensor:
    """Times in 0..1: half of them even, half as the sampler spaces them at this resolution."""
    u = torch.rand(count)
    ratio = time_ratio(side, side, CLIP_FRAMES)
    spaced = transformed_times(u, ratio)
    return torch.where(torch.arange(count) % 2 == 0, u, spaced)


def transformed_times(u: Tensor, ratio: float) -> Tensor:
    """The sampler's timestep transform on times in 0..1."""
    return torch.tensor([transformed(x * TIMESTEPS, ratio) / TIMESTEPS for x in u.tolist()])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
