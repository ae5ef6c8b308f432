"""Values that are no finite numbers: found, counted and named where tensors come in or change their type."""

from __future__ import annotations

import torch
from torch import Tensor

from cidl_sim.core.errors import InputError


def check_finite(tensor: Tensor, named: str, error: type[InputError]) -> None:
    """`error`, which says how many, if a tensor has values that are not finite."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or _is_finite(tensor):
        return
    count = int((~torch.isfinite(tensor)).sum())
    raise error(f"{named} has {count} of {tensor.numel()} values that are not finite")


def converted(tensor: Tensor, dtype: torch.dtype, named: str, error: type[InputError]) -> Tensor:
    """A finite tensor in another type. `error`, which says how many and how large, if values become infinite."""
    result = tensor.to(dtype)
    if dtype == tensor.dtype or not tensor.is_floating_point() or tensor.numel() == 0 or _is_finite(result):
        return result
    count, largest = int((~torch.isfinite(result)).sum()), float(tensor.abs().max())
    raise error(
        f"{named} has {count} of {tensor.numel()} values beyond {str(dtype).removeprefix('torch.')}: up to "
        f"{largest:.3g}, at most {torch.finfo(dtype).max:.3g} fits; take another dtype"
    )


def _is_finite(tensor: Tensor) -> bool:
    # The extremes of what holds a NaN are NaN: nothing as large as the tensor is made.
    low, high = tensor.aminmax()
    return bool(torch.isfinite(low) & torch.isfinite(high))
