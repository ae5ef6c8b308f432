"""Commands that make block stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast, get_args

from cidl_sim.commands.console import (
    AsJson,
    Option,
    StoreOption,
    progress,
    show,
)
from cidl_sim.core.errors import InputError
from cidl_sim.models.config import (
    OPENSORA_SHAPES,
    OPENSORA_SMALL,
    OPENSORA_TINY,
    OPENSORA_V1_2,
    Dtype,
    OpenSoraSizes,
    canonical_partition,
)


def model_build(
    store: StoreOption,
    size: Annotated[str, Option("--size", help="full, small, tiny, or shapes (trained).")] = "small",
    seed: Annotated[
        int | None, Option("--random", help="Seed of the random weights; 0, but for shapes, which has trained ones.")
    ] = None,
    dtype: Annotated[str, Option("--dtype", help="fp32, bf16 or fp16.")] = "fp32",
    partition: Annotated[
        str, Option("--partition", help="reference, fine, t2.d4...; see docs/techniques.md.")
    ] = "reference",
    as_json: AsJson = False,
) -> None:
    """Build a block store with seeded random weights, or the trained ones; goes on where it was interrupted."""
    sizes, chosen, cut = _sizes(size), _dtype(dtype), _partition(partition)
    from cidl_sim.diffusion.model_store import build_random_store, distinct_blocks, import_checkpoints
    from cidl_sim.diffusion.pretrained import pretrained_folders

    count = len(distinct_blocks(sizes, chosen, cut))
    with progress() as step:
        counted = _Counted(lambda done, weights: step("write blocks", done, count, weights))
        if sizes == OPENSORA_SHAPES and seed is None:
            built = import_checkpoints(store, sizes, chosen, pretrained_folders(), counted, partition=cut)
        else:
            built = build_random_store(store, sizes, chosen, seed or 0, counted, partition=cut)
    show(counted.summary(built, sizes.name, dtype), as_json, lambda: counted.line(built))


def model_import(
    t5: Annotated[Path, Option("--t5", help="Folder of DeepFloyd/t5-v1_1-xxl.")],
    stdit: Annotated[Path, Option("--stdit", help="Folder of hpcai-tech/OpenSora-STDiT-v3.")],
    vae: Annotated[Path, Option("--vae", help="Folder of hpcai-tech/OpenSora-VAE-v1.2.")],
    store: StoreOption,
    dtype: Annotated[str, Option("--dtype", help="fp32, bf16 or fp16.")] = "fp32",
    partition: Annotated[
        str, Option("--partition", help="reference, fine, t2.d4...; see docs/techniques.md.")
    ] = "reference",
    size: Annotated[str, Option("--size", help="full, small, tiny or shapes.")] = "full",
    as_json: AsJson = False,
) -> None:
    """Build a block store from published checkpoints; an interrupted import goes on where it stopped."""
    sizes, chosen, cut = _sizes(size), _dtype(dtype), _partition(partition)
    from cidl_sim.diffusion.model_store import distinct_blocks, import_checkpoints

    folders = {"t5": t5, "stdit": stdit, "vae": vae}
    count = len(distinct_blocks(sizes, chosen, cut))
    with progress() as step:
        counted = _Counted(lambda done, weights: step("import blocks", done, count, weights))
        built = import_checkpoints(store, sizes, chosen, folders, counted, partition=cut)
    show(counted.summary(built, sizes.name, dtype), as_json, lambda: counted.line(built))


class _Counted:
    """Counts the blocks of a store as they are written."""

    def __init__(self, show: Callable[[int, str], None]) -> None:
        self._show = show
        self.blocks = self.bytes = 0

    def __call__(self, weights: str, data_bytes: int) -> None:
        self.blocks, self.bytes = self.blocks + 1, self.bytes + data_bytes
        self._show(self.blocks, weights)

    def summary(self, store: Any, model: str, dtype: str) -> dict[str, Any]:
        return {"store": str(store.root), "model": model, "dtype": dtype, "blocks": self.blocks, "bytes": self.bytes}

    def line(self, store: Any) -> str:
        return f"{self.blocks} blocks, {self.bytes / 1e6:.1f} MB, in {store.root}"


def _sizes(size: str) -> OpenSoraSizes:
    known = {"full": OPENSORA_V1_2, "small": OPENSORA_SMALL, "tiny": OPENSORA_TINY, "shapes": OPENSORA_SHAPES}
    if size not in known:
        raise InputError(f"--size {size!r}: choose full, small, tiny or shapes")
    return known[size]


def _dtype(dtype: str) -> Dtype:
    if dtype not in get_args(Dtype):
        raise InputError(f"--dtype {dtype!r}: choose one of {', '.join(get_args(Dtype))}")
    return cast(Dtype, dtype)


def _partition(partition: str) -> str:
    try:
        return canonical_partition(partition)
    except ValueError as problem:
        raise InputError(f"--partition: {problem}") from None
