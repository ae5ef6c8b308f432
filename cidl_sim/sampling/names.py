"""Samplers by their names, and how often each asks the network. No torch."""

from __future__ import annotations

from typing import Literal

SamplerName = Literal["ddim", "pndm", "euler", "dpm", "lcm", "ufogen"]

TRAINING_STEPS = 1000
# Latent consistency models are distilled from this many steps of DDIM (arXiv 2310.04378).
LCM_ORIGINAL_STEPS = 50


def evaluations_of(name: SamplerName, steps: int) -> int:
    """How often the network is asked for an image in `steps` steps: PNDM asks about its second step twice."""
    return steps + 1 if name == "pndm" and steps > 1 else steps


def most_steps(name: SamplerName) -> int:
    """The most steps that a sampler can take."""
    return LCM_ORIGINAL_STEPS if name == "lcm" else TRAINING_STEPS // 2
