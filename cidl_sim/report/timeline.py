"""Timelines: loader lane, executor lane and memory curve of one or more traces on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cidl_sim.core.files import replacing
from cidl_sim.core.trace import Span, Trace

# Okabe and Ito's palette: told apart by colour-blind readers.
GROUP_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
WAIT_COLOR = "#D9D9D9"
LIMIT_COLOR = "#D55E00"
MEMORY_COLOR = "#56B4E9"
MEGABYTE = 1e6
# Inches around panels; with matplotlib's own 0.04 the longest labels touch the picture's edge.
MARGIN = 0.12
# A bar below this share of its panel has no border, which would hide it.
BORDERED = 0.015


def draw_timelines(traces: Sequence[tuple[str, Trace]], path: Path, title: str = "") -> None:
    """Draw labelled traces under each other: the whole run on the left, a steady stretch on the right.

    All rows share the time axis of their column, so a simulated run above a measured one can be compared by
    eye. Raises MachineError if `path` cannot be written.
    """
    figure = plt.figure(figsize=(13, 0.9 + 2.9 * len(traces)), layout=ConstrainedLayoutEngine(w_pad=MARGIN))
    grid = figure.add_gridspec(2 * len(traces), 2, height_ratios=[1, 1.15] * len(traces), width_ratios=[1.25, 1])
    windows = (_whole(traces), _steady_stretch(traces[0][1]))
    for column, window in enumerate(windows):
        shared: Axes | None = None
        for row, (label, trace) in enumerate(traces):
            lanes = figure.add_subplot(grid[2 * row, column], sharex=shared)
            memory = figure.add_subplot(grid[2 * row + 1, column], sharex=lanes)
            shared = shared or lanes
            _draw_lanes(lanes, trace, window)
            draw_memory(memory, trace, window[1])
            lanes.set_title(f"{label}: {trace.makespan_s:.2f} s" if column == 0 else _window_title(window), fontsize=10)
            lanes.tick_params(labelbottom=False)
            is_last = row == len(traces) - 1
            memory.tick_params(labelbottom=is_last)
            if is_last:
                memory.set_xlabel("time (s)")
            lanes.set_xlim(*window)
    _add_legend(figure, traces[0][1])
    if title:
        figure.suptitle(title, fontsize=12)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format=path.suffix.lstrip(".") or "png")
    plt.close(figure)


def _draw_lanes(axes: Axes, trace: Trace, window: tuple[float, float]) -> None:
    groups = _group_of_visit(trace)
    colors = _colors(trace)
    workers = ["executor", *sorted({span.worker for span in trace.of("load")}, reverse=True)]
    for lane, worker in enumerate(workers):
        for operation in ("load", "execute", "wait"):
            spans = [s for s in trace.spans if s.worker == worker and s.operation == operation and _overlaps(s, window)]
            bars = [(s.start_s, s.end_s - s.start_s) for s in spans]
            if operation == "wait":
                axes.broken_barh(bars, (lane - 0.12, 0.24), facecolors=WAIT_COLOR, linewidth=0, snap=False)
            else:
                draw_bars(axes, lane, bars, [colors[groups[s.visit]] for s in spans], window[1] - window[0])
    axes.set_yticks(range(len(workers)), [w.replace("loader.0", "loader") for w in workers])
    axes.set_ylim(-0.6, len(workers) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)


def draw_bars(axes: Axes, lane: int, bars: Sequence[tuple[float, float]], faces: Sequence[str], width_s: float) -> None:
    """Draw loads or executions, (start, length) in seconds, in a lane of a panel that shows `width_s`.

    Wide ones are told apart by a white border. One in their own colour makes narrow ones at least a pixel wide:
    without any, those that fall between two pixels would be lost.
    """
    edges = ["white" if length > BORDERED * width_s else face for (_, length), face in zip(bars, faces, strict=True)]
    axes.broken_barh(bars, (lane - 0.4, 0.8), facecolors=faces, edgecolors=edges, linewidth=0.6, snap=False)


def draw_memory(axes: Axes, trace: Trace, until_s: float, *, origin_s: float = 0.0) -> None:
    """Draw the accounted memory in MB with baseline and limit, until `until_s` of the run; `origin_s` is zero."""
    times = [t - origin_s for t, _ in trace.memory_curve] + [max(until_s, trace.makespan_s) - origin_s]
    held = [b / MEGABYTE for _, b in trace.memory_curve]
    held.append(held[-1])
    limit, baseline = trace.header.memory_limit_bytes / MEGABYTE, trace.header.baseline_bytes / MEGABYTE
    axes.fill_between(times, held, baseline, step="post", color=MEMORY_COLOR, alpha=0.55, linewidth=0)
    axes.axhline(baseline, color="#7F7F7F", linewidth=1, linestyle=":")
    axes.axhline(limit, color=LIMIT_COLOR, linewidth=1.4, linestyle="--")
    bottom = baseline - 0.12 * (limit - baseline)
    axes.set_ylim(bottom, limit + 0.18 * (limit - baseline))
    axes.set_ylabel("memory (MB)")
    axes.spines[["top", "right"]].set_visible(False)


def memory_handles(name: str) -> list[Patch | Line2D]:
    """What a legend says of `draw_memory`, the area called `name`."""
    return [
        Patch(color=MEMORY_COLOR, alpha=0.55, label=name),
        Line2D([], [], color=LIMIT_COLOR, linestyle="--", linewidth=1.4, label="limit"),
        Line2D([], [], color="#7F7F7F", linestyle=":", linewidth=1, label="baseline"),
    ]


def _add_legend(figure: Figure, trace: Trace) -> None:
    handles: list[Patch | Line2D] = [
        *(Patch(color=color, label=group.replace("_", " ")) for group, color in _colors(trace).items()),
        Patch(color=WAIT_COLOR, label="waiting"),
        *memory_handles("weights and workspace"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)


def _whole(traces: Sequence[tuple[str, Trace]]) -> tuple[float, float]:
    return 0.0, max(1.01 * max(trace.makespan_s for _, trace in traces), 1e-9)


def _steady_stretch(trace: Trace) -> tuple[float, float]:
    """Two rounds in the middle of the stage that takes the longest."""
    longest = max(
        range(len(trace.header.stages)),
        key=lambda s: sum(span.end_s - span.start_s for span in _stage_spans(trace, s)),
    )
    spans = _stage_spans(trace, longest)
    if not spans:
        return 0.0, max(trace.makespan_s, 1e-9)
    blocks = len(trace.header.stages[longest].blocks)
    rounds = max(1, len(spans) // blocks)
    first = max(0, rounds // 2 - 1) * blocks
    last = min(len(spans), first + 2 * blocks) - 1
    start, end = spans[first].start_s, spans[last].end_s
    return start, max(end, start + 1e-9)


def _stage_spans(trace: Trace, stage: int) -> list[Span]:
    before = sum(o.rounds * len(o.blocks) for o in trace.header.stages[:stage])
    outline = trace.header.stages[stage]
    after = before + outline.rounds * len(outline.blocks)
    return [span for span in trace.of("execute") if before <= span.visit < after]


def _window_title(window: tuple[float, float]) -> str:
    return f"{window[0]:.2f} to {window[1]:.2f} s"


def _overlaps(span: Span, window: tuple[float, float]) -> bool:
    return span.end_s >= window[0] and span.start_s <= window[1]


def _group_of_visit(trace: Trace) -> list[str]:
    return [outline.group for outline in trace.header.stages for _ in range(outline.rounds * len(outline.blocks))]


def _colors(trace: Trace) -> dict[str, str]:
    groups = list(dict.fromkeys(outline.group for outline in trace.header.stages))
    return {group: GROUP_COLORS[i % len(GROUP_COLORS)] for i, group in enumerate(groups)}
