"""Published checkpoints: folders of safetensors (or .bin) shards, read tensor by tensor."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cidl_sim.blocks.finite import check_finite
from cidl_sim.pipelines.shards import (
    CheckpointError,
    check_whole,
    fingerprint,
    library_words,
    single_file,
    weight_files,
)

SHOWN_KEYS = 5


@dataclass(frozen=True)
class View:
    """Where a tensor lies under another name: all of it, or some of its rows; on its side, or with ones in its shape.

    `rows`: the first, and one past the last, as shares of all of them.
    """

    key: str
    rows: tuple[Fraction, Fraction] | None = None
    transposed: bool = False
    squeezed: bool = False

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """What a tensor of the stored shape is seen as."""
        if self.rows is not None and stored:
            first, end = (int(share * stored[0]) for share in self.rows)
            stored = (end - first, *stored[1:])
        if self.squeezed:
            stored = stored[:2]
        return stored[::-1] if self.transposed else stored

    def of(self, stored: Tensor) -> Tensor:
        """The stored tensor as it is seen."""
        if self.rows is not None:
            first, end = (int(share * stored.shape[0]) for share in self.rows)
            stored = stored[first:end]
        if self.squeezed:
            stored = stored.reshape(stored.shape[:2])
        return stored.t() if self.transposed else stored


class Checkpoint:
    """The tensors of one folder, or file, by key. Safetensors are read one by one; .bin shards are mapped."""

    def __init__(self, folder: Path, variant: str | None = None) -> None:
        """Look into every file of weights in `folder` (`weight_files`), or into the one file that it is."""
        self.folder = folder
        self._files: dict[str, Path] = {}
        self._mapped: tuple[Path, dict[str, Tensor]] | None = None
        self._views: dict[str, View] = {}
        shards = [single_file(folder)] if folder.is_file() else weight_files(folder, variant)
        # What the files are by now, so that an import that goes on later knows whether they are others.
        self.fingerprint = fingerprint(shards)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for shard in shards:
            check_whole(shard)
            for key, shape in self._contents(shard).items():
                if key in self._files:
                    raise CheckpointError(f"{shard}: {key!r} is also in {self._files[key].name}")
                self._files[key] = shard
                self.shapes[key] = shape

    def rename(self, other_names: Mapping[str, str]) -> None:
        """Let a tensor be known by its key where it lies under the other name alone: `other_names` by key."""
        for key, other in other_names.items():
            if key not in self._files and other in self._files:
                self._show(key, View(other))
                self.shapes.pop(other)

    def see(self, views: Mapping[str, View], prefixes: Sequence[str]) -> None:
        """Be one part of a file that holds several: what `views` find, and what else begins with `prefixes`."""
        used = {view.key for view in views.values()}
        mine = {key for key in self.shapes if key.startswith(tuple(prefixes)) and key not in used}
        stored = dict(self.shapes)
        self.shapes = {key: stored[key] for key in mine}
        for key, view in views.items():
            if view.key in stored:
                self._show(key, view, stored[view.key])

    def _show(self, key: str, view: View, stored: tuple[int, ...] | None = None) -> None:
        self._files[key] = self._files[view.key]
        self.shapes[key] = view.shape(stored or self.shapes[view.key])
        self._views[key] = view

    def tensor(self, key: str) -> Tensor:
        """One tensor, as it is stored. CheckpointError if it has values that are not finite."""
        view = self._views.get(key, View(key))
        tensor = view.of(self._read(view.key))
        check_finite(tensor, f"{self._files[key]}: {view.key!r}", CheckpointError)
        return tensor

    def _read(self, key: str) -> Tensor:
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
            raise CheckpointError(f"{shard}: cannot be read ({library_words(problem)})") from None

    def _bin(self, shard: Path) -> dict[str, Tensor]:
        """The tensors of a .bin shard, mapped; only the last shard stays open. Nothing in it is executed."""
        if self._mapped is None or self._mapped[0] != shard:
            try:
                loaded = torch.load(shard, map_location="cpu", weights_only=True, mmap=True)
            except (pickle.UnpicklingError, RuntimeError, OSError, ValueError) as problem:
                reason = library_words(problem)
                raise CheckpointError(f"{shard}: cannot be read as weights alone ({reason})") from None
            if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
                raise CheckpointError(f"{shard}: holds something else than tensors by key")
            self._mapped = (shard, loaded)
        return self._mapped[1]


class KeyMismatchError(CheckpointError):
    """The tensors of a checkpoint are not a model's; `count`: so many are missing, unknown or of another shape."""

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


def check_keys(
    checkpoint: Checkpoint, wanted: dict[str, tuple[int, ...]], unused: dict[str, tuple[int, ...]] | None = None
) -> None:
    """KeyMismatchError listing missing, extra and misshapen keys, unless the checkpoint is exactly the model.

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
        count = sum(map(len, problems.values()))
        raise KeyMismatchError(f"{checkpoint.folder}: " + "; ".join(lines), count)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN_KEYS]) + (f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else "")
