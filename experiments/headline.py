"""What of "up to ten times faster" can be derived: ratios of published rows, and all techniques together, simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from cidl_sim.core.costs import execute_cost, load_cost
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Workload
from cidl_sim.devices.published import PublishedRow, Rows
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.pipelines.open_sora.predictions import denoiser_alone
from cidl_sim.planner.planner import best_plan
from cidl_sim.policies.catalog import make_plan
from cidl_sim.policies.on_device_sora import REFERENCE
from cidl_sim.report.timeline import GROUP_COLORS
from cidl_sim.simulator.engine import simulate

NONE = "no technique"
PLANNED = "planned"
PLANNING_LIMIT_S = 2.0
# Merged and plain evaluations of the denoiser, and a policy.
TECHNIQUES = {
    NONE: (0, 30, "sequential"),
    "CI-DL": (0, 30, REFERENCE),
    "LPL": (0, 16, "sequential"),
    "TDTM in 10 steps": (10, 20, "sequential"),
    "LPL, TDTM in 10 steps": (10, 6, "sequential"),
    "LPL, TDTM in 10 steps, CI-DL": (10, 6, REFERENCE),
    "LPL, TDTM in all 16 steps, CI-DL": (16, 0, REFERENCE),
    "LPL, TDTM in all 16 steps, planned": (16, 0, PLANNED),
}
ALL_APP, ALL_PLANNED = "LPL, TDTM in all 16 steps, CI-DL", "LPL, TDTM in all 16 steps, planned"
FIFTY = "planned, against 50 steps without"
# Loads of a pair over its executions.
LOADER_BOUND = 2.0
SWEPT = (0.12, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
# Published rows of the same quantity: without a technique, and with one.
COMPARABLE = {
    "whole pipeline": (
        ("components.sum",),
        ("lpl15.192.total", "ci_dl.192.total", "lpl15.256.total", "ci_dl.256.total"),
    ),
    "STDiT": (
        ("components.stdit", "ci.run_without"),
        ("lpl15.192.stdit", "ci_dl.192.stdit", "lpl15.256.stdit", "ci_dl.256.stdit", "ci.run_with"),
    ),
    "a step of STDiT": (("components.stdit_step", "ci.step_without"), ("ci.step_with",)),
    "first step": (("ci.first_step_without",), ("ci.first_step_with",)),
    "T5": (("t5.sequential", "components.t5"), ("t5.ci",)),
}


@dataclass(frozen=True)
class RatioPoint:
    """Speed-ups of the denoiser where a pair's load takes so many of its executions."""

    load_over_execution: float
    speed_ups: Mapping[str, float]


def ratio_points(device: DeviceProfile, *, quick: bool) -> list[RatioPoint]:
    """The denoiser's speed-ups on the phone without slow first loads, at several bandwidths."""
    drawn = ("CI-DL", "LPL, TDTM in 10 steps", "LPL, TDTM in 10 steps, CI-DL", ALL_APP, ALL_PLANNED)
    points = []
    for ratio in SWEPT[3:5] if quick else SWEPT:
        slower = with_load_over_execution(device, ratio)
        base = denoiser_s(0, 30, "sequential", slower)
        times = {name: denoiser_s(*TECHNIQUES[name], slower) for name in drawn}
        speed_ups = {name: base / seconds for name, seconds in times.items()}
        speed_ups[FIFTY] = denoiser_s(0, 50, "sequential", slower) / times[ALL_PLANNED]
        points.append(RatioPoint(ratio, speed_ups))
    return points


def denoiser_s(merged: int, plain: int, policy: str, device: DeviceProfile) -> float:
    return simulated_s(denoiser_alone("256x256", merged=merged, plain=plain), policy, device)[0]


def simulated_s(workload: Workload, policy: str, device: DeviceProfile) -> tuple[float, float]:
    """Seconds of the denoiser, and of everything."""
    if policy == PLANNED:
        trace = best_plan(workload, device, time_limit_s=PLANNING_LIMIT_S).trace
    else:
        trace = simulate(workload, device, make_plan(policy, workload, device))
    return trace.groups["denoiser"]["elapsed_s"], trace.makespan_s


