"""Sizes of the networks, and how the video decoders cut a video into pieces. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, model_validator

MICRO_FRAMES = 17  # frames that the temporal decoder takes at a time (micro_frame_size)
MICRO_BATCH = 4  # frames that the spatial decoder takes at a time (micro_batch_size)
TIME_FACTOR = 4  # frames per latent frame
SPACE_FACTOR = 8  # pixels per latent pixel, in each direction


class NetworkSizes(BaseModel):
    """Frozen figures of one network; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class T5Sizes(NetworkSizes):
    """T5 v1.1 encoder: gated-GELU feed-forward, relative position bias in the first block."""

    layers: int = Field(default=24, ge=1)
    d_model: int = Field(default=4096, ge=1)
    d_ff: int = Field(default=10240, ge=1)
    heads: int = Field(default=64, ge=1)
    d_kv: int = Field(default=64, ge=1)
    vocabulary: int = Field(default=32128, ge=3)


class STDiT3Sizes(NetworkSizes):
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


class VAESizes(NetworkSizes):
    """Both decoders: temporal (causal 3-D convolutions) and spatial (SDXL-type AutoencoderKL)."""

    temporal_filters: int = Field(default=128, ge=1)
    temporal_multipliers: tuple[int, int, int, int] = (1, 2, 2, 4)
    temporal_res_blocks: int = Field(default=4, ge=1)
    spatial_channels: tuple[int, int, int, int] = (128, 256, 512, 512)
    spatial_layers: int = Field(default=2, ge=1)
    groups: int = Field(default=32, ge=1)


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
