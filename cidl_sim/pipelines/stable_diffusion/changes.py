"""What SnapFusion and MobileDiffusion change in Stable Diffusion's UNet, each change by itself.

A change takes the sizes of a UNet and gives those of the changed one, so that any can be measured alone, in any order.
Levels are numbered from the latent's own resolution: of a 64x64 latent 0 is 64x64, 1 is 32x32, 2 is 16x16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from cidl_sim.models.unet_sizes import UNetLevel, UNetSizes

Change = Callable[[UNetSizes], UNetSizes]


# SnapFusion (arXiv 2306.00980)


def without_attention(sizes: UNetSizes, level: int = 0) -> UNetSizes:
    """No transformers at one resolution: at the highest they are slowest for what they give."""
    old = sizes.levels[level]
    return _with_level(sizes, level, down=("",) * len(old.down), up=("",) * len(old.up))


def moved_up(sizes: UNetSizes, to: int) -> UNetSizes:
    """As many transformer blocks as the highest resolution has on its way up, added to level `to`'s; it loses them.

    The paper's text adds them to Up-1 (level 2), the talk to Up-2 (level 1). Residual blocks share them evenly, the
    first ones get more.
    """
    count = sum(map(len, sizes.levels[0].up))
    target = sizes.levels[to]
    total = sum(map(len, target.up)) + count
    kind = next((layer[0] for layer in target.up if layer), "f")
    sizes = _with_level(sizes, to, up=_shared(kind, total, len(target.up)))
    return _with_level(sizes, 0, up=("",) * len(sizes.levels[0].up))


def with_residual_blocks(sizes: UNetSizes, level: int, down: int) -> UNetSizes:
    """`down` residual blocks on the way down at one level and one more on the way up, with the transformers there.

    The published table's numbers need it so: every residual block on the way up takes one skip.
    """
    old = sizes.levels[level]
    layers = {
        way: _shared(next((layer[0] for layer in old_layers if layer), "f"), sum(map(len, old_layers)), count)
        for way, old_layers, count in (("down", old.down, down), ("up", old.up, down + 1))
    }
    return _with_level(sizes, level, **layers)


def with_middle(sizes: UNetSizes, residual_blocks: int) -> UNetSizes:
    """So many residual blocks in the middle, the transformer after the first."""
    layers = sizes.middle[:residual_blocks] + ("",) * (residual_blocks - len(sizes.middle))
    return sizes.model_copy(update={"middle": layers})


# MobileDiffusion (arXiv 2311.16567)


def without_lowest_level(sizes: UNetSizes, channels: int) -> UNetSizes:
    """Three levels instead of four, the lowest of them so wide."""
    lowest = sizes.levels[-2].model_copy(update={"channels": channels, "heads": channels // 64})
    heads = [level.model_copy(update={"heads": level.channels // 64}) for level in sizes.levels[:-2]]
    return sizes.model_copy(update={"levels": (*heads, lowest)})


def more_in_the_middle(sizes: UNetSizes, down: int, middle: int, up: Sequence[int]) -> UNetSizes:
    """Transformer blocks where tokens are few: at the lowest level after its outermost one, and in the middle."""
    lowest = len(sizes.levels) - 1
    sizes = _with_level(sizes, lowest, down=("f" * (1 + down),), up=tuple("f" * count for count in up))
    return sizes.model_copy(update={"middle": ("f" * middle, *sizes.middle[1:])})


def fewer_residual_blocks(sizes: UNetSizes) -> UNetSizes:
    """One residual block on the way down and two on the way up at each level, with a transformer each where any was."""
    levels = tuple(level.model_copy(update={"down": level.down[:1], "up": level.up[:2]}) for level in sizes.levels)
    return sizes.model_copy(update={"levels": levels})


def without_middle(sizes: UNetSizes) -> UNetSizes:
    """No blocks between the way down and the way up."""
    return sizes.model_copy(update={"middle": ()})


def without_innermost(sizes: UNetSizes) -> UNetSizes:
    """Without the lowest level."""
    return sizes.model_copy(update={"levels": sizes.levels[:-1]})


def bk_sdm(sizes: UNetSizes, size: Literal["base", "small", "tiny"]) -> UNetSizes:
    """BK-SDM (arXiv 2305.15798), whose configurations are published: fewer blocks, no middle, no innermost level."""
    sizes = fewer_residual_blocks(sizes)
    sizes = sizes if size == "base" else without_middle(sizes)
    return without_innermost(sizes) if size == "tiny" else sizes


def cross_attention_only(sizes: UNetSizes, level: int) -> UNetSizes:
    """Self-attention decoupled from attention to the text: at this level only the latter stays."""
    old = sizes.levels[level]
    without = {way: tuple(layer.replace("f", "c") for layer in getattr(old, way)) for way in ("down", "up")}
    return _with_level(sizes, level, **without)


def outermost_without_self_attention(sizes: UNetSizes, level: int) -> UNetSizes:
    """The first transformer block on the way down at this level attends to the text alone."""
    first, *others = sizes.levels[level].down
    return _with_level(sizes, level, down=(first.replace("f", "c", 1), *others))


def shared_keys(sizes: UNetSizes) -> UNetSizes:
    """Keys serve as values: one projection less in every attention."""
    return sizes.model_copy(update={"shared_keys": True})


def trimmed_feed_forward(sizes: UNetSizes, factor: float = 6.0) -> UNetSizes:
    """The gated unit's projection is `factor` times as wide as its input, instead of 8 times."""
    return sizes.model_copy(update={"feed_forward": factor / 2})


