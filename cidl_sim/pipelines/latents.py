"""A latent that holds values which are no finite numbers leads nowhere: a run says so at the step where it happens."""

from __future__ import annotations

import torch
from torch import Tensor

from cidl_sim.core.errors import InputError


class NotFiniteError(InputError):
    """A sampler's latent has values that are not finite."""


def check_latent(latent: Tensor, step: int, steps: int) -> None:
    """NotFiniteError, which names the step (counted from 0) and says how many, if values are not finite."""
    is_finite = torch.isfinite(latent)
    if bool(is_finite.all()):
        return
    count = int((~is_finite).sum())
    raise NotFiniteError(
        f"step {step + 1} of {steps}: {count} of {latent.numel()} values of the latent are not finite, so nothing can "
        "come of this run; look at the weights and at their dtype, or let it go on with --not-finite go-on"
    )
