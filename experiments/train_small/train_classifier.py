"""Train the classifier whose features the Fréchet distance takes: `train_classifier.py --out FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from checkpoints import RunningMean, Training, learning_rate

from cidl_sim.quality.frechet import ClipClassifier, as_clips, labels_of
from cidl_sim.quality.shapes import held_out_combinations, random_scene, render, seen_combinations

SIDES = (48, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train_classifier(args.out, args.steps, args.batch, args.seed)


def train_classifier(out: Path, steps: int, batch: int, seed: int) -> float:
    """Clips -> what they hold, all combinations alike. Returns the mean loss of the last steps."""
    model = ClipClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    training = Training(out, "classifier", model, optimizer, ema=0.99)
    training.resume()
    combinations, mean_loss = seen_combinations() | held_out_combinations(), RunningMean(20)
    while training.step < steps:
        random = np.random.default_rng([seed, training.step])
        side = SIDES[training.step % len(SIDES)]
        scenes = [random_scene(random, int(random.integers(1, 3)), combinations) for _ in range(batch)]
        videos = np.stack([render(scene, height=side, width=side) for scene in scenes])
        labels = torch.stack([labels_of(scene) for scene in scenes])
        logits = model(as_clips(videos))
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training.step, steps, 2e-3)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        training.ema.update()
        mean_loss.add(loss.item())
        training.step += 1
        if training.step % 50 == 0:
            right = ((logits > 0) == (labels > 0.5)).float().mean()
            training.log(loss=mean_loss.value, right=right.item())
        if training.step % 250 == 0 or training.step == steps:
            training.save()
    return mean_loss.value


if __name__ == "__main__":
    main()
