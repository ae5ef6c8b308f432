"""The first, a middle and the last round of plans under each other: what is loaded, what was kept, where it waits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cidl_sim.core.files import replacing
from cidl_sim.core.trace import Span, Trace
from cidl_sim.report.timeline import GROUP_COLORS, draw_bars, draw_memory, memory_handles

LOADED_COLOR, RETAINED_COLOR, OTHER_ROUND_COLOR = GROUP_COLORS[0], GROUP_COLORS[1], "#9DB4C0"
IDLE: dict[str, Any] = {"facecolor": "white", "edgecolor": "#4D4D4D", "hatch": "////", "linewidth": 0}
# All columns have one time scale. Of a round with slow first loads only the beginning is shown: so many lengths of the
# later ones, which would else be too small to see.
WIDEST = 1.5

Window = tuple[float, float]  # seconds from the start of the run


def draw_rounds(traces: Sequence[tuple[str, Trace]], path: Path, title: str) -> None:
    """Draw labelled traces of one workload: loader, executor and memory in three rounds of the stage that repeats.

    That is the longest of the denoiser's stages, without a denoiser the longest with several rounds, or the longest of
    all. A column begins where the visit before its round ends; all have the same scale. MachineError if `path` cannot
    be written.
    """
    stage = _stage(traces[0][1])
    rounds = _rounds(traces[0][1], stage)
    windows = [[_window(trace, _visits(trace, stage, number)) for number, _ in rounds] for _, trace in traces]
    lengths = [max(_length(row[column]) for row in windows) for column in range(len(rounds))]
    later = max(lengths[1:], default=0.0) or max(lengths)
    widths = [max(min(length, WIDEST * later), 1e-9) for length in lengths]
    figure = plt.figure(figsize=(10, 1.2 + 2.7 * len(traces)), layout="constrained")
    grid = figure.add_gridspec(2 * len(traces), len(rounds), height_ratios=[1, 1.1] * len(traces), width_ratios=widths)
    for row, (label, trace) in enumerate(traces):
        for column, (number, name) in enumerate(rounds):
            window, width = windows[row][column], widths[column]
            lanes = figure.add_subplot(grid[2 * row, column])
            memory = figure.add_subplot(grid[2 * row + 1, column], sharex=lanes)
            _draw_lanes(lanes, trace, window, _visits(trace, stage, number), width)
            draw_memory(memory, trace, window[1], origin_s=window[0])
            lanes.set_xlim(0, 1.01 * width)
            heading = f"{name}: {_length(window):.4g} s"
            if _length(window) > 1.01 * width:
                heading += f" (shown: {width:.3g} s)"
            lanes.set_title(
                f"{label}, {trace.makespan_s:,.1f} s\n{heading}" if column == 0 else heading, loc="left", fontsize=10
            )
            _end_round([lanes, memory], _length(window))
            _label(lanes, memory, is_first_column=column == 0, is_last_row=row == len(traces) - 1)
    _add_legend(figure)
    figure.suptitle(title, fontsize=12)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format=path.suffix.lstrip(".") or "png")
    plt.close(figure)


def _stage(trace: Trace) -> int:
    stages = range(len(trace.header.stages))
    outlines = trace.header.stages
    denoiser = [s for s in stages if outlines[s].group == "denoiser"]
    repeating = [s for s in stages if outlines[s].rounds > 1]
    return max(denoiser or repeating or stages, key=lambda s: _length(_window(trace, _all_visits(trace, s))))


def _rounds(trace: Trace, stage: int) -> list[tuple[int, str]]:
    """The numbers of the rounds that are drawn, counted from 0, with their names."""
    count, name = trace.header.stages[stage].rounds, trace.header.stages[stage].name.replace("_", " ")
    if count == 1:
        return [(0, f"{name}, its only round")]
    steady = [(count // 2, f"round {count // 2 + 1} of {count}")] if count > 2 else []
    return [(0, f"{name}, first round"), *steady, (count - 1, "last round")]


def _all_visits(trace: Trace, stage: int) -> range:
    sizes = [outline.rounds * len(outline.blocks) for outline in trace.header.stages]
    return range(sum(sizes[:stage]), sum(sizes[: stage + 1]))


def _visits(trace: Trace, stage: int, number: int) -> range:
    size = len(trace.header.stages[stage].blocks)
    start = _all_visits(trace, stage).start + number * size
    return range(start, start + size)


def _window(trace: Trace, visits: range) -> Window:
    """From the end of the visit before some visits to the end of the last of them."""
    ends = {span.visit: span.end_s for span in trace.of("execute")}
    return ends.get(visits.start - 1, 0.0), ends[visits.stop - 1]


def _length(window: Window) -> float:
    return window[1] - window[0]


def _draw_lanes(axes: Axes, trace: Trace, window: Window, visits: range, width_s: float) -> None:
    loaded = {span.visit for span in trace.of("load")}
    workers = ["executor", *sorted({span.worker for span in trace.of("load")}, reverse=True)]
    for lane, worker in enumerate(workers):
        for operation in ("load", "execute", "wait"):
            spans = [s for s in trace.spans if s.worker == worker and s.operation == operation]
            shown = [s for s in spans if s.end_s > window[0] and s.start_s < window[1]]
            if operation != "wait":
                faces = [_color(span, visits, loaded) for span in shown]
                draw_bars(axes, lane, _bars(shown, window), faces, width_s)
            elif worker == "executor":
                axes.broken_barh(_bars(shown, window), (lane - 0.4, 0.8), **IDLE)
    axes.set_yticks(range(len(workers)), [w.replace("loader.0", "loader") for w in workers])
    axes.set_ylim(-0.6, len(workers) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelbottom=False)


def _color(span: Span, visits: range, loaded: set[int]) -> str:
    if span.operation == "execute":
        return LOADED_COLOR if span.visit in loaded else RETAINED_COLOR
    return LOADED_COLOR if span.visit in visits else OTHER_ROUND_COLOR


def _bars(spans: Sequence[Span], window: Window) -> list[tuple[float, float]]:
    """Start and length of what lies within the window, from its start."""
    clipped = [(max(span.start_s, window[0]), min(span.end_s, window[1])) for span in spans]
    return [(start - window[0], end - start) for start, end in clipped]


def _end_round(panels: Sequence[Axes], length_s: float) -> None:
    """What comes after the round is not shown."""
    for axes in panels:
        end_s = axes.get_xlim()[1]
        if length_s < end_s:
            axes.axvspan(length_s, end_s, color="white", linewidth=0, zorder=3)
            axes.axvline(length_s, color="black", linewidth=0.8, zorder=4)


def _label(lanes: Axes, memory: Axes, *, is_first_column: bool, is_last_row: bool) -> None:
    if not is_first_column:
        lanes.tick_params(labelleft=False)
        memory.tick_params(labelleft=False)
        memory.set_ylabel("")
    memory.yaxis.set_major_locator(MaxNLocator(nbins=4))
    if is_last_row:
        memory.set_xlabel("from the round's start (s)")


def _add_legend(figure: Figure) -> None:
    handles = [
        Patch(color=LOADED_COLOR, label="loaded for this visit"),
        Patch(color=RETAINED_COLOR, label="retained from the round before"),
        Patch(color=OTHER_ROUND_COLOR, label="load for another round"),
        Patch(**IDLE, label="executor waits"),
        *memory_handles("memory"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=10, frameon=False)
