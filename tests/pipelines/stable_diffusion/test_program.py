"""The whole pipeline, block by block, against the diffusers library's pipelines with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor

from cidl_sim.blocks.definition import BlockDefinition
from cidl_sim.core.workload import Visit, Workload
from cidl_sim.pipelines.catalog import measure_workload
from cidl_sim.pipelines.latents import NotFiniteError
from cidl_sim.pipelines.pipeline import Feed
from cidl_sim.pipelines.stable_diffusion.architectures import MODELS
from cidl_sim.pipelines.stable_diffusion.family import STABLE_DIFFUSION, ImageOptions
from cidl_sim.pipelines.stable_diffusion.program import TextToImage
from cidl_sim.pipelines.stable_diffusion.prompt import encode_text
from cidl_sim.pipelines.stable_diffusion.settings import ImageSettings, ImageSizes
from cidl_sim.pipelines.stable_diffusion.tiling import as_rgb
from cidl_sim.sampling.latents import initial_noise
from tests.pipelines.stable_diffusion.library import (
    library_autoencoder,
    library_text_encoder,
    library_unet,
    randomised,
)
from tests.pipelines.stable_diffusion.test_networks import text_keys

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": lambda: DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "pndm": lambda: PNDMScheduler(**NOISE, skip_prk_steps=True, steps_offset=1),
    "euler": lambda: EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
}
PROMPT, UNLIKE = "a red circle", "blue"
NOWHERE = Path("nowhere")


def settings_of(name: str, **values: Any) -> ImageSettings:
    return ImageSettings.model_validate({**STABLE_DIFFUSION.defaults[name].model_dump(), **values})


def library_networks(sizes: ImageSizes) -> dict[str, Any]:
    networks = {
        "text_encoder": library_text_encoder(sizes.text_encoder),
        "unet": library_unet(sizes.unet),
        "vae": library_autoencoder(sizes.decoder),
    }
    if sizes.text_encoder_2 is not None:
        networks["text_encoder_2"] = library_text_encoder(sizes.text_encoder_2)
    return {part: randomised(module, seed) for seed, (part, module) in enumerate(networks.items())}


class InMemory:
    """Every block of a model with its weights in memory."""

    def __init__(self, sizes: ImageSizes, settings: ImageSettings, networks: dict[str, Any]) -> None:
        self.sizes, self.settings = sizes, settings
        self.workload: Workload = measure_workload(sizes, settings)
        self._states = {
            part: text_keys(module) if part.startswith("text") else module.state_dict()
            for part, module in networks.items()
        }
        stages = STABLE_DIFFUSION.stages(sizes, settings, "nominal")
        self._blocks = {block.kind + block.weights: self._module(block) for s in stages for block in s.blocks}

    def _module(self, block: BlockDefinition) -> torch.nn.Module:
        module, weights = block.build().eval(), self._states[block.checkpoint]
        module.load_state_dict({name: weights[block.published_key(name)] for name in module.state_dict()})
        return module

    def program(self, seed: int = 5, **options: Any) -> TextToImage:
        feed = Feed(self.workload, self.sizes, self.settings, PROMPT, seed, ImageOptions(**options), folder=NOWHERE)
        program = STABLE_DIFFUSION.program(feed)
        assert isinstance(program, TextToImage)
        return program

    def run(self, program: TextToImage, start: int = 0, stop: int | None = None) -> list[Visit]:
        """Run visits up to and without `stop`; -> those that ran."""
        ran, ended = [], -1
        for visit in self.workload.visits[start:stop]:
            if visit.stage > ended:
                outcome = program.run(visit, self._blocks[visit.block.kind + visit.block.weights])
                ended = ended if outcome.end_stage is None else outcome.end_stage
                ran.append(visit)
        return ran


def encoded(sizes: ImageSizes, networks: dict[str, Any], text: str) -> tuple[Tensor, Tensor | None]:
    """States and pooled text of the library's encoders."""
    states, pooled = [], None
    for part, own, padding in (
        ("text_encoder", sizes.text_encoder, sizes.padding),
        ("text_encoder_2", sizes.text_encoder_2, "zero"),
    ):
        if own is not None:
            ids = encode_text(text, own, padding, None).ids
            result = networks[part](input_ids=ids, output_hidden_states=True)
            states.append(result.hidden_states[-2] if own.given == 2 else result.last_hidden_state)
            pooled = result.text_embeds if own.projected else None
    return torch.cat(states, dim=-1), pooled


