"""What text-to-image networks weigh as Core ML packages, plain and with smaller weights, and what that buys on a phone.

    .venv/bin/python experiments/text_to_image_coreml.py [--models sd-v1.5,sdxl]

One block of each kind is converted in fp16 at its real width, with 16-bit weights, palettes of 6 bits and palettes of
4 bits on average; a kind's bytes count for all of its blocks. Then the later runs on a phone's profile are simulated
with packages of that size, under two limits: what decompressing costs there is not known and left out. Random weights,
so the errors say what a palette does to normal numbers. Writes experiments/results/text_to_image_coreml.md; ten
minutes and 6 GB of memory.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from cidl_sim.blocks.definition import BlockDefinition
from cidl_sim.blocks.variants import Variant
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.workload import Workload
from cidl_sim.coreml.compression import compress
from cidl_sim.coreml.conversion import convert, function_of
from cidl_sim.coreml.manifest import Compression
from cidl_sim.devices.catalog import find_device
from cidl_sim.pipelines.catalog import find_workload, parse_name
from cidl_sim.pipelines.random_weights import random_weights
from cidl_sim.pipelines.stable_diffusion.family import STABLE_DIFFUSION
from cidl_sim.planner.evaluate import evaluated_plan

RESULTS = Path(__file__).parent / "results" / "text_to_image_coreml.md"
COMPRESSIONS: tuple[Compression, ...] = ("none", "palette6", "mixed4")
# Deep transformers block by block: a package of 1.4 GB does not convert in 6 GB.
WORKLOADS = {
    "sd-v1.5": "sd-v1.5-512x512-20s-pndm-fp16",
    "sdxl": "sdxl-768x768-20s-euler-fp16-fine",
    "mobile-diffusion": "mobile-diffusion-512x512-1s-ufogen-fp16-fine-cfgoff",
}
DEVICE, LIMITS_GB = "iphone-15-pro-images", (1.0, 3.3)
POLICIES = ("next_block", "prefix", "spread", "lru", "whole_model")


@dataclass
class Packaged:
    """By kind the bytes of a package and the relative error of its weights."""

    bytes: dict[str, int]
    errors: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: tuple(text.split(",")), default=tuple(WORKLOADS))
    arguments = parser.parse_args()
    lines = [
        "# Text to image as Core ML packages",
        "",
        f"Command: `.venv/bin/python experiments/text_to_image_coreml.py --models {','.join(arguments.models)}`. Date: "
        f"{datetime.now(UTC).date()}. Converted on Linux with random weights, one block of each kind; nothing was run "
        f"with Core ML. Later runs are simulated on `{DEVICE}` with packages of this size, the fastest of "
        f"{', '.join(POLICIES)}; what decompressing costs on a phone is not known and left out.",
        "",
        "| model | weights | packages MB | of fp16 | largest weight error | "
        + " | ".join(f"an image at {limit:g} GB, s" for limit in LIMITS_GB)
        + " |",
        "|---|---|---|---|---|" + "---|" * len(LIMITS_GB),
    ]
    for model in arguments.models:
        workload = find_workload(WORKLOADS[model])
        made = {compression: packaged(WORKLOADS[model], compression) for compression in COMPRESSIONS}
        plain = total(workload, made["none"].bytes)
        for compression, found in made.items():
            size = total(workload, found.bytes)
            lines.append(
                f"| {workload.name} | {compression} | {size / 1e6:.0f} | {size / plain:.0%} | "
                f"{max(found.errors.values()):.3f} | "
                + " | ".join(seconds(workload, found.bytes, limit) for limit in LIMITS_GB)
                + " |"
            )
        RESULTS.write_text("\n".join([*lines, ""]))
    print(RESULTS.read_text())


def packaged(name: str, compression: Compression) -> Packaged:
    """Convert one block of each kind, the packages gone as soon as they are weighed."""
    sizes, settings = parse_name(name)
    found = Packaged({}, {})
    for stage in STABLE_DIFFUSION.stages(sizes, settings, "longest"):
        for block in stage.blocks:
            if block.kind not in found.bytes:
                found.bytes[block.kind], found.errors[block.kind] = weighed(block, compression)
                print(f"{compression} {block.kind}: {found.bytes[block.kind] / 1e6:.1f} MB", flush=True)
    return found


def weighed(block: BlockDefinition, compression: Compression) -> tuple[int, float]:
    function = function_of(Variant(block, block, block), "fp16")
    model = convert(block, function, random_weights(STABLE_DIFFUSION, block, 0, torch.float16), "fp16")
    error = 0.0
    if compression != "none":
        model, error = compress(model, compression)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/block.mlpackage")
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    del model
    gc.collect()
    return size, error


def total(workload: Workload, sizes: Mapping[str, int]) -> int:
    """Bytes of all packages."""
    return sum({b.weights: sizes[b.kind] for stage in workload.stages for b in stage.blocks}.values())


def seconds(workload: Workload, sizes: Mapping[str, int], limit_gb: float) -> str:
    """An image with the fastest policy, with packages of these sizes."""
    stages = tuple(
        stage.model_copy(
            update={
                "blocks": tuple(b.model_copy(update={"weight_bytes": sizes[b.kind], "like": ()}) for b in stage.blocks)
            }
        )
        for stage in workload.stages
    )
    small = workload.model_copy(update={"stages": stages})
    device = find_device(DEVICE).model_copy(update={"memory_limit_bytes": int(limit_gb * 1e9)})
    found = []
    for policy in POLICIES:
        try:
            found.append(evaluated_plan(policy, small, device)[1].makespan_s)
        except InfeasibleError:
            continue
    return f"{min(found):.2f}" if found else "does not fit"


if __name__ == "__main__":
    main()
