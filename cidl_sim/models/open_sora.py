"""The whole pipeline as stages of blocks: what the workload is measured from and the executor runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from cidl_sim.core.workload import joined_kind
from cidl_sim.models import stdit3, t5, vae
from cidl_sim.models.config import (
    HALVES,
    OpenSoraSizes,
    VideoSettings,
    cuts_of,
    spatial_chunks,
    temporal_chunks,
)
from cidl_sim.models.joined import Joined

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class BlockDefinition:
    """One block: how to build its module and what it is called with.

    `build` gives a module without weights when called under the meta device. `example` gives meta tensors
    of the shapes that the block meets in a run. `checkpoint` ("t5", "stdit" or "vae") and `published` say where
    its tensors are in the published checkpoints: the beginning of a name in the block, and what stands there
    instead. `rows`: the block is one table of so many rows, and a run reads only those that its input names
    (at most the second number). `like`: see `cidl_sim.core.workload.Block`.
    """

    name: str
    kind: str
    weights: str
    build: Callable[[], nn.Module]
    example: Callable[[], tuple[Tensor, ...]]
    checkpoint: str
    published: dict[str, str]
    rows: tuple[int, int] | None = None
    like: tuple[BlockDefinition, ...] = ()

    def loaded_bytes(self, weight_bytes: int) -> int:
        """What a run loads at most of a block that weighs `weight_bytes`."""
        if self.rows is None:
            return weight_bytes
        rows, at_most = self.rows
        return weight_bytes // rows * at_most

    def published_key(self, name: str) -> str:
        """The key in the published checkpoint of the tensor that the block calls `name`."""
        beginning = max((b for b in self.published if name.startswith(b)), key=len)
        return self.published[beginning] + name.removeprefix(beginning)


@dataclass(frozen=True)
class StageDefinition:
    """Ordered blocks, run `rounds` times."""

    name: str
    group: str
    rounds: int
    blocks: tuple[BlockDefinition, ...]


def stage_definitions(sizes: OpenSoraSizes, settings: VideoSettings, text_tokens: int) -> list[StageDefinition]:
    """The pipeline cut at the boundaries of `settings.partition`.

    "reference": those of the reference app. Text encoder: embedding, blocks, final norm. Denoiser: part 1, pairs,
    part 2, in a merged and a plain stage. Decoder: temporal and spatial parts, each with a stage for whole pieces
    and one for the rest. "fine": also a T5 block's attention and feed-forward, and a pair's spatial and temporal
    block, each on its own. Numbers (see `cuts_of`): so many neighbouring T5 blocks, pairs or parts are one block;
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