def by_the_library(sizes: ImageSizes, settings: ImageSettings, networks: dict[str, Any], unlike: str) -> Tensor:
    scheduler = SCHEDULERS[settings.sampler]()
    height, width = settings.latent_size(8)
    latents = initial_noise((1, 4, height, width), 5)
    common = {
        "height": settings.height,
        "width": settings.width,
        "num_inference_steps": settings.steps,
        "guidance_scale": sizes.guidance,
        "latents": latents,
        "output_type": "pt",
    }
    with torch.no_grad():
        text, pooled = encoded(sizes, networks, PROMPT)
        none, pooled_none = encoded(sizes, networks, unlike)
        embeds = {"prompt_embeds": text, "negative_prompt_embeds": none}
        others = {"unet": networks["unet"], "vae": networks["vae"], "scheduler": scheduler, "feature_extractor": None}
        encoders = {"text_encoder": networks["text_encoder"], "tokenizer": None}
        if sizes.text_encoder_2 is None:
            pipe = StableDiffusionPipeline(**encoders, **others, safety_checker=None, requires_safety_checker=False)
        else:
            if not unlike:
                embeds["negative_prompt_embeds"], pooled_none = torch.zeros_like(text), torch.zeros_like(pooled)
            encoders |= {"text_encoder_2": networks["text_encoder_2"], "tokenizer_2": None}
            embeds |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": pooled_none}
            pipe = StableDiffusionXLPipeline(**encoders, **others, add_watermarker=False)
        pipe.set_progress_bar_config(disable=True)
        if settings.tile:
            pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = settings.tile, 8 * settings.tile
            pipe.vae.enable_tiling()
        image = pipe(**common, **embeds).images
    return as_rgb(image * 2 - 1)


@pytest.mark.parametrize(
    ("name", "unlike", "values"),
    [
        ("sd-tiny", UNLIKE, {"sampler": "pndm", "steps": 5}),
        ("sd-tiny", "", {"sampler": "ddim"}),
        ("sd-tiny", UNLIKE, {"sampler": "euler", "guidance": "split", "partition": "fine"}),
        ("sdxl-tiny", "", {"partition": "whole"}),
        ("sdxl-tiny", UNLIKE, {"guidance": "split"}),
        ("sd-tiny", UNLIKE, {"height": 256, "width": 128, "steps": 1, "tile": 16, "partition": "chunks2"}),
    ],
)
def test_an_image_is_that_of_the_librarys_pipeline(name: str, unlike: str, values: dict[str, Any]) -> None:
    sizes, settings = MODELS[name], settings_of(name, **values)
    networks = library_networks(sizes)
    model = InMemory(sizes, settings, networks)
    program = model.program(negative_prompt=unlike)
    model.run(program)
    image, expected = program.result(), by_the_library(sizes, settings, networks, unlike)
    assert image.shape == (settings.height, settings.width, 3)
    # Rounded to 8 bits, a value at a half may go either way.
    assert int((image.int() - expected.int()).abs().max()) <= 1
    assert image.float().std() > 5
    assert program.evaluations == settings.evaluations


def test_half_of_the_guidance_at_a_time_makes_the_same_image_with_twice_the_visits_and_less_workspace() -> None:
    sizes = MODELS["sd-tiny"]
    networks = library_networks(sizes)
    batch, split = (InMemory(sizes, settings_of("sd-tiny", guidance=g), networks) for g in ("batch", "split"))
    images = []
    for model in (batch, split):
        program = model.program(negative_prompt=UNLIKE)
        model.run(program)
        images.append(program.result().int())
    assert int((images[0] - images[1]).abs().max()) <= 1
    (one,), (two,) = ([s for s in m.workload.stages if s.group == "denoiser"] for m in (batch, split))
    assert two.rounds == 2 * one.rounds
    for full, half in zip(one.blocks, two.blocks, strict=True):
        assert half.workspace_bytes < full.workspace_bytes
        assert half.flops == pytest.approx(full.flops / 2, rel=0.02)