def with_load_over_execution(device: DeviceProfile, ratio: float) -> DeviceProfile:
    """The device with a bandwidth at which a pair's load takes `ratio` executions, first loads like later ones."""
    warm = {kind: measured.model_copy(update={"cold_load_s": None}) for kind, measured in device.measured.items()}
    equal = device.model_copy(update={"measured": warm})
    pair = denoiser_alone("256x256", plain=1).stages[0].blocks[1]
    now = load_cost(pair, equal, cold=False).seconds / execute_cost(pair, equal).seconds
    return with_value(equal, "loader.bandwidth_bytes_per_s", (device.loader.bandwidth_bytes_per_s or 0) * now / ratio)


def first_load_ratio(device: DeviceProfile) -> float:
    """A pair's first load over its execution."""
    pair = denoiser_alone("256x256", plain=1).stages[0].blocks[1]
    return load_cost(pair, device, cold=True).seconds / execute_cost(pair, device).seconds


def pipeline(merged: int, plain: int) -> Workload:
    """Open-Sora v1.2 with so many merged and plain evaluations of the denoiser."""
    source = find_workload("opensora-v1.2-256x256-68f-lpl15-tdtm10")
    rounds = {"denoiser.merged": merged, "denoiser": plain}
    stages = [
        stage.model_copy(update={"rounds": rounds.get(stage.name, stage.rounds)})
        for stage in source.stages
        if rounds.get(stage.name, stage.rounds)
    ]
    return Workload(name=f"{source.name}, {merged} merged and {plain} plain steps", stages=tuple(stages))


def headline_lines(rows: Rows, device: DeviceProfile, points: Sequence[RatioPoint]) -> list[str]:
    """The section of the result."""
    claim = rows["claim.ten_times"].value
    return [
        f"## The headline: up to {claim:g} times",
        "",
        "### Ratios of published rows",
        "",
        "Every pair of rows that time the same thing, without and with a technique. Frames are printed nowhere.",
        "",
        *ratio_lines(rows),
        "",
        *product_lines(rows),
        "",
        "### All techniques together, simulated",
        "",
        *simulated_lines(device),
        "",
        *conclusion(rows, points),
    ]


def ratio_lines(rows: Rows) -> list[str]:
    lines = [
        "| quantity | without s | with s | ratio | technique | what differs besides |",
        "|---|---|---|---|---|---|",
    ]
    for what, (numerators, denominators) in COMPARABLE.items():
        pairs = [(rows[n], rows[d]) for n in numerators for d in denominators]
        for one, other in sorted(pairs, key=lambda p: p[1].seconds / p[0].seconds):
            lines.append(
                f"| {what} | {one.seconds:g} (`{one.id}`) | {other.seconds:g} (`{other.id}`) | "
                f"{one.seconds / other.seconds:.2f} | {other.conditions.technique} | {differences(one, other)} |"
            )
    return lines


def differences(one: PublishedRow, other: PublishedRow) -> str:
    """In which conditions two rows differ, the technique apart; what does not apply to one of them does not count."""
    found = []
    for name in ("resolution", "steps"):
        words = [
            "not printed" if name in row.conditions.not_printed else getattr(row.conditions, name)
            for row in (one, other)
        ]
        if None not in words and words[0] != words[1]:
            found.append(f"{name}: {words[0]}, {words[1]}")
    return "; ".join(found) or "nothing that is printed"


def product_lines(rows: Rows) -> list[str]:
    """The most that can be had by multiplying, settings ignored."""
    leap = rows["components.stdit"].seconds / rows["lpl15.192.stdit"].seconds
    merge = rows["tdtm.speed_up.30"].value
    overlap = rows["ci.run_without"].seconds / rows["ci.run_with"].seconds
    printed = rows["lpl.speed_up.16"].value
    many_s, few_s = rows["components.stdit"].seconds, rows["lpl15.192.stdit"].seconds
    return [
        f"At equal settings the printed factors of STDiT multiply to {printed:g} (LPL) x {merge:g} (TDTM in all steps) "
        f"x {overlap:.2f} (CI) = {printed * merge * overlap:.2f}. With the number of steps and the resolution changed "
        f"too, {leap:.2f} ({many_s:g} s for 50 steps over {few_s:g} s for 16 at 192x192) x {merge:g} x {overlap:.2f} = "
        f"{leap * merge * overlap:.2f}, for STDiT alone, which nobody measured.",
    ]


