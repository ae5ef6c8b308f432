"""Text-to-image models on a phone under memory limits from 0.5 to 4 GB: which model, how many steps, which policy.

    .venv/bin/python experiments/text_to_image_memory.py [--device iphone-15-pro-images]

Simulated, in fp16, every policy at every limit, loads included; the decoder takes the latent whole where that fits,
else in tiles of 64, 32 or 16. Writes experiments/results/text_to_image_memory.md and .png; half a minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.timed import timed
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Workload
from cidl_sim.devices.catalog import find_device
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.planner.bounds import best_bound_s
from cidl_sim.planner.evaluate import evaluated_plan

RESULTS = Path(__file__).parent / "results"
LIMITS_GB = (0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.3, 4.0)
POLICIES = ("sequential", "next_block", "prefix", "spread", "rotating", "lru", "whole_model")
# By label: the model, and how many steps of which sampler.
MODELS = {
    "SDXL 1024, 50 steps": "sdxl-1024x1024-50s-euler-fp16",
    "SD v1.5, 50 steps": "sd-v1.5-512x512-50s-pndm-fp16",
    "SD v1.5, 8 steps": "sd-v1.5-512x512-8s-dpm-fp16",
    "SnapFusion, 8 steps": "snapfusion-512x512-8s-ddim-fp16",
    "MobileDiffusion, 8 steps": "mobile-diffusion-512x512-8s-ddim-fp16",
    "MobileDiffusion, 1 step": "mobile-diffusion-512x512-1s-ufogen-fp16-cfgoff",
    "MobileDiffusion-Lite, 1 step": "mobile-diffusion-lite-512x512-1s-ufogen-fp16-cfgoff",
}
TILES = (0, 64, 32, 16)
COLOURS = ("#4d4d4d", "#1f5fa8", "#5aa0e0", "#d1761c", "#2a8f57", "#7cc49b", "#8a4fa8")


@dataclass(frozen=True)
class Found:
    """What a model does under a limit: its workload, each policy's trace, and the bound."""

    workload: Workload
    traces: dict[str, Trace]
    bound_s: float

    @property
    def best(self) -> str:
        """The fastest policy."""
        return min(self.traces, key=lambda name: round(self.traces[name].makespan_s, 3))

    @property
    def seconds(self) -> float:
        """What an image takes with it."""
        return self.traces[self.best].makespan_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="iphone-15-pro-images")
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    found = {label: dict(under_limits(name, device)) for label, name in MODELS.items()}
    report = text(found, device)
    print(report)
    (RESULTS / "text_to_image_memory.md").write_text(report)
    draw(found, device, RESULTS / "text_to_image_memory.png")


def under_limits(name: str, device: DeviceProfile) -> Iterator[tuple[float, Found | None]]:
    for limit in LIMITS_GB:
        limited = device.model_copy(update={"memory_limit_bytes": int(limit * 1e9)})
        yield limit, next((one for tile in TILES if (one := tried(name, tile, limited)) is not None), None)


def tried(name: str, tile: int, device: DeviceProfile) -> Found | None:
    """Every policy that fits; None where none does."""
    workload = find_workload(f"{name}-tile{tile}" if tile else name)
    traces = {}
    for policy in POLICIES:
        try:
            traces[policy] = evaluated_plan(policy, workload, device)[1]
        except InfeasibleError:
            continue
    return Found(workload, traces, best_bound_s(timed(workload, device))) if traces else None


def text(found: dict[str, dict[float, Found | None]], device: DeviceProfile) -> str:
    return "\n".join(
        [
            "# Text to image under memory limits",
            "",
            f"Command: `.venv/bin/python experiments/text_to_image_memory.py --device {device.name}`. Date: "
            f"{datetime.now(UTC).date()}; cidl-sim {version('cidl-sim')}. Simulated on `{device.name}` (execution "
            "fitted to published rows, loads another phone's), fp16; nothing was run on a phone. Both halves of the "
            "guidance in one batch where a model has it: the papers' tables count one call of the UNet a step, so a "
            "guided step takes twice theirs.",
            "",
            "Seconds of an image, with the fastest policy; t: the decoder in tiles of so many latents a side.",
            "",
            f"| model | weights GB | {' | '.join(f'{limit:g} GB' for limit in LIMITS_GB)} |",
            "|---|---|" + "---|" * len(LIMITS_GB),
            *(model_row(label, rows) for label, rows in found.items()),
            "",
            "![Seconds of an image by limit](text_to_image_memory.png)",
            "",
            "## What retention is worth",
            "",
            "Seconds with nothing kept (next_block), with what fits kept (the best of prefix, spread, rotating, lru), "
            "a network at a time (whole_model), and the bound that no plan beats:",
            "",
            "| model | limit | nothing kept | kept | a network at a time | bound | the executor waits |",
            "|---|---|---|---|---|---|---|",
            *retention(found),
            "",
            "## Answers",
            "",
            *answers(found),
            "",
        ]
    )


