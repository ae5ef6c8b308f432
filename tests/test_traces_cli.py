"""`cidl trace convert` and `cidl trace diff`: what they write, print and refuse."""

from __future__ import annotations

import json

import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace as PerfettoTrace

from cidl_sim.core.trace import Trace, read_trace
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate
from tests.conftest import analytic_device, uniform_workload
from tests.test_cli import answer_of, assert_refused, call_cidl


def simulated(policy: str, rounds: int = 3) -> Trace:
    workload = uniform_workload(4, rounds, weight_bytes=10, workspace_bytes=2, flops=3)
    device = analytic_device(40, baseline_bytes=5)
    return simulate(workload, device, make_plan(policy, workload, device))


@pytest.fixture
def files(tmp_path):
    """The same workload under two policies, and with more rounds."""
    names = {"a.json": simulated("sequential"), "b.json.gz": simulated("spread"), "more.json": simulated("spread", 5)}
    for name, trace in names.items():
        trace.write(tmp_path / name)
    return tmp_path


def test_convert_writes_what_chrome_and_perfetto_read(files):
    chrome, perfetto = files / "deep" / "chrome.json", files / "t.pftrace"
    answer = answer_of("trace", "convert", files / "a.json", "--to", "chrome", "-o", chrome)
    assert answer == {"file": str(chrome), "format": "chrome", "bytes": chrome.stat().st_size}
    assert len(json.loads(chrome.read_text())["traceEvents"]) > len(read_trace(files / "a.json").spans)
    outcome = call_cidl("trace", "convert", files / "b.json.gz", "--to", "perfetto", "-o", perfetto)
    assert outcome.code == 0, outcome.err
    assert "ui.perfetto.dev" in outcome.out
    packets = PerfettoTrace.FromString(perfetto.read_bytes()).packet
    assert len(packets) > len(read_trace(files / "b.json.gz").spans)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("a.json --to svg", ["--to 'svg'", "chrome, perfetto"]),
        ("a.json", ["--to"]),
        ("missing.json --to chrome", ["missing.json", "cannot be read"]),
        ("broken.json --to perfetto", ["broken.json", "not JSON"]),
        ("other.json --to perfetto", ["other.json", "header"]),
        ("out --to chrome", ["that is the trace itself"]),
    ],
)
def test_what_cannot_be_converted_is_refused_in_one_line_and_nothing_is_written(options, words, files, monkeypatch):
    monkeypatch.chdir(files)
    (files / "broken.json").write_text('{"format": "cidl-tra')
    (files / "other.json").write_text('{"format": "cidl-trace/1", "spans": []}')
    before = sorted(files.iterdir())
    assert_refused(call_cidl("trace", "convert", *options.split(), "-o", "out"), 2, *words)
    assert sorted(files.iterdir()) == before


def test_a_place_that_cannot_be_written_is_the_environments_fault(files):
    outcome = call_cidl("trace", "convert", files / "a.json", "--to", "chrome", "-o", files / "a.json" / "x")
    assert_refused(outcome, 4, "cannot be written")


def test_diff_explains_the_difference(files):
    figures = answer_of("trace", "diff", files / "a.json", files / "b.json.gz")
    assert not figures["identical"]
    assert (figures["a"]["policy"], figures["b"]["policy"]) == ("sequential", "spread:2")
    total = figures["b"]["makespan_s"] - figures["a"]["makespan_s"]
    assert figures["makespan_difference_s"] == total < 0
    assert sum(part["difference_s"] for part in figures["makespan"]) == pytest.approx(total)
    outcome = call_cidl("trace", "diff", files / "a.json", files / "b.json.gz")
    assert outcome.code == 0, outcome.err
    for words in ("makespan", "wait: load", "load: only in one", "denoiser", f"{total:+.3f}", "compared: all rounds"):
        assert words in outcome.out


def test_diff_of_a_trace_with_itself_says_so_in_one_line(files):
    outcome = call_cidl("trace", "diff", files / "a.json", files / "a.json")
    assert (outcome.code, outcome.out) == (0, "the traces are identical\n")
    assert answer_of("trace", "diff", files / "a.json", files / "a.json")["identical"]


def test_diff_says_that_only_common_rounds_are_compared(files):
    outcome = call_cidl("trace", "diff", files / "b.json.gz", files / "more.json")
    assert outcome.code == 0, outcome.err
    assert "(rounds of denoiser 3 and 5)" in outcome.out


def test_diff_refuses_other_workloads_and_files_that_are_no_traces(files):
    workload, device = uniform_workload(2, 2), analytic_device(9, measured={})
    workload = workload.model_copy(update={"name": "small"})
    free = simulate(workload, device, make_plan("sequential", workload, device))
    free.write(files / "small.json")
    refused = call_cidl("trace", "diff", files / "a.json", files / "small.json")
    assert_refused(refused, 2, "different workloads", "uniform", "small")
    assert_refused(call_cidl("trace", "diff", files / "a.json", files / "no.json"), 2, "no.json", "cannot be read")
    workload.write(files / "workload.json")
    assert_refused(call_cidl("trace", "diff", files / "a.json", files / "workload.json"), 2, "workload.json")
