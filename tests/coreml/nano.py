"""A model of one pair whose decoder is two blocks, and its export: what tests that run packages share.

Conversion takes about a second for each function, so there are few.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import coremltools
import numpy as np
import pytest
import torch

from cidl_sim.coreml import backend, macos
from cidl_sim.mil.interpreter import load_package
from cidl_sim.models.sizes import STDiT3Sizes
from cidl_sim.pipelines.catalog import OPEN_SORA, parse_name
from cidl_sim.pipelines.model_store import build_random_store
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY, OpenSoraSizes, VideoSettings
from cidl_sim.worker.exporting import export_store
from tests.coreml.quick_conversion import without_self_checks

NANO = OPENSORA_TINY.model_copy(
    update={"name": "opensora-nano", "stdit": STDiT3Sizes(depth=1, hidden=48, heads=4, max_text_tokens=64)}
)
SETTINGS = VideoSettings(height=32, width=32, frames=16, steps=4, lpl="2", tdtm=1, partition="v8")


@contextmanager
def named_nano() -> Iterator[None]:
    """With the model among those that have names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPEN_SORA.models, NANO.name, NANO)
        patch.setitem(OPEN_SORA.defaults, NANO.name, SETTINGS)
        yield


def build_store_and_export(folder: Path, sizes: OpenSoraSizes, workload: str) -> tuple[Path, Path]:
    """A store in fp32, and its packages for a workload in fp32; made in this process."""
    store, packages = folder / "store", folder / "packages"
    built = build_random_store(store, sizes, "fp32", 0, partition=parse_name(workload)[1].partition)
    with without_self_checks():
        export_store(built, packages, "fp32", workloads=[workload], workers=0)
    return store, packages


# A stand-in for the library, with which what is ours of the Core ML half can be tried elsewhere. It interprets.


class _Model:
    def __init__(self, path: str, compute_units: Any, function_name: str | None) -> None:
        assert compute_units in coremltools.ComputeUnit
        self._program, self._function = load_package(Path(path)), function_name
        if function_name is None:
            assert len(self._program.functions) == 1

    def predict(self, data: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        inputs = {name: torch.from_numpy(array) for name, array in data.items()}
        return {name: tensor.numpy() for name, tensor in self._program.run(inputs, self._function).items()}


class StandIn:
    """Compiles by copying; notes which packages, and which functions were loaded."""

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.loaded: list[tuple[str, str | None]] = []
        self.ComputeUnit = coremltools.ComputeUnit
        self.models = self.utils = self

    def compile_model(self, package: str, target: str) -> None:
        assert not Path(target).exists()
        shutil.copytree(package, target)
        self.compiled.append(Path(target).name)

    def CompiledMLModel(self, path: str, compute_units: Any, function_name: str | None) -> _Model:  # noqa: N802
        self.loaded.append((Path(path).name, function_name))
        return _Model(path, compute_units, function_name)


def install(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Let what asks for Core ML find the stand-in."""
    for module in (backend, macos):
        monkeypatch.setattr(module, "core_ml", lambda: stand_in)
    monkeypatch.setattr(backend, "phys_footprint_bytes", lambda: 0)
    return stand_in
