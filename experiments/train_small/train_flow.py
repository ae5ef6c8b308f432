"""Train text encoder and denoiser: `python experiments/train_small/train_flow.py --out FOLDER`, after train_vae.py.

The rectified flow from noise to the latents of the clips that train_vae.py encoded. Goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from checkpoints import RunningMean, Training, learning_rate
from data import Batch, Captions, Clips, batches, load_clips
from maps import CHANNELS
from network import TextToLatent, flow_loss
from tokenizer import train_tokenizer
from torch import Tensor, distributed

from cidl_sim.models.autoencoder_kl import LATENT_CHANNELS
from cidl_sim.pipelines.open_sora.settings import OPENSORA_SHAPES, OpenSoraSizes
from cidl_sim.quality.shapes import CLIP_FRAMES
from cidl_sim.sampling.rectified_flow import TIMESTEPS, time_ratio, transformed

DROPPED = 0.1  # captions replaced by the null text, for classifier-free guidance
PEAK = 1e-3
TEXT_STEPS, TEXT_PEAK = 1500, 3e-3
MAP_WEIGHT, WORD_WEIGHT = 0.5, 1.0  # of the easier targets beside the flow


_MOST_PROCESSES = 64


def main() -> None:
    args = _arguments()
    train_tokenizer(args.out / "tokenizer", args.seed)
    if args.processes == 1:
        _train(0, args, None)
    else:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(_train, (args, Path(folder) / "meeting"), args.processes)


def _train(rank: int, args: argparse.Namespace, meeting: Path | None) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    if meeting is not None:
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=args.processes)
    train_flow(args.out, args.steps, args.batch // args.processes, args.seed, rank=rank)


def latent_statistics(clips: list[Clips]) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean of each channel, (1, 4, 1, 1, 1): the VAE's buffers `scale` and `shift`."""
    everything = torch.cat([c.latents.transpose(0, 1).flatten(1) for c in clips], dim=1)
    shape = (1, LATENT_CHANNELS, 1, 1, 1)
    return everything.std(dim=1).view(shape), everything.mean(dim=1).view(shape)


def train_flow(
    out: Path, steps: int, batch: int, seed: int, sizes: OpenSoraSizes = OPENSORA_SHAPES, rank: int = 0
) -> float:
    """Noise -> latents, `batch` clips a step in each process. Returns the mean loss of the last steps."""
    clips = load_clips(out, seed, sizes.vae)
    scale, shift = latent_statistics(clips)
    model, tokens = TextToLatent(sizes), Captions(out / "tokenizer")
    if not (out / "flow.pt").is_file():
        train_text(model, batches(clips, tokens, batch, seed + 1), min(TEXT_STEPS, steps))
    optimizers = _optimizers(model, PEAK)
    training = Training(out, "flow", model, *optimizers, ema=0.999)
    training.resume()
    mean_loss, mean_map_loss, mean_word_loss = RunningMean(50), RunningMean(50), RunningMean(50)
    drawn = batches(clips, tokens, batch, seed, training.step, rank=rank)
    for one in itertools.islice(drawn, steps - training.step):
        torch.manual_seed((seed + training.step) * _MOST_PROCESSES + rank)
        dropped = torch.rand(batch) < DROPPED
        z = (one.latents - shift) / scale
        loss = flow_loss(model, one, z, random_times(batch, one.side), torch.randn_like(z), dropped).mean()
        map_loss = F.mse_loss(model.maps, one.maps) * CHANNELS
        word_loss = _word_loss(model.words, one)
        total = loss + MAP_WEIGHT * map_loss + WORD_WEIGHT * word_loss
        _step(model, total, optimizers, learning_rate(training.step, steps, PEAK))
        training.ema.update()
        training.step += 1
        mean_loss.add(loss.item())
        mean_map_loss.add(map_loss.item())
        mean_word_loss.add(word_loss.item())
        if rank == 0 and training.step % 50 == 0:
            training.log(loss=mean_loss.value, maps=mean_map_loss.value, words=mean_word_loss.value)
        if rank == 0 and (training.step % 250 == 0 or training.step == steps):
            training.save()
    return mean_loss.value


def train_text(model: TextToLatent, drawn: Iterator[Batch], steps: int) -> float:
    """The text encoder alone: at each word, what its phrase says. Seconds, where the flow needs hours to teach it.

    Every process that trains does the same, with the same result. Returns the last loss.
    """
    optimizers = _optimizers(model, TEXT_PEAK)
    loss = torch.zeros(())
    for step, one in enumerate(itertools.islice(drawn, steps)):
        loss = _word_loss(model.word_head(model.text_encoder(one.ids)), one)
        _step(model, loss, optimizers, learning_rate(step, steps, TEXT_PEAK), together=False)
        if (step + 1) % 250 == 0:
            print(f"text encoder: {step + 1} of {steps} steps, loss {loss.item():.4f}", flush=True)
    return loss.item()


def _word_loss(logits: Tensor, batch: Batch) -> Tensor:
    said = logits[:, : batch.words.shape[1]]  # the words after those are the same in every caption
    return F.binary_cross_entropy_with_logits(said, batch.words)


def _step(
    model: TextToLatent, loss: Tensor, optimizers: Sequence[torch.optim.Optimizer], lr: float, *, together: bool = True
) -> None:
    """One step of all optimizers, over all processes that train `together`."""
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if together:
        _average_gradients(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()


def _optimizers(model: TextToLatent, lr: float) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the rest.

    Muon orthogonalizes its updates: every direction of a matrix learns, not only those with the largest gradients.
    """
    matrices, others = [], []
    tables = ("scale_shift_table", "relative_attention_bias", "text_encoder.blocks.0.")
    for name, parameter in model.named_parameters():
        inside = "blocks." in name and not any(table in name for table in tables)
        (matrices if parameter.dim() == 2 and inside else others).append(parameter)
    return (
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.01),
    )


def _average_gradients(model: TextToLatent) -> None:
    """Over all processes that train together."""
    if not distributed.is_initialized():
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def random_times(count: int, side: int) -> Tensor:
    """Times in 0..1: a quarter even, a quarter as the sampler spaces them at this resolution, half of them noisy.

    What the text says is decided where there is most noise, and there the sampler has few steps.
    """
    u = torch.rand(count)
    spaced = transformed_times(u, time_ratio(side, side, CLIP_FRAMES))
    return torch.stack([u, spaced, (1 + u) / 2, (1 + u) / 2])[torch.arange(count) % 4, torch.arange(count)]


def transformed_times(u: Tensor, ratio: float) -> Tensor:
    """The sampler's timestep transform on times in 0..1."""
    return torch.tensor([transformed(x * TIMESTEPS, ratio) / TIMESTEPS for x in u.tolist()])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="that train together, one thread each")
    return parser.parse_args()


if __name__ == "__main__":
    main()
