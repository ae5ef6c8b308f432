"""Open-Sora's models by their sizes, and the settings of a run that decide which blocks run how often. No torch."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from cidl_sim.blocks.cuts import CutGrammar
from cidl_sim.models.sizes import (
    MICRO_FRAMES,
    SPACE_FACTOR,
    TIME_FACTOR,
    STDiT3Sizes,
    T5Sizes,
    VAESizes,
)
from cidl_sim.pipelines.pipeline import ModelSizes, RunSettings

FRAMES_PER_SECOND = 24
GRAMMAR = CutGrammar({"t": "text_encoder", "d": "denoiser", "v": "decoder"}, halved="td")
Partition = Annotated[str, AfterValidator(GRAMMAR.canonical)]


class OpenSoraSizes(ModelSizes):
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


class VideoSettings(RunSettings):
    """What a run is asked for; decides shapes and rounds, hence the workload.

    `partition`: the block boundaries, see `cidl_sim.pipelines.open_sora.stages`. `lpl`: "off"; a number n: leap at
    step n, so n + 1 evaluations; "dynamic": all steps are planned, the run may end the denoiser early. `tdtm`: merge
    tokens in the first `tdtm` steps. `prompts`: this many videos one after another. Of a height or width that is no
    multiple of 8 the video has what is: 240x426 gives 240x424, as in the reference.
    """

    height: int = Field(default=256, ge=16)
    width: int = Field(default=256, ge=16)
    frames: int = Field(default=68, ge=1)
    steps: int = Field(default=30, ge=1)
    lpl: str = "off"
    tdtm: int = Field(default=0, ge=0)
    partition: Partition = "reference"

    @model_validator(mode="after")
    def _is_possible(self) -> VideoSettings:
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
        return t, math.ceil(h / 2) * math.ceil(w / 2)

    @property
    def video_shape(self) -> tuple[int, int, int]:
        """Frames, height and width of what comes out."""
        _, h, w = self.latent_shape
        return self.frames, h * SPACE_FACTOR, w * SPACE_FACTOR
