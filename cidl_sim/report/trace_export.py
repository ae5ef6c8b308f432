"""Traces for other viewers: Chrome's JSON (chrome://tracing) and Perfetto's protobuf (ui.perfetto.dev reads both).

A trace first becomes a `Timeline`: lanes of slices and instants, and counters. Each format is one function of that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from cidl_sim.core.errors import TraceError
from cidl_sim.core.files import replacing
from cidl_sim.core.trace import Span, Trace

Arguments = dict[str, str | int | float | bool]
Sample = tuple[int, int]  # nanoseconds, bytes from then on
_PROCESS = 1


@dataclass(frozen=True)
class Slice:
    """A stretch of a lane. `flow` is one number for a load and for the execution that it is for."""

    name: str
    category: str
    start_ns: int
    end_ns: int
    arguments: Arguments
    flow: int | None = None


@dataclass(frozen=True)
class Instant:
    """Something at one moment."""

    name: str
    at_ns: int
    arguments: Arguments


@dataclass(frozen=True)
class Lane:
    """What happened in one place, in order of time: slices of a worker, or instants."""

    name: str
    slices: list[Slice]
    instants: list[Instant]


@dataclass(frozen=True)
class Timeline:
    """A trace as viewers understand it; times in integer nanoseconds, counters (by name) in bytes."""

    name: str
    lanes: list[Lane]
    counters: dict[str, list[Sample]]


def timeline_of(trace: Trace) -> Timeline:
    """A lane for each loader channel, then the executor, what was unloaded, and events; memory and its limit."""
    header = trace.header
    workers = sorted({span.worker for span in trace.spans if span.operation != "unload"} - {"executor"})
    flows = _fed_visits(trace)
    lanes = [Lane(worker, _slices(trace, worker, flows), []) for worker in [*workers, "executor"]]
    lanes.append(Lane("unloads", [], [_unload(trace, span) for span in trace.of("unload")]))
    lanes.append(Lane("events", [], [Instant(e.kind, _ns(e.at_s), _known(e.values)) for e in trace.events]))
    return Timeline(
        name=f"{header.workload_name} on {header.device_name}: {header.policy} ({header.origin})",
        lanes=lanes,
        counters={
            "memory": _samples(trace.memory_curve),
            "memory limit": _samples([(0.0, header.memory_limit_bytes), *trace.limit_changes]),
        },
    )


def chrome_trace(trace: Trace) -> bytes:
    """The trace in Chrome's Trace Event Format, a JSON object; times in integer microseconds."""
    timeline = timeline_of(trace)
    names = [_metadata("process_name", 0, name=timeline.name)]
    events: list[dict[str, Any]] = []
    for number, lane in enumerate(timeline.lanes, start=1):
        names += [
            _metadata("thread_name", number, name=lane.name),
            _metadata("thread_sort_index", number, sort_index=number),
        ]
        for piece in lane.slices:
            events += _chrome_slice(piece, number)
        for instant in lane.instants:
            events.append(_chrome_event("i", instant.name, instant.at_ns, number, s="t", args=instant.arguments))
    for name, samples in timeline.counters.items():
        events += [_chrome_event("C", name, at_ns, 0, args={"bytes": bytes_}) for at_ns, bytes_ in samples]
    events.sort(key=itemgetter("ts"))
    return json.dumps({"traceEvents": names + events, "displayTimeUnit": "ms"}, allow_nan=False).encode()


def perfetto_trace(trace: Trace) -> bytes:
    """The trace as Perfetto's protobuf; times in nanoseconds. TraceError where a figure exceeds 64 bits."""
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import CounterDescriptor, TrackDescriptor, TrackEvent
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

    timeline = timeline_of(trace)
    builder = TraceProtoBuilder()
    ordered = TrackDescriptor.EXPLICIT
    tracks = [TrackDescriptor(uuid=_PROCESS, name=timeline.name, child_ordering=ordered)]
    events: list[tuple[int, Any]] = []

    def add_track(name: str, **kind: Any) -> int:
        uuid = _PROCESS + len(tracks)
        tracks.append(
            TrackDescriptor(uuid=uuid, parent_uuid=_PROCESS, name=name, sibling_order_rank=len(tracks), **kind)
        )
        return uuid

    def add_event(type_: int, at_ns: int, track: int, **rest: Any) -> None:
        events.append((at_ns, TrackEvent(type=type_, track_uuid=track, **rest)))

    try:
        for lane in timeline.lanes:
            track = add_track(lane.name)
            for piece in lane.slices:
                flow = "flow_ids" if piece.category == "load" else "terminating_flow_ids"
                add_event(
                    TrackEvent.TYPE_SLICE_BEGIN,
                    piece.start_ns,
                    track,
                    name=piece.name,
                    categories=[piece.category],
                    debug_annotations=_annotations(piece.arguments),
                    **({} if piece.flow is None else {flow: [piece.flow]}),
                )
                add_event(TrackEvent.TYPE_SLICE_END, piece.end_ns, track)
            for instant in lane.instants:
                notes = _annotations(instant.arguments)
                add_event(TrackEvent.TYPE_INSTANT, instant.at_ns, track, name=instant.name, debug_annotations=notes)
        for name, samples in timeline.counters.items():
            track = add_track(name, counter=CounterDescriptor(unit=CounterDescriptor.UNIT_SIZE_BYTES))
            for at_ns, bytes_ in samples:
                add_event(TrackEvent.TYPE_COUNTER, at_ns, track, counter_value=bytes_)
        for descriptor in tracks:
            builder.add_packet().track_descriptor.CopyFrom(descriptor)
        for at_ns, event in sorted(events, key=itemgetter(0)):
            packet = builder.add_packet()
            packet.timestamp, packet.trusted_packet_sequence_id = at_ns, 1
            packet.track_event.CopyFrom(event)
    except ValueError as problem:
        raise TraceError(f"a figure is too large for Perfetto's format ({problem})") from None
    data: bytes = builder.serialize()
    return data


