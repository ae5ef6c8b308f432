"""Chrome's and Perfetto's form of a trace, parsed back."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace as PerfettoTrace
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent

from cidl_sim.core.device import Loader
from cidl_sim.core.errors import InfeasibleError, MachineError, TraceError
from cidl_sim.core.trace import Event, Trace
from cidl_sim.policies.catalog import make_plan
from cidl_sim.report.trace_export import chrome_trace, export_trace, perfetto_trace, timeline_of
from cidl_sim.simulator.engine import simulate
from tests.conftest import analytic_device, uniform_device, uniform_workload
from tests.core.strategies import cases

LANES = ["loader.0", "loader.1", "executor", "unloads", "events"]


@pytest.fixture
def trace() -> Trace:
    """Four blocks, five rounds of which three run, two channels, a limit that shrinks and comes back."""
    workload = uniform_workload(4, 5, weight_bytes=10, workspace_bytes=2, flops=3)
    device = analytic_device(40, baseline_bytes=5, loader=Loader(channels=2, bandwidth_bytes_per_s=1.0))
    plan = make_plan("spread", workload, device)
    changes = ((30.0, 20), (70.0, 40))
    recorded = simulate(workload, device, plan, stage_rounds={0: 3}, limit_changes=changes)
    replanned = Event(kind="replanned", at_s=12.5, values={"policy": "lru", "retained": 2, "gain": 0.5, "why": None})
    return recorded.model_copy(update={"events": (replanned, *recorded.events)})


def chrome_events(trace: Trace) -> list[dict]:
    return json.loads(chrome_trace(trace))["traceEvents"]


def of_phase(events: list[dict], phase: str) -> list[dict]:
    return [event for event in events if event["ph"] == phase]


def parsed(trace: Trace) -> PerfettoTrace:
    return PerfettoTrace.FromString(perfetto_trace(trace))


# The timeline


def test_lanes_are_the_channels_the_executor_unloads_and_events(trace):
    timeline = timeline_of(trace)
    assert [lane.name for lane in timeline.lanes] == LANES
    slices = {lane.name: len(lane.slices) for lane in timeline.lanes}
    for worker in LANES[:3]:
        assert slices[worker] == sum(span.worker == worker and span.operation != "unload" for span in trace.spans)
    assert [len(lane.instants) for lane in timeline.lanes[3:]] == [len(trace.of("unload")), len(trace.events)]


def test_a_slice_says_everything_about_its_span(trace):
    timeline = timeline_of(trace)
    load = timeline.lanes[0].slices[0]
    assert (load.name, load.category, load.start_ns, load.end_ns) == ("b0", "load", 0, 20_000_000_000)
    identity = {"visit": 0, "block": "b0", "kind": "b", "stage": "denoiser", "group": "denoiser", "round": 0}
    assert load.arguments == {**identity, "bytes": 10, "resident_bytes": 25, "cold": True}
    wait = timeline.lanes[2].slices[0]
    assert (wait.name, wait.category, wait.arguments) == ("wait: load", "wait", {**identity, "cause": "load"})
    later = [piece for piece in timeline.lanes[2].slices if piece.category == "execute"][5]
    assert {key: later.arguments[key] for key in ("visit", "block", "round", "bytes")} == {
        "visit": 5,
        "block": "b1",
        "round": 1,
        "bytes": 2,
    }


def test_counters_are_the_memory_curve_and_the_limit_with_its_changes(trace):
    counters = timeline_of(trace).counters
    assert counters["memory limit"] == [(0, 40), (30_000_000_000, 20), (70_000_000_000, 40)]
    curve = {round(at_s * 1e9): bytes_ for at_s, bytes_ in trace.memory_curve}
    assert dict(counters["memory"]) == curve
    assert max(bytes_ for _, bytes_ in counters["memory"]) == trace.peak_resident_bytes
    assert counters["memory"][-1][1] == trace.header.baseline_bytes


def test_weights_given_up_and_loaded_again_flow_from_the_last_load():
    trace = simulated_with_a_load_made_again()
    flows = [piece for lane in timeline_of(trace).lanes for piece in lane.slices if piece.flow == 1]
    assert [(piece.category, piece.start_ns) for piece in flows] == [
        ("load", 5_000_000_000),
        ("execute", 7_000_000_000),
    ]


def simulated_with_a_load_made_again() -> Trace:
    workload, device = uniform_workload(1, 1), uniform_device(2, 2, 1)
    trace = simulate(workload, device, make_plan("sequential", workload, device))
    load, execute = trace.of("load")[0], trace.of("execute")[0]
    again = load.model_copy(update={"start_s": 5.0, "end_s": 7.0})
    return trace.model_copy(update={"spans": (load, again, execute.model_copy(update={"start_s": 7.0, "end_s": 8.0}))})


# Chrome


def test_chrome_events_have_the_keys_their_phase_needs(trace):
    events = chrome_events(trace)
    needed = {"X": {"dur", "cat", "args"}, "i": {"s"}, "C": {"args"}, "M": {"args"}, "s": {"id"}, "f": {"id", "bp"}}
    assert {event["ph"] for event in events} == set(needed)
    for event in events:
        assert {"name", "pid", "tid"} | needed[event["ph"]] <= event.keys()
        assert event["ph"] == "M" or type(event["ts"]) is int
    assert all(type(event["dur"]) is int and event["dur"] >= 0 for event in of_phase(events, "X"))


def test_chrome_lanes_are_named_and_ordered(trace):
    names = of_phase(chrome_events(trace), "M")
    assert [e["args"]["name"] for e in names if e["name"] == "thread_name"] == LANES
    assert [e["args"]["sort_index"] for e in names if e["name"] == "thread_sort_index"] == [1, 2, 3, 4, 5]
    assert [e["args"]["name"] for e in names if e["name"] == "process_name"] == [
        "uniform on analytic: spread:2 (simulated)"
    ]


def test_chrome_times_are_monotone_microseconds(trace):
    events = [event for event in chrome_events(trace) if event["ph"] != "M"]
    assert all(a["ts"] <= b["ts"] for a, b in pairwise(events))
    assert max(e["ts"] + e["dur"] for e in of_phase(events, "X") if e["cat"] == "execute") == trace.makespan_s * 1e6


def test_each_used_load_has_one_flow_to_its_execution(trace):
    events = chrome_events(trace)
    starts, ends = of_phase(events, "s"), of_phase(events, "f")
    executed = {span.visit for span in trace.of("execute")}
    used = [span for span in trace.of("load") if span.visit in executed]
    assert len(used) > 5
    assert sorted(e["id"] for e in starts) == sorted(e["id"] for e in ends) == sorted({s.visit + 1 for s in used})
    slices = {(e["cat"], e["args"]["visit"], e["ts"], e["tid"]) for e in of_phase(events, "X")}
    assert all(("load", e["id"] - 1, e["ts"], e["tid"]) in slices for e in starts)
    assert all(("execute", e["id"] - 1, e["ts"], e["tid"]) in slices for e in ends)


def test_chrome_counters_and_instants_are_those_of_the_trace(trace):
    events = chrome_events(trace)
    counters = of_phase(events, "C")
    assert {e["name"] for e in counters} == {"memory", "memory limit"}
    assert all(set(e["args"]) == {"bytes"} for e in counters)
    instants = {e["name"]: e for e in of_phase(events, "i") if not e["name"].startswith("unload ")}
    assert set(instants) == {"limit_changed", "replanned", "stage_ended_early"}
    assert instants["replanned"]["ts"] == 12_500_000
    assert instants["replanned"]["args"] == {"policy": "lru", "retained": 2, "gain": 0.5}


# Perfetto


def test_perfetto_packets_and_tracks_can_be_counted(trace):
    timeline, packets = timeline_of(trace), parsed(trace).packet
    slices = sum(len(lane.slices) for lane in timeline.lanes)
    instants = sum(len(lane.instants) for lane in timeline.lanes)
    samples = sum(map(len, timeline.counters.values()))
    tracks = [packet.track_descriptor for packet in packets if packet.HasField("track_descriptor")]
    assert [track.name for track in tracks] == [timeline.name, *LANES, "memory", "memory limit"]
    assert len({track.uuid for track in tracks}) == len(tracks)
    assert {track.parent_uuid for track in tracks[1:]} == {tracks[0].uuid}
    assert [track.HasField("counter") for track in tracks] == [False] * 6 + [True] * 2
    assert len(packets) == len(tracks) + 2 * slices + instants + samples


def test_perfetto_slices_open_and_close_in_turn_and_flow_from_load_to_execution(trace):
    packets = [packet for packet in parsed(trace).packet if packet.HasField("track_event")]
    assert all(a.timestamp <= b.timestamp for a, b in pairwise(packets))
    open_on: dict[int, str] = {}
    begun: dict[int, str] = {}
    ended = {}
    for packet in packets:
        event = packet.track_event
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            assert event.track_uuid not in open_on
            open_on[event.track_uuid] = event.name
            begun.update(dict.fromkeys(event.flow_ids, event.name))
            ended.update(dict.fromkeys(event.terminating_flow_ids, event.name))
        elif event.type == TrackEvent.TYPE_SLICE_END:
            del open_on[event.track_uuid]
    assert not open_on
    assert begun == ended
    assert len(begun) == len({span.visit for span in trace.of("load")} & {span.visit for span in trace.of("execute")})


def test_perfetto_arguments_keep_their_types(trace):
    events = [packet.track_event for packet in parsed(trace).packet if packet.HasField("track_event")]
    load = next(event for event in events if list(event.categories) == ["load"])
    notes = {note.name: getattr(note, note.WhichOneof("value")) for note in load.debug_annotations}
    assert notes == next(lane for lane in timeline_of(trace).lanes).slices[0].arguments
    assert type(notes["cold"]) is bool


def test_perfetto_counts_bytes(trace):
    counters = timeline_of(trace).counters
    events = [packet for packet in parsed(trace).packet if packet.track_event.type == TrackEvent.TYPE_COUNTER]
    by_track: dict[int, list[tuple[int, int]]] = {}
    for packet in events:
        sample = (packet.timestamp, packet.track_event.counter_value)
        by_track.setdefault(packet.track_event.track_uuid, []).append(sample)
    assert list(by_track.values()) == list(counters.values())


def test_figures_beyond_64_bits_are_refused(trace):
    late = trace.model_copy(update={"events": (Event(kind="late", at_s=1e12),)})
    with pytest.raises(TraceError, match="beyond the 292 years"):
        perfetto_trace(late)


# Both


@given(cases())
def test_whatever_is_simulated_can_be_converted(case):
    workload, device, plan = case
    try:
        trace = simulate(workload, device, plan)
    except InfeasibleError:
        return
    events, packets = chrome_events(trace), parsed(trace).packet
    spans = [span for span in trace.spans if span.operation != "unload"]
    assert len(of_phase(events, "X")) == len(spans)
    begun = [packet for packet in packets if packet.track_event.type == TrackEvent.TYPE_SLICE_BEGIN]
    assert len(begun) == len(spans)
    assert len(of_phase(events, "s")) == len(of_phase(events, "f")) == len(trace.of("load"))


def test_equal_traces_give_equal_bytes(trace):
    again = Trace.model_validate_json(trace.to_json())
    assert chrome_trace(again) == chrome_trace(trace)
    assert perfetto_trace(again) == perfetto_trace(trace)


@pytest.mark.parametrize("format_", ["chrome", "perfetto"])
def test_a_file_that_cannot_be_written_leaves_nothing(format_, trace, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="cannot be written"):
        export_trace(trace, format_, tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
