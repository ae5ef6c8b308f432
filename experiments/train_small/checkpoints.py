"""What training keeps on disk: written beside and renamed, so a killed run goes on from the last one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """A running mean of a module's parameters; the mean is what is used in the end."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module = module
        self.decay = decay
        self.mean = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        self._updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the present parameters; fast at first."""
        self._updates += 1
        decay = min(self.decay, self._updates / (self._updates + 10))
        for name, tensor in self._module.state_dict().items():
            self.mean[name].lerp_(tensor, 1 - decay) if tensor.is_floating_point() else self.mean[name].copy_(tensor)


class Training:
    """The state of a training run in `folder`: step, modules, optimizers, mean parameters, losses."""

    def __init__(
        self, folder: Path, name: str, module: nn.Module, *optimizers: torch.optim.Optimizer, ema: float
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{name}.pt"
        self._log = folder / f"{name}.log.jsonl"
        self._module, self._optimizers = module, optimizers
        self.ema = Ema(module, ema)
        self.step = 0
        self.seconds = 0.0
        self._began = time.monotonic()

    def resume(self) -> None:
        """Go on from the file, if there is one."""
        if not self.file.is_file():
            return
        state = torch.load(self.file, weights_only=True)
        self._module.load_state_dict(state["module"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.ema.mean, self.ema._updates = state["ema"], state["step"]
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write everything that `resume` reads."""
        now = time.monotonic()
        self.seconds, self._began = self.seconds + now - self._began, now
        state: dict[str, Any] = {
            "module": self._module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "ema": self.ema.mean,
            "step": self.step,
            "seconds": self.seconds,
        }
        beside = self.file.with_suffix(".part")
        torch.save(state, beside)
        beside.replace(self.file)

    def log(self, **values: float) -> None:
        """Append a line to the log and print it."""
        line = json.dumps({"step": self.step, **{k: round(v, 6) for k, v in values.items()}})
        print(line, flush=True)
        with self._log.open("a") as file:
            file.write(line + "\n")


class RunningMean:
    """The mean of about the last `window` values."""

    def __init__(self, window: int) -> None:
        self.value = 0.0
        self._window, self._count = window, 0

    def add(self, value: float) -> None:
        """Take in one more."""
        self._count += 1
        self.value += (value - self.value) / min(self._window, self._count)


def learning_rate(step: int, steps: int, peak: float, *, falling: float = 0.25) -> float:
    """Warm-up, then constant, then linearly to zero over the last part: a run can be made longer before that."""
    warm_up, start = min(200, 1 + steps // 10), int(steps * (1 - falling))
    fall = 1.0 if step < start else max(0.0, (steps - step) / max(1, steps - start))
    return peak * min(1.0, (step + 1) / warm_up) * fall


def mean_state(file: Path) -> dict[str, Tensor]:
    """The mean parameters in the file of a training run."""
    state: dict[str, Tensor] = torch.load(file, weights_only=True)["ema"]
    return state
