"""Sizes of the networks, and the settings of a run that decide which blocks run how often. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Dtype = Literal["fp32", "bf16", "fp16"]

# The letters that name a group in a partition, and what stands for half blocks.
_GROUPS = {"t": "text_encoder", "d": "denoiser", "v": "decoder"}
_PARTITION = re.compile(r"(?:t(?P<t>fine|[1-9]\d?))?\.?(?:d(?P<d>fine|[1-9]\d?))?\.?(?:v(?P<v>[1-9]\d?))?")
HALVES = 0


def cuts_of(partition: str) -> dict[str, int]:
    """How many blocks of the reference app make one block, by group; `HALVES`: each makes two.

    "reference": 1 everywhere. "fine": halves in the text encoder and the denoiser. "t2.d4.v3", "tfine.d2", "d4": 2 in
    the text encoder, 4 in the denoiser, 3 in the decoder; what is not named is 1. ValueError for anything else.
    """
    named = {"reference": "t1.d1.v1", "fine": "tfine.dfine"}.get(partition, partition)
    match = _PARTITION.fullmatch(named)
    if match is None or ".".join(f"{k}{v}" for k, v in match.groupdict().items() if v) != named or not named:
        raise ValueError(f"{partition!r} is no partition: write reference, fine, or cuts by group such as t2.d4.v2")
    values = {group: match[letter] or "1" for letter, group in _GROUPS.items()}
    return {group: HALVES if value == "fine" else int(value) for group, value in values.items()}


def partition_name(cuts: Mapping[str, int]) -> str:
    """The one name of a partition; groups that are not given are cut as in the reference app."""
    parts = [
        letter + ("fine" if cuts[group] == HALVES else str(cuts[group]))
        for letter, group in _GROUPS.items()
        if cuts.get(group, 1) != 1
    ]
    name = ".".join(parts) or "reference"
    return "fine" if name == "tfine.dfine" else name


def canonical_partition(partition: str) -> str:
    """A partition by its one name. ValueError if it is none."""
    return partition_name(cuts_of(partition))


Partition = Annotated[str, AfterValidator(canonical_partition)]

LPL_RULES = ("paper", "reference-python", "reference-app")  # the stopping rules of dynamic LPL, by name
MICRO_FRAMES = 17  # frames that the temporal decoder takes at a time (Open-Sora v1.2: micro_frame_size)
MICRO_BATCH = 4  # frames that the spatial decoder takes at a time (Open-Sora v1.2: micro_batch_size)
TIME_FACTOR = 4  # frames per latent frame
SPACE_FACTOR = 8  # pixels per latent pixel, in each direction


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class T5Sizes(_Config):
    """T5 v1.1 encoder: gated-GELU feed-forward, relative position bias in the first block."""

    layers: int = Field(default=24, ge=1)
    d_model: int = Field(default=4096, ge=1)
    d_ff: int = Field(default=10240, ge=1)
    heads: int = Field(default=64, ge=1)
    d_kv: int = Field(default=64, ge=1)
    vocabulary: int = Field(default=32128, ge=3)


class STDiT3Sizes(_Config):
    """STDiT3: `depth` pairs of a spatial and a temporal block."""

    depth: int = Field(default=28, ge=1)
    hidden: int = Field(default=1152, ge=1)
    heads: int = Field(default=16, ge=1)
    in_channels: int = Field(default=4, ge=1)
    max_text_tokens: int = Field(default=300, ge=1)
    base_pixels: int = Field(default=512, ge=1)  # input_sq_size: the resolution that positions are scaled to

    @model_validator(mode="after")
    def _heads_divide(self) -> STDiT3Sizes:
        if self.hidden % (4 * self.heads):
            raise ValueError("hidden must be a multiple of 4 * heads (rotary pairs and 2-D positions)")
        return self


class VAESizes(_Config):
    """Both decoders: temporal (causal 3-D convolutions) and spatial (SDXL-type AutoencoderKL)."""

    temporal_filters: int = Field(default=128, ge=1)
    temporal_multipliers: tuple[int, int, int, int] = (1, 2, 2, 4)
    temporal_res_blocks: int = Field(default=4, ge=1)
    spatial_channels: tuple[int, int, int, int] = (128, 256, 512, 512)
    spatial_layers: int = Field(default=2, ge=1)
    groups: int = Field(default=32, ge=1)


class OpenSoraSizes(_Config):
    """The whole pipeline; the defaults are Open-Sora v1.2."""

    name: str = "opensora-v1.2"
    t5: T5Sizes = T5Sizes()
    stdit: STDiT3Sizes = STDiT3Sizes()
    vae: VAESizes = VAESizes()
    text_encoder_tokens: int = Field(default=300, ge=1)  # prompts are padded to this length
    nominal_text_tokens: int = Field(default=50, ge=1)  # unpadded tokens the named workloads count on
    guidance: float = Field(default=7.0, ge=0)  # classifier-free guidance that videos are sampled with


OPENSORA_V1_2 = OpenSoraSizes()

# The real architecture, small: 39 blocks, 699 MB in fp32, no block above 7 % of it.
OPENSORA_SMALL = OpenSoraSizes(
    name="opensora-small",
    t5=T5Sizes(layers=6, d_model=512, d_ff=1280, heads=8, d_kv=64, vocabulary=384),
    stdit=STDiT3Sizes(depth=14, hidden=576, heads=8, max_text_tokens=96),
    vae=VAESizes(
        temporal_filters=32, temporal_res_blocks=2, spatial_channels=(16, 32, 64, 64), spatial_layers=1, groups=8
    ),
    text_encoder_tokens=96,
    nominal_text_tokens=48,
)

# What the project trains itself, on clips of moving shapes (experiments/train_small).
OPENSORA_SHAPES = OpenSoraSizes(
    name="opensora-shapes",
    t5=T5Sizes(layers=3, d_model=128, d_ff=256, heads=4, d_kv=32, vocabulary=96),
    stdit=STDiT3Sizes(depth=8, hidden=96, heads=4, max_text_tokens=48),
    vae=VAESizes(
        temporal_filters=16, temporal_res_blocks=1, spatial_channels=(16, 32, 64, 64), spatial_layers=1, groups=8
    ),
    text_encoder_tokens=48,
    nominal_text_tokens=24,
    guidance=4.0,
)

# For tests: every part of the architecture, next to no weight.
OPENSORA_TINY = OpenSoraSizes(
    name="opensora-tiny",
    t5=T5Sizes(layers=2, d_model=32, d_ff=64, heads=2, d_kv=16, vocabulary=384),
    stdit=STDiT3Sizes(depth=3, hidden=48, heads=4, max_text_tokens=64),
    vae=VAESizes(
        temporal_filters=8, temporal_res_blocks=1, spatial_channels=(8, 8, 16, 16), spatial_layers=1, groups=4
    ),
    text_encoder_tokens=64,
    nominal_text_tokens=32,
)

SIZES = {sizes.name: sizes for sizes in (OPENSORA_V1_2, OPENSORA_SMALL, OPENSORA_SHAPES, OPENSORA_TINY)}


class VideoSettings(_Config):
    """What a run is asked for; decides shapes and rounds, hence the workload.

    `partition`: the block boundaries, see `cidl_sim.models.open_sora`. `lpl`: "off"; a number n: leap at step n,
    so n + 1 evaluations; "dynamic": all steps are planned, the run may end the denoiser early. `tdtm`: merge
    tokens in the first `tdtm` steps. `prompts`: so many videos one after another.
    """

    height: int = Field(default=256, ge=16)
    width: int = Field(default=256, ge=16)
    frames: int = Field(default=68, ge=1)
    steps: int = Field(default=30, ge=1)
    lpl: str = "off"
    tdtm: int = Field(default=0, ge=0)
    dtype: Dtype = "fp32"
    partition: Partition = "reference"
    prompts: int = Field(default=1, ge=1, le=100)

    @model_validator(mode="after")
    def _is_possible(self) -> VideoSettings:
        if self.height % 16 or self.width % 16:
            raise ValueError("height and width must be multiples of 16 (8 in the VAE, 2 in the patches)")
        if self.lpl not in ("off", "dynamic"):
            if not self.lpl.isdecimal() or self.lpl != str(int(self.lpl)):
                raise ValueError("lpl must be 'off', 'dynamic' or the number of the step to leap at")
            if int(self.lpl) >= self.steps:
                raise ValueError(f"lpl: cannot leap at step {self.lpl} of {self.steps} (steps count from 0)")
        if self.tdtm > self.steps:
            raise ValueError(f"tdtm: cannot merge in {self.tdtm} of {self.steps} steps")
        return self

    @property
    def evaluations(self) -> int:
        """Evaluations of the denoiser at the most."""
        return int(self.lpl) + 1 if self.lpl.isdigit() else self.steps

    @property
    def merged_evaluations(self) -> int:
        """How many of them run with merged tokens."""
        return min(self.tdtm, self.evaluations)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Latent frames, height and width."""
        full, rest = divmod(self.frames, MICRO_FRAMES)
        frames = full * math.ceil(MICRO_FRAMES / TIME_FACTOR) + math.ceil(rest / TIME_FACTOR)
        return frames, self.height // SPACE_FACTOR, self.width // SPACE_FACTOR

    @property
    def token_grid(self) -> tuple[int, int]:
        """Tokens of the denoiser: latent frames, patches per frame."""
        t, h, w = self.latent_shape
        return t, (h // 2) * (w // 2)


@dataclass(frozen=True)
class Chunk:
    """`rounds` pieces of `frames` frames each, and the latent frames of one piece."""

    frames: int
    latent_frames: int
    rounds: int


def temporal_chunks(frames: int) -> list[Chunk]:
    """How the temporal decoder cuts a video: pieces of 17 frames, then the rest."""
    full, rest = divmod(frames, MICRO_FRAMES)
    chunks = [Chunk(MICRO_FRAMES, math.ceil(MICRO_FRAMES / TIME_FACTOR), full)] if full else []
    return chunks + ([Chunk(rest, math.ceil(rest / TIME_FACTOR), 1)] if rest else [])


def spatial_chunks(frames: int) -> list[Chunk]:
    """How the spatial decoder cuts a video: pieces of 4 frames, then the rest."""
    full, rest = divmod(frames, MICRO_BATCH)
    chunks = [Chunk(MICRO_BATCH, MICRO_BATCH, full)] if full else []
    return chunks + ([Chunk(rest, rest, 1)] if rest else [])
