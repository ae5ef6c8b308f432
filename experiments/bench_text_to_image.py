"""Stable Diffusion's denoising steps against the offloading that people use today, under one memory limit.

    .venv/bin/pip install -e ".[bench]"
    .venv/bin/python experiments/bench_text_to_image.py [--side 512] [--dtype fp32] [--limit 1200000000] [--rounds 3]
        [--passes 3] [--folder DIR]

The UNet of Stable Diffusion v1.5 at SIDE x SIDE pixels, both halves of the guidance in one batch. At 512 a step is
bound by arithmetic on a CPU, at 64 by loading. Systems run in turns, each with its best number of threads, and find
nothing of their files in memory (see bench_executor.py, which this shares all but the network with). The store and the
competitors' copies (3.4 GB each in fp32) go to a temporary folder, or to --folder, where they stay. Writes
experiments/results/bench_sd_SIDE_DTYPE.md and .png.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from bench_executor import Bench, Network
from shared.bench_systems import drop_page_cache
from shared.image_systems import COMPETITORS, blocks_of, prepare_copies, workload_for

from cidl_sim.blocks.definition import TORCH_DTYPES
from cidl_sim.core.errors import StoreError
from cidl_sim.executor.store import BlockStore, write_store
from cidl_sim.pipelines.random_weights import random_weights
from cidl_sim.pipelines.stable_diffusion.architectures import SD_V1_5
from cidl_sim.pipelines.stable_diffusion.family import STABLE_DIFFUSION

ROOT = Path(__file__).parent.parent
POLICIES = ("sequential", "next_block", "spread")
# What Python, PyTorch and one block's scratch memory take beside weights and accounted workspace.
BASELINE_BYTES = 420_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--limit", type=int, default=1_200_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cidl-bench-") as temporary:
        folder = given.folder or Path(temporary)
        store, copies = unet_store(folder / f"unet-{given.dtype}", given.dtype), folder / f"copies-unet-{given.dtype}"
        prepare_copies(store, copies)
        network = Network(
            f"Stable Diffusion v1.5's UNet, {given.side}x{given.side}",
            str(given.side),
            "image_systems.py",
            workload_for(given.side, given.dtype, given.passes),
            COMPETITORS,
            BASELINE_BYTES,
            may_be_killed=("whole",),
        )
        command = (
            f"experiments/bench_text_to_image.py --side {given.side} --dtype {given.dtype} --limit {given.limit} "
            f"--passes {given.passes}"
        )
        bench = ColdBench(network, store, folder / "scratch", copies, given.passes, given.limit, POLICIES, command)
        bench.all_rounds(given.rounds, ROOT / f"experiments/results/bench_sd_{given.side}_{given.dtype}.md")


class ColdBench(Bench):
    """Before each run the files of all systems leave memory."""

    def run(self, system: str, folder: Path, threads: int) -> dict[str, Any]:
        """One process under the limit; what it said, with the kernel's peak."""
        for files in (self.copies, self.store.root):
            drop_page_cache(files)
        return super().run(system, folder, threads)


def unet_store(root: Path, dtype: str) -> BlockStore:
    """The block store in `root`; one of the UNet alone is built if there is none."""
    try:
        return BlockStore.open(root)
    except StoreError:
        make = partial(random_weights, STABLE_DIFFUSION, seed=0, dtype=TORCH_DTYPES[dtype])
        return write_store(
            root,
            ((block.weights, partial(make, block)) for block in blocks_of(dtype)),
            name=SD_V1_5.name,
            dtype=dtype,
            source="random, seed 0",
            pipeline=STABLE_DIFFUSION.name,
            model=SD_V1_5.model_dump(mode="json"),
        )


if __name__ == "__main__":
    main()
