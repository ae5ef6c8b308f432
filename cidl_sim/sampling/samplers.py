"""Samplers of latent diffusion models: from noise to a clean latent in a given number of evaluations of the network.

A sampler says at which training steps the network is asked (`times`, one an evaluation) and what a latent becomes with
each answer. What it remembers from evaluation to evaluation can be saved. Each gives what the diffusers library's
scheduler of the same name gives, to 1e-5 over a whole trajectory.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor

from cidl_sim.sampling.names import LCM_ORIGINAL_STEPS, TRAINING_STEPS, SamplerName
from cidl_sim.sampling.noise_levels import CLEAN, Level, Prediction, evenly, leading, scaled_linear

Noise = Callable[[], Tensor]

_LCM_DATA_DEVIATION = 0.5
_LCM_TIME_SCALE = 10.0


class Sampler(ABC):
    """Takes a latent through all evaluations; `levels` are those of the training steps."""

    def __init__(self, steps: int, prediction: Prediction, levels: tuple[Level, ...] | None = None) -> None:
        self._steps, self._prediction = steps, prediction
        self._levels = levels or scaled_linear()
        self.times = self._times()

    @abstractmethod
    def _times(self) -> list[int]:
        """The training step of each evaluation."""

    @property
    def first_deviation(self) -> float:
        """What normal noise is multiplied by to be the first latent."""
        return 1.0

    def asked(self, i: int, z: Tensor) -> Tensor:
        """What the network is given for latent `z` at evaluation `i`."""
        return z

    @abstractmethod
    def step(self, i: int, z: Tensor, output: Tensor, noise: Noise) -> Tensor:
        """The latent after evaluation `i`, whose answer was `output`. `noise` draws normal noise of z's shape."""

    def memory(self) -> dict[str, Tensor]:
        """What the next steps depend on beside the latent."""
        return {}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Be as when `memory` was taken."""
        return

    def _level(self, t: int) -> Level:
        """The level of a training step; of one before the first that of the first, as Stable Diffusion has it."""
        return self._levels[max(t, 0)]


class DDIM(Sampler):
    """Denoising diffusion implicit models without noise (arXiv 2010.02502)."""

    def _times(self) -> list[int]:
        return leading(self._steps)

    def step(self, i: int, z: Tensor, output: Tensor, noise: Noise) -> Tensor:
        """To where the clean latent and the noise that the network sees put the step before."""
        now = self._level(self.times[i])
        following = self._level(self.times[i] - TRAINING_STEPS // self._steps)
        image = now.image(z, output, self._prediction)
        return following.noised(image, now.noise_in(z, output, self._prediction))


class PNDM(Sampler):
    """Pseudo linear multistep: four answers make a direction; the first step is taken twice (arXiv 2202.09778)."""

    def __init__(self, steps: int, prediction: Prediction, levels: tuple[Level, ...] | None = None) -> None:
        super().__init__(steps, prediction, levels)
        self._answers: list[Tensor] = []
        self._before: Tensor | None = None

    def _times(self) -> list[int]:
        times = leading(self._steps)
        return [*times[:2], times[1], *times[2:]] if self._steps > 1 else times

    def step(self, i: int, z: Tensor, output: Tensor, noise: Noise) -> Tensor:
        """Along the mean of the last answers."""
        stride = TRAINING_STEPS // self._steps
        t, following = self.times[i], self.times[i] - stride
        if i == 1:
            # The second answer is about where the first step led: with both, that step is taken again.
            assert self._before is not None
            t, following = t + stride, t
            direction, z, self._before = (output + self._answers[-1]) / 2, self._before, None
        else:
            self._answers = [*self._answers[-3:], output]
            self._before = z if i == 0 else None
            direction = self._direction()
        now, then = self._level(t), self._level(following)
        e = now.noise_in(z, direction, self._prediction)
        kept, kept_then = now.signal**2, then.signal**2
        divisor = kept * then.noise + now.signal * now.noise * then.signal
        return (then.signal / now.signal) * z - (kept_then - kept) / divisor * e

    def _direction(self) -> Tensor:
        a = self._answers[::-1]
        if len(a) == 1:
            return a[0]
        if len(a) == 2:
            return (3 * a[0] - a[1]) / 2
        if len(a) == 3:
            return (23 * a[0] - 16 * a[1] + 5 * a[2]) / 12
        return (55 * a[0] - 59 * a[1] + 37 * a[2] - 9 * a[3]) / 24

    def memory(self) -> dict[str, Tensor]:
        """The last answers, and the latent before the first step until that is taken again."""
        memory = {f"answer{k}": answer for k, answer in enumerate(self._answers)}
        return memory if self._before is None else {**memory, "before": self._before}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Be as when `memory` was taken."""
        self._answers = [memory[f"answer{k}"] for k in range(len(memory)) if f"answer{k}" in memory]
        self._before = memory.get("before")


