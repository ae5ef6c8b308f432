"""Tiles cover the latent, and faded into each other they make the image."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from cidl_sim.pipelines.stable_diffusion.architectures import MODELS
from cidl_sim.pipelines.stable_diffusion.settings import ImageSettings, grid, tiles_of
from cidl_sim.pipelines.stable_diffusion.stages import state_bytes
from cidl_sim.pipelines.stable_diffusion.tiling import TiledImage, as_rgb

SIDES = st.integers(4, 16).map(lambda side: 4 * side)


@given(st.integers(8, 200), st.integers(8, 200), SIDES)
def test_tiles_cover_every_latent_row_by_row(height: int, width: int, side: int) -> None:
    tiles = tiles_of(height, width, side)
    covered = torch.zeros(height, width, dtype=torch.int32)
    for top, left, tall, wide in tiles:
        assert 0 < tall <= max(side, height if len(tiles) == 1 else 0)
        covered[top : top + tall, left : left + wide] += 1
    assert bool((covered > 0).all())
    rows, columns = grid(tiles)
    assert rows * columns == len(tiles)
    assert tiles == sorted(tiles)


@given(st.integers(8, 40), st.integers(8, 40), st.integers(4, 6).map(lambda side: 4 * side))
def test_tiles_of_one_image_make_it_again(height: int, width: int, side: int) -> None:
    generator = torch.Generator().manual_seed(height * 100 + width)
    image = torch.rand(1, 3, 2 * height, 2 * width, generator=generator) * 2 - 1
    tiles = tiles_of(height, width, side)
    made = TiledImage(tiles, side, 2)
    for i, (top, left, tall, wide) in enumerate(tiles):
        made.put(i, image[:, :, 2 * top : 2 * (top + tall), 2 * left : 2 * (left + wide)])
    assert int((made.pixels.int() - as_rgb(image).int()).abs().max()) <= 1


def test_without_tiles_there_is_one() -> None:
    assert tiles_of(64, 48, 0) == [(0, 0, 64, 48)] == tiles_of(64, 48, 64)


@given(st.integers(8, 60), st.integers(8, 60), st.integers(4, 6).map(lambda side: 4 * side))
def test_what_is_kept_of_decoded_tiles_is_what_the_plan_counts(height: int, width: int, side: int) -> None:
    settings = ImageSettings(height=64 * height, width=64 * width, tile=side)
    sizes = MODELS["sd-tiny"]
    tiles = settings.tiles(8)
    made = TiledImage(tiles, side, 1)
    most = 0
    for i, tile in enumerate(tiles[: 3 * grid(tiles)[1]]):
        made.put(i, torch.zeros(1, 3, *tile.shape))
        kept = [*made._above, *made._row]
        most = max(most, sum(pixels.numel() * 4 for pixels in kept))
    alone = settings.model_copy(update={"tile": 0})
    counted = state_bytes(sizes, settings, "decoder") - state_bytes(sizes, alone, "decoder")
    assert counted >= 64 * most
