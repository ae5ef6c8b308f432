"""Log-normal noise with mean 1, keyed by (seed, visit, operation).

The factor of a load or an execution depends on nothing else, so two policies under one seed meet the
same slow visits, whatever order their events come in.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cidl_sim.core.device import Noise

Factors = tuple[NDArray[np.float64], NDArray[np.float64]]  # of loads and of executions, by visit number
Shared = Literal["load_drift", "execute_drift"]
_OPERATION_CODES = {"execute_drift": 0, "load": 1, "execute": 2, "load_drift": 3}
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def noise_factors(
    seed: int, visits: int, operation: Literal["load", "execute"] | Shared, relative_std: float
) -> NDArray[np.float64]:
    """One factor per visit, shape (visits,): mean 1, relative standard deviation `relative_std`.

    The counter-based generator is splitmix64 (Steele, Lea, Flood 2014), the normal deviates are
    Box and Muller's, so that a compiled evaluator can repeat them without any state.
    """
    if relative_std == 0:
        return np.ones(visits)
    with np.errstate(over="ignore"):
        key = _mix(np.uint64(seed % 2**64) * np.uint64(4) + np.uint64(_OPERATION_CODES[operation]))
        counters = np.arange(visits, dtype=np.uint64) * np.uint64(2) + key
        first, second = _uniform(_mix(counters)), _uniform(_mix(counters + np.uint64(1)))
    normal = np.sqrt(-2.0 * np.log(first)) * np.cos(2.0 * np.pi * second)
    variance = np.log1p(relative_std**2)
    return np.asarray(np.exp(normal * np.sqrt(variance) - variance / 2))


def run_factor(seed: int, operation: Shared, relative_std: float) -> float:
    """The factor that all loads, or all executions, of a run share."""
    return float(noise_factors(seed, 1, operation, relative_std)[0])


def cost_factors(noise: Noise, seed: int | None, visits: int, given: Factors | None = None) -> Factors:
    """What multiplies the costs of a run: noise under a seed (None: no noise), times the factors that were `given`."""
    noise = noise if seed is not None else Noise()
    load = noise_factors(seed or 0, visits, "load", noise.load)
    load *= run_factor(seed or 0, "load_drift", noise.load_drift)
    execute = noise_factors(seed or 0, visits, "execute", noise.execute)
    execute *= run_factor(seed or 0, "execute_drift", noise.execute_drift)
    return (load, execute) if given is None else (load * given[0], execute * given[1])


def _mix(x: np.uint64 | NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = np.asarray(x, dtype=np.uint64) + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    # 53 random bits, shifted by half a step so that the logarithm never meets zero.
    return np.asarray(((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)
