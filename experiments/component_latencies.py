"""How long T5, STDiT and the VAE take without techniques, and what of "up to ten times faster" can be derived.

    .venv/bin/python experiments/component_latencies.py [--rounds 3] [--quick]

At full size published figures, the simulator on the phone's profile, and arithmetic and bytes alone; at small size real
sequential runs here under a limit that the kernel holds, beside their simulation. Then every ratio that the published
rows allow, and what the simulator says of LPL, TDTM and CI-DL together, on the phone and where loads are slower. Writes
experiments/results/component_latencies.md and .png when everything has run; --quick runs a tiny model once and writes
to a temporary folder. About 5 minutes on 2 cores, --quick one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from headline import RatioPoint, draw_headline, headline_lines, ratio_points
from shared.component_costs import COMPONENTS, STEPS, Column, elapsed, floors, full_size_lines, on_the_phone, published
from shared.small_runs import others_load, provenance, round_seconds, run_in_turns, small_jobs

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.files import replacing, write_text
from cidl_sim.core.trace import Header, Trace, read_trace
from cidl_sim.demo import demo_limit
from cidl_sim.devices.catalog import find_device
from cidl_sim.devices.published import Rows, read_published
from cidl_sim.models.sizes import STDiT3Sizes, T5Sizes, VAESizes
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY, OpenSoraSizes, VideoSettings
from cidl_sim.policies.catalog import make_plan
from cidl_sim.report.timeline import GROUP_COLORS
from cidl_sim.simulator.engine import simulate

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments/results"
# Every width a quarter of the published one, every depth the published one: so its weights have the same proportions.
QUARTER = OpenSoraSizes(
    name="opensora-quarter",
    t5=T5Sizes(d_model=1024, d_ff=2560, heads=16, vocabulary=384),
    stdit=STDiT3Sizes(hidden=288, heads=4, max_text_tokens=96),
    vae=VAESizes(temporal_filters=32, spatial_channels=(32, 64, 128, 128), groups=8),
    text_encoder_tokens=96,
    nominal_text_tokens=48,
)


@dataclass(frozen=True)
class Small:
    """The small model at one number of steps: runs here and their simulation."""

    steps: int
    name: str
    weights_bytes: int
    limit_bytes: int
    runs: Sequence[Trace]
    simulated: Trace

    @property
    def measured(self) -> Column:
        """Medians of the runs."""
        of_runs = [elapsed(trace) for trace in self.runs]
        seconds = {c: statistics.median(run[c] for run in of_runs) for c in COMPONENTS}
        return Column(f"small, {self.steps} steps, measured here", seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rounds, sizes = (1, OPENSORA_TINY) if arguments.quick else (arguments.rounds, QUARTER)
    rows = read_published(ROOT / "traces/published/on_device_sora.toml")
    device = find_device("iphone-15-pro")
    load_before = others_load()
    with tempfile.TemporaryDirectory(prefix="cidl-components-") as folder:
        small = small_runs(sizes, rounds, Path(folder))
    points = ratio_points(device, quick=arguments.quick)
    results = Path(tempfile.mkdtemp(prefix="cidl-quick-")) if arguments.quick else RESULTS
    command = "--quick" if arguments.quick else f"--rounds {rounds}"
    report = text(rows, device, small, points, command, load_before)
    draw(columns(rows, device, small), points, results / "component_latencies.png")
    write_text(results / "component_latencies.md", report)
    print(f"\n{report}\n{results}")


def small_runs(sizes: OpenSoraSizes, rounds: int, folder: Path) -> list[Small]:
    """The small model without technique under its limit, at both numbers of steps."""
    settings = [VideoSettings(height=64, width=64, frames=17, steps=steps) for steps in STEPS]
    jobs = small_jobs(sizes, settings, settings[:1], demo_limit, folder)
    plans = [make_plan("sequential", job.workload, job.device) for job in jobs]
    runs: list[list[Trace]] = [[] for _ in jobs]
    for _ in range(rounds):
        # In turns, so that what disturbs the machine for a while disturbs both.
        for job, plan, found in zip(jobs, plans, runs, strict=True):
            found.extend(run_in_turns(job, {"sequential": plan}, 1, folder)["sequential"])
    return [
        Small(
            steps=job.settings.steps,
            name=job.workload.name,
            weights_bytes=job.workload.weights_bytes,
            limit_bytes=job.device.memory_limit_bytes,
            runs=found,
            simulated=simulate(job.workload, job.device, plan),
        )
        for job, plan, found in zip(jobs, plans, runs, strict=True)
    ]


def columns(rows: Rows, device: DeviceProfile, small: Sequence[Small]) -> list[Column]:
    """What is drawn, and compared by shares."""
    arithmetic, loads = floors(device, STEPS[-1])
    result = []
    for steps in STEPS:
        simulated = Column(f"phone, {steps} steps, simulated", elapsed(on_the_phone(device, steps)))
        result += [published(rows, steps), simulated]
    added = {c: arithmetic.seconds[c] + loads.seconds[c] for c in COMPONENTS}
    result.append(Column(f"phone, {STEPS[-1]} steps, arithmetic and bytes alone", added))
    for one in small:
        simulated = Column(f"small, {one.steps} steps, simulated for here", elapsed(one.simulated))
        result += [one.measured, simulated]
    recorded = elapsed(read_trace(ROOT / "traces/full_size/fp32.json.gz"))
    return [*result, Column("full size here: 192x192, 17 frames, 16 steps, `spread`", recorded)]


def text(
    rows: Rows,
    device: DeviceProfile,
    small: Sequence[Small],
    points: Sequence[RatioPoint],
    command: str,
    load_before: float,
) -> str:
    header: Header = small[0].runs[-1].header
    lines = [
        "# Latencies of the components",
        "",
        f"Command: `.venv/bin/python experiments/component_latencies.py {command}`. "
        f"{provenance(header, load_before)} Random weights. Nothing was run on a phone or with Core ML.",
        "",
        "![Shares of the components; speed-ups of all techniques against slower loads](component_latencies.png)",
        "",
        "## At full size, no technique",
        "",
        *full_size_lines(rows, device),
        "",
        "## Shares of the total",
        "",
        *share_lines(columns(rows, device, small)),
        "",
        "## At small size, measured here",
        "",
        *small_lines(small),
        "",
        *headline_lines(rows, device, points),
    ]
    return "\n".join([*lines, ""])


def share_lines(shown: Sequence[Column]) -> list[str]:
    lines = ["| | T5 | STDiT | VAE | total s |", "|---|---|---|---|---|"]
    for column in shown:
        shares = " | ".join(f"{column.share(c):.1%}" for c in COMPONENTS)
        lines.append(f"| {column.title} | {shares} | {column.total_s:.1f} |")
    return [
        *lines,
        "",
        "The small model is Open-Sora v1.2 with a quarter of every width, at 64x64 and 17 frames: its weights have the "
        "proportions of the full size, its tokens do not, and loads here are not slower the first time. So its shares "
        "say how well the simulator divides a run that it can be held against, not how a phone's is divided. The last "
        "row, a recorded run of the full size (`traces/full_size`), overlaps, leaps and computes on this machine's "
        "processor.",
    ]


def small_lines(small: Sequence[Small]) -> list[str]:
    lines = []
    for one in small:
        lines += [
            f"`{one.name}`: {one.weights_bytes / 1e6:.0f} MB of weights under {one.limit_bytes / 1e6:.0f} MB for the "
            f"whole process, `sequential`, {len(one.runs)} runs.",
            "",
            "| component | measured s, median | range | simulated s | share measured | range | simulated |",
            "|---|---|---|---|---|---|---|",
        ]
        simulated, of_runs = Column("", elapsed(one.simulated)), [Column("", elapsed(trace)) for trace in one.runs]
        for c, name in COMPONENTS.items():
            seconds, shares = [run.seconds[c] for run in of_runs], [run.share(c) for run in of_runs]
            lines.append(
                f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f} | "
                f"{simulated.seconds[c]:.2f} | {statistics.median(shares):.1%} | {min(shares):.1%} to "
                f"{max(shares):.1%} | {simulated.share(c):.1%} |"
            )
        steps = [s for trace in one.runs for s in round_seconds(trace)[1:]]
        first = [round_seconds(trace)[0] for trace in one.runs]
        lines += [
            "",
            f"First step {statistics.median(first):.3f} s, later ones {statistics.median(steps):.3f} s in the median.",
            "",
        ]
    return lines[:-1]


def draw(shown: Sequence[Column], points: Sequence[RatioPoint], path: Path) -> None:
    """Shares as stacked bars with their seconds; beside them the speed-ups."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 5.5), layout="constrained", width_ratios=[1.5, 1])
    for place, column in enumerate(shown):
        reached = 0.0
        for color, (c, name) in zip(GROUP_COLORS, COMPONENTS.items(), strict=False):
            share = column.share(c)
            left.barh(place, share, 0.7, left=reached, color=color, label=name if place == 0 else None)
            if share > 0.06:
                value = f"{column.seconds[c]:,.1f}"
                left.text(reached + share / 2, place, value, ha="center", va="center", fontsize=9, color="white")
            reached += share
    left.set_yticks(range(len(shown)), [f"{column.title.replace('`', '')}" for column in shown], fontsize=9)
    left.invert_yaxis()
    left.set(xlim=(0, 1), xlabel="share of the total (in the bars: seconds)", title="no technique, by component")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
    draw_headline(right, points)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


if __name__ == "__main__":
    main()
