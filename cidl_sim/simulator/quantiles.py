"""The makespan under noise: quantiles over seeded runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InputError
from cidl_sim.core.plan import Plan
from cidl_sim.core.progress import Progress, silent
from cidl_sim.core.reports import MakespanQuantiles
from cidl_sim.core.timed import timed
from cidl_sim.core.workload import Workload
from cidl_sim.simulator import engine, quick
from cidl_sim.simulator.engine import LimitChange


def has_noise(device: DeviceProfile) -> bool:
    """Whether two seeds can give two makespans on `device`."""
    return any(device.noise.model_dump().values())


def makespan_quantiles(
    workload: Workload,
    device: DeviceProfile,
    plan: Plan,
    runs: int,
    first_seed: int = 0,
    *,
    stage_rounds: Mapping[int, int] | None = None,
    limit_changes: Sequence[LimitChange] = (),
    on_run: Progress = silent,
) -> MakespanQuantiles:
    """Quantiles of the makespan of `plan` over the seeds first_seed, first_seed + 1, ... (`runs` of them).

    `stage_rounds` and `limit_changes` as in `simulate`. The same arguments give the same figures. Without noise one
    run stands for all. Raises InputError for less than one run, InfeasibleError where a run cannot finish within the
    memory limit, DeviceError where a cost is unknown.
    """
    if runs < 1:
        raise InputError(f"{runs} runs: at least one is needed")
    seeds = range(first_seed, first_seed + (runs if has_noise(device) else 1))
    priced = timed(workload, device)
    makespans = []
    for seed in seeds:
        # What changes on the way only the engine knows, and at which visit a run cannot go on.
        seconds = math.inf if stage_rounds or limit_changes else quick.makespan_s(priced, plan, seed)
        if seconds == math.inf:
            seconds = engine.makespan_s(
                workload, device, plan, seed=seed, stage_rounds=stage_rounds, limit_changes=limit_changes
            )
        makespans.append(seconds)
        on_run(len(makespans), len(seeds), f"of {plan.policy}")
    low, middle, high = (float(q) for q in np.quantile(makespans, [0.05, 0.5, 0.95]))
    return MakespanQuantiles(p5=low, p50=middle, p95=high)