def _joined(blocks: Sequence[BlockDefinition], count: int) -> Iterator[BlockDefinition]:
    """The blocks, `count` neighbours as one."""
    for start in range(0, len(blocks), count):
        parts = tuple(blocks[start : start + count])
        if len(parts) == 1:
            yield parts[0]
            continue
        name = f"{parts[0].name}..{parts[-1].name}"
        yield replace(
            parts[0],
            name=name,
            kind=joined_kind([part.kind for part in parts]),
            weights=name,
            build=partial(Joined.of, [part.build for part in parts]),
            published={f"parts.{i}.{local}": key for i, p in enumerate(parts) for local, key in p.published.items()},
            like=parts,
        )


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _t5_blocks(sizes: OpenSoraSizes, settings: VideoSettings) -> tuple[BlockDefinition, ...]:
    tokens, dtype = sizes.text_encoder_tokens, TORCH_DTYPES[settings.dtype]
    suffix = f"{settings.dtype}.{tokens}"

    def hidden() -> tuple[Tensor, ...]:
        return (_meta(1, tokens, sizes.t5.d_model, dtype=dtype),)

    def ids() -> tuple[Tensor, ...]:
        return (_meta(1, tokens, dtype=torch.int64),)

    def first() -> tuple[Tensor, ...]:
        return (*hidden(), _meta(1, 1, 1, tokens, dtype=dtype))

    def later() -> tuple[Tensor, ...]:
        return (*first(), _meta(1, sizes.t5.heads, tokens, tokens, dtype=dtype))

    def define(
        name: str,
        kind: str,
        build: type[nn.Module],
        example: Callable[[], tuple[Tensor, ...]],
        published: dict[str, str],
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

    layers, cut = range(sizes.t5.layers), cuts_of(settings.partition)["text_encoder"]
    blocks = (half for i in layers for half in halves(i)) if cut == HALVES else _joined([whole(i) for i in layers], cut)
    rows = (sizes.t5.vocabulary, min(sizes.t5.vocabulary, tokens * settings.prompts))
    return (
        replace(define("t5.embedding", "t5.embedding", t5.T5Embedding, ids, {"": ""}), rows=rows),
        *blocks,
        define("t5.final_norm", "t5.final_norm", t5.T5FinalNorm, hidden, {"": "encoder."}),
    )


def _stdit_blocks(
    sizes: OpenSoraSizes, settings: VideoSettings, text_tokens: int, *, merged: bool
) -> tuple[BlockDefinition, ...]:
    dtype, geometry = TORCH_DTYPES[settings.dtype], stdit3.Geometry.of(settings)
    frames, patches = geometry.tokens
    hidden, captions = sizes.stdit.hidden, sizes.t5.d_model
    suffix = f"{settings.dtype}.{frames}x{patches}"

    def part1() -> tuple[Tensor, ...]:
        latent = _meta(1, sizes.stdit.in_channels, *geometry.latent, dtype=torch.float32)
        scalar = _meta(1, dtype=torch.float32)
        return latent, scalar, scalar, _meta(1, text_tokens, captions, dtype=dtype)

    def pair() -> tuple[Tensor, ...]:
        return (
            _meta(2, frames * patches, hidden, dtype=dtype),
            _meta(2, text_tokens, hidden, dtype=dtype),
            _meta(2, 6 * hidden, dtype=dtype),
            _meta(hidden // sizes.stdit.heads // 2, dtype=dtype),
        )

    def part2() -> tuple[Tensor, ...]:
        return _meta(2, frames * patches, hidden, dtype=dtype), _meta(2, hidden, dtype=dtype)

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
    ) -> BlockDefinition:
        return BlockDefinition(name, f"{kind}.{suffix}", name, build, example, "stdit", published)

    def singles(i: int) -> Iterator[BlockDefinition]:
        for half in ("spatial", "temporal"):
            build = partial(stdit3.STDiT3Single, sizes.stdit, geometry, temporal=half == "temporal", merged=merged)
            published = {"block.": f"{half}_blocks.{i}."}
            single = define(f"stdit.{i:02}.{half}", f"stdit.{half}{suffix_of_variant}", build, pair, published)
            yield replace(single, like=(whole(i),))

    def whole(i: int) -> BlockDefinition:
        published = {"spatial.": f"spatial_blocks.{i}.", "temporal.": f"temporal_blocks.{i}."}
        return define(f"stdit.{i:02}", f"stdit.pair{suffix_of_variant}", build_pair, pair, published)

    pairs, cut = range(sizes.stdit.depth), cuts_of(settings.partition)["denoiser"]
    blocks = (half for i in pairs for half in singles(i)) if cut == HALVES else _joined([whole(i) for i in pairs], cut)
    return (
        define("stdit.part1", "stdit.part1", build_part1, part1, {"": ""}),
        *blocks,
        define("stdit.part2", "stdit.part2", build_part2, part2, {"": ""}),
    )


def _temporal_blocks(sizes: OpenSoraSizes, settings: VideoSettings, latent_frames: int) -> tuple[BlockDefinition, ...]:
    _, height, width = settings.latent_shape
    example = _meta(1, vae.LATENT_CHANNELS, latent_frames, height, width, dtype=torch.float32)
    suffix = f"{settings.dtype}.{latent_frames}x{height}x{width}"
    return _chain(vae.temporal_parts(sizes.vae), example, suffix, settings)


def _spatial_blocks(sizes: OpenSoraSizes, settings: VideoSettings, frames: int) -> tuple[BlockDefinition, ...]:
    dtype = TORCH_DTYPES[settings.dtype]
    _, height, width = settings.latent_shape
    example = _meta(frames, vae.LATENT_CHANNELS, height, width, dtype=dtype)
    suffix = f"{settings.dtype}.{frames}x{height}x{width}"
    return _chain(vae.spatial_parts(sizes.vae), example, suffix, settings)


def _chain(parts: list[vae.Part], example: Tensor, suffix: str, settings: VideoSettings) -> tuple[BlockDefinition, ...]:
    """Blocks that feed each other one tensor; each example is what the part before it gives."""
    blocks = []
    for part in parts:
        inputs = example
        blocks.append(
            BlockDefinition(
                part.name,
                f"{part.name}.{suffix}",
                part.name,
                part.build,
                lambda inputs=inputs: (inputs,),  # type: ignore[misc]
                "vae",
                part.published,
            )
        )
        with torch.device("meta"):
            example = part.build().to(TORCH_DTYPES[settings.dtype])(example)
    return tuple(_joined(blocks, cuts_of(settings.partition)["decoder"]))


def state_bytes(sizes: OpenSoraSizes, settings: VideoSettings, group: str) -> int:
    """Bytes of what a run carries from block to block beside each block's own inputs and outputs.

    Text embedding and latents in fp32, the last drift (dynamic LPL), and in the decoder the decoded latents
    and the frames as 8-bit RGB.
    """
    frames, height, width = settings.latent_shape
    text = sizes.text_encoder_tokens * sizes.t5.d_model * 4
    latent = sizes.stdit.in_channels * frames * height * width * 4
    conditioning = (2 * sizes.stdit.max_text_tokens + 2 * 7) * sizes.stdit.hidden * 4
    video = settings.frames * settings.height * settings.width * 3
    decoded = settings.frames * height * width * vae.LATENT_CHANNELS * 4
    return {"text_encoder": text, "denoiser": text + 3 * latent + conditioning, "decoder": latent + decoded + video}[
        group
    ]
