"""The page of a single plan or run: timeline, memory, idle times, and its makespan among bounds and policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cidl_sim.core.trace import Trace
from cidl_sim.report.page import Chart, Json, Page, outline_of, timeline_of

OWN_COLOR, POLICY_COLOR, BOUND_COLOR = "#0072B2", "#56B4E9", "#7F7F7F"
# More fall-backs than these are only counted.
LISTED = 3
SHOWN = "shown"


@dataclass(frozen=True)
class Comparison:
    """What a run is compared with, all in seconds: lower bounds by what they count, and the policies' makespans.

    A policy that does not fit the memory has None.
    """

    bounds: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, float | None] = field(default_factory=dict)


def run_page(trace: Trace, comparison: Comparison, notes: Sequence[str]) -> Page:
    """The page of one trace, simulated or measured."""
    header = trace.header
    own = f"{header.policy}, {'simulated' if header.origin == 'simulated' else f'run ({header.origin})'}"
    facts = [
        ("workload", header.workload_name),
        ("device", header.device_name),
        ("origin", header.origin),
        ("limit enforced by", header.enforced_by.replace("none", "nobody")),
    ]
    bound = max(comparison.bounds.values(), default=None)
    if bound:
        facts.append(("above the bound", f"{100 * max(0.0, trace.makespan_s / bound - 1):.2f} % ({bound:,.3f} s)"))
    if header.fall_backs:
        more = f" and {len(header.fall_backs) - LISTED} more" if len(header.fall_backs) > LISTED else ""
        facts.append(("fall-backs", "; ".join(header.fall_backs[:LISTED]) + more))
    charts = [_makespans(own, trace.makespan_s, comparison)] if comparison.bounds or comparison.baselines else []
    return Page(
        f"{header.workload_name} on {header.device_name}: {header.policy}",
        notes,
        facts,
        charts,
        timelines={SHOWN: timeline_of(trace, f"{own}: {trace.makespan_s:,.3f} s")},
        outlines={header.workload_sha256: outline_of(trace)},
        first=SHOWN,
    )


def _makespans(own: str, makespan_s: float, comparison: Comparison) -> Chart:
    """One bar for the run, one for each policy and each bound, the shortest on top."""
    bars = [(own, makespan_s, OWN_COLOR, "")]
    bars += [(f"bound: {name}", s, BOUND_COLOR, "/") for name, s in comparison.bounds.items()]
    fitting = [(name, seconds) for name, seconds in comparison.baselines.items() if seconds is not None]
    bars += [(name, seconds, POLICY_COLOR, "") for name, seconds in fitting]
    bars.sort(key=lambda bar: -bar[1])
    trace: Json = {
        "type": "bar",
        "orientation": "h",
        "y": [name for name, *_ in bars],
        "x": [seconds for _, seconds, *_ in bars],
        "text": [f"{seconds:,.2f} s" for _, seconds, *_ in bars],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {
            "color": [color for *_, color, _ in bars],
            "pattern": {"shape": [shape for *_, shape in bars], "fgcolor": "white", "fillmode": "overlay"},
        },
        "hoverinfo": "none",
        "showlegend": False,
    }
    missing = [name for name, seconds in comparison.baselines.items() if seconds is None]
    note = "Hatched: no plan is faster than a bound."
    if missing:
        note += f" Does not fit the memory: {', '.join(missing)}."
    layout: Json = {
        "xaxis": {"title": {"text": "makespan (s)"}, "rangemode": "tozero"},
        "yaxis": {"automargin": True},
        "height": 110 + 26 * len(bars),
        "margin": {"l": 62, "r": 80, "t": 30, "b": 48},
    }
    traces = [trace]
    bound = max(comparison.bounds.values(), default=None)
    if bound is not None:
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [bound] * 2,
                "y": [bars[0][0], bars[-1][0]],
                "line": {"color": "black", "dash": "dash", "width": 1.5},
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
    return Chart(
        "makespans",
        "Makespan beside the policies and the bounds",
        note,
        [{"title": "", "traces": traces, "layout": layout}],
    )
