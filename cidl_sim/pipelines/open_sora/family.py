"""Open-Sora v1.2 as a family: text to video with T5, STDiT3 and a video VAE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cidl_sim.blocks.cuts import Dtype
from cidl_sim.pipelines.open_sora.pretrained import pretrained_folders
from cidl_sim.pipelines.open_sora.settings import (
    FRAMES_PER_SECOND,
    GRAMMAR,
    OPENSORA_SHAPES,
    OPENSORA_SMALL,
    OPENSORA_TINY,
    OPENSORA_V1_2,
    OpenSoraSizes,
    VideoSettings,
)
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

if TYPE_CHECKING:
    from torch import Tensor

    from cidl_sim.blocks.definition import StageDefinition


class VideoOptions(RunOptions):
    """`lpl_rule`: when dynamic LPL leaps, see `cidl_sim.sampling.linear_proportional_leap`.

    `not_finite`: what to do where values of the latent, or of the decoded frames, are not finite.
    """

    lpl_rule: Literal["paper", "reference-python", "reference-app"] = "paper"
    not_finite: Literal["stop", "go-on"] = "stop"

    def of_the_result(self) -> dict[str, Any]:
        """Where a run stops is no part of what it makes."""
        return self.model_dump(mode="json", exclude={"not_finite"})


class OpenSora(Pipeline):
    """Text encoder, denoiser in merged and plain stages, temporal and spatial decoder."""

    name = "open_sora"
    sizes_type = OpenSoraSizes
    settings_type = VideoSettings
    options_type = VideoOptions
    models = {sizes.name: sizes for sizes in (OPENSORA_V1_2, OPENSORA_SMALL, OPENSORA_SHAPES, OPENSORA_TINY)}
    defaults = {
        "opensora-v1.2": VideoSettings(),
        "opensora-small": VideoSettings(height=64, width=64, frames=17),
        "opensora-shapes": VideoSettings(height=48, width=48, frames=17),
        "opensora-tiny": VideoSettings(height=32, width=32, frames=17, steps=6),
    }
    words = {
        "full": "opensora-v1.2",
        "small": "opensora-small",
        "tiny": "opensora-tiny",
        "shapes": "opensora-shapes",
    }
    shipped = (
        "opensora-v1.2-256x256-68f",
        "opensora-v1.2-256x256-68f-lpl15",
        "opensora-v1.2-256x256-68f-lpl15-tdtm10",
        "opensora-v1.2-256x256-68f-50s",
        "opensora-v1.2-256x256-68f-bf16",
        "opensora-v1.2-192x192-68f",
        "opensora-v1.2-192x192-68f-lpl15",
        "opensora-v1.2-192x192-17f",
        "opensora-small",
        "opensora-small-48x48-lpl15-tdtm8",
    )
    data = Path(__file__).parent / "data"
    grammar = GRAMMAR
    # LPL and TDTM appear in a name when they are on.
    name_parts = (
        NamePart(r"(?P<height>\d+)x(?P<width>\d+)", "{0.height}x{0.width}"),
        NamePart(r"(?P<frames>\d+)f", "{0.frames}f"),
        NamePart(r"(?P<steps>\d+)s", "{0.steps}s"),
        dtype_part(),
        partition_part(GRAMMAR),
        NamePart(r"lpl(?P<lpl>off|dynamic|\d+)", lambda s: "" if s.lpl == "off" else f"lpl{s.lpl}"),
        NamePart(r"tdtm(?P<tdtm>\d+)", lambda s: f"tdtm{s.tdtm}" if s.tdtm else ""),
        prompts_part(),
    )
    example = "256x256-68f-30s-fp32-lpl15-tdtm10"
    axes = {
        "resolution": ("height", "width"),
        "frames": ("frames",),
        "steps": ("steps",),
        "dtype": ("dtype",),
        "lpl": ("lpl",),
        "tdtm": ("tdtm",),
        "partition": ("partition",),
    }
    columns = {
        "height": "int32",
        "width": "int32",
        "frames": "int32",
        "steps": "int32",
        "dtype": "string",
        "partition": "string",
        "lpl": "string",
        "tdtm": "int32",
    }
    parts = {
        "t5": "Folder of DeepFloyd/t5-v1_1-xxl.",
        "stdit": "Folder of hpcai-tech/OpenSora-STDiT-v3.",
        "vae": "Folder of hpcai-tech/OpenSora-VAE-v1.2.",
    }
    output = "video"
    suffixes = (".mp4",)
    measuring = {"opensora-small": VideoSettings(height=48, width=48, frames=17, steps=30, lpl="15", tdtm=8)}

    def stages(self, sizes: OpenSoraSizes, settings: VideoSettings, length: Length) -> list[StageDefinition]:
        """See `stages.stage_definitions`."""
        from cidl_sim.pipelines.open_sora.stages import stage_definitions

        tokens = {"shortest": 1, "nominal": sizes.nominal_text_tokens, "longest": sizes.stdit.max_text_tokens}
        return stage_definitions(sizes, settings, tokens[length])

    def state_bytes(self, sizes: OpenSoraSizes, settings: VideoSettings, group: str) -> int:
        """See `stages.state_bytes`."""
        from cidl_sim.pipelines.open_sora.stages import state_bytes

        return state_bytes(sizes, settings, group)

    def smallest(self, dtype: Dtype, partition: str) -> VideoSettings:
        """One step of the smallest video that has every part of the decoder."""
        return VideoSettings(height=16, width=16, frames=17, steps=1, dtype=dtype, partition=partition)

    def covering(self, settings: VideoSettings) -> VideoSettings:
        """One step with merged tokens and one without: the number of steps makes no difference to a block."""
        return settings.model_copy(update={"steps": 2, "tdtm": 1, "lpl": "off", "prompts": 1})

    def calibrating(self, settings: VideoSettings, *, longer: bool = False) -> VideoSettings:
        """A few steps, half of them with merged tokens where `settings` merge any; `longer`: twice as many."""
        steps = CALIBRATION_STEPS * (2 if longer else 1)
        merged = steps // 2 if settings.tdtm else 0
        return settings.model_copy(update={"steps": steps, "lpl": "off", "tdtm": merged, "prompts": 1})

    def validating(self, settings: VideoSettings) -> list[VideoSettings]:
        """Other sizes, with and without LPL and TDTM, fewer steps.

        The smaller the video, the more a run is bound by the loader: of the smallest, reading weights is most.
        """
        small = max(16, settings.height - 16)
        variants: tuple[dict[str, Any], ...] = (
            {"height": 16, "width": 16, "frames": 4, "lpl": "15" if settings.steps > 15 else "off", "tdtm": 0},
            {},
            {"height": small, "width": small, "steps": min(settings.steps, 12), "lpl": "off", "tdtm": 4},
            {"height": small, "width": 16, "steps": min(settings.steps, 14), "lpl": "dynamic", "tdtm": 0},
        )
        return [_changed(settings, variant) for variant in variants]

    def quality(self, settings: VideoSettings) -> tuple[int, int]:
        """Evaluations of the denoiser, and how many of them run with merged tokens."""
        return settings.evaluations, settings.merged_evaluations

    def job(self, sizes: OpenSoraSizes, settings: VideoSettings) -> str:
        """Model, size and dtype."""
        return f"{sizes.name}, {settings.height}x{settings.width}, {settings.frames} frames, {settings.dtype}"

    def program(self, feed: Feed) -> PromptProgram:
        """One video in the making."""
        from cidl_sim.executor.store import TOKENIZER_FOLDER
        from cidl_sim.pipelines.open_sora.program import TextToVideo
        from cidl_sim.pipelines.open_sora.prompt import encode_prompt
        from cidl_sim.pipelines.prompts import check_tokens
        from cidl_sim.sampling.linear_proportional_leap import stopping_rule

        tokenizer = feed.folder / TOKENIZER_FOLDER
        own = tokenizer if tokenizer.is_dir() else None
        tokens = encode_prompt(feed.prompt, feed.sizes.text_encoder_tokens, own)
        check_tokens(tokens[0].reshape(-1).tolist(), feed.sizes.t5.vocabulary, own)
        return TextToVideo(
            feed.workload,
            feed.sizes,
            feed.settings,
            tokens,
            feed.seed,
            rule=stopping_rule(feed.options.lpl_rule, feed.settings.steps),
            device=feed.device,
            stops_where_not_finite=feed.options.not_finite == "stop",
        )

    def write(self, path: Path, result: Any) -> None:
        """Frames (F, H, W, 3) in 8-bit RGB as an mp4."""
        from cidl_sim.pipelines.outputs import write_video

        write_video(path, result, FRAMES_PER_SECOND)

    def write_pictures(self, folder: Path, result: Any) -> None:
        """Each frame as a PNG."""
        from cidl_sim.pipelines.outputs import write_frames

        write_frames(folder, result)

    def known_tensor(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """Rotary frequencies, and the latents' scale and shift."""
        from cidl_sim.pipelines.open_sora.initial import known_tensor

        return known_tensor(name, shape)

    def initial_scale(self, name: str, shape: tuple[int, ...]) -> float | None:
        """As the reference starts where one over the root of the inputs does not keep activations at their size."""
        from cidl_sim.pipelines.open_sora.initial import initial_scale

        return initial_scale(name, shape)

    def unused_keys(self, sizes: OpenSoraSizes, part: str) -> dict[str, tuple[int, ...]]:
        """The token embedding under its second name, and the encoder half of the VAE."""
        from cidl_sim.pipelines.open_sora.initial import unused_keys

        return unused_keys(sizes, part)

    def other_names(self, sizes: OpenSoraSizes, part: str) -> dict[str, str]:
        """T5's table of tokens has two names; some files hold one of them, some the other."""
        return {"shared.weight": "encoder.embed_tokens.weight"} if part == "t5" else {}

    def tokenizer_folder(self, parts: Mapping[str, Path]) -> Path:
        """Beside the text encoder's weights."""
        return parts["t5"]

    def trained(self, model: str) -> dict[str, Path] | None:
        """The small model that this project trained."""
        return pretrained_folders() if model == OPENSORA_SHAPES.name else None


# A shared machine is faster in the first seconds of work than later.
CALIBRATION_STEPS = 12


def _changed(settings: VideoSettings, values: Mapping[str, Any]) -> VideoSettings:
    """`settings` with some values replaced, the techniques cut to the steps that are left."""
    changed = {**settings.model_dump(), **values}
    steps = int(changed["steps"])
    changed["tdtm"] = min(int(changed["tdtm"]), steps)
    lpl = str(changed["lpl"])
    changed["lpl"] = "off" if lpl.isdigit() and int(lpl) >= steps else lpl
    return VideoSettings.model_validate(changed)


OPEN_SORA = OpenSora()