FORMATS: dict[str, Callable[[Trace], bytes]] = {"chrome": chrome_trace, "perfetto": perfetto_trace}


def export_trace(trace: Trace, format_: str, path: Path) -> None:
    """Write `trace` to `path` in one of `FORMATS`, in one step."""
    data = FORMATS[format_](trace)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


# From a trace to a timeline


def _slices(trace: Trace, worker: str, fed_visits: dict[int, Span]) -> list[Slice]:
    spans = [span for span in trace.spans if span.worker == worker and span.operation != "unload"]
    return [
        Slice(
            name=f"wait: {span.cause or 'unknown'}" if span.operation == "wait" else _arguments(trace, span)["block"],
            category=span.operation,
            start_ns=_ns(span.start_s),
            end_ns=_ns(span.end_s),
            arguments=_arguments(trace, span),
            flow=_flow(span, fed_visits),
        )
        for span in sorted(spans, key=lambda s: (s.start_s, s.end_s))
    ]


def _fed_visits(trace: Trace) -> dict[int, Span]:
    """The load that each executed visit used; where a load was given up and made again, the last."""
    executed = {span.visit for span in trace.of("execute")}
    loads = sorted(trace.of("load"), key=lambda span: span.start_s)
    return {span.visit: span for span in loads if span.visit in executed}


def _flow(span: Span, fed_visits: dict[int, Span]) -> int | None:
    is_end = span.operation == "execute" and span.visit in fed_visits
    is_begin = span.operation == "load" and fed_visits.get(span.visit) is span
    # Viewers take 0 for no flow.
    return span.visit + 1 if is_begin or is_end else None


def _arguments(trace: Trace, span: Span) -> dict[str, Any]:
    place = trace.header.place_of(span.visit)
    outline = trace.header.stages[place.stage]
    arguments = {
        "visit": span.visit,
        "block": outline.blocks[place.position],
        "kind": outline.kinds[place.position],
        "stage": outline.name,
        "group": outline.group,
        "round": place.round,
    }
    if span.operation == "wait":
        return {**arguments, "cause": span.cause or "unknown"}
    cold = {"cold": span.cold} if span.operation == "load" else {}
    return {**arguments, "bytes": span.bytes, "resident_bytes": span.resident_bytes, **cold}


def _unload(trace: Trace, span: Span) -> Instant:
    arguments = _arguments(trace, span)
    return Instant(f"unload {arguments['block']}", _ns(span.end_s), arguments)


def _known(values: dict[str, Any]) -> Arguments:
    return {name: value for name, value in values.items() if value is not None}


def _samples(curve: Iterable[tuple[float, int]]) -> list[Sample]:
    """A step curve with one value for each moment, its last."""
    return list({_ns(at_s): bytes_ for at_s, bytes_ in curve}.items())


def _ns(seconds: float) -> int:
    """TraceError beyond the 292 years that viewers can count: they do it in 64 bits."""
    nanoseconds = round(seconds * 1e9)
    if nanoseconds >= 2**63:
        raise TraceError(f"a time of {seconds:.3g} s is beyond the 292 years that viewers of traces can show")
    return nanoseconds


# Chrome's events, Perfetto's annotations


def _chrome_slice(piece: Slice, thread: int) -> list[dict[str, Any]]:
    shared = {"cat": piece.category, "args": piece.arguments}
    duration = _us(piece.end_ns) - _us(piece.start_ns)
    events = [_chrome_event("X", piece.name, piece.start_ns, thread, dur=duration, **shared)]
    if piece.flow is not None:
        # "bp" ties the arrow to the slice around it instead of the next one.
        end = ("s", {}) if piece.category == "load" else ("f", {"bp": "e"})
        events.append(_chrome_event(end[0], "weights", piece.start_ns, thread, cat="flow", id=piece.flow, **end[1]))
    return events


def _chrome_event(phase: str, name: str, at_ns: int, thread: int, **rest: Any) -> dict[str, Any]:
    return {"ph": phase, "name": name, "ts": _us(at_ns), "pid": _PROCESS, "tid": thread, **rest}


def _metadata(what: str, thread: int, **arguments: Any) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": _PROCESS, "tid": thread, "args": arguments}


def _us(nanoseconds: int) -> int:
    # Moments are rounded, never lengths: slices that meet still meet.
    return (nanoseconds + 500) // 1000


def _annotations(arguments: Arguments) -> list[dict[str, Any]]:
    # A bool is an int as well.
    fields = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}
    return [
        {"name": name, next(field for type_, field in fields.items() if isinstance(value, type_)): value}
        for name, value in arguments.items()
    ]
