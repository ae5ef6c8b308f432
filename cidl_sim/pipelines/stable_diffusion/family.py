"""Stable Diffusion and what came of it, SnapFusion and MobileDiffusion, as a family: text to image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cidl_sim.blocks.cuts import Dtype
from cidl_sim.core.errors import InputError
from cidl_sim.core.workload import Visit, Workload
from cidl_sim.pipelines.pipeline import (
    Feed,
    Length,
    NamePart,
    Pipeline,
    PromptProgram,
    RunOptions,
    dtype_part,
    partition_part,
    prompts_part,
)
from cidl_sim.pipelines.stable_diffusion.architectures import DEFAULTS, MODELS
from cidl_sim.pipelines.stable_diffusion.settings import GRAMMAR, SIZE_STEP, SMALLEST, ImageSettings, ImageSizes
from cidl_sim.sampling.names import SamplerName, evaluations_of, most_steps

if TYPE_CHECKING:
    from cidl_sim.blocks.definition import StageDefinition
    from cidl_sim.pipelines.checkpoint import View


class ImageOptions(RunOptions):
    """`guidance`: its scale, the model's own by default. `negative_prompt`: what the image is to be unlike.

    `sampler`: another than the plan's, if it asks the denoiser as often. `not_finite`: what to do where values of the
    latent, or of the decoded image, are not finite.
    """

    guidance: float | None = Field(default=None, ge=0, le=100)
    negative_prompt: str = ""
    sampler: SamplerName | None = None
    not_finite: Literal["stop", "go-on"] = "stop"

    def of_the_result(self) -> dict[str, Any]:
        """Where a run stops is no part of what it makes."""
        return self.model_dump(mode="json", exclude={"not_finite"})


class StableDiffusion(Pipeline):
    """Text encoders, denoiser, image decoder."""

    name = "stable_diffusion"
    sizes_type = ImageSizes
    settings_type = ImageSettings
    options_type = ImageOptions
    models = MODELS
    defaults = {**dict.fromkeys(MODELS, ImageSettings()), **DEFAULTS}
    shipped = (
        "sd-v1.5",
        "sd-v1.5-bf16",
        "sd-v1.5-20s",
        "sd-v2.1-base",
        "sd-v2.1",
        "sdxl",
        "sdxl-bf16",
        "snapfusion",
        "mobile-diffusion",
        "mobile-diffusion-lite",
    )
    data = Path(__file__).parent / "data"
    grammar = GRAMMAR
    # Sampler, guidance and tiles appear in a name where they are not the model's own.
    name_parts = (
        NamePart(r"(?P<height>\d+)x(?P<width>\d+)", "{0.height}x{0.width}"),
        NamePart(r"(?P<steps>\d+)s", "{0.steps}s"),
        NamePart(r"(?P<sampler>ddim|pndm|euler|dpm|lcm|ufogen)", "{0.sampler}"),
        dtype_part(),
        partition_part(GRAMMAR),
        NamePart(r"cfg(?P<guidance>batch|split|off)", lambda s: "" if s.guidance == "batch" else f"cfg{s.guidance}"),
        NamePart(r"tile(?P<tile>\d+)", lambda s: f"tile{s.tile}" if s.tile else ""),
        prompts_part(),
    )
    example = "512x512-50s-pndm-fp32-cfgsplit"
    axes = {
        "resolution": ("height", "width"),
        "steps": ("steps",),
        "sampler": ("sampler",),
        "dtype": ("dtype",),
        "guidance": ("guidance",),
        "tile": ("tile",),
        "partition": ("partition",),
    }
    columns = {
        "height": "int32",
        "width": "int32",
        "steps": "int32",
        "sampler": "string",
        "dtype": "string",
        "guidance": "string",
        "tile": "int32",
        "partition": "string",
    }
    parts = {
        "text_encoder": "Folder of the text encoder.",
        "text_encoder_2": "Folder of SDXL's second text encoder.",
        "unet": "Folder of the UNet.",
        "vae": "Folder of the image autoencoder.",
    }
    optional_parts = ("text_encoder_2",)

    def stages(self, sizes: ImageSizes, settings: ImageSettings, length: Length) -> list[StageDefinition]:
        """See `stages.stage_definitions`; a text is always filled up to the same length."""
        from cidl_sim.pipelines.stable_diffusion.stages import stage_definitions

        return stage_definitions(sizes, settings)

    def state_bytes(self, sizes: ImageSizes, settings: ImageSettings, group: str) -> int:
        """See `stages.state_bytes`."""
        from cidl_sim.pipelines.stable_diffusion.stages import state_bytes

        return state_bytes(sizes, settings, group)

    def smallest(self, dtype: Dtype, partition: str) -> ImageSettings:
        """One step of the smallest image."""
        return SMALLEST.model_copy(update={"dtype": dtype, "partition": partition})

    def covering(self, settings: ImageSettings) -> ImageSettings:
        """One step: their number makes no difference to a block."""
        return settings.model_copy(update={"steps": 1, "prompts": 1})

    def calibrating(self, settings: ImageSettings, *, longer: bool = False) -> ImageSettings:
        """A few steps; `longer`: twice as many."""
        steps = min(settings.steps, CALIBRATION_STEPS) * (2 if longer else 1)
        return settings.model_copy(update={"steps": min(steps, 50), "prompts": 1})

    def validating(self, settings: ImageSettings) -> list[ImageSettings]:
        """Half of the guidance at a time, none of it, a smaller image."""
        smaller = {"height": max(SIZE_STEP, settings.height // 2 // SIZE_STEP * SIZE_STEP)}
        variants: tuple[dict[str, Any], ...] = ({}, {"guidance": "split"}, {"guidance": "off"}, smaller)
        return [ImageSettings.model_validate({**settings.model_dump(), **variant}) for variant in variants]

    def quality(self, settings: ImageSettings) -> tuple[int, None]:
        """Evaluations of the denoiser."""
        return settings.evaluations, None

    def job(self, sizes: ImageSizes, settings: ImageSettings) -> str:
        """Model, size and dtype."""
        return f"{sizes.name}, {settings.height}x{settings.width}, {settings.dtype}"

    def check_options(self, settings: ImageSettings, options: ImageOptions) -> None:
        """A sampler that asks the denoiser more or less often than was planned is another workload's."""
        _sampled_with(settings, options.sampler)

    def program(self, feed: Feed) -> PromptProgram:
        """One image in the making."""
        from cidl_sim.executor.store import TOKENIZER_FOLDER
        from cidl_sim.pipelines.stable_diffusion.program import TextToImage
        from cidl_sim.pipelines.stable_diffusion.prompt import encode_texts

        sizes, options = feed.sizes, feed.options
        settings = _sampled_with(feed.settings, options.sampler)
        folder = feed.folder / TOKENIZER_FOLDER
        wanted: list[str | None] = [feed.prompt]
        if settings.halves == 2:
            wanted.append(None if not options.negative_prompt and sizes.unet.pooled else options.negative_prompt)
        return TextToImage(
            feed.workload,
            sizes,
            settings,
            encode_texts(wanted, sizes, folder if folder.is_dir() else None),
            feed.seed,
            guidance=sizes.guidance if options.guidance is None else options.guidance,
            device=feed.device,
            stops_where_not_finite=options.not_finite == "stop",
        )

    def write(self, path: Path, result: Any) -> None:
        """An image (H, W, 3) in 8-bit RGB as a PNG."""
        from cidl_sim.pipelines.outputs import write_image

        write_image(path, result)

    def ends_step(self, workload: Workload, visit: Visit) -> bool:
        """After the last block of the UNet, of both halves where these run one after another."""
        calls = 2 if workload.settings.get("guidance") == "split" else 1
        return super().ends_step(workload, visit) and visit.round % calls == calls - 1

    def other_names(self, sizes: ImageSizes, part: str) -> dict[str, str]:
        """See `published.other_names`."""
        from cidl_sim.pipelines.stable_diffusion.published import other_names

        return other_names(sizes, part)

    def unused_keys(self, sizes: ImageSizes, part: str) -> dict[str, tuple[int, ...]]:
        """See `published.unused_keys`."""
        from cidl_sim.pipelines.stable_diffusion.published import unused_keys

        return unused_keys(sizes, part)

    def in_single_file(self, sizes: ImageSizes, part: str) -> tuple[dict[str, View], tuple[str, ...]] | None:
        """See `published.in_single_file`."""
        from cidl_sim.pipelines.stable_diffusion.published import in_single_file

        return in_single_file(sizes, part)

    def tokenizer_folder(self, parts: Mapping[str, Path]) -> Path | None:
        """In a folder of its own beside the text encoder's; SDXL's second one has the same vocabulary."""
        folder = parts["text_encoder"]
        return None if folder.is_file() else folder.parent / "tokenizer"

    def told_apart(self, folder: Path, fitting: Sequence[ImageSizes]) -> ImageSizes:
        """The scheduler's file says what the network predicts; nothing tells v1.4 from v1.5."""
        try:
            scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8-sig"))
            kind = {"v_prediction": "v"}.get(scheduler.get("prediction_type", "epsilon"), "epsilon")
        except (OSError, ValueError, AttributeError, TypeError):
            return fitting[0]
        return next((sizes for sizes in fitting if sizes.prediction == kind), fitting[0])


CALIBRATION_STEPS = 4


def _sampled_with(settings: ImageSettings, sampler: SamplerName | None) -> ImageSettings:
    """The settings with another sampler. InputError if it asks the denoiser more or less often than was planned."""
    if sampler is None:
        return settings
    asked = evaluations_of(sampler, settings.steps)
    if asked != settings.evaluations or settings.steps > most_steps(sampler):
        raise InputError(
            f"--sampler {sampler}: it asks the denoiser {asked} times in {settings.steps} steps, the plan is for "
            f"{settings.evaluations}; plan for the workload ...-{settings.steps}s-{sampler}"
        )
    return settings.model_copy(update={"sampler": sampler})


STABLE_DIFFUSION = StableDiffusion()
