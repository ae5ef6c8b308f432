"""Shared builders: small workloads, devices, and one tiny block store for the whole session."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from cidl_sim.core.device import DeviceProfile, Executor, Loader, Measured
from cidl_sim.core.workload import Block, Stage, Workload

# One compute thread, said before PyTorch is imported: two that wait for each other on a busy machine take twenty times
# as long, and nothing here is large enough to gain by a second one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A cache of the tests' own, shared by their processes: what one of them measures the others find, and whoever runs the
# tests keeps the profile of their machine. Matplotlib's list of fonts stays where it is.
if "CIDL_TESTS_CACHE" not in os.environ:
    os.environ["CIDL_TESTS_CACHE"] = tempfile.mkdtemp(prefix="cidl-tests-")
    atexit.register(shutil.rmtree, os.environ["CIDL_TESTS_CACHE"], ignore_errors=True)
    before = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    os.environ.setdefault("MPLCONFIGDIR", str(Path(before) / "matplotlib"))
    os.environ["XDG_CACHE_HOME"] = os.environ["CIDL_TESTS_CACHE"]

# Importing the libraries makes next to no garbage; the first file of tests turns this on again.
gc.disable()

# A busy machine is no reason to fail.
settings.register_profile("quick", deadline=None, max_examples=30)
# What `make test-slow` asks for.
settings.register_profile("thorough", deadline=None, max_examples=400)
settings.load_profile("quick")


@pytest.fixture(autouse=True, scope="module")
def libraries_are_no_garbage() -> None:
    """Half a million objects of the libraries live as long as the process; looking through them again takes time."""
    gc.collect()
    gc.freeze()
    gc.enable()


def uniform_workload(blocks: int, rounds: int, **block_fields: int) -> Workload:
    """`blocks` blocks of one byte, kind "b", swept `rounds` times."""
    fields = {"weight_bytes": 1, **block_fields}
    stage = Stage(
        name="denoiser", rounds=rounds, blocks=[Block(name=f"b{i}", kind="b", **fields) for i in range(blocks)]
    )
    return Workload(name="uniform", stages=[stage])


def uniform_device(slots: int, load_s: float, exec_s: float, **fields: object) -> DeviceProfile:
    """A device with room for `slots` bytes that needs fixed times for kind "b"."""
    return DeviceProfile(
        name="uniform",
        memory_limit_bytes=slots,
        measured={"b": Measured(load_s=load_s, exec_s=exec_s)},
        **fields,
    )


def analytic_device(limit: int, **fields: object) -> DeviceProfile:
    """One byte a second, one flop a second: durations can be read off the blocks."""
    defaults: dict[str, object] = {
        "loader": Loader(bandwidth_bytes_per_s=1.0),
        "executor": Executor(flops_per_s=1.0),
    }
    return DeviceProfile(name="analytic", memory_limit_bytes=limit, **{**defaults, **fields})


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the tiny model in fp32, seed 0. Do not alter its files: copy the folder first."""
    from cidl_sim.pipelines.model_store import build_random_store
    from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY

    root = tmp_path_factory.mktemp("stores") / "tiny"
    build_random_store(root, OPENSORA_TINY, "fp32", seed=0)
    return root


@pytest.fixture
def spoiled_store(tiny_store: Path, tmp_path: Path) -> Path:
    """The tiny store with one value of the denoiser's last layer that is no number."""
    return spoiled(tiny_store, tmp_path / "spoiled", "stdit.part2", "final_layer.linear.bias")


def spoiled(store: Path, root: Path, spoiled_weights: str, name: str) -> Path:
    """A store with one value of one tensor that is no number."""
    from safetensors.torch import load_file

    from cidl_sim.executor.store import BlockStore, write_store

    whole = BlockStore.open(store).index

    def tensors_of(weights: str) -> dict[str, Any]:
        tensors = load_file(store / f"{weights}.safetensors")
        if weights == spoiled_weights:
            tensors[name].view(-1)[min(3, tensors[name].numel() - 1)] = float("nan")
        return tensors

    blocks = [(weights, partial(tensors_of, weights)) for weights in whole.blocks]
    fields = whole.model_dump(include={"name", "dtype", "partition", "source", "model", "pipeline"})
    return write_store(root, blocks, **fields).root
