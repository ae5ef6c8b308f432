"""Measure this machine: short runs, then the fit."""

from __future__ import annotations

from cidl_sim.calibration.fit import fit_device
from cidl_sim.calibration.microbenchmark import OnProgress, observe
from cidl_sim.core.device import DeviceProfile
from cidl_sim.devices.catalog import THIS_MACHINE
from cidl_sim.executor.store import BlockStore
from cidl_sim.models.config import VideoSettings


def measure_this_machine(
    store: BlockStore, settings: VideoSettings, on_progress: OnProgress = lambda done, total, stage: None
) -> DeviceProfile:
    """A profile of this machine for the blocks of `store` under `settings`, with room for all weights."""
    observed = observe(store, settings, on_progress)
    return fit_device(THIS_MACHINE, observed["sequential"], observed["next_block"])