def test_nothing_that_is_saved_shares_memory_with_anything_else() -> None:
    sizes, settings = MODELS["sd-tiny"], settings_of("sd-tiny", sampler="dpm")
    model = InMemory(sizes, settings, library_networks(sizes))
    program = model.program()
    model.run(program)
    places = [tensor.data_ptr() for tensor in program.state()[0].values()]
    assert len(places) == len(set(places))


@pytest.mark.parametrize("values", [{"sampler": "pndm", "steps": 5}, {"sampler": "lcm"}, {"guidance": "split"}])
@pytest.mark.parametrize("name", ["sd-tiny", "sdxl-tiny"])
def test_a_run_that_goes_on_between_two_steps_makes_the_same_image(name: str, values: dict[str, Any]) -> None:
    sizes, settings = MODELS[name], settings_of(name, **values)
    model = InMemory(sizes, settings, library_networks(sizes))
    whole = model.program()
    model.run(whole)
    steps = [v.number for v in model.workload.visits if STABLE_DIFFUSION.ends_step(model.workload, v)]
    assert len(steps) == settings.evaluations
    for last in steps[:2]:
        first, second = model.program(), model.program()
        model.run(first, stop=last + 1)
        second.restore(first.state())
        model.run(second, start=last + 1)
        assert torch.equal(second.result(), whole.result())
        assert second.evaluations == settings.evaluations


def test_without_a_negative_prompt_sdxls_second_text_is_never_encoded() -> None:
    sizes, settings = MODELS["sdxl-tiny"], settings_of("sdxl-tiny", steps=1)
    model = InMemory(sizes, settings, library_networks(sizes))
    groups = [model.workload.stages[v.stage] for v in model.run(model.program())]
    encoded_visits = [stage for stage in groups if stage.group == "text_encoder"]
    blocks = sum(len(stage.blocks) for stage in model.workload.stages if stage.group == "text_encoder")
    assert len(encoded_visits) == blocks
    assert model.program(negative_prompt=UNLIKE).token_ids.numel() == 2 * model.program().token_ids.numel()


def test_other_guidance_and_other_seeds_make_other_images() -> None:
    sizes, settings = MODELS["sd-tiny"], settings_of("sd-tiny", steps=2)
    model = InMemory(sizes, settings, library_networks(sizes))
    images = []
    for options in ({}, {"guidance": 2.0}, {"negative_prompt": UNLIKE}, {"seed": 6}):
        program = model.program(**options)
        model.run(program)
        images.append(program.result())
    assert all(not torch.equal(images[0], other) for other in images[1:])


def test_a_latent_that_is_not_finite_ends_the_run_unless_it_is_to_go_on() -> None:
    sizes, settings = MODELS["sd-tiny"], settings_of("sd-tiny", steps=2)
    networks = library_networks(sizes)
    with torch.no_grad():
        networks["unet"].conv_out.bias.fill_(float("nan"))
    model = InMemory(sizes, settings, networks)
    with pytest.raises(NotFiniteError, match="step 1 of 2"):
        model.run(model.program())
    model.run(model.program(not_finite="go-on"))


def test_an_image_that_is_not_finite_is_never_written_as_if_it_were() -> None:
    sizes, settings = MODELS["sd-tiny"], settings_of("sd-tiny", steps=1)
    networks = library_networks(sizes)
    with torch.no_grad():
        networks["vae"].decoder.conv_out.bias[0] = float("inf")
    model = InMemory(sizes, settings, networks)
    with pytest.raises(NotFiniteError, match=r"decoder: 4096 of 12288 values"):
        model.run(model.program())
    model.run(model.program(not_finite="go-on"))
