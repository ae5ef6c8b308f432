"""The whole pipeline as stages of blocks: what the workload is measured from and the executor runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from cidl_sim.blocks.cuts import HALVES, Dtype
from cidl_sim.blocks.definition import (
    TORCH_DTYPES,
    BlockDefinition,
    StageDefinition,
    joined_blocks,
    meta_tensor,
)
from cidl_sim.core.workload import widths
from cidl_sim.models import stdit3, t5, vae
from cidl_sim.models.autoencoder_kl import LATENT_CHANNELS
from cidl_sim.models.sizes import VAESizes, spatial_chunks, temporal_chunks
from cidl_sim.pipelines.open_sora.settings import GRAMMAR, OpenSoraSizes, VideoSettings


def stage_definitions(sizes: OpenSoraSizes, settings: VideoSettings, text_tokens: int) -> list[StageDefinition]:
    """The pipeline cut at the boundaries of `settings.partition`.

    "reference": those of the reference app. Text encoder: embedding, blocks, final norm. Denoiser: part 1, pairs,
    part 2, in a merged and a plain stage. Decoder: temporal and spatial parts, each with a stage for whole pieces
    and one for the rest. "fine": also a T5 block's attention and feed-forward, and a pair's spatial and temporal
    block, each on its own. Numbers (see `CutGrammar`): so many neighbouring T5 blocks, pairs or parts are one block;
    embedding and final norm, part 1 and part 2 stay as they are.
    `text_tokens` is the number of unpadded tokens that the denoiser attends to. With several prompts the stages of the
    later ones have the same blocks and names of their own.
    """
    once = _stages_of_one_prompt(sizes, settings, text_tokens)
    later = [replace(stage, name=f"prompt{p + 1}.{stage.name}") for p in range(1, settings.prompts) for stage in once]
    return once + later


def _stages_of_one_prompt(sizes: OpenSoraSizes, settings: VideoSettings, text_tokens: int) -> list[StageDefinition]:
    stages = [StageDefinition("text_encoder", "text_encoder", 1, _t5_blocks(sizes, settings))]
    merged = settings.merged_evaluations
    for name, rounds, is_merged in (
        ("denoiser.merged", merged, True),
        ("denoiser", settings.evaluations - merged, False),
    ):
        if rounds:
            blocks = _stdit_blocks(sizes, settings, text_tokens, merged=is_merged)
            stages.append(StageDefinition(name, "denoiser", rounds, blocks))
    for chunk in temporal_chunks(settings.frames):
        name = f"decoder.temporal.{chunk.frames}f"
        stages.append(
            StageDefinition(name, "decoder", chunk.rounds, _temporal_blocks(sizes, settings, chunk.latent_frames))
        )
    for chunk in spatial_chunks(settings.frames):
        name = f"decoder.spatial.{chunk.frames}f"
        stages.append(StageDefinition(name, "decoder", chunk.rounds, _spatial_blocks(sizes, settings, chunk.frames)))
    return stages


def _t5_blocks(sizes: OpenSoraSizes, settings: VideoSettings) -> tuple[BlockDefinition, ...]:
    tokens, dtype = sizes.text_encoder_tokens, TORCH_DTYPES[settings.dtype]
    width = sizes.t5
    table, layer, norm = (
        f"{settings.dtype}.{tokens}.{widths(*figures)}"
        for figures in (
            (width.vocabulary, width.d_model),
            (width.d_model, width.d_ff, width.heads, width.d_kv),
            (width.d_model,),
        )
    )

    def hidden() -> tuple[Tensor, ...]:
        return (meta_tensor(1, tokens, sizes.t5.d_model, dtype=dtype),)

    def ids() -> tuple[Tensor, ...]:
        return (meta_tensor(1, tokens, dtype=torch.int64),)

    def first() -> tuple[Tensor, ...]:
        return (*hidden(), meta_tensor(1, 1, 1, tokens, dtype=dtype))

    def later() -> tuple[Tensor, ...]:
        return (*first(), meta_tensor(1, sizes.t5.heads, tokens, tokens, dtype=dtype))

    def define(
        name: str,
        kind: str,
        build: type[nn.Module],
        example: Callable[[], tuple[Tensor, ...]],
        published: dict[str, str],
        suffix: str = layer,
    ) -> BlockDefinition:
        return BlockDefinition(name, f"{kind}.{suffix}", name, partial(build, sizes.t5), example, "t5", published)

    def halves(i: int) -> Iterator[BlockDefinition]:
        attention = (
            ("t5.first_attention", t5.T5FirstAttention, first)
            if i == 0
            else ("t5.attention", t5.T5LaterAttention, later)
        )
        for half, (kind, build, example), layer in (
            ("attention", attention, 0),
            ("feed_forward", ("t5.feed_forward", t5.T5FeedForward, hidden), 1),
        ):
            published = {"layer.": f"encoder.block.{i}.layer.{layer}."}
            # All feed-forwards are of one kind, so they have one stand-in.
            like = (whole(i if half == "attention" else 1),)
            yield replace(define(f"t5.{i:02}.{half}", kind, build, example, published), like=like)

    def whole(i: int) -> BlockDefinition:
        published = {"block.": f"encoder.block.{i}."}
        if i == 0:
            return define("t5.00", "t5.first_block", t5.T5FirstBlock, first, published)
        return define(f"t5.{i:02}", "t5.block", t5.T5LaterBlock, later, published)

    layers, cut = range(sizes.t5.layers), GRAMMAR.cuts_of(settings.partition)["text_encoder"]
    blocks = (
        (half for i in layers for half in halves(i))
        if cut == HALVES
        else joined_blocks([whole(i) for i in layers], cut)
    )
    rows = (sizes.t5.vocabulary, min(sizes.t5.vocabulary, tokens * settings.prompts))
    return (
        replace(define("t5.embedding", "t5.embedding", t5.T5Embedding, ids, {"": ""}, table), rows=rows),
        *blocks,
        define("t5.final_norm", "t5.final_norm", t5.T5FinalNorm, hidden, {"": "encoder."}, norm),
    )


def _stdit_blocks(
    sizes: OpenSoraSizes, settings: VideoSettings, text_tokens: int, *, merged: bool
) -> tuple[BlockDefinition, ...]:
    dtype, geometry = TORCH_DTYPES[settings.dtype], geometry_of(settings)
    frames, patches = geometry.tokens
    _, height, width = geometry.latent
    hidden, captions = sizes.stdit.hidden, sizes.t5.d_model
    # Arithmetic is counted at one number of text tokens, workspace at another.
    own = (hidden, sizes.stdit.heads, sizes.nominal_text_tokens, sizes.stdit.max_text_tokens)
    ends = (*own, sizes.stdit.in_channels, captions)

    def part1() -> tuple[Tensor, ...]:
        latent = meta_tensor(1, sizes.stdit.in_channels, *geometry.latent, dtype=torch.float32)
        scalar = meta_tensor(1, dtype=torch.float32)
        return latent, scalar, scalar, meta_tensor(1, text_tokens, captions, dtype=dtype)

    def pair() -> tuple[Tensor, ...]:
        return (
            meta_tensor(2, frames * patches, hidden, dtype=dtype),
            meta_tensor(2, text_tokens, hidden, dtype=dtype),
            meta_tensor(2, 6 * hidden, dtype=dtype),
            meta_tensor(hidden // sizes.stdit.heads // 2, dtype=dtype),
        )

    def part2() -> tuple[Tensor, ...]:
        return meta_tensor(2, frames * patches, hidden, dtype=dtype), meta_tensor(2, hidden, dtype=dtype)

    suffix_of_variant = ".merged" if merged else ""
    build_part1 = partial(stdit3.STDiT3Part1, sizes.stdit, captions, geometry)
    build_part2 = partial(stdit3.STDiT3Part2, sizes.stdit, geometry)
    build_pair = partial(stdit3.STDiT3Pair, sizes.stdit, geometry, merged=merged)

    def define(
        name: str,
        kind: str,
        build: Callable[[], nn.Module],
        example: Callable[[], tuple[Tensor, ...]],
        published: dict[str, str],
        figures: tuple[int, ...] = own,
    ) -> BlockDefinition:
        # Both ends know the latent too, where it is not all of the patches.
        cropped = f"of{height}x{width}" if figures is ends and (height % 2 or width % 2) else ""
        kind = f"{kind}.{settings.dtype}.{frames}x{patches}{cropped}.{widths(*figures)}"
        variant = "merged" if merged else ""
        return BlockDefinition(name, kind, name, build, example, "stdit", published, variant=variant)

    def singles(i: int) -> Iterator[BlockDefinition]:
        for half in ("spatial", "temporal"):
            build = partial(stdit3.STDiT3Single, sizes.stdit, geometry, temporal=half == "temporal", merged=merged)
            published = {"block.": f"{half}_blocks.{i}."}
            single = define(f"stdit.{i:02}.{half}", f"stdit.{half}{suffix_of_variant}", build, pair, published)
            yield replace(single, like=(whole(i),))

    def whole(i: int) -> BlockDefinition:
        published = {"spatial.": f"spatial_blocks.{i}.", "temporal.": f"temporal_blocks.{i}."}
        return define(f"stdit.{i:02}", f"stdit.pair{suffix_of_variant}", build_pair, pair, published)

    pairs, cut = range(sizes.stdit.depth), GRAMMAR.cuts_of(settings.partition)["denoiser"]
    blocks = (
        (half for i in pairs for half in singles(i)) if cut == HALVES else joined_blocks([whole(i) for i in pairs], cut)
    )
    return (
        define("stdit.part1", "stdit.part1", build_part1, part1, {"": ""}, ends),
        *blocks,
        define("stdit.part2", "stdit.part2", build_part2, part2, {"": ""}, ends),
    )


def geometry_of(settings: VideoSettings) -> stdit3.Geometry:
    """Latent shape and pixel area of a run."""
    return stdit3.Geometry(settings.latent_shape, settings.height * settings.width)


def _temporal_blocks(sizes: OpenSoraSizes, settings: VideoSettings, latent_frames: int) -> tuple[BlockDefinition, ...]:
    _, height, width = settings.latent_shape
    return _temporal_chain(sizes.vae, settings.dtype, settings.partition, (latent_frames, height, width))


def _spatial_blocks(sizes: OpenSoraSizes, settings: VideoSettings, frames: int) -> tuple[BlockDefinition, ...]:
    _, height, width = settings.latent_shape
    return _spatial_chain(sizes.vae, settings.dtype, settings.partition, (frames, height, width))


# Of all that a run is asked for these few things decide.


@cache
def _temporal_chain(
    sizes: VAESizes, dtype: Dtype, partition: str, shape: tuple[int, int, int]
) -> tuple[BlockDefinition, ...]:
    example = meta_tensor(1, LATENT_CHANNELS, *shape, dtype=torch.float32)
    own = widths(sizes.temporal_filters, *sizes.temporal_multipliers, sizes.temporal_res_blocks, sizes.groups)
    return _chain(vae.temporal_parts(sizes), example, f"{dtype}.{'x'.join(map(str, shape))}.{own}", dtype, partition)


@cache
def _spatial_chain(
    sizes: VAESizes, dtype: Dtype, partition: str, shape: tuple[int, int, int]
) -> tuple[BlockDefinition, ...]:
    frames, height, width = shape
    example = meta_tensor(frames, LATENT_CHANNELS, height, width, dtype=TORCH_DTYPES[dtype])
    own = widths(*sizes.spatial_channels, sizes.spatial_layers, sizes.groups)
    return _chain(vae.spatial_parts(sizes), example, f"{dtype}.{frames}x{height}x{width}.{own}", dtype, partition)


def _chain(
    parts: list[vae.Part], example: Tensor, suffix: str, dtype: Dtype, partition: str
) -> tuple[BlockDefinition, ...]:
    """Blocks that feed each other one tensor; each example is what the part before it gives, made when asked for."""
    blocks = []

    def given(part: vae.Part, inputs: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
        @cache
        def output() -> tuple[Tensor, ...]:
            with torch.device("meta"), torch.no_grad():
                return (part.build().to(TORCH_DTYPES[dtype])(*inputs()),)

        return output

    def inputs() -> tuple[Tensor, ...]:
        return (example,)

    for part in parts:
        kind = f"{part.name}.{suffix}"
        blocks.append(BlockDefinition(part.name, kind, part.name, part.build, inputs, "vae", part.published))
        inputs = given(part, inputs)
    return tuple(joined_blocks(blocks, GRAMMAR.cuts_of(partition)["decoder"]))


def state_bytes(sizes: OpenSoraSizes, settings: VideoSettings, group: str) -> int:
    """Bytes of what a run carries from block to block beside each block's own inputs and outputs.

    Text embedding and latents in fp32, the last drift (dynamic LPL), and in the decoder the decoded latents
    and the frames as 8-bit RGB.
    """
    frames, height, width = settings.latent_shape
    text = sizes.text_encoder_tokens * sizes.t5.d_model * 4
    latent = sizes.stdit.in_channels * frames * height * width * 4
    conditioning = (2 * sizes.stdit.max_text_tokens + 2 * 7) * sizes.stdit.hidden * 4
    video = math.prod(settings.video_shape) * 3
    decoded = settings.frames * height * width * LATENT_CHANNELS * 4
    return {"text_encoder": text, "denoiser": text + 3 * latent + conditioning, "decoder": latent + decoded + video}[
        group
    ]
