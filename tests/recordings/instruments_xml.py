"""Tables in the form in which `xctrace export` writes them, made from a trace as if Instruments had recorded it.

Written after public descriptions of the format; Instruments had no part in it. As there, every value is written once
and then referred to, the schema stands in a node of its own, and a message is made of texts and numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import escape, quoteattr

from cidl_sim.core.trace import Span, Trace

LABEL = "Made from a simulated trace after public descriptions of xctrace's format. Not recorded by Instruments."
SIGNPOST_COLUMNS = [
    *("start", "duration", "layout-qualifier", "name", "category", "subsystem", "identifier", "process", "end-process"),
    *("start-thread", "end-thread", "start-message", "end-message", "start-backtrace", "end-backtrace"),
    *("start-emit-location", "end-emit-location", "signature"),
]
CORE_ML_COLUMNS = ["start", "duration", "process", "coreml-model-name", "coreml-model-event"]
# The recording had been on for a while when the run began.
BEFORE_NS = 2_345_678_901


class Values:
    """Elements of which each value is written out once."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def element(self, type_: str, text: str, shown: str | None = None) -> str:
        """A value, or a reference to the one that was written."""
        return self.made_of(type_, escape(text), text if shown is None else shown)

    def made_of(self, type_: str, inner: str, shown: str) -> str:
        """The same of a value that has others inside."""
        key = f"{type_} {shown}"
        if key in self._ids:
            return f'<{type_} ref="{self._ids[key]}"/>'
        self._ids[key] = len(self._ids) + 1
        return f'<{type_} id="{self._ids[key]}" fmt={quoteattr(shown)}>{inner}</{type_}>'

    def process(self) -> str:
        """The app."""
        if "process App (417)" in self._ids:
            return self.made_of("process", "", "App (417)")
        return self.made_of("process", self.element("pid", "417"), "App (417)")

    def message(self, **told: str | int) -> str:
        """`key=value` as texts and arguments."""
        parts = []
        for key, value in told.items():
            parts.append(self.element("narrative-text", f" {key}=" if parts else f"{key}="))
            parts.append(self.element("string" if isinstance(value, str) else "uint64", str(value)))
        shown = "  ".join(
            f"{key}= {value:,}" if isinstance(value, int) else f"{key}= {value}" for key, value in told.items()
        )
        return self.made_of("os-log-metadata", "".join(parts), shown)


def table(schema: str, columns: Iterable[str], rows: Iterable[str]) -> str:
    """An exported table; the rows are in a second node, without the schema."""
    lines = "".join(f"<row>{row}</row>\n" for row in rows)
    cols = "".join(f"<col><mnemonic>{c}</mnemonic><name>{c}</name></col>" for c in columns)
    return (
        f'<?xml version="1.0"?>\n<!-- {LABEL} -->\n<trace-query-result>\n'
        f'<node xpath="//trace-toc[1]/run[1]/data[1]/table[1]"><schema name="{schema}">{cols}</schema></node>\n'
        f'<node xpath="//trace-toc[1]/run[1]/data[1]/table[2]">\n{lines}'
        "</node>\n</trace-query-result>\n"
    )


def signposts_of(trace: Trace, *, by_weights: dict[int, str] | None = None, schema: str = "OSSignpostIntervals") -> str:
    """The signposts of an app that ran what `trace` holds.

    Visits are told by number or, where the weights of each are given, by weights alone.
    """
    values = Values()
    run = Span(operation="execute", worker="", visit=0, start_s=0, end_s=trace.makespan_s)
    said: dict[str, str | int] = {"machine": "Example1,1", "peak_footprint_bytes": trace.peak_resident_bytes}
    rows = [
        signpost(values, 17, run, {}, {}, name="load", subsystem="com.example.other"),
        signpost(values, BEFORE_NS, run, {}, said, name="run"),
    ]
    for span in _in_order(trace):
        told: dict[str, str | int] = {"weights": by_weights[span.visit]} if by_weights else {"visit": span.visit}
        if span.operation == "load":
            told |= {"cold": int(span.cold), "channel": int(span.worker.removeprefix("loader."))}
        start = BEFORE_NS + nanoseconds(span.start_s)
        rows.append(signpost(values, start, span, told, {}))
    return table(schema, SIGNPOST_COLUMNS, rows)


def signpost(
    values: Values,
    start_ns: int,
    span: Span,
    begun: dict[str, str | int],
    ended: dict[str, str | int],
    *,
    name: str = "",
    subsystem: str = "cidl",
) -> str:
    """A row of signposts; what it says at its begin and at its end."""
    length = nanoseconds(span.end_s) - nanoseconds(span.start_s)
    cells = [
        values.element("start-time", str(start_ns)),
        values.element("duration", str(length)),
        "<sentinel/>",
        values.element("signpost-name", name or span.operation),
        values.element("category", "blocks"),
        values.element("subsystem", subsystem),
        values.element("os-signpost-identifier", str(start_ns)),
        *[values.process()] * 2,
        *["<sentinel/>"] * 2,
        *(values.message(**told) if told else "<sentinel/>" for told in (begun, ended)),
    ]
    return "".join(cells + ["<sentinel/>"] * (len(SIGNPOST_COLUMNS) - len(cells)))


def core_ml_of(trace: Trace, weights: dict[int, str]) -> str:
    """Core ML's own table of the same run; models are called like the weights of each visit."""
    values, rows = Values(), []
    for span in _in_order(trace):
        event = "Prediction" if span.operation == "execute" else "Load" if span.cold else "Load (cached)"
        rows.append(
            values.element("start-time", str(BEFORE_NS + nanoseconds(span.start_s)))
            + values.element("duration", str(nanoseconds(span.end_s) - nanoseconds(span.start_s)))
            + values.process()
            + values.element("coreml-model-name", weights[span.visit])
            + values.element("coreml-model-event", event)
        )
    return table("coreml-os-signpost", CORE_ML_COLUMNS, rows)


def nanoseconds(seconds: float) -> int:
    """As a clock tells them."""
    return round(seconds * 1e9)


def _in_order(trace: Trace) -> list[Span]:
    return [span for span in trace.spans if span.operation in ("load", "execute")]
