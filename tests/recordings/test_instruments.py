"""Instruments' tables as traces: tables made by hand, and round trips of simulated runs through their form."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cidl_sim.core.errors import InfeasibleError, TraceError
from cidl_sim.core.plan import Plan, read_plan
from cidl_sim.core.trace import Origin, Trace, read_trace
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Block, Stage, Workload, read_workload
from cidl_sim.devices.catalog import find_device
from cidl_sim.policies.catalog import make_plan
from cidl_sim.recordings.instruments import read_recording
from cidl_sim.recordings.recorded_run import recorded_plan, trace_of_recording
from cidl_sim.simulator.engine import simulate
from cidl_sim.validation.runs import file_run, read_runs
from tests.conftest import analytic_device, uniform_workload
from tests.recordings.instruments_xml import core_ml_of, signposts_of
from tests.test_cli import answer_of, assert_refused, call_cidl

BY_HAND = Path(__file__).parent / "instruments"
EXAMPLE = Path(__file__).parent.parent.parent / "traces/example"
WORKLOAD = uniform_workload(2, 2, weight_bytes=10, workspace_bytes=2, flops=3)
DEVICE = analytic_device(40, baseline_bytes=5)


def imported(text: str | list[str], folder: Path, workload: Workload, plan: Plan) -> Trace:
    """The trace of exported tables, each a file of its own."""
    texts = [text] if isinstance(text, str) else text
    files = [folder / f"{i}.xml" for i in range(len(texts))]
    for file, part in zip(files, texts, strict=True):
        file.write_text(part)
    return trace_of_recording(read_recording(files, workload), workload, plan)


def by_hand(*names: str) -> list[Path]:
    return [BY_HAND / f"{name}.xml" for name in names]


def spans_ns(trace: Trace) -> list[tuple[object, ...]]:
    """Every span with its times in nanoseconds; waits too short for that clock are not seen by it."""
    rounded = (
        (s.operation, s.worker, s.visit, round(s.start_s * 1e9), round(s.end_s * 1e9), s.bytes, s.cold, s.cause)
        for s in trace.spans
    )
    return sorted(span for span in rounded if span[0] != "wait" or span[3] != span[4])


# Tables made by hand


@pytest.mark.parametrize(
    "shown",
    ["640000000", "640,000,000", "640.000.000", "640\u202f000\u202f000", "640\u00a0000\u00a0000", "640'000'000",
     "640\u2019000\u2019000", "64,00,00,000", "640 000 000"],
)  # fmt: skip
def test_digits_that_are_grouped_as_in_any_country_are_read_whole(shown, tmp_path):
    recording = read_recording([with_peak(shown, tmp_path)], WORKLOAD)
    assert recording.peak_footprint_bytes == 640_000_000


@pytest.mark.parametrize("shown", ["640.0", "640,00", "6.4e8", "640 MB", "640\u202f00", "1.234,5", "-640", "640 000x"])
def test_what_is_no_whole_number_is_refused_and_never_cut(shown, tmp_path):
    with pytest.raises(TraceError, match=r"peak_footprint_bytes=.* is not a number"):
        read_recording([with_peak(shown, tmp_path)], WORKLOAD)


def with_peak(shown: str, folder: Path) -> Path:
    """Signposts whose run says its peak as `shown`."""
    text = signposts_of(simulate(WORKLOAD, DEVICE, make_plan("next_block", WORKLOAD, DEVICE)))
    message = f'<os-log-metadata id="999" fmt="machine= Example1,1 peak_footprint_bytes= {shown}"/>'
    text, found = re.subn(r"<os-log-metadata id=\"\d+\" fmt=\"machine=.*?</os-log-metadata>", message, text, count=1)
    assert found
    (folder / "shown.xml").write_text(text, encoding="utf-8")
    return folder / "shown.xml"


def test_an_interval_under_both_names_of_the_table_is_one(tmp_path):
    trace = simulate(WORKLOAD, DEVICE, make_plan("next_block", WORKLOAD, DEVICE))
    files = [tmp_path / "old.xml", tmp_path / "new.xml"]
    for file, name in zip(files, ("OSSignpostIntervals", "os-signpost-interval"), strict=True):
        file.write_text(signposts_of(trace, schema=name))
    once, twice = read_recording(files[:1], WORKLOAD), read_recording(files, WORKLOAD)
    assert twice.intervals == [
        replace(i, source=j.source) for i, j in zip(once.intervals, twice.intervals, strict=True)
    ]


def test_an_apps_signposts_become_loads_and_executions_to_the_nanosecond():
    recording = read_recording(by_hand("signposts"), WORKLOAD)
    trace = trace_of_recording(recording, WORKLOAD, recorded_plan(recording, WORKLOAD, DEVICE))
    loads = [(s.visit, round(s.start_s * 1e9), round(s.end_s * 1e9)) for s in trace.of("load")]
    assert loads == [(0, 100e6, 300e6), (1, 400_001_000, 600_001_000), (2, 900e6, 1000e6), (3, 1100e6, 1200e6)]
    assert [round(s.end_s * 1e9) for s in trace.of("execute")] == [400_000_007, 800e6, 1100e6, 1400e6]
    assert [(s.visit, s.resident_bytes) for s in trace.of("unload")] == [(0, 5), (1, 5), (2, 5), (3, 5)]
    header = trace.header
    assert (header.origin, header.clock, header.enforced_by) == ("imported", "mach_time", "none")
    assert (header.policy, header.peak_kernel_bytes, header.peak_resident_bytes) == ("recorded", 25, 17)
    assert header.machine == {
        "recorded_with": "Instruments",
        "tables": "os-signpost-interval",
        "machine": "Film1,1",
        "os": "18.1",
    }


def test_core_mls_own_table_is_enough_where_models_are_called_like_their_weights():
    recording = read_recording(by_hand("core_ml"), WORKLOAD)
    trace = trace_of_recording(recording, WORKLOAD, make_plan("sequential", WORKLOAD, DEVICE))
    assert [(s.visit, s.cold, round(s.start_s * 1e9)) for s in trace.of("load")] == [
        (0, True, 0),
        (1, True, 290e6),
        (2, False, 790e6),
        (3, False, 990e6),
    ]
    assert [s.visit for s in trace.of("execute")] == [0, 1, 2, 3]
    assert trace.makespan_s == pytest.approx(1.27)


def test_several_tables_add_up_signposts_for_the_spans_core_ml_for_cold_loads_hardware_for_busy_times():
    files = by_hand("neural_engine", "signposts", "core_ml", "gpu")
    trace = trace_of_recording(read_recording(files, WORKLOAD), WORKLOAD, make_plan("sequential", WORKLOAD, DEVICE))
    assert [round(s.start_s * 1e9) for s in trace.of("load")][:2] == [100e6, 400_001_000]
    assert [s.cold for s in trace.of("load")] == [True, True, False, False]
    # Another app's interval counts as far as it lies within the run; overlapping ones count once; idle ones do not.
    assert trace.header.machine["ane_busy_s"] == pytest.approx(0.1 + 0.07)
    assert trace.header.machine["gpu_busy_s"] == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["empty"], ["empty.xml", "'coreml-os-signpost' has no rows"]),
        (["signposts", "empty"], ["empty.xml", "'coreml-os-signpost' has no rows"]),
        (["neural_engine"], ["neural_engine.xml", "tables ane-hw-intervals", "none of loads", "OSSignpostIntervals"]),
        (["contents"], ["contents.xml", "table of contents", "--xpath"]),
        (["nowhere"], ["nowhere.xml", "cannot be read"]),
    ],
)
def test_a_missing_or_empty_table_is_an_error_that_says_which(names, words):
    with pytest.raises(TraceError) as caught:
        read_recording(by_hand(*names), WORKLOAD)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("200000000</duration>", "0.2 s</duration>", ["row 2", "duration is '0.2 s'", "nanoseconds"]),
        ('ref="17"', 'ref="171"', ["<duration ref='171'> refers to nothing"]),
        ("</trace-query-result>", "", ["not XML as xctrace exports it"]),
        ("trace-query-result", "trace", ["<trace>", "<trace-query-result>"]),
        ("os-signpost-interval", "time-profile", ["only 'time-profile'", "export one of OSSignpostIntervals"]),
        ('fmt="cidl">cidl', 'fmt="film">film', ["10 intervals", "none of subsystem 'cidl'"]),
        ('fmt="load">load', 'fmt="fetch">fetch', ["visit 0", "b0", "'b0' was never loaded"]),
        ('fmt="visit= 3"', 'fmt="visit= 4"', ["row 10", "visit 4", "only 4 visits"]),
        ('fmt="visit= 3"', 'fmt="visit= 1"', ["row 10", "visit 1 after visit 2"]),
        ('fmt="visit= 3"', 'fmt="step= 3"', ["row 10", "neither visit= nor weights=", "step= 3"]),
        ('fmt="visit= 3"', 'fmt="visit= three"', ["row 10", "visit=three is not a number"]),
        ('fmt="visit= 3"', 'fmt="visit= 3  weights= b0"', ["visit 3 of 'b0'", "of 'b1'"]),
        ("2000000000</start-time>", "1750000000</start-time>", ["visit 2 began before visit 1 had ended"]),
        ("1700000000</start-time>", "1500000000</start-time>", ["visit 1 began before the load of its weights"]),
        ('fmt="weights= b1"', 'fmt="weights= b2"', ["'b2' was loaded, but no visit"]),
        ('<start-time id="43"', '<x/><start-time id="43"', ["a row of 9 cells for 8 columns"]),
        ('<string ref="26"/>', '<string fmt="done">done</string>', ["no execution of visits 1 to 3 (of 4)"]),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_row(old, new, words, tmp_path):
    text = (BY_HAND / "signposts.xml").read_text()
    assert old in text
    file = tmp_path / "changed.xml"
    file.write_text(text.replace(old, new))
    with pytest.raises(TraceError) as caught:
        read_recording([file], WORKLOAD)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_two_runs_or_two_processes_in_one_recording_are_refused(tmp_path):
    text = (BY_HAND / "signposts.xml").read_text()
    twice, strangers = tmp_path / "twice.xml", tmp_path / "strangers.xml"
    twice.write_text(text.replace('fmt="load">load', 'fmt="run">run'))
    with pytest.raises(TraceError, match="a second run"):
        read_recording([twice], WORKLOAD)
    strangers.write_text(text.replace('<process ref="6"/>', '<process fmt="Film (813)"/>'))
    with pytest.raises(TraceError, match=r"several processes: Film \(812\), Film \(813\)"):
        read_recording([strangers], WORKLOAD)


def test_models_that_are_called_otherwise_are_named():
    workload = uniform_workload(1, 1)
    other = Workload(name="w", stages=[Stage(name="s", blocks=[Block(name="x", kind="x", weight_bytes=1)])])
    with pytest.raises(TraceError, match=r"'x', 1 in all.*of 'b0', 'b1\.mlmodelc', 'classifier'"):
        read_recording(by_hand("core_ml"), other)
    with pytest.raises(TraceError, match="visit 1, but the workload has only 1"):
        read_recording(by_hand("core_ml"), workload)


# Round trips


def example() -> tuple[Workload, Plan, Trace]:
    return (
        read_workload(EXAMPLE / "workload.json"),
        read_plan(EXAMPLE / "plan.json"),
        read_trace(EXAMPLE / "trace.json"),
    )


def test_the_committed_example_is_what_the_simulator_and_the_writer_give():
    workload, plan, trace = example()
    device = find_device(str(EXAMPLE / "device.toml"))
    assert simulate(workload, device, plan, seed=7) == trace
    assert signposts_of(trace) == (EXAMPLE / "signposts.xml").read_text()
    assert "Not recorded by Instruments" in (EXAMPLE / "signposts.xml").read_text()


@pytest.mark.parametrize("policy", ["sequential", "next_block", "prefix:1", "spread", "lru", "rotating:1"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_simulated_run_comes_back_as_it_was(policy, channels, tmp_path):
    workload, _, _ = example()
    device = with_value(find_device(str(EXAMPLE / "device.toml")), "loader.channels", channels)
    plan = make_plan(policy, workload, device)
    trace = simulate(workload, device, plan, seed=3)
    back = imported(signposts_of(trace), tmp_path, workload, plan)
    assert spans_ns(back) == spans_ns(trace)
    assert back.peak_resident_bytes == trace.peak_resident_bytes
    assert back.header.fall_backs == ()


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from(["sequential", "next_block", "spread", "prefix:1"]))
def test_names_instead_of_numbers_and_core_mls_table_give_the_same(tmp_path_factory, seed, policy):
    workload, _, _ = example()
    device = find_device(str(EXAMPLE / "device.toml"))
    plan = make_plan(policy, workload, device)
    trace = simulate(workload, device, plan, seed=seed)
    weights = {visit.number: visit.block.weights for visit in workload.visits}
    folder = tmp_path_factory.mktemp("tables")
    by_name = imported(signposts_of(trace, by_weights=weights, schema="os-signpost-interval"), folder, workload, plan)
    assert spans_ns(by_name) == spans_ns(trace)
    assert spans_ns(imported(core_ml_of(trace, weights), folder, workload, plan)) == spans_ns(trace)


def test_a_stage_that_ended_early_comes_back_with_what_it_skipped(tmp_path):
    workload, plan, _ = example()
    last = Stage(name="decoder", blocks=[Block(name="vae", kind="text", weight_bytes=90_000_000)])
    workload = workload.model_copy(update={"stages": (*workload.stages, last)})
    device = find_device(str(EXAMPLE / "device.toml"))
    plan = make_plan("next_block", workload, device)
    trace = simulate(workload, device, plan, stage_rounds={1: 2})
    back = imported(signposts_of(trace), tmp_path, workload, plan)
    assert spans_ns(back) == spans_ns(trace)
    assert [(e.kind, e.values) for e in back.events] == [(e.kind, e.values) for e in trace.events]
    own = recorded_plan(read_recording([tmp_path / "0.xml"], workload), workload, device)
    assert spans_ns(trace_of_recording(read_recording([tmp_path / "0.xml"], workload), workload, own)) == spans_ns(back)


@pytest.mark.parametrize("policy", ["sequential", "next_block", "prefix:1", "spread", "lru"])
def test_the_plan_read_off_a_run_replays_it(policy, tmp_path):
    """Without noise, simulating what was read off gives the run again: loads, keeps and gates are all there."""
    workload, _, _ = example()
    device = find_device(str(EXAMPLE / "device.toml"))
    plan = make_plan(policy, workload, device)
    trace = simulate(workload, device, plan)
    (tmp_path / "t.xml").write_text(signposts_of(trace))
    own = recorded_plan(read_recording([tmp_path / "t.xml"], workload), workload, device)
    assert [load.visit for load in own.loads] == [load.visit for load in plan.loads]
    assert own.keep == plan.keep
    assert simulate(workload, device, own).makespan_s == pytest.approx(trace.makespan_s, rel=1e-6)


@pytest.mark.parametrize("policy", ["sequential", "next_block", "prefix:1", "spread", "lru"])
def test_an_apps_own_delays_before_each_start_are_no_reason_to_refuse_or_to_remark(policy, tmp_path):
    workload, _, _ = example()
    device = find_device(str(EXAMPLE / "device.toml"))
    plan = make_plan(policy, workload, device)
    trace = simulate(workload, device, plan, seed=1)
    # Loads take longer to get going than executions, which decide when gates open.
    late_s = {"load": 40e-6, "execute": 15e-6, "wait": 0.0, "unload": 0.0}
    late = tuple(s.model_copy(update={"start_s": s.start_s + late_s[s.operation]}) for s in trace.spans)
    text = signposts_of(trace.model_copy(update={"spans": late}))
    back = imported(text, tmp_path, workload, plan)
    assert back.header.fall_backs == ()
    assert back.peak_resident_bytes == trace.peak_resident_bytes
    own = recorded_plan(read_recording([tmp_path / "0.xml"], workload), workload, device)
    assert (own.keep, [load.visit for load in own.loads]) == (plan.keep, [load.visit for load in plan.loads])
    assert file_run(back, workload, plan, device, tmp_path / "runs").is_file()
    assert read_runs(tmp_path / "runs")[0].replay_errors[0] == pytest.approx(0, abs=0.01)


def test_a_run_that_did_not_follow_the_plan_is_refused_and_one_that_was_early_is_remarked_upon(tmp_path):
    workload, plan, trace = example()
    device = find_device(str(EXAMPLE / "device.toml"))
    with pytest.raises(TraceError, match="loads those of visit 4 then; imported without a plan"):
        imported(signposts_of(trace), tmp_path, workload, make_plan("next_block", workload, device))
    ahead = simulate(workload, device, make_plan("next_block", workload, device))
    back = imported(signposts_of(ahead), tmp_path, workload, make_plan("sequential", workload, device))
    assert back.header.fall_backs == ("9 loads began before their gate",)
    small = plan.model_copy(update={"memory_limit_bytes": 500_000_000})
    assert (
        "loads began before memory allowed it"
        in imported(signposts_of(trace), tmp_path, workload, small).header.fall_backs[0]
    )
    with pytest.raises(InfeasibleError):
        recorded_plan(
            read_recording([EXAMPLE / "signposts.xml"], workload),
            workload,
            with_value(device, "memory_limit_bytes", 250_000_000),
        )


# The command line


def convert(*arguments: object) -> list[object]:
    return ["trace", "convert", "--from", "instruments", *arguments, "--workload", EXAMPLE / "workload.json"]


def test_a_recorded_run_is_filed_and_validated(tmp_path):
    runs, device = tmp_path / "runs", EXAMPLE / "device.toml"
    with_plan = convert(EXAMPLE / "signposts.xml", "--plan", EXAMPLE / "plan.json", "--device", device, "--runs", runs)
    filed = answer_of(*with_plan)
    assert filed["file"] == str(runs / "prefix-1/run-1.json.gz")
    assert (filed["origin"], filed["machine"]["machine"]) == ("imported", "Example1,1")
    assert answer_of(*with_plan)["file"] == str(runs / "prefix-1/run-2.json.gz")
    assert call_cidl(*convert(EXAMPLE / "signposts.xml", "--device", device, "--runs", runs)).code == 0
    figures = answer_of("validate", "--traces", runs, "-o", tmp_path / "out")
    assert figures["origins"] == {"imported": 3}
    assert [(row["policy"], row["origins"]) for row in figures["policies"]] == [
        ("prefix-1", ["imported"]),
        ("recorded", ["imported"]),
    ]
    assert figures["replay_error"]["max"] < 0.01
    assert_refused(
        call_cidl(*convert(EXAMPLE / "signposts.xml", "--device", "iphone-15-pro", "--runs", runs)), 2, "another device"
    )


def test_one_trace_can_be_written_alone(tmp_path):
    figures = answer_of(*convert(EXAMPLE / "signposts.xml", "--plan", EXAMPLE / "plan.json", "-o", tmp_path / "t.json"))
    assert figures["origin"] == "imported"
    assert spans_ns(read_trace(tmp_path / "t.json")) == spans_ns(example()[2])
    files = by_hand("signposts", "neural_engine", "gpu")
    WORKLOAD.write(tmp_path / "w.json")
    DEVICE.write(tmp_path / "d.toml")
    options = ["--workload", tmp_path / "w.json", "--device", tmp_path / "d.toml", "-o", tmp_path / "hand.json"]
    outcome = call_cidl("trace", "convert", "--from", "instruments", *files, *options)
    assert outcome.code == 0, outcome.err
    assert "Neural Engine busy" in outcome.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("{x} --to chrome --from instruments -o t", ["either --to", "or --from"]),
        ("{x} --from xcode --workload {w} -o t", ["--from 'xcode'", "instruments"]),
        ("{x} --from instruments -o t", ["--workload"]),
        ("{x} --from instruments --workload {w} --plan {p}", ["either -o FILE or --runs DIR"]),
        ("{x} --from instruments --workload {w} -o t", ["--device", "without --plan"]),
        ("{x} --from instruments --workload {w} --plan {p} --runs r", ["--device", "with --runs"]),
        ("{x} --from instruments --workload {w} --plan {p} --runs {w}", ["that is a file"]),
        ("{x} --from instruments --workload opensora-small --plan {p} -o t", ["visit"]),
        ("{t} --to chrome -o t --plan {p}", ["go with --from"]),
        ("{t} {t} --to chrome -o t", ["one trace file"]),
        ("{t} --to chrome", ["-o"]),
    ],
)
def test_what_cannot_be_imported_is_refused_in_one_line(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"x": "signposts.xml", "w": "workload.json", "p": "plan.json", "t": "trace.json"}
    filled = options.format(**{short: EXAMPLE / name for short, name in names.items()})
    assert_refused(call_cidl("trace", "convert", *filled.split()), 2, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def every_origin(tmp_path_factory) -> Path:
    """A folder of runs, one of each origin there is."""
    workload, plan, trace = example()
    folder, device = tmp_path_factory.mktemp("origins"), find_device(str(EXAMPLE / "device.toml"))
    for number, origin in enumerate(get_args(Origin)):
        header = trace.header.model_copy(update={"origin": origin})
        named = plan.model_copy(update={"policy": origin, "makespan_s": 1.0 + number})
        header = header.model_copy(update={"policy": origin, "plan_sha256": named.sha256})
        file_run(trace.model_copy(update={"header": header}), workload, named, device, folder)
    return folder


def test_validate_takes_runs_of_every_origin_and_shows_it(every_origin, tmp_path):
    figures = answer_of("validate", "--traces", every_origin, "-o", tmp_path)
    assert figures["origins"] == dict.fromkeys(sorted(get_args(Origin)), 1)
    assert {row["policy"]: row["origins"] for row in figures["policies"]} == {o: [o] for o in get_args(Origin)}
    assert figures["mismatches"] == []
    assert json.loads((tmp_path / "validation.json").read_text())["origins"] == figures["origins"]
    outcome = call_cidl("validate", "--traces", every_origin, "-o", tmp_path)
    assert "runs by origin: 1 coreml, 1 imported, 1 mil, 1 simulated" in outcome.out
    assert "simulated ones measure nothing" in outcome.out
    assert (tmp_path / "validation.png").stat().st_size > 0


@pytest.mark.parametrize("origin", get_args(Origin))
def test_report_takes_a_trace_of_every_origin_and_shows_it(origin, every_origin, tmp_path):
    setting = [EXAMPLE / "workload.json", EXAMPLE / "device.toml"]
    figures = answer_of("report", every_origin / origin / "run-1.json.gz", *setting, "-o", tmp_path)
    assert figures["origin"] == origin
    assert f'["origin","{origin}"]' in (tmp_path / "report.html").read_text()
