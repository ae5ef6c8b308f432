"""The page of a sweep: fronts, retention against lookahead, makespan against memory, regrets, sensitivities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cidl_sim.core.trace import Trace
from cidl_sim.report.page import Chart, Json, Page, PickTable, outline_of, timeline_of
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
    quality_text,
    settings_text,
)
from cidl_sim.report.timeline import LIMIT_COLOR

BOUND_COLOR = "#4D4D4D"
FRONT_COLOR = "#000000"
DASHES = ("solid", "dash", "dashdot", "dot")
BELOW = {"orientation": "h", "y": -0.26, "yanchor": "top"}


class SweepPage:
    """Takes the timelines one after the other, so that no two traces have to be in memory, then makes the page."""

    def __init__(self, figures: SweepFigures) -> None:
        self._figures = figures
        self._timelines: dict[str, Json] = {}
        self._outlines: dict[str, Any] = {}
        self.stalls_s: dict[int, float] = {}

    def add(self, index: int, trace: Trace) -> None:
        """The timeline of the row with that index."""
        row = self._figures.points[index]
        self._timelines[_key(row)] = timeline_of(trace, f"row {index}: {row_title(row)}")
        self._outlines.setdefault(trace.header.workload_sha256, outline_of(trace))
        self.stalls_s[index] = trace.stalls_s

    def page(self, title: str) -> Page:
        """The page with all that was added."""
        figures = self._figures
        charts = [_fronts(figures.fronts)]
        if figures.heat_maps:
            charts.append(_heat_maps(figures.heat_maps))
        if figures.curves:
            charts.append(_curves(figures.curves, self.stalls_s))
        if figures.regrets:
            charts.append(_regrets(figures))
        if figures.sensitivities:
            charts.append(_sensitivities(figures.sensitivities))
        notes = [
            f"{len(figures.points):,} of {figures.rows:,} rows are shown ({figures.feasible:,} fit their limit): "
            "Pareto fronts, the best row of each policy on each device, the best under each memory limit and in each "
            "cell, and an even sample. Pick any point to see its timeline.",
        ]
        fastest = min(figures.best, key=lambda row: (row["makespan_s"], row["index"]))
        if not figures.regrets:
            notes.append("A sample: no two rows have the same settings, so nothing is shown that compares such rows.")
        return Page(title, notes, (), charts, [_best(figures.best)], self._timelines, self._outlines, _key(fastest))


def row_title(row: Row) -> str:
    """A row's policy, workload, device and settings in a line."""
    lookahead = "" if row["lookahead"] is None else f" with lookahead {row['lookahead']}"
    settings = settings_text(row["settings"])
    return ", ".join(filter(None, [f"{row['policy']}{lookahead}", f"{row['workload']} on {row['device']}", settings]))


def _key(row: Row) -> str:
    return str(row["index"])


def _keys(rows: Iterable[Row]) -> list[str]:
    return [_key(row) for row in rows]


def _texts(rows: Iterable[Row]) -> list[str]:
    return [_text(row) for row in rows]


def _text(row: Row) -> str:
    size, unit = byte_unit([row["memory_limit_bytes"]])
    bound = "" if row["lower_bound_s"] is None else f", bound {row['lower_bound_s']:.4g} s"
    return (
        f"row {row['index']}: {row_title(row)}<br>makespan {row['makespan_s']:.4g} s{bound}<br>"
        f"peak {row['peak_resident_bytes'] / size:.4g} of {row['memory_limit_bytes'] / size:.4g} {unit}, "
        f"{quality_text(row)}"
    )