def simulated_lines(device: DeviceProfile) -> list[str]:
    """Each technique and all together on three devices."""
    first = first_load_ratio(device)
    devices = {
        "phone": device,
        f"every load as slow as a first one (load / execution {first:.2f})": with_load_over_execution(device, first),
        f"bound by its loader (load / execution {LOADER_BOUND:g})": with_load_over_execution(device, LOADER_BOUND),
    }
    times = {
        title: {
            name: simulated_s(pipeline(merged, plain), policy, one)
            for name, (merged, plain, policy) in TECHNIQUES.items()
        }
        for title, one in devices.items()
    }
    lines = [
        "Open-Sora v1.2 at 256x256, 68 frames, fp32, 30 steps: seconds, and the speed-up over no technique on the same "
        "device. The two other devices are the phone with a slower loader, and without slower first loads.",
        "",
        "| techniques | " + " | ".join(f"{title}: STDiT | pipeline" for title in devices) + " |",
        "|---|" + "---|---|" * len(devices),
    ]
    for name in TECHNIQUES:
        cells = []
        for title in devices:
            for base, seconds in zip(times[title][NONE], times[title][name], strict=True):
                cells.append(f"{seconds:,.0f} ({base / seconds:.2f}x)")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def conclusion(rows: Rows, points: Sequence[RatioPoint]) -> list[str]:
    claim = rows["claim.ten_times"].value
    best = max(points, key=lambda p: p.speed_ups[ALL_PLANNED])
    fifty = max(points, key=lambda p: p.speed_ups[FIFTY])
    app = max(points, key=lambda p: p.speed_ups[ALL_APP])
    measured = rows["components.sum"].seconds / rows["lpl15.192.total"].seconds
    verdict = "reaches" if fifty.speed_ups[FIFTY] >= claim else "does not reach"
    return [
        f"In plain words: no two printed times of the same thing are {claim:g} apart. The most that two of them give "
        f"for a whole video is {measured:.2f}, and that compares 50 steps at a resolution that is not printed with 16 "
        "steps at 192x192. At equal settings the simulator's largest speed-up of STDiT over the swept ratios of load "
        f"to execution (right panel) is {app.speed_ups[ALL_APP]:.2f} with the app's CI-DL (at "
        f"{app.load_over_execution:g}) and {best.speed_ups[ALL_PLANNED]:.2f} planned (at "
        f"{best.load_over_execution:g}), tokens merged in every step, which costs the most quality. Against 50 steps "
        f"without any technique the latter {verdict} {claim:g}: {fifty.speed_ups[FIFTY]:.2f} at "
        f"{fifty.load_over_execution:g}. T5 and the VAE, which LPL and TDTM do not touch, lower all of these for a "
        "whole video. So the headline stays a claim.",
    ]


def draw_headline(axes: Axes, points: Sequence[RatioPoint]) -> None:
    """Speed-ups against load over execution."""
    ratios = [point.load_over_execution for point in points]
    for color, name in zip(GROUP_COLORS, points[0].speed_ups, strict=True):
        style = "--" if name == FIFTY else "-"
        axes.plot(ratios, [point.speed_ups[name] for point in points], style, color=color, marker="o", label=name)
    axes.axhline(10, color="#444444", linewidth=1, linestyle=":")
    axes.text(ratios[-1], 10.1, "the headline", ha="right", va="bottom", fontsize=9)
    ticks = [ratio for ratio in (0.125, 0.25, 0.5, 1, 2, 4, 8) if ratios[0] * 0.9 <= ratio <= ratios[-1] * 1.1]
    axes.set(xscale="log", ylim=(0, 11), ylabel="speed-up of STDiT over no technique")
    axes.set_xticks(ticks, [f"{ratio:g}" for ratio in ticks])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="a pair's load / its execution (the phone: 0.12)", title="LPL, TDTM and CI-DL together, simulated")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    axes.grid(alpha=0.3)
