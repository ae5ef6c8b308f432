"""A run that was interrupted goes on: its state after each denoising step, in one small file.

The file holds what the program says that the rest of the run depends on; weights come from the store. It is
written beside its place and renamed, so a kill at any moment leaves the step before or this one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from cidl_sim.core.errors import InputError
from cidl_sim.core.files import replacing
from cidl_sim.core.plan import FIRST_PIPELINE

FORMAT = "cidl-run/1"
EARLIER = {"pipeline": FIRST_PIPELINE}  # what files leave out that are older than the entry
State = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, and values that JSON can hold


class SavedRunError(InputError):
    """A saved run that cannot be read, or that belongs to another job."""


def save_run(path: Path, identity: dict[str, Any], prompt: int, next_visit: int, state: State) -> None:
    """Write where a run is: at which prompt, before which visit. MachineError where the disk fails."""
    from safetensors.torch import save  # here, so that a worker without it can say so

    tensors, values = state
    about = {"identity": identity, "video": prompt, "next_visit": next_visit, "values": values}
    with replacing(path) as temporary:
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        temporary.write_bytes(save(contiguous, {"format": FORMAT, "run": json.dumps(about)}))


def read_run(
    path: Path, identity: dict[str, Any], earlier: Mapping[str, Collection[Any]] = MappingProxyType({})
) -> tuple[int, int, State]:
    """The prompt, the next visit and the state of a saved run. SavedRunError if it is of another job.

    `earlier`: by what else a part of the identity was known.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            raise SavedRunError(f"{path}: not a saved run ({FORMAT})")
        about = json.loads(metadata["run"])
        for name, ours in identity.items():
            theirs = about["identity"].get(name, EARLIER.get(name))
            if theirs != ours and theirs not in earlier.get(name, ()):
                raise SavedRunError(f"{path}: saved by another job: its {name} is {theirs!r}, here it is {ours!r}")
        return about["video"], about["next_visit"], (tensors, about["values"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as problem:
        raise SavedRunError(f"{path}: cannot be read ({problem})") from None
