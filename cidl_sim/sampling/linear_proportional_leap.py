"""Linear Proportional Leap (LPL), On-device Sora section 3.1 (arXiv 2502.04363v2).

    z_k = z_n + v(P_(n+1), t_(n+1)) * t_(n+1)

The drift of a rectified flow becomes nearly constant; from some step on, one step of the whole remaining
length replaces all that are left. `n` is fixed (static), or found while running (dynamic).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class StoppingRule:
    """Leap once the similarity of successive drifts has failed `patience` times to improve by `tolerance`.

    Nothing is judged before step `minimum_steps` (steps count from 0).
    """

    minimum_steps: int
    tolerance: float
    patience: int


STOPPING_RULES = ("paper", "reference-python", "reference-app")


def stopping_rule(name: str, steps: int) -> StoppingRule:
    """The rule called `name` for a run of `steps` steps. KeyError for an unknown name.

    "paper": at least half of the steps, 1e-4; the paper prints no patience, 3 is ours. "reference-python":
    the values of the reference's Python source (14 steps, 1e-3, 3). "reference-app": those of its app, where the
    call is commented out (1e-4, patience 5; it names no minimum, half of the steps is taken).
    """
    half = (steps + 1) // 2
    return {
        "paper": StoppingRule(minimum_steps=half, tolerance=1e-4, patience=3),
        "reference-python": StoppingRule(minimum_steps=14, tolerance=1e-3, patience=3),
        "reference-app": StoppingRule(minimum_steps=half, tolerance=1e-4, patience=5),
    }[name]


def drift_similarity(drift: Tensor, previous: Tensor) -> float:
    """Cosine between the first frame's first channel of two drifts, along its rows, averaged.

    Both (1, C, T, H, W); the measure of the reference implementation.
    """
    return F.cosine_similarity(drift[0, 0, 0], previous[0, 0, 0], dim=1).mean().item()


class DynamicLeap:
    """Watches the drift and says at which step to leap."""

    def __init__(self, rule: StoppingRule) -> None:
        self._rule = rule
        self._previous: Tensor | None = None
        self._best = 0.0
        self._left = rule.patience

    def observe(self, step: int, drift: Tensor) -> tuple[float | None, bool]:
        """The similarity at this step (None at the first), and whether to leap now."""
        previous, self._previous = self._previous, drift
        if previous is None:
            return None, False
        similarity = drift_similarity(drift, previous)
        if step < self._rule.minimum_steps:
            return similarity, False
        if similarity > self._best + self._rule.tolerance:
            self._best, self._left = similarity, self._rule.patience
        else:
            self._left -= 1
        return similarity, self._left == 0

    def state(self) -> tuple[Tensor | None, float, int]:
        """What `restore` needs to go on from here: the last drift, the best similarity, the patience left."""
        return self._previous, self._best, self._left

    def restore(self, previous: Tensor | None, best: float, left: int) -> None:
        """Go on from a state."""
        self._previous, self._best, self._left = previous, best, left
