"""Measure this machine: short runs, then the fit."""

from __future__ import annotations

import os

from cidl_sim.calibration.fit import fit_device
from cidl_sim.calibration.microbenchmark import OnProgress, observe
from cidl_sim.core.device import DeviceProfile
from cidl_sim.devices.catalog import THIS_MACHINE
from cidl_sim.executor.store import BlockStore
from cidl_sim.models.config import VideoSettings

# Computing on every core has to be this much faster with a load beside it before the loader loses its core:
# such runs come out very differently from minute to minute.
CLEARLY_FASTER = 0.9


def measure_this_machine(
    store: BlockStore, settings: VideoSettings, on_progress: OnProgress = lambda done, total, stage: None
) -> DeviceProfile:
    """A profile of this machine for the blocks of `store` under `settings`, with room for all weights.

    Whether one core is better left to the loader is measured: the same run with overlap, on all cores and on all
    but one.
    """
    cores = os.cpu_count() or 1
    threads = max(1, cores - 1)
    overlapped = observe(store, settings, "next_block", threads, on_progress)
    if cores > 1:
        on_all = observe(store, settings, "next_block", cores, on_progress)
        if on_all.trace.makespan_s < CLEARLY_FASTER * overlapped.trace.makespan_s:
            threads, overlapped = cores, on_all
    alone = observe(store, settings, "sequential", threads, on_progress)
    return fit_device(THIS_MACHINE, alone, overlapped)
