"""Self-contained pages: interactive charts, and for any point picked its timeline. They open without a network.

A page is a template (`assets/`), plotly.js from the plotly package, and one JSON object with timelines and
charts (traces and layouts as plotly takes them). A point's `customdata` is the key of its timeline.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cidl_sim.core.files import write_text
from cidl_sim.core.trace import Trace
from cidl_sim.report.sweep_figures import byte_unit
from cidl_sim.report.timeline import GROUP_COLORS, LIMIT_COLOR, MEMORY_COLOR, WAIT_COLOR

Json = dict[str, Any]

# Why a worker waits; what is not listed gets the last colour. The patterns tell them apart without colours.
_CAUSES = {
    "load": (GROUP_COLORS[5], "/"),
    "memory": (GROUP_COLORS[1], "\\"),
    "gate": (GROUP_COLORS[3], "x"),
    "weights_in_use": (GROUP_COLORS[4], "-"),
    "channels": ("#7F7F7F", "|"),
    "dispatch": ("#4D4D4D", "+"),
}
_BUSY = (GROUP_COLORS[0], "")
_OTHER = ("#BBBBBB", ".")


@dataclass(frozen=True)
class Chart:
    """A titled place for one of some panels, each with plotly's traces and layout; a list chooses among several."""

    name: str
    title: str
    note: str
    panels: Sequence[Json]