def model_row(label: str, rows: dict[float, Found | None]) -> str:
    weights = next(one.workload.weights_bytes for one in rows.values() if one)
    return f"| {label} | {weights / 1e9:.2f} | {' | '.join(cell(one) for one in rows.values())} |"


def cell(one: Found | None) -> str:
    if one is None:
        return "-"
    tile = one.workload.settings["tile"]
    return f"{one.seconds:.2f} {one.best}" + (f" t{tile}" if tile else "")


def retention(found: dict[str, dict[float, Found | None]]) -> Iterator[str]:
    for label, rows in found.items():
        for limit in (1.0, 2.0, 3.3):
            one = rows[limit]
            if one is None:
                continue
            kept = min(
                one.traces[name].makespan_s for name in ("prefix", "spread", "rotating", "lru") if name in one.traces
            )
            whole = one.traces.get("whole_model")
            waits = one.traces[one.best].idle_s.get("executor", {}).get("load", 0.0)
            yield (
                f"| {label} | {limit:g} GB | {one.traces['next_block'].makespan_s:.2f} | {kept:.2f} | "
                f"{f'{whole.makespan_s:.2f}' if whole else 'does not fit'} | {one.bound_s:.2f} | {waits:.2f} s |"
            )


def answers(found: dict[str, dict[float, Found | None]]) -> Iterator[str]:
    fastest: dict[str, list[float]] = {}
    for limit in LIMITS_GB:
        fitting = {label: one for label, rows in found.items() if (one := rows[limit]) is not None}
        if fitting:
            fastest.setdefault(min(fitting, key=lambda name: fitting[name].seconds), []).append(limit)
    for label, limits in fastest.items():
        yield f"- fastest at {', '.join(f'{limit:g}' for limit in limits)} GB: {label}"
    for label, rows in found.items():
        fits = [limit for limit, one in rows.items() if one is not None]
        gains = [limit for limit in fits if keeping_gains(rows[limit])]
        least = min(fits)
        best = min(one.seconds for one in rows.values() if one is not None)
        enough = min(limit for limit in fits if (one := rows[limit]) is not None and one.seconds <= best * 1.001)
        yield (
            f"- {label}: runs from {least:g} GB on; keeping blocks is worth more than 5 % "
            + (f"at {', '.join(f'{limit:g}' for limit in gains)} GB" if gains else "nowhere")
            + f"; from {enough:g} GB on more memory makes nothing faster"
        )
    one = found["MobileDiffusion, 1 step"][3.3]
    if one is not None:
        trace = one.traces[one.best]
        yield (
            f"- one step is bound by loading: of MobileDiffusion's {one.seconds:.2f} s at 3.3 GB the loader works "
            f"{trace.loader_busy_s:.2f} s and the executor {trace.executor_busy_s:.2f} s; the papers' "
            "fifth of a second holds no load"
        )
    large, small = found["SDXL 1024, 50 steps"][3.3], found["SDXL 1024, 50 steps"][4.0]
    if large is not None and small is not None:
        yield (
            f"- SDXL in 3.3 GB: {large.seconds:.0f} s with {large.best} (bound {large.bound_s:.0f} s), in 4 GB "
            f"{small.seconds:.0f} s; nothing kept: {large.traces['next_block'].makespan_s:.0f} s"
        )


def keeping_gains(one: Found | None) -> bool:
    """Whether the fastest plan is more than 5 % faster than loading everything each time."""
    return one is not None and one.seconds < 0.95 * one.traces["next_block"].makespan_s


def draw(found: dict[str, dict[float, Found | None]], device: DeviceProfile, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(11, 5.5), layout="constrained")
    for (label, rows), colour in zip(found.items(), COLOURS, strict=True):
        points = [(limit, one.seconds, one.bound_s) for limit, one in rows.items() if one is not None]
        limits, seconds, bounds = zip(*points, strict=True)
        axes.plot(limits, seconds, "o-", color=colour, label=label)
        axes.plot(limits, bounds, ":", color=colour)
    axes.set_yscale("log")
    axes.set_xlabel("memory limit, GB")
    axes.set_ylabel("seconds of an image, loads included")
    axes.set_title(f"The fastest policy's plan (dotted: no plan is faster), {device.name}, fp16")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
