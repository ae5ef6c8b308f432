"""Sparse matrices for the linear programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csc_array


class Rows:
    """A sparse matrix of so many `columns`, put together from its entries; entries of one place add up."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._entries: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []

    def add(self, rows: NDArray[np.int64], columns: NDArray[np.int64], values: float | NDArray[np.float64]) -> None:
        """Entries at (rows[k], columns[k])."""
        self._entries.append((rows, columns, np.broadcast_to(np.asarray(values, float), len(rows))))

    def matrix(self, rows: int) -> csc_array:
        """Of so many rows, column by column."""
        from scipy.sparse import coo_array

        nothing = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
        row, column, value = (np.concatenate(part) for part in zip(nothing, *self._entries, strict=True))
        return coo_array((value, (row, column)), shape=(rows, self._columns)).tocsc()
