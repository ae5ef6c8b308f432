"""Published checkpoints: folders of safetensors (or .bin) shards, read tensor by tensor."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cidl_sim.core.errors import InputError

SHOWN_KEYS = 5


class CheckpointError(InputError):
    """A checkpoint that is missing, unreadable, or not of the model it should be."""


class Checkpoint:
    """The tensors of one folder by key. Safetensors are read from disk one by one; .bin shards are mapped."""

    def __init__(self, folder: Path) -> None:
        """Look into every shard of `folder`; .bin files count only where there are no safetensors."""
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: not a folder with a checkpoint")
        self.folder = folder
        self._files: dict[str, Path] = {}
        self._mapped: tuple[Path, dict[str, Tensor]] | None = None
        shards = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
        if not shards:
            raise CheckpointError(f"{folder}: neither .safetensors nor .bin files in it")
        self.shapes: dict[str, tuple[int, ...]] = {}
        for shard in shards:
            for key, shape in self._contents(shard).items():
                if key in self._files:
                    raise CheckpointError(f"{shard}: {key!r} is also in {self._files[key].name}")
                self._files[key] = shard
                self.shapes[key] = shape

    def tensor(self, key: str) -> Tensor:
        """One tensor, as it is stored."""
        shard = self._files[key]
        if shard.suffix == ".safetensors":
            with safe_open(str(shard), framework="pt") as file:
                tensor: Tensor = file.get_tensor(key)
            return tensor
        return self._bin(shard)[key]

    def _contents(self, shard: Path) -> dict[str, tuple[int, ...]]:
        if shard.suffix == ".bin":
            return {key: tuple(tensor.shape) for key, tensor in self._bin(shard).items()}
        try:
            with safe_open(str(shard), framework="pt") as file:
                return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as problem:
            raise CheckpointError(f"{shard}: cannot be read ({problem})") from None

    def _bin(self, shard: Path) -> dict[str, Tensor]:
        """The tensors of a .bin shard, mapped; only the last shard stays open. Nothing in it is executed."""
        if self._mapped is None or self._mapped[0] != shard:
            try:
                loaded = torch.load(shard, map_location="cpu", weights_only=True, mmap=True)
            except (pickle.UnpicklingError, RuntimeError, OSError, ValueError) as problem:
                reason = str(problem).splitlines()[0]
                raise CheckpointError(f"{shard}: cannot be read as weights alone ({reason})") from None
            if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
                raise CheckpointError(f"{shard}: holds something else than tensors by key")
            self._mapped = (shard, loaded)
        return self._mapped[1]


def check_keys(
    checkpoint: Checkpoint, wanted: dict[str, tuple[int, ...]], unused: dict[str, tuple[int, ...]] | None = None
) -> None:
    """CheckpointError listing missing, extra and misshapen keys, unless the checkpoint is exactly the model.

    `unused` are keys that may be there and are not needed (the encoder half of the VAE, T5's tied embedding).
    """
    found, optional = checkpoint.shapes, unused or {}
    known = {**optional, **wanted}
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "not of this model": sorted(found.keys() - known.keys()),
        "of another shape": [
            f"{key} {list(found[key])} instead of {list(known[key])}"
            for key in sorted(found.keys() & known.keys())
            if found[key] != known[key]
        ],
    }
    lines = [f"{len(keys)} {what}: {_some(keys)}" for what, keys in problems.items() if keys]
    if lines:
        raise CheckpointError(f"{checkpoint.folder}: " + "; ".join(lines))


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN_KEYS]) + (f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else "")
