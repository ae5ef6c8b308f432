"""What-if pictures: which figures of a profile matter (tornado), and the makespan against the memory limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cidl_sim.core.files import replacing
from cidl_sim.core.reports import BreakPoint, CurvePoint, PlanReport, WhatIfReport
from cidl_sim.report.timeline import GROUP_COLORS, LIMIT_COLOR, MARGIN

BELOW_COLOR, ABOVE_COLOR = GROUP_COLORS[0], GROUP_COLORS[1]
CURVE_COLOR = GROUP_COLORS[0]
BOUND_COLOR = "#000000"
# Lines that a label crosses do not strike it through.
BEHIND_TEXT: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85}
# Bars shorter than this share of the makespan cannot be seen.
VISIBLE = 5e-4
POINT_LABELS = {"feasible": "feasible", "enough_memory": "stops paying", "zero_stall": "zero stall"}


def draw_what_if(figures: WhatIfReport, path: Path) -> None:
    """Draw the figures of `cidl whatif`. Raises MachineError if `path` cannot be written."""
    figure = plt.figure(figsize=(13, 6), layout=ConstrainedLayoutEngine(w_pad=MARGIN))
    grid = figure.add_gridspec(2, 2, height_ratios=[2.2, 1], width_ratios=[1.15, 1])
    curve = figure.add_subplot(grid[0, 1])
    retained = figure.add_subplot(grid[1, 1], sharex=curve)
    _draw_tornado(figure.add_subplot(grid[:, 0]), figures)
    _draw_curve(curve, retained, figures.memory_curve, figures.break_points, figures.memory_limit_bytes)
    title = f"{figures.workload} on {figures.device}, {figures.policy}: {figures.makespan_s:.1f} s"
    figure.suptitle(title, fontsize=12)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format=path.suffix.lstrip(".") or "png")
    plt.close(figure)


def draw_memory_curve(figures: PlanReport, path: Path) -> None:
    """Draw the memory curve of `cidl plan --memory-curve`. Raises MachineError if `path` cannot be written."""
    figure, (curve, retained) = plt.subplots(
        2, 1, figsize=(9, 6), height_ratios=[2.2, 1], sharex=True, layout=ConstrainedLayoutEngine(w_pad=MARGIN)
    )
    _draw_curve(curve, retained, figures.memory_curve, figures.memory_points, figures.memory_limit_bytes)
    figure.suptitle(f"{figures.workload} on {figures.device}, {figures.curve_policy}", fontsize=12)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format=path.suffix.lstrip(".") or "png")
    plt.close(figure)


def _draw_tornado(axes: Axes, figures: WhatIfReport) -> None:
    here = figures.makespan_s
    rows = []
    for row in figures.sensitivities:
        changes = [
            None if seconds is None or not here else seconds / here - 1
            for seconds in (row.makespan_below_s, row.makespan_above_s)
        ]
        if row.elasticity is not None and any(abs(change or 0.0) >= VISIBLE for change in changes):
            rows.append((row, changes))
    for place, (_, changes) in enumerate(reversed(rows)):
        for change, color in zip(changes, (BELOW_COLOR, ABOVE_COLOR), strict=True):
            axes.barh(place, 100 * (change or 0.0), color=color, height=0.7)
    axes.set_yticks(
        range(len(rows)), [f"{row.parameter}  ({row.elasticity:+.2f})" for row, _ in reversed(rows)], fontsize=8
    )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("change of the makespan (%)")
    axes.set_title("a tenth less and more of each figure, planned anew (elasticity)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=color) for color in (BELOW_COLOR, ABOVE_COLOR)]
    axes.legend(handles, ["figure / 1.1 (channels / 2)", "figure x 1.1 (channels x 2)"], fontsize=8, loc="lower right")
    if not rows:
        axes.text(0.5, 0.5, "nothing changes the makespan", transform=axes.transAxes, ha="center")


def _draw_curve(
    curve: Axes, retained: Axes, points: Sequence[CurvePoint], marked: Sequence[BreakPoint], limit_bytes: int
) -> None:
    unit, name = _unit(points[-1].memory_limit_bytes)
    limits = [point.memory_limit_bytes / unit for point in points]
    makespans = [point.makespan_s for point in points]
    # Both change block by block; a drop between two points is drawn at the second, where it was seen.
    curve.step(limits, makespans, where="post", color=CURVE_COLOR, marker="o", markersize=3.5, linewidth=1.4)
    bounds = [point.lower_bound_s for point in points]
    # Dotted and on top, so that both are seen where they are one.
    curve.step(limits, bounds, where="post", color=BOUND_COLOR, linewidth=1.4, linestyle=":", zorder=2.5)
    curve.annotate(
        "no plan is faster",
        (limits[-1], bounds[-1]),
        xytext=(-5, -5),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color=BOUND_COLOR,
        bbox=BEHIND_TEXT,
    )
    retained.step(limits, [point.retained_blocks for point in points], where="post", color=CURVE_COLOR)
    lowest = min(*makespans, *bounds)
    room = (max(makespans) - lowest) or max(*makespans, 1e-9)
    curve.set_ylim(lowest - 0.15 * room, max(makespans) + 0.25 * room)
    here = limit_bytes / unit
    marks = [(here, "profile", LIMIT_COLOR)]
    for point in marked:
        if point.parameter == "memory_limit_bytes" and point.value is not None:
            marks.append((point.value / unit, POINT_LABELS.get(point.name, point.name), "#7F7F7F"))
    top = curve.get_ylim()[1]
    for place, (at, label, color) in enumerate(sorted(marks)):
        for axes in (curve, retained):
            axes.axvline(at, color=color, linestyle="--", linewidth=1.1)
        # Every other label one line lower: marks may lie close together.
        is_right = at > 0.75 * limits[-1]
        curve.annotate(
            f"{label} {at:.3g} {name}",
            (at, top),
            xytext=(-4 if is_right else 4, -4 - 12 * (place % 3)),
            textcoords="offset points",
            ha="right" if is_right else "left",
            fontsize=8,
            color=color,
            va="top",
            bbox=BEHIND_TEXT,
        )
    curve.margins(x=0.08)
    curve.set_ylabel("makespan (s)")
    curve.set_title("makespan against the memory limit", fontsize=10)
    curve.tick_params(labelbottom=False)
    retained.set_ylabel("retained\nblocks")
    retained.set_ylim(bottom=-0.2, top=max(1, *(point.retained_blocks for point in points)) * 1.15)
    retained.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    retained.set_xlabel(f"memory limit ({name})")
    for axes in (curve, retained):
        axes.spines[["top", "right"]].set_visible(False)


def _unit(count: float) -> tuple[float, str]:
    return next(((size, unit) for unit, size in (("GB", 1e9), ("MB", 1e6)) if count >= size), (1.0, "bytes"))