class Euler(Sampler):
    """Euler's method in units of the image's own (arXiv 2206.00364): latents are image + ratio * noise."""

    def _times(self) -> list[int]:
        return leading(self._steps)

    @property
    def first_deviation(self) -> float:
        """That of a latent of deviation 1 with so much noise."""
        return math.hypot(self._ratio(0), 1.0)

    def asked(self, i: int, z: Tensor) -> Tensor:
        """The latent at the size that the network was trained on."""
        return z / math.hypot(self._ratio(i), 1.0)

    def step(self, i: int, z: Tensor, output: Tensor, noise: Noise) -> Tensor:
        """Along the slope that the network sees, to the next ratio."""
        now = self._level(self.times[i])
        slope = now.noise_in(self.asked(i, z), output, self._prediction)
        return z + slope * (self._ratio(i + 1) - self._ratio(i))

    def _ratio(self, i: int) -> float:
        return self._level(self.times[i]).ratio if i < len(self.times) else 0.0


class DPMSolver(Sampler):
    """DPM-Solver++(2M), the midpoint rule with the answer before (arXiv 2211.01095); the last step is of order one."""

    def __init__(self, steps: int, prediction: Prediction, levels: tuple[Level, ...] | None = None) -> None:
        super().__init__(steps, prediction, levels)
        self._image: Tensor | None = None

    def _times(self) -> list[int]:
        return evenly(self._steps)

    def step(self, i: int, z: Tensor, output: Tensor, noise: Noise) -> Tensor:
        """To the next level, the clean latent extrapolated from the last two."""
        last = i == len(self.times) - 1
        now = self._level(self.times[i])
        image = now.image(z, output, self._prediction)
        before, self._image = self._image, image
        if last:
            return image
        then = self._level(self.times[i + 1])
        h = _logarithm(then) - _logarithm(now)
        if before is None:
            middle = image
        else:
            h_before = _logarithm(now) - _logarithm(self._level(self.times[i - 1]))
            middle = image + (image - before) * (h / h_before / 2)
        return (then.noise / now.noise) * z - then.signal * math.expm1(-h) * middle

    def memory(self) -> dict[str, Tensor]:
        """The clean latent that the last answer stood for."""
        return {} if self._image is None else {"image": self._image}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Be as when `memory` was taken."""
        self._image = memory.get("image")


class LCM(Sampler):
    """Latent consistency: a clean latent at once, then noise again, in a few steps (arXiv 2310.04378)."""

    def _times(self) -> list[int]:
        stride = TRAINING_STEPS // LCM_ORIGINAL_STEPS
        original = [(k + 1) * stride - 1 for k in reversed(range(LCM_ORIGINAL_STEPS))]
        return [original[math.floor(k * LCM_ORIGINAL_STEPS / self._steps)] for k in range(self._steps)]

    def step(self, i: int, z: Tensor, output: Tensor, noise: Noise) -> Tensor:
        """To the clean latent, of which near the end some of the latent itself is part, and to the next level."""
        t = self.times[i]
        scaled, deviation = t * _LCM_TIME_SCALE, _LCM_DATA_DEVIATION
        of_itself = deviation**2 / (scaled**2 + deviation**2)
        of_image = scaled / math.hypot(scaled, deviation)
        image = of_image * self._level(t).image(z, output, self._prediction) + of_itself * z
        return image if i == len(self.times) - 1 else self._level(self.times[i + 1]).noised(image, noise())


class UFOGen(Sampler):
    """A generator of clean latents, trained with a discriminator: one step, or several with new noise (2311.09257)."""

    def _times(self) -> list[int]:
        return [TRAINING_STEPS - 1 - round(k * TRAINING_STEPS / self._steps) for k in range(self._steps)]

    def step(self, i: int, z: Tensor, output: Tensor, noise: Noise) -> Tensor:
        """To the clean latent, and from there by the forward process to the next level."""
        image = self._level(self.times[i]).image(z, output, self._prediction)
        following = self._level(self.times[i + 1]) if i + 1 < len(self.times) else CLEAN
        return image if following is CLEAN else following.noised(image, noise())


SAMPLERS: dict[SamplerName, type[Sampler]] = {
    "ddim": DDIM,
    "pndm": PNDM,
    "euler": Euler,
    "dpm": DPMSolver,
    "lcm": LCM,
    "ufogen": UFOGen,
}


def make_sampler(name: SamplerName, steps: int, prediction: Prediction) -> Sampler:
    """A sampler by its name, for Stable Diffusion's levels."""
    return SAMPLERS[name](steps, prediction)


def _logarithm(level: Level) -> float:
    """Of signal over noise: what DPM-Solver's papers call lambda."""
    return math.log(level.signal) - math.log(level.noise)