def _points(name: str, rows: Sequence[Row], x: Sequence[Any], y: Sequence[float], **look: Any) -> Json:
    """Points that can be picked."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": list(x),
        "y": list(y),
        "customdata": _keys(rows),
        "hovertext": _texts(rows),
        "hoverinfo": "text",
        **look,
    }


def _line(name: str, x: Sequence[float], y: Sequence[float | None], **look: Any) -> Json:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(x),
        "y": list(y),
        "hoverinfo": "skip",
        "line": look,
    }


def _axes(x: str, y: str, **layout: Any) -> Json:
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}, "legend": BELOW, **layout}


def _fronts(fronts: Sequence[Front]) -> Chart:
    panels = []
    for front in fronts:
        size, unit = byte_unit([row["peak_resident_bytes"] for row in (*front.rows, *front.others)])
        traces = []
        for place, (level, rows) in enumerate(quality_levels(front.rows).items()):
            x = [row["peak_resident_bytes"] / size for row in rows]
            look = {"shape": "hv", "color": FRONT_COLOR, "width": 1.2, "dash": DASHES[place % len(DASHES)]}
            traces.append(_line(f"front, {level}", x, [row["makespan_s"] for row in rows], **look))
        on_front = {row["pattern"] for row in front.picked}
        for shown, marker, hidden in (
            (front.others, {"size": 8, "opacity": 0.5}, on_front),
            (front.picked, {"size": 11, "line": {"width": 1, "color": "black"}}, set()),
        ):
            for pattern in sorted({row["pattern"] for row in shown}):
                found = [row for row in shown if row["pattern"] == pattern]
                style = policy_style(pattern)
                x, y = [row["peak_resident_bytes"] / size for row in found], [row["makespan_s"] for row in found]
                look = {**marker, "color": style.color, "symbol": style.symbol}
                points = _points(pattern, found, x, y, marker=look)
                # One entry of the legend for each policy.
                traces.append({**points, "legendgroup": pattern, "showlegend": pattern not in hidden})
        axes = _axes(f"peak of memory ({unit})", "makespan (s)", height=480)
        panels.append({"title": front.title, "traces": traces, "layout": axes})
    return Chart(
        "pareto",
        "Makespan against memory, and what no row beats",
        "On the front: no row of the same product on the same device is as fast, as small and as good (more denoising "
        "evaluations, fewer merged steps) at once. Large points are on it.",
        panels,
    )


def _heat_maps(maps: Sequence[HeatMap]) -> Chart:
    panels = []
    for heat_map in maps:
        lookaheads, numbers, cells = makespan_grid(heat_map)
        x, y = [lookahead_text(value) for value in lookaheads], [str(number) for number in numbers]
        seconds = [[None if cell is None else cell["makespan_s"] for cell in row] for row in cells]
        fits = [
            [cell if cell is not None and cell["makespan_s"] is not None else None for cell in row] for row in cells
        ]
        # What was tried and does not fit lies below, in gray.
        tried = [[0 if cell is not None and cell["makespan_s"] is None else None for cell in row] for row in cells]
        gray = {
            "type": "heatmap",
            "x": x,
            "y": y,
            "z": tried,
            "colorscale": [[0, "#D9D9D9"], [1, "#D9D9D9"]],
            "showscale": False,
            "hovertemplate": "%{y} retained, lookahead %{x}: does not fit<extra></extra>",
            "xgap": 1,
            "ygap": 1,
        }
        heat = {
            "type": "heatmap",
            "x": x,
            "y": y,
            "z": seconds,
            "customdata": [[None if cell is None else _key(cell) for cell in row] for row in fits],
            "hovertext": [["" if cell is None else _text(cell) for cell in row] for row in fits],
            "hoverinfo": "text",
            "hoverongaps": False,
            "colorscale": "Cividis",
            "reversescale": True,
            "colorbar": {"title": {"text": "makespan (s)", "side": "right"}},
            "xgap": 1,
            "ygap": 1,
        }
        gray["hoverongaps"] = False
        layout = _axes("lookahead (blocks loaded ahead)", "retained (blocks of each group)")
        layout["xaxis"]["type"] = layout["yaxis"]["type"] = "category"
        panels.append({"title": heat_map.title, "traces": [gray, heat], "layout": layout})
    return Chart("heat-map", "Retention against lookahead", "The best policy in each cell; gray does not fit.", panels)


def _curves(curves: Sequence[MemoryCurve], stalls_s: Mapping[int, float]) -> Chart:
    panels = []
    for curve in curves:
        size, unit = byte_unit([row["memory_limit_bytes"] for row in curve.best])
        traces = [
            _line(
                pattern,
                [row["memory_limit_bytes"] / size for row in rows],
                [row["makespan_s"] for row in rows],
                color=policy_style(pattern).color,
                width=1.1,
            )
            for pattern, rows in curve.by_pattern.items()
        ]
        x = [row["memory_limit_bytes"] / size for row in curve.best]
        if any(row["lower_bound_s"] is not None for row in curve.best):
            bounds = [row["lower_bound_s"] for row in curve.best]
            traces.append(_line("bound: no plan is faster", x, bounds, color=BOUND_COLOR, width=2, dash="dot"))
        best = _points("best policy", curve.best, x, [row["makespan_s"] for row in curve.best])
        best.update(mode="lines+markers", line={"color": "black", "width": 2}, marker={"color": "black", "size": 8})
        limit, least_s = least_stalls(curve, stalls_s)
        drawn = [s for trace in traces for s in trace["y"] if s is not None]
        look = {"color": LIMIT_COLOR, "width": 1.5, "dash": "dash"}
        traces.append(_line(least_stalls_text(limit, least_s), [limit / size] * 2, [min(drawn), max(drawn)], **look))
        layout = _axes(f"memory limit ({unit})", "makespan (s)", height=480)
        panels.append({"title": curve.title, "traces": [*traces, best], "layout": layout})
    return Chart(
        "memory",
        "Makespan against the memory limit",
        "Stalls: seconds in which the executor waits for loads after its first visit began.",
        panels,
    )


def _regrets(figures: SweepFigures) -> Chart:
    traces = []
    for pattern in sorted({row["pattern"] for row in figures.regrets}):
        found = [row for row in figures.regrets if row["pattern"] == pattern]
        style = policy_style(pattern)
        rows = [figures.points[row["index"]] for row in found]
        texts = [
            f"{pattern} on {row['device']}: {100 * row['mean_regret']:.2f} % on average, "
            f"{100 * row['worst_regret']:.2f} % at worst, fits {row['feasible_cases']} of {row['cases']} cases"
            f"<br>its best, {_text(best)}"
            for row, best in zip(found, rows, strict=True)
        ]
        look = {"color": style.color, "symbol": style.symbol, "size": 10}
        points = _points(pattern, rows, [row["device"] for row in found], [100 * row["mean_regret"] for row in found])
        traces.append({**points, "hovertext": texts, "marker": look})
    layout = _axes("device", "mean regret (%)")
    layout["xaxis"]["type"] = "category"
    layout["yaxis"]["rangemode"] = "tozero"
    layout["legend"] = {}
    return Chart(
        "regret",
        "Regret of each policy, at its best number, against the best row",
        "How much longer it takes than the best row of the same workload, device and settings, averaged over these. "
        "A point's timeline is that of the policy's best row on the device.",
        [{"title": "", "traces": traces, "layout": layout}],
    )


def _sensitivities(sensitivities: Sequence[Row]) -> Chart:
    rows = list(reversed(sensitivities))
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [row["axis"].replace("_", " ") for row in rows],
        "x": [100 * row["share"] for row in rows],
        "text": [f"x {row['ratio']:.3g}" for row in rows],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": "#0072B2"},
        "hovertext": [
            f"{row['axis']}: {row['values']} values, {100 * row['share']:.1f} % of the variance; the slowest takes "
            f"{row['ratio']:.3g} times as long as the fastest"
            for row in rows
        ],
        "hoverinfo": "text",
    }
    layout = _axes("share of the variance of the makespan's logarithm (%)", "")
    layout["yaxis"]["automargin"] = True
    return Chart(
        "sensitivity",
        "What decides the makespan",
        "Each axis by itself, within a workload on a device (devices within a workload, workloads within a device). "
        "Beside the bar: slowest value against fastest, by geometric means.",
        [{"title": "", "traces": [bars], "layout": layout}],
    )


def _best(rows: Sequence[Row]) -> PickTable:
    columns = ("workload", "device", "settings", "policy", "lookahead", "makespan (s)", "bound (s)", "peak", "limit")
    cells = []
    for row in rows:
        size, unit = byte_unit([row["memory_limit_bytes"]])
        bound = "" if row["lower_bound_s"] is None else f"{row['lower_bound_s']:,.3f}"
        memory = [f"{row[name] / size:.4g} {unit}" for name in ("peak_resident_bytes", "memory_limit_bytes")]
        lookahead = lookahead_text(row["lookahead"])
        names = [row["workload"], row["device"], settings_text(row["settings"]), row["policy"], lookahead]
        cells.append(([*names, f"{row['makespan_s']:,.3f}", bound, *memory], _key(row)))
    return PickTable("Best of each workload on each device", columns, cells)
