"""What a text-to-image model is made of, and the settings of a run that decide which blocks run how often. No torch."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from cidl_sim.blocks.cuts import CutGrammar
from cidl_sim.models.unet_sizes import CLIPSizes, ImageDecoderSizes, UNetSizes
from cidl_sim.pipelines.pipeline import ModelSizes, RunSettings
from cidl_sim.sampling.names import SamplerName, evaluations_of, most_steps

# The widest that a latent may be halved: three levels below the latent's own.
SIZE_STEP = 64
# Tiles overlap by a quarter of their side, as the diffusers library's do.
OVERLAP = 4

GRAMMAR = CutGrammar(
    {"t": "text_encoder", "d": "denoiser", "v": "decoder"},
    halved="d",
    chunked="tdv",
    names={"whole": "twhole.dwhole.vwhole", "chunks2": "twhole.dchunks2.vwhole"},
)
Partition = Annotated[str, AfterValidator(GRAMMAR.canonical)]


class ImageSizes(ModelSizes):
    """A text-to-image pipeline; the defaults are Stable Diffusion v1.5.

    `padding`: what a text is filled up with, its end or token 0. `text_encoder_2`: SDXL's second one, whose states are
    joined to the first one's. `guidance`: the scale that images are sampled with.
    """

    name: str = "sd-v1.5"
    text_encoder: CLIPSizes = CLIPSizes()
    text_encoder_2: CLIPSizes | None = None
    unet: UNetSizes = UNetSizes()
    decoder: ImageDecoderSizes = ImageDecoderSizes()
    prediction: Literal["epsilon", "v"] = "epsilon"
    padding: Literal["end", "zero"] = "end"
    guidance: float = Field(default=7.5, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> ImageSizes:
        second = self.text_encoder_2
        width = self.text_encoder.width + (second.width if second else 0)
        if width != self.unet.context:
            raise ValueError(f"the UNet takes texts of width {self.unet.context}, the text encoders give {width}")
        pooled = second.projected if second else 0
        if pooled != self.unet.pooled:
            raise ValueError(f"the UNet takes a pooled text of width {self.unet.pooled}, the encoders give {pooled}")
        if self.decoder.latent_channels != self.unet.latent_channels:
            raise ValueError("UNet and decoder have different latents")
        return self


class ImageSettings(RunSettings):
    """What a run is asked for; decides shapes and rounds, hence the workload.

    `guidance`: both halves of classifier-free guidance in one batch, one after another ("split": half the workspace,
    twice the loads), or none ("off"), as distilled models need none. `tile`: the decoder takes the latent in tiles of
    so many a side, 0 as a whole. `prompts`: so many images one after another.
    """

    height: int = Field(default=512, ge=SIZE_STEP, le=8192)
    width: int = Field(default=512, ge=SIZE_STEP, le=8192)
    steps: int = Field(default=50, ge=1, le=500)
    sampler: SamplerName = "pndm"
    guidance: Literal["batch", "split", "off"] = "batch"
    tile: int = Field(default=0, ge=0, le=1024)
    partition: Partition = "reference"

    @model_validator(mode="after")
    def _is_possible(self) -> ImageSettings:
        if self.height % SIZE_STEP or self.width % SIZE_STEP:
            raise ValueError(f"height and width must be multiples of {SIZE_STEP}")
        if self.steps > most_steps(self.sampler):
            raise ValueError(f"steps: the sampler {self.sampler} takes {most_steps(self.sampler)} at most")
        if self.tile and (self.tile < 16 or self.tile % OVERLAP):
            raise ValueError(f"tile: 0, or a multiple of {OVERLAP} from 16 on")
        return self

    @property
    def evaluations(self) -> int:
        """How often the sampler asks the denoiser."""
        return evaluations_of(self.sampler, self.steps)

    @property
    def halves(self) -> int:
        """Texts that the denoiser is asked about: the prompt, and with guidance what it is to be unlike."""
        return 1 if self.guidance == "off" else 2

    @property
    def batch(self) -> int:
        """Latents in one call of the denoiser."""
        return 2 if self.guidance == "batch" else 1

    def latent_size(self, factor: int) -> tuple[int, int]:
        """Height and width of the latent."""
        return self.height // factor, self.width // factor

    def tiles(self, factor: int) -> list[Tile]:
        """The tiles that the decoder takes, row by row; one for the whole latent where there are no tiles."""
        return tiles_of(*self.latent_size(factor), self.tile)


# One step of the smallest image: every set of weights occurs.
SMALLEST = ImageSettings(height=SIZE_STEP, width=SIZE_STEP, steps=1, sampler="ddim", guidance="off")


class Tile(NamedTuple):
    """A part of the latent."""

    top: int
    left: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


def tiles_of(height: int, width: int, side: int) -> list[Tile]:
    """Overlapping tiles of at most `side` a side, row by row; `side` 0: one tile."""
    if not side or side >= max(height, width):
        return [Tile(0, 0, height, width)]
    stride = side - side // OVERLAP
    return [
        Tile(top, left, min(side, height - top), min(side, width - left))
        for top in range(0, height, stride)
        for left in range(0, width, stride)
    ]


def grid(tiles: list[Tile]) -> tuple[int, int]:
    """Rows and columns of tiles."""
    return len({tile.top for tile in tiles}), len({tile.left for tile in tiles})
