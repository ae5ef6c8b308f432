"""Train both halves of the small video VAE: `python experiments/train_small/train_vae.py --out FOLDER`.

First the spatial autoencoder on single frames, then the temporal one on the latents of clips that were encoded once.
All go on where they stopped; what a step sees depends on the seed and the step alone.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from checkpoints import RunningMean, Training, learning_rate
from data import load_spatial, load_spatial_latents, make_spatial_latents, to_unit
from torch import Tensor

from cidl_sim.models.autoencoder_kl import LATENT_CHANNELS, AutoencoderKL, sampled
from cidl_sim.models.sizes import VAESizes
from cidl_sim.models.vae import SPATIAL_SCALE, TemporalVAE
from cidl_sim.pipelines.open_sora.settings import OPENSORA_SHAPES
from cidl_sim.quality.shapes import CLIP_FRAMES, random_scene, render, seen_combinations

SIDES = (48, 48, 48, 64)  # three batches in four are of the smaller resolution
KL_WEIGHT = 1e-4
LATENT_NOISE = 0.05
FIRST_LOGVAR = -6.0
OBJECT_CONTRAST, OBJECT_WEIGHT = 0.1, 5.0


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.part in ("spatial", "both"):
        train_spatial(args.out, args.spatial_steps, args.batch, args.seed)
    if args.part in ("temporal", "both"):
        make_spatial_latents(args.out, args.clips, args.seed, OPENSORA_SHAPES.vae)
        train_temporal(args.out, args.temporal_steps, args.batch, args.seed)


def train_spatial(out: Path, steps: int, batch: int, seed: int, sizes: VAESizes = OPENSORA_SHAPES.vae) -> float:
    """Frames -> frames. Returns the mean loss of the last steps."""
    model = AutoencoderKL(sizes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    training = Training(out, "spatial", model, optimizer, ema=0.998)
    training.resume()
    mean_loss = RunningMean(20)
    while training.step < steps:
        clips = random_clips(seed, "spatial", training.step, batch)
        frames = clips[np.arange(batch), np.random.default_rng(training.step).integers(CLIP_FRAMES, size=batch)]
        x = to_unit(frames).to(memory_format=torch.channels_last)
        mean, log_variance = model.moments(x)
        y = model.decode(sampled(mean, log_variance))
        error = reconstruction_error(y, x)
        # As they reach the temporal half, latents should be of about unit size.
        kl = divergence(mean * SPATIAL_SCALE, log_variance + 2 * math.log(SPATIAL_SCALE))
        mean_loss.add(_step(training, optimizer, error + KL_WEIGHT * kl, steps, 1.5e-3))
        if training.step % 50 == 0:
            training.log(loss=mean_loss.value, mse=F.mse_loss(y, x).item(), kl=kl.item())
        if training.step % 250 == 0 or training.step == steps:
            training.save()
    return mean_loss.value


def train_temporal(out: Path, steps: int, batch: int, seed: int, sizes: VAESizes = OPENSORA_SHAPES.vae) -> float:
    """Latents of frames -> a quarter as many -> latents of frames. Returns the mean loss of the last steps.

    The last fifth of the steps also decodes some of the frames to pixels.
    """
    spatial = load_spatial(out, sizes)
    groups = load_spatial_latents(out, seed)
    model = TemporalVAE(sizes)
    # Without noise at first: the decoder would learn to ignore a latent that is mostly noise.
    torch.nn.init.constant_(model.quant_conv.conv.bias[LATENT_CHANNELS:], FIRST_LOGVAR)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    training = Training(out, "temporal", model, optimizer, ema=0.998)
    training.resume()
    mean_loss = RunningMean(20)
    shares = np.array([len(group.scenes) for group in groups]) / sum(len(group.scenes) for group in groups)
    while training.step < steps:
        random = np.random.default_rng([seed, training.step, 1])
        group = groups[random.choice(len(groups), p=shares)]
        chosen = random.integers(len(group.scenes), size=batch)
        x = group.latents[torch.from_numpy(chosen)].float()
        mean, logvar = model.moments(x).chunk(2, dim=1)
        logvar = logvar.clamp(-30, 10)
        # At least so much noise: the flow's latents are never exact, and the decoder should forgive that.
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar).clamp(min=LATENT_NOISE)
        y = model.decode(z, CLIP_FRAMES)
        kl = divergence(mean, logvar)
        loss = latent_error(y, x) + KL_WEIGHT * kl
        if training.step >= 0.8 * steps:
            few = random.permutation(batch)[: batch // 4 + 1]
            kept = random.permutation(CLIP_FRAMES)[:3]
            video = to_unit(np.stack([render(group.scenes[chosen[i]], CLIP_FRAMES, *group.sides)[kept] for i in few]))
            decoded = y[few][:, :, kept].transpose(1, 2).flatten(0, 1)
            pixels = spatial.decode(decoded / SPATIAL_SCALE)
            loss = loss + reconstruction_error(pixels, video.flatten(0, 1))
        mean_loss.add(_step(training, optimizer, loss, steps, 1.5e-3))
        if training.step % 50 == 0:
            training.log(loss=mean_loss.value, latent_mse=F.mse_loss(y, x).item(), kl=kl.item())
        if training.step % 250 == 0 or training.step == steps:
            training.save()
    return mean_loss.value


def _step(training: Training, optimizer: torch.optim.Optimizer, loss: Tensor, steps: int, peak: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(training.step, steps, peak)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    training.ema.update()
    training.step += 1
    return loss.item()


def random_clips(seed: int, purpose: str, step: int, count: int) -> np.ndarray:
    """`count` clips (count, frames, side, side, 3), of one resolution, that this seed and step stand for."""
    random = np.random.default_rng([seed, step, sum(purpose.encode())])
    side = SIDES[step % len(SIDES)]
    scenes = [random_scene(random, int(random.integers(1, 3)), seen_combinations()) for _ in range(count)]
    return np.stack([render(scene, CLIP_FRAMES, side, side) for scene in scenes])


def reconstruction_error(y: Tensor, x: Tensor) -> Tensor:
    """Mean absolute error and ten times the mean square. (B, 3, H, W) each.

    What differs from a frame's median colour, the objects, counts more: a tenth of the pixels, and all that matters.
    """
    background = x.flatten(2).median(dim=2).values[:, :, None, None]
    objects = (x - background).abs().amax(dim=1, keepdim=True) > OBJECT_CONTRAST
    weight = 1 + OBJECT_WEIGHT * objects
    return (weight * ((y - x).abs() + 10 * (y - x).square())).mean()


def latent_error(y: Tensor, x: Tensor) -> Tensor:
    """Mean square of the error over the channel's variance; what differs from the clip's median counts more."""
    background = x.flatten(2).median(dim=2).values[:, :, None, None, None]
    spread = x.std(dim=(0, 2, 3, 4), keepdim=True)
    objects = ((x - background).abs() / spread).amax(dim=1, keepdim=True) > OBJECT_CONTRAST
    return ((1 + OBJECT_WEIGHT * objects) * ((y - x) / spread).square()).mean()


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence from the unit normal, per element."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=("spatial", "temporal", "both"), default="both")
    parser.add_argument("--spatial-steps", type=int, default=7000)
    parser.add_argument("--temporal-steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=16, help="frames of the spatial part, clips of the temporal one")
    parser.add_argument("--clips", type=int, default=20000, help="clips to encode, for the flow as well")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