def swish(sizes: UNetSizes) -> UNetSizes:
    """Swish instead of gelu in the gated unit: gelu's cube is unstable in 16 bits."""
    return sizes.model_copy(update={"gate": "swish"})


def relu_attention(sizes: UNetSizes) -> UNetSizes:
    """Relu instead of softmax over the scores."""
    return sizes.model_copy(update={"attention": "relu"})


def separable(sizes: UNetSizes, level: int) -> UNetSizes:
    """3x3 convolutions of residual blocks at this level become a depthwise and a pointwise one."""
    return _with_level(sizes, level, separable=True)


def without_projections(sizes: UNetSizes) -> UNetSizes:
    """No projections around a transformer's blocks."""
    return sizes.model_copy(update={"projection": "none"})


def with_latent(sizes: UNetSizes, channels: int) -> UNetSizes:
    """A latent of so many channels."""
    return sizes.model_copy(update={"latent_channels": channels})


# Each published change as it is made to Stable Diffusion v1.5's UNet by itself: what experiments measure alone.
PUBLISHED: dict[str, Change] = {
    "attention removed at 64x64": without_attention,
    "blocks of 64x64 moved to Up-2": lambda sizes: moved_up(sizes, 1),
    "blocks of 64x64 moved to Up-1": lambda sizes: moved_up(sizes, 2),
    "self-attention decoupled at 64x64": lambda sizes: cross_attention_only(sizes, 0),
    "self-attention decoupled at 64x64 and 32x32": lambda sizes: cross_attention_only(
        cross_attention_only(sizes, 0), 1
    ),
    "keys and values shared": shared_keys,
    "feed-forward trimmed": trimmed_feed_forward,
    "separable convolution below 64x64": lambda sizes: _all_levels(sizes, separable, range(1, len(sizes.levels))),
    "residual blocks pruned": fewer_residual_blocks,
    "middle removed": without_middle,
    "swish": swish,
    "relu attention": relu_attention,
}


def snapfusion(sizes: UNetSizes, *, up: int = 2, middle: int = 1) -> UNetSizes:
    """SnapFusion's table 3: cross-attention 0,2,2,1,6,3,0 and residual blocks 2,2,1,4,2,3,3 from Down-1 to Up-3.

    `up`: the level that gets the three more on the way up, 2 as in the paper's text, 1 as in the talk. `middle`:
    residual blocks there; the table's "4" leaves one, the text's 18 blocks ask for two.
    """
    sizes = without_attention(moved_up(sizes, up))
    sizes = with_residual_blocks(with_residual_blocks(sizes, 2, 1), 3, 1)
    return with_middle(sizes, middle)


def mobile_diffusion(sizes: UNetSizes, *, channels: int, down: int, middle: int, up: Sequence[int]) -> UNetSizes:
    """MobileDiffusion as far as it is published; the rest is a fit to its parameters and arithmetic.

    Of the changes that are described the trimmed feed-forward is left out: without it this comes to 392.6 M and 274.5 M
    of the published 386 M and 278 M, with it to 339.8 M and 240.7 M.
    """
    sizes = fewer_residual_blocks(without_lowest_level(with_latent(sizes, 8), channels))
    sizes = more_in_the_middle(without_attention(sizes), down, middle, up)
    # Of 32x32's two transformers on the way up the outer one goes.
    sizes = _with_level(sizes, 1, up=(*sizes.levels[1].up[:1], ""))
    sizes = outermost_without_self_attention(cross_attention_only(sizes, 1), 2)
    return separable(without_projections(relu_attention(swish(shared_keys(sizes)))), 2)


def _with_level(sizes: UNetSizes, level: int, **changes: Any) -> UNetSizes:
    changed = UNetLevel.model_validate({**sizes.levels[level].model_dump(), **changes})
    levels = (*sizes.levels[:level], changed, *sizes.levels[level + 1 :])
    return sizes.model_copy(update={"levels": levels})


def _all_levels(sizes: UNetSizes, change: Callable[[UNetSizes, int], UNetSizes], levels: range) -> UNetSizes:
    for level in levels:
        sizes = change(sizes, level)
    return sizes


def _shared(kind: str, total: int, layers: int) -> tuple[str, ...]:
    """`total` blocks over so many layers, the first ones with one more."""
    each, more = divmod(total, layers)
    return tuple(kind * (each + (i < more)) for i in range(layers))