@dataclass(frozen=True)
class PickTable:
    """A table whose rows can be picked: each row its cells and the key of its timeline, or None."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[Sequence[str], str | None]]


@dataclass(frozen=True)
class Page:
    """All that a page shows. `timelines` by key; the one called `first` is shown to begin with."""

    title: str
    notes: Sequence[str]
    facts: Sequence[tuple[str, str]] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[PickTable] = ()
    timelines: Mapping[str, Json] = field(default_factory=dict)
    outlines: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    first: str | None = None


def write_page(page: Page, path: Path) -> None:
    """Write a page in one step. MachineError if `path` cannot be written."""
    from plotly.offline import get_plotlyjs

    data = {
        "notes": page.notes,
        "facts": page.facts,
        "charts": [chart.__dict__ for chart in page.charts],
        "tables": [table.__dict__ for table in page.tables],
        "timelines": page.timelines,
        "outlines": page.outlines,
        "first": page.first,
        "colors": {"groups": GROUP_COLORS, "wait": WAIT_COLOR, "limit": LIMIT_COLOR, "memory": MEMORY_COLOR},
    }
    parts = {
        "title": escape(page.title),
        "style": _asset("page.css"),
        "script": _asset("page.js"),
        "plotly": get_plotlyjs(),
        # Whatever a name holds, it ends no script.
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    write_text(path, re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html")))


def outline_of(trace: Trace) -> list[Json]:
    """What the visits of a trace are called, stage by stage; traces of one workload share it."""
    keys = ("name", "group", "rounds", "blocks")
    return [{key: getattr(stage, key) for key in keys} for stage in trace.header.stages]


def timeline_of(trace: Trace, title: str) -> Json:
    """A trace as the page draws it: lanes, memory, limit, figures and idle times.

    `data` is base64 of deflated float32: for each lane the gaps before its spans, their lengths (s), the steps from
    visit to visit, and what they are (0: work, from 1 on: waiting for a cause), then the memory curve's steps of time
    (s) and the memory held from there on, in `unit`.
    """
    causes = sorted({span.cause or "unknown" for span in trace.of("wait")})
    changes = ((0.0, trace.header.memory_limit_bytes), *trace.limit_changes)
    size, unit = byte_unit([limit for _, limit in changes])
    lanes, arrays = [], []
    for worker in _workers(trace):
        spans = [s for s in trace.spans if s.worker == worker and s.operation in ("load", "execute", "wait")]
        starts, ends = np.array([s.start_s for s in spans]), np.array([s.end_s for s in spans])
        kinds = [1 + causes.index(s.cause or "unknown") if s.operation == "wait" else 0 for s in spans]
        visits = np.array([s.visit for s in spans])
        lanes.append({"name": worker.replace("loader.0", "loader"), "count": len(spans)})
        before = np.concatenate([[0.0], ends])[: len(spans)]
        arrays += [starts - before, ends - starts, np.diff(visits, prepend=0), kinds]
    times, held = _last_at_each_moment(trace.memory_curve)
    arrays += [np.diff(times, prepend=0.0), held / size]
    packed = np.concatenate([np.asarray(array, np.float32) for array in arrays]).astype("<f4").tobytes()
    return {
        "title": title,
        "workload": trace.header.workload_sha256,
        "makespan": trace.makespan_s,
        "unit": unit,
        "limits": [[at_s, limit / size] for at_s, limit in changes],
        "baseline": trace.header.baseline_bytes / size,
        "causes": [cause.replace("_", " ") for cause in causes],
        "lanes": lanes,
        "steps": len(times),
        "data": base64.b64encode(zlib.compress(packed, 9)).decode(),
        "figures": figures_of(trace),
        "idle": idle_bars(trace),
    }


def figures_of(trace: Trace) -> list[tuple[str, str]]:
    """What a trace comes to, for people."""
    size, unit = byte_unit([trace.header.memory_limit_bytes])
    rows = [
        ("policy", trace.header.policy),
        ("makespan", _seconds(trace.makespan_s)),
        ("executor busy", _seconds(trace.executor_busy_s)),
        ("loader busy", _seconds(trace.loader_busy_s)),
        ("both at once", _seconds(trace.overlap_s)),
        ("executor waits after its start", _seconds(trace.stalls_s)),
        ("peak of memory, accounted", f"{trace.peak_resident_bytes / size:,.4g} {unit}"),
        ("memory limit", f"{trace.header.memory_limit_bytes / size:,.4g} {unit}"),
    ]
    if trace.header.peak_kernel_bytes:
        rows.append(("peak of memory, kernel", f"{trace.header.peak_kernel_bytes / size:,.4g} {unit}"))
    return [
        *rows,
        *((f"{group.replace('_', ' ')} takes", _seconds(t["elapsed_s"])) for group, t in trace.groups.items()),
    ]


def idle_bars(trace: Trace) -> list[Json]:
    """Stacked bars: for each worker the seconds in which it works, and those in which it waits by cause."""
    workers = _workers(trace)[::-1]
    busy = [
        sum(s.end_s - s.start_s for s in trace.spans if s.worker == w and s.operation in ("load", "execute"))
        for w in workers
    ]
    causes = sorted({cause for causes in trace.idle_s.values() for cause in causes})
    bars = [_bar("working", workers, busy, _BUSY)]
    for cause in causes:
        seconds = [trace.idle_s.get(worker, {}).get(cause, 0.0) for worker in workers]
        bars.append(_bar(f"waiting: {cause.replace('_', ' ')}", workers, seconds, _CAUSES.get(cause, _OTHER)))
    return bars


def _bar(name: str, workers: Sequence[str], seconds: Sequence[float], look: tuple[str, str]) -> Json:
    color, shape = look
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": [worker.replace("loader.0", "loader") for worker in workers],
        "x": list(seconds),
        "marker": {"color": color, "pattern": {"shape": shape, "fgcolor": "white", "fillmode": "overlay", "size": 6}},
        "hovertemplate": "%{y}, " + name + ": %{x:.4g} s<extra></extra>",
    }


def _workers(trace: Trace) -> list[str]:
    others = {s.worker for s in trace.spans if s.operation in ("load", "wait")} - {"executor"}
    return ["executor", *sorted(others)]


def _last_at_each_moment(curve: Sequence[tuple[float, int]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    times, held = (np.array(column, dtype=np.float64) for column in zip(*curve, strict=True))
    is_last = np.append(times[1:] != times[:-1], True)
    return times[is_last], held[is_last]


def _seconds(seconds: float) -> str:
    return f"{seconds:,.3f} s"


def _asset(name: str) -> str:
    return (resources.files("cidl_sim.report") / "assets" / name).read_text(encoding="utf-8")
