"""Values that are no finite numbers lead nowhere: a run says so at the step, or in the decoder, where it happens."""

from __future__ import annotations

import torch
from torch import Tensor

from cidl_sim.core.errors import InputError

_ADVICE = (
    "nothing can come of this run; look at the weights and at their dtype, or let it go on with --not-finite go-on"
)


class NotFiniteError(InputError):
    """A sampler's latent, or a decoder's pixels, have values that are not finite."""


def check_latent(latent: Tensor, step: int, steps: int) -> None:
    """NotFiniteError, which names the step (counted from 0) and says how many, if values are not finite."""
    if count := _not_finite(latent):
        raise NotFiniteError(
            f"step {step + 1} of {steps}: {count} of {latent.numel()} values of the latent are not finite, so {_ADVICE}"
        )


def check_pixels(pixels: Tensor) -> None:
    """NotFiniteError if a decoder gave values that are not finite: some overflow in 16 bits on a latent that is."""
    if count := _not_finite(pixels):
        raise NotFiniteError(f"decoder: {count} of {pixels.numel()} values are not finite, so {_ADVICE}")


def _not_finite(values: Tensor) -> int:
    is_finite = torch.isfinite(values)
    return 0 if bool(is_finite.all()) else int((~is_finite).sum())
