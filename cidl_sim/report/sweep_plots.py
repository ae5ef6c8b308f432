"""Pictures of a sweep: Pareto fronts, retention against lookahead, makespan against memory, regret by device."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from cidl_sim.core.files import replacing
from cidl_sim.report.policy_styles import policy_style
from cidl_sim.report.sweep_figures import (
    Front,
    HeatMap,
    MemoryCurve,
    Row,
    SweepFigures,
    byte_unit,
    least_stalls,
    least_stalls_text,
    lookahead_text,
    makespan_grid,
    quality_levels,
)
from cidl_sim.report.timeline import LIMIT_COLOR

BOUND_COLOR = "#4D4D4D"
FRONT_COLOR = "#000000"
NOT_FEASIBLE: dict[str, Any] = {"facecolor": "#E5E5E5", "edgecolor": "#7F7F7F", "hatch": "///", "linewidth": 0}
# Lines of the levels of quality on one front.
LEVEL_STYLES = ("-", "--", "-.", ":")
# Cells beyond this many have no room for their numbers.
NUMBERED_CELLS = 120
COLORS = "cividis_r"


def draw_sweep(figures: SweepFigures, stalls_s: Mapping[int, float], folder: Path) -> list[Path]:
    """Write heat_map.png, memory.png, pareto.png and regret.png into `folder`, but those with nothing to show.

    `stalls_s`: for how many seconds the executor waits after its first visit began, by the row's index. Returns what
    was written. MachineError if it cannot be.
    """
    drawn: list[tuple[str, Callable[[], Figure]]] = []
    if figures.heat_maps:
        drawn.append(("heat_map.png", lambda: _heat_maps(figures.heat_maps)))
    if figures.curves:
        drawn.append(("memory.png", lambda: _curves(figures.curves, stalls_s)))
    drawn.append(("pareto.png", lambda: _fronts(figures.fronts)))
    if figures.regrets:
        drawn.append(("regret.png", lambda: _regrets(figures.regrets, figures.bound_gaps)))
    for name, draw in drawn:
        figure = draw()
        with replacing(folder / name) as temporary:
            figure.savefig(temporary, dpi=130, format="png")
        plt.close(figure)
    return [folder / name for name, _ in drawn]


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(count, 2)
    rows = -(-count // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(9 if columns == 1 else 13, height * rows + 0.5),
        squeeze=False,
        layout=ConstrainedLayoutEngine(wspace=0.06),
    )
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def _titled(axes: Axes, title: str) -> None:
    axes.set_title(textwrap.fill(title, 66), fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _marks(patterns: Sequence[str]) -> list[Line2D]:
    styles = [(pattern, policy_style(pattern)) for pattern in patterns]
    return [
        Line2D([], [], color=style.color, marker=style.marker, linestyle="none", label=pattern)
        for pattern, style in styles
    ]


def _patterns(rows: Sequence[Row]) -> list[str]:
    return sorted({row["pattern"] for row in rows})


# Fronts


def _fronts(fronts: Sequence[Front]) -> Figure:
    figure, panels = _panels(len(fronts), 4.6)
    for axes, front in zip(panels, fronts, strict=True):
        size, unit = byte_unit([row["peak_resident_bytes"] for row in (*front.rows, *front.others)])
        for pattern in _patterns((*front.rows, *front.others)):
            style = policy_style(pattern)
            others = [row for row in front.others if row["pattern"] == pattern]
            best = [row for row in front.rows if row["pattern"] == pattern]
            look: dict[str, Any] = {"color": style.color, "marker": style.marker, "linewidth": 0}
            axes.scatter(*_places(others, size), s=14, alpha=0.35, **look)
            axes.scatter(*_places(best, size), s=46, zorder=3, **look)
        for place, (level, rows) in enumerate(quality_levels(front.rows).items()):
            line = LEVEL_STYLES[place % len(LEVEL_STYLES)]
            axes.step(*_places(rows, size), where="post", color=FRONT_COLOR, linewidth=1.2, linestyle=line, label=level)
        axes.set_xlabel(f"peak of memory ({unit})")
        axes.set_ylabel("makespan (s)")
        axes.margins(0.06)
        axes.legend(title="front at", fontsize=8, title_fontsize=8, loc="upper right")
        _titled(axes, front.title)
    patterns = _patterns([row for front in fronts for row in (*front.rows, *front.others)])
    small = Line2D([], [], color="#7F7F7F", marker="o", markersize=3.5, alpha=0.5, linestyle="none", label="not on it")
    figure.legend(handles=[*_marks(patterns), small], loc="outside lower center", ncols=9, fontsize=9, frameon=False)
    return figure


def _places(rows: Sequence[Row], size: float) -> tuple[list[float], list[float]]:
    return [row["peak_resident_bytes"] / size for row in rows], [row["makespan_s"] for row in rows]


# Retention against lookahead


def _heat_maps(maps: Sequence[HeatMap]) -> Figure:
    figure, panels = _panels(len(maps), 5.6)
    for axes, heat_map in zip(panels, maps, strict=True):
        lookaheads, numbers, cells = makespan_grid(heat_map)
        seconds = np.array([[_seconds(cell) for cell in row] for row in cells])
        image = axes.pcolormesh(seconds, cmap=COLORS, edgecolors="white", linewidth=0.6)
        for (y, x), value in np.ndenumerate(seconds):
            if np.isnan(value) and cells[y][x] is not None:
                axes.add_patch(Rectangle((float(x), float(y)), 1, 1, **NOT_FEASIBLE))
        if seconds.size <= NUMBERED_CELLS:
            _number_cells(axes, seconds)
        y, x = np.unravel_index(np.nanargmin(seconds), seconds.shape)
        axes.add_patch(
            Rectangle((float(x), float(y)), 1, 1, fill=False, edgecolor=LIMIT_COLOR, linewidth=2.6, clip_on=False)
        )
        axes.set_xticks(np.arange(len(lookaheads)) + 0.5, [lookahead_text(value) for value in lookaheads])
        axes.set_yticks(np.arange(len(numbers)) + 0.5, [str(value) for value in numbers])
        axes.set_xlabel("lookahead (blocks loaded ahead)")
        axes.set_ylabel("retained (blocks of each group)")
        figure.colorbar(image, ax=axes, label="makespan of the best policy (s)")
        _titled(axes, heat_map.title)
    handles = [
        Patch(fill=False, edgecolor=LIMIT_COLOR, linewidth=2.6, label="shortest"),
        Patch(**NOT_FEASIBLE, label="does not fit the memory"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def _seconds(cell: Row | None) -> float:
    return float("nan") if cell is None or cell["makespan_s"] is None else float(cell["makespan_s"])


def _number_cells(axes: Axes, seconds: NDArray[np.float64]) -> None:
    middle = (np.nanmin(seconds) + np.nanmax(seconds)) / 2
    for (y, x), value in np.ndenumerate(seconds):
        if not np.isnan(value):
            color = "white" if value > middle else "black"
            axes.text(x + 0.5, y + 0.5, f"{value:.4g}", ha="center", va="center", fontsize=7.5, color=color)


# Makespan against memory


def _curves(curves: Sequence[MemoryCurve], stalls_s: Mapping[int, float]) -> Figure:
    figure, panels = _panels(len(curves), 4.2)
    for axes, curve in zip(panels, curves, strict=True):
        size, unit = byte_unit([row["memory_limit_bytes"] for row in curve.best])
        for pattern, rows in curve.by_pattern.items():
            style = policy_style(pattern)
            axes.plot(
                *_limits(rows, size), color=style.color, marker=style.marker, markersize=4, linewidth=0.9, alpha=0.75
            )
        axes.plot(*_limits(curve.best, size), color=FRONT_COLOR, linewidth=2.0, label="best policy")
        bounded = [row for row in curve.best if row["lower_bound_s"] is not None]
        if bounded:
            axes.plot(
                [row["memory_limit_bytes"] / size for row in bounded],
                [row["lower_bound_s"] for row in bounded],
                color=BOUND_COLOR,
                linestyle=":",
                linewidth=1.8,
                label="bound: no plan is faster",
            )
        limit, least_s = least_stalls(curve, stalls_s)
        label = least_stalls_text(limit, least_s)
        axes.axvline(limit / size, color=LIMIT_COLOR, linestyle="--", linewidth=1.4, label=label)
        axes.set_xlabel(f"memory limit ({unit})")
        axes.set_ylabel("makespan (s)")
        axes.margins(y=0.12)
        axes.legend(fontsize=8, loc="best")
        _titled(axes, curve.title)
    patterns = sorted({pattern for curve in curves for pattern in curve.by_pattern})
    figure.legend(handles=_marks(patterns), loc="outside lower center", ncols=8, fontsize=9, frameon=False)
    return figure


def _limits(rows: Sequence[Row], size: float) -> tuple[list[float], list[float]]:
    return [row["memory_limit_bytes"] / size for row in rows], [row["makespan_s"] for row in rows]


# Regret


def _regrets(regrets: Sequence[Row], bound_gaps: Sequence[Row]) -> Figure:
    """One column for each device, one row for each policy, the policy with the least regret on top."""
    devices = list(dict.fromkeys(row["device"] for row in regrets))
    patterns = sorted({row["pattern"] for row in regrets}, key=lambda pattern: _mean_regret(regrets, pattern))
    percent = np.full((len(patterns), len(devices)), np.nan)
    partly = set()
    for row in regrets:
        place = patterns.index(row["pattern"]), devices.index(row["device"])
        percent[place] = 100 * row["mean_regret"]
        if row["feasible_cases"] < row["cases"]:
            partly.add(place)
    gaps = {row["device"]: row["mean_gap"] for row in bound_gaps}
    figure, axes = plt.subplots(
        figsize=(max(6.5, 2.6 + 1.25 * len(devices)), 1.9 + 0.45 * len(patterns)), layout="constrained"
    )
    top = max(1.0, float(np.nanmax(percent)))
    image = axes.pcolormesh(percent, cmap=COLORS, vmin=0, vmax=top, edgecolors="white")
    for (y, x), value in np.ndenumerate(percent):
        text = "does\nnot fit" if np.isnan(value) else f"{value:.1f}" + ("*" if (y, x) in partly else "")
        color = "white" if value > top / 2 else "black"
        axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=9, color=color)
    labels = [device + (f"\nbest: bound + {100 * gaps[device]:.1f} %" if device in gaps else "") for device in devices]
    axes.set_xticks(np.arange(len(devices)) + 0.5, labels, fontsize=8, rotation=20 if len(devices) > 3 else 0)
    axes.set_yticks(np.arange(len(patterns)) + 0.5, patterns)
    axes.invert_yaxis()
    figure.colorbar(image, ax=axes, label="mean regret (%)")
    note = "  (* does not fit all settings)" if partly else ""
    _titled(axes, "longer than the best of the sweep, each policy at its best number" + note)
    return figure


def _mean_regret(regrets: Sequence[Row], pattern: str) -> float:
    found = [row["mean_regret"] for row in regrets if row["pattern"] == pattern]
    return float(np.mean(found))
