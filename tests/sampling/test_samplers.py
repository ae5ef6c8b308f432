"""Samplers against the schedulers of the diffusers library, over whole trajectories."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cidl_sim.sampling.names import SamplerName, evaluations_of
from cidl_sim.sampling.noise_levels import Prediction, scaled_linear
from cidl_sim.sampling.samplers import SAMPLERS, make_sampler

SHAPE = (1, 4, 8, 8)
DETERMINISTIC: list[SamplerName] = ["ddim", "pndm", "euler", "dpm"]


def library_scheduler(name: SamplerName, prediction: Prediction):
    diffusers = pytest.importorskip("diffusers")
    common = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": {"epsilon": "epsilon", "v": "v_prediction"}[prediction],
    }
    return {
        "ddim": lambda: diffusers.DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        "pndm": lambda: diffusers.PNDMScheduler(**common, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
        "euler": lambda: diffusers.EulerDiscreteScheduler(**common, timestep_spacing="leading", steps_offset=1),
        "dpm": lambda: diffusers.DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2),
        "lcm": lambda: diffusers.LCMScheduler(**common, set_alpha_to_one=False),
    }[name]()


def network(z: Tensor, t: float) -> Tensor:
    """Stands in for a UNet: smooth in the latent, of about its size, other at each step."""
    return 0.9 * torch.tanh(z) + 0.3 * math.sin(t / 90.0) * z.flip(-1)


def noise_of(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def by_the_library(name: SamplerName, steps: int, prediction: Prediction) -> tuple[list[float], list[Tensor]]:
    scheduler = library_scheduler(name, prediction)
    scheduler.set_timesteps(steps)
    z = noise_of(0) * float(scheduler.init_noise_sigma)
    generator, latents = torch.Generator().manual_seed(7), []
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(z, t), float(t))
        given = {"generator": generator} if name == "lcm" else {}
        z = scheduler.step(output, t, z, return_dict=False, **given)[0]
        latents.append(z)
    return [float(t) for t in scheduler.timesteps], latents


def ours(name: SamplerName, steps: int, prediction: Prediction) -> tuple[list[float], list[Tensor]]:
    sampler = make_sampler(name, steps, prediction)
    z = noise_of(0) * sampler.first_deviation
    generator, latents = torch.Generator().manual_seed(7), []
    for i, t in enumerate(sampler.times):
        output = network(sampler.asked(i, z), t)
        z = sampler.step(i, z, output, lambda: torch.randn(SHAPE, generator=generator))
        latents.append(z)
    return [float(t) for t in sampler.times], latents


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("name", [*DETERMINISTIC, "lcm"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 20, 50])
def test_a_trajectory_is_that_of_the_librarys_scheduler(name: SamplerName, steps: int, prediction: Prediction) -> None:
    times, latents = by_the_library(name, steps, prediction)
    own_times, own = ours(name, steps, prediction)
    assert own_times == times
    assert len(own_times) == evaluations_of(name, steps)
    for latent, expected in zip(own, latents, strict=True):
        # Of Euler's latents in units of the image's own the first are 15 times as large.
        torch.testing.assert_close(latent, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(expected.abs().max())))


def test_pndm_asks_51_times_for_50_steps_and_about_the_second_twice() -> None:
    times = make_sampler("pndm", 50, "epsilon").times
    assert len(times) == 51
    assert times[:4] == [981, 961, 961, 941]


def test_the_steps_of_ddim_are_stable_diffusions() -> None:
    assert make_sampler("ddim", 8, "epsilon").times == [876, 751, 626, 501, 376, 251, 126, 1]


def test_the_last_training_step_keeps_some_signal() -> None:
    levels = scaled_linear()
    assert levels[0].signal ** 2 == pytest.approx(0.99915, abs=1e-5)
    assert levels[999].signal ** 2 == pytest.approx(0.00466, abs=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_one_step_of_ufogen_is_the_clean_latent_of_the_librarys_last_step(prediction: Prediction) -> None:
    diffusers = pytest.importorskip("diffusers")
    kind = {"epsilon": "epsilon", "v": "v_prediction"}[prediction]
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=kind,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(1)
    output = network(noise_of(0), 999)
    expected = scheduler.step(output, 999, noise_of(0)).pred_original_sample
    (times, latents) = ours("ufogen", 1, prediction)
    assert times == [999]
    torch.testing.assert_close(latents[0], expected, rtol=1e-5, atol=1e-4)


def test_several_steps_of_ufogen_put_new_noise_on_the_clean_latent_as_the_library_does() -> None:
    diffusers = pytest.importorskip("diffusers")
    ddpm = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    sampler = make_sampler("ufogen", 4, "v")
    assert sampler.times == [999, 749, 499, 249]
    z, new = noise_of(0), noise_of(1)
    output = network(z, 999)
    image = scaled_linear()[999].image(z, output, "v")
    expected = ddpm.add_noise(image, new, torch.tensor([749]))
    torch.testing.assert_close(sampler.step(0, z, output, lambda: new), expected, rtol=1e-5, atol=1e-5)


@given(st.sampled_from(list(SAMPLERS)), st.integers(2, 12), st.data())
def test_a_run_that_is_saved_and_goes_on_ends_where_it_would_have(name: SamplerName, steps: int, data) -> None:
    times, latents = ours(name, steps, "epsilon")
    stop = data.draw(st.integers(0, len(times) - 2))
    first, second = (make_sampler(name, steps, "epsilon") for _ in range(2))
    z = noise_of(0) * first.first_deviation
    generator = torch.Generator().manual_seed(7)
    for i, t in enumerate(first.times):
        sampler = first if i <= stop else second
        z = sampler.step(i, z, network(sampler.asked(i, z), t), lambda: torch.randn(SHAPE, generator=generator))
        if i == stop:
            second.recall(first.memory())
    assert torch.equal(z, latents[-1])


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_image_and_noise_make_the_latent_again(prediction: Prediction) -> None:
    level, z, output = scaled_linear()[500], noise_of(2), noise_of(3)
    image, noise = level.image(z, output, prediction), level.noise_in(z, output, prediction)
    torch.testing.assert_close(level.noised(image, noise), z, rtol=1e-5, atol=1e-5)
