"""A large image decoded in overlapping tiles, each faded into those above it and on its left (as diffusers' are)."""

from __future__ import annotations

import torch
from torch import Tensor

from cidl_sim.pipelines.stable_diffusion.settings import OVERLAP, Tile, grid


class TiledImage:
    """An image (H, W, 3) in 8-bit RGB that its tiles are put into, row by row.

    `side`: of a whole tile, in latents; `factor`: pixels a side for each latent. Of the decoded tiles the row before
    and the one that is being made are kept.
    """

    def __init__(self, tiles: list[Tile], side: int, factor: int) -> None:
        self._tiles, self._columns = tiles, grid(tiles)[1]
        self._kept = (side - side // OVERLAP) * factor
        self._blend = side // OVERLAP * factor
        bottom, right = max(tile.top + tile.height for tile in tiles), max(tile.left + tile.width for tile in tiles)
        self.pixels = torch.empty((bottom * factor, right * factor, 3), dtype=torch.uint8)
        self._above: list[Tensor] = []
        self._row: list[Tensor] = []

    def put(self, index: int, tile: Tensor) -> None:
        """The next tile, (1, 3, h, w) in about -1..1."""
        if len(self._tiles) == 1:
            self._write(0, 0, tile)
            return
        row, column = divmod(index, self._columns)
        if column == 0:
            self._above, self._row = self._row, []
        tile = tile.clone()
        if self._above:
            _fade(self._above[column], tile, self._blend, dim=2)
        if self._row:
            _fade(self._row[-1], tile, self._blend, dim=3)
        self._row.append(tile)
        self._write(row * self._kept, column * self._kept, tile[:, :, : self._kept, : self._kept])

    def _write(self, top: int, left: int, tile: Tensor) -> None:
        place = self.pixels[top : top + tile.shape[2], left : left + tile.shape[3]]
        place.copy_(as_rgb(tile))


def as_rgb(image: Tensor) -> Tensor:
    """(1, 3, h, w) in -1..1 -> (h, w, 3) in 8-bit RGB."""
    return ((image[0].float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)


def _fade(before: Tensor, tile: Tensor, extent: int, dim: int) -> None:
    """Let the beginning of `tile` come out of the end of `before`, in place."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    share = torch.arange(extent, dtype=tile.dtype) / extent
    share = share.view(-1, 1) if dim == 2 else share
    old = before.narrow(dim, before.shape[dim] - extent, extent)
    new = tile.narrow(dim, 0, extent)
    new.copy_(old * (1 - share) + new * share)
