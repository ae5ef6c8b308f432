"""Which bytes tensors cover: weights are told apart by the bytes that they lie in, not by their objects or storages.

Fused and flattened checkpoints, tables with a head that is a slice of them, weights tied by assigning `.data`: there
several tensors lie in one storage, beside each other or over each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
Geometry = tuple[int, int, tuple[int, ...], tuple[int, ...]]  # offset and item size in bytes, shape, strides


def storage_key(tensor: Tensor) -> int:
    """What tensors on one storage have in common, as long as it lives."""
    return int(tensor.untyped_storage()._cdata)


@dataclass(frozen=True)
class Piece:
    """Bytes that the same tensors cover, under the name of the first of these."""

    name: str
    size_bytes: int


class Coverage:
    """The pieces of some named tensors: each byte that they cover is in exactly one."""

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        by_storage: dict[int, dict[Geometry, str]] = defaultdict(dict)
        for name, tensor in tensors:
            by_storage[storage_key(tensor)].setdefault(_geometry(tensor), name)
        self._storages = {key: _Storage(found) for key, found in by_storage.items()}

    @property
    def pieces(self) -> list[Piece]:
        """All of them."""
        return [piece for storage in self._storages.values() for piece in storage.pieces]

    def of(self, tensor: Tensor) -> list[Piece] | None:
        """The pieces that `tensor` reaches into; None if it lies in another storage than all of the tensors."""
        storage = self._storages.get(storage_key(tensor))
        return None if storage is None else storage.of(_geometry(tensor))


class _Storage:
    """The pieces of one storage: what lies between two ends of runs belongs to the same tensors."""

    def __init__(self, names: dict[Geometry, str]) -> None:
        runs = {geometry: _runs(geometry) for geometry in names}
        self._edges: Ints = np.unique(np.concatenate([np.concatenate(pair) for pair in runs.values()]))
        # Who covers what lies between two edges is told by the sum of the coverers' random numbers.
        chance = np.random.default_rng(0)
        change = np.zeros(len(self._edges) + 1, np.uint64)
        for starts, ends in runs.values():
            token = chance.integers(1, 2**63, dtype=np.uint64)
            np.add.at(change, np.searchsorted(self._edges, starts), token)
            np.subtract.at(change, np.searchsorted(self._edges, ends), token)
        self._signature = np.cumsum(change, dtype=np.uint64)[: max(0, len(self._edges) - 1)]
        lengths: dict[int, int] = defaultdict(int)
        for between, length in zip(self._signature.tolist(), np.diff(self._edges).tolist(), strict=True):
            lengths[int(between)] += length
        lengths.pop(0, None)
        self._pieces: dict[int, Piece] = {}
        self._known: dict[Geometry, list[Piece]] = {}
        for geometry, name in names.items():
            own = self._between(runs[geometry])
            for number, covered_by in enumerate(own):
                label = name if len(own) == 1 else f"{name}#{number}"
                self._pieces.setdefault(covered_by, Piece(label, lengths[covered_by]))
        self.pieces = list(self._pieces.values())

    def of(self, geometry: Geometry) -> list[Piece]:
        if geometry not in self._known:
            found = self.pieces if len(self.pieces) < 2 else self._touched(geometry)
            self._known[geometry] = found
        return self._known[geometry]

    def _touched(self, geometry: Geometry) -> list[Piece]:
        return [self._pieces[s] for s in self._between(_runs(geometry)) if s in self._pieces]

    def _between(self, runs: tuple[Ints, Ints]) -> list[int]:
        """The signatures of all that runs reach into, in the order of their first bytes."""
        if not len(self._signature):
            return []
        first = np.clip(np.searchsorted(self._edges, runs[0], side="right") - 1, 0, None)
        last = np.searchsorted(self._edges, runs[1], side="left")
        change = np.zeros(len(self._signature) + 1, np.int64)
        np.add.at(change, np.minimum(first, len(self._signature)), 1)
        np.subtract.at(change, np.minimum(last, len(self._signature)), 1)
        return list(dict.fromkeys(self._signature[np.cumsum(change)[:-1] > 0].tolist()))


def _geometry(tensor: Tensor) -> Geometry:
    item = tensor.element_size()
    return int(tensor.storage_offset()) * item, item, tuple(tensor.shape), tuple(s * item for s in tensor.stride())


def _runs(geometry: Geometry) -> tuple[Ints, Ints]:
    """Where the runs of bytes without a gap begin and end, in order; what is covered twice is in one run."""
    offset, length, shape, strides = geometry
    if 0 in shape:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts: Ints = np.array([offset], np.int64)
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1):
        if stride <= length and len(starts) == 1:
            length += stride * (size - 1)
        else:
            starts = np.add.outer(stride * np.arange(size, dtype=np.int64), starts).ravel()
    starts = np.sort(starts)
    ends = np.maximum.accumulate(starts + length)
    begins = np.concatenate([[True], starts[1:] > ends[:-1]])
    return starts[begins], ends[np.append(np.flatnonzero(begins)[1:] - 1, len(ends) - 1)]
