"""Recorded samples -> a profile. The samples are made by hand, in the benchmarker's shape; nothing ran with Core ML."""

from __future__ import annotations

import json

import pytest

from cidl_sim.core.device import read_device
from cidl_sim.core.errors import InputError
from cidl_sim.coreml.profile import build_profile, read_recording
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate
from tests.coreml.by_hand import (
    COLD_S,
    PREDICT_S,
    TINY,
    WARM_S,
    manifest_by_hand,
    recording_by_hand,
    samples_by_hand,
    tiny,
)
from tests.test_cli import answer_of, assert_refused, call_cidl

PAIR = "stdit.pair.fp16.5x4.w48x4x32x64"


@pytest.fixture(scope="module")
def recording():
    return recording_by_hand()


@pytest.fixture
def samples(tmp_path, recording):
    recording.write(tmp_path / "samples.json")
    return tmp_path / "samples.json"


def test_a_profile_has_the_medians_of_the_samples_in_seconds_and_how_good_they_are(recording):
    device = build_profile(recording, "by-hand")
    assert set(device.measured) == {block.kind for stage in tiny().stages for block in stage.blocks}
    pair, block = device.measured[PAIR], next(block for block in recording.blocks if block.kind == PAIR)
    assert (pair.load_s, pair.cold_load_s, pair.exec_s) == pytest.approx((WARM_S, COLD_S, PREDICT_S))
    assert (pair.weight_bytes, pair.flops, pair.samples) == (block.weight_bytes, block.flops, 9)
    assert pair.load_spread == pytest.approx((51 - 49) / 1.349 / 50)
    assert device.noise.load == pair.load_spread
    assert device.noise.execute == pair.exec_spread
    assert device.coreml.compute_units == "cpu_and_gpu"
    assert device.coreml.compile_s[PAIR] == pytest.approx(0.2)
    assert device.coreml.compiled_bytes[PAIR] == block.compiled_bytes
    assert device.executor.flops_per_s == pytest.approx(
        sum(block.flops for block in recording.blocks)
        / (PREDICT_S * sum(1 for block in recording.blocks if block.flops))
    )


def test_a_profile_says_where_its_figures_come_from_and_what_is_assumed(recording):
    provenance = build_profile(recording, "by-hand").provenance
    assert (provenance.mark, provenance.device, provenance.os) == ("measured", "made by hand", "macOS 0")
    assert (provenance.date, provenance.versions) == ("2026-01-01", {"coremltools": "9.0"})
    assert provenance.figures["loader.bandwidth_bytes_per_s"].mark == "derived"
    for key in ("memory_limit_bytes", "baseline_bytes", "executor.slowdown_while_loading"):
        assert provenance.figures[key].mark == "assumed"


def test_the_exports_workload_runs_on_its_profile_without_falling_back(recording, tmp_path):
    build_profile(recording, "by-hand").write(tmp_path / "device.toml")
    device, workload = read_device(tmp_path / "device.toml"), tiny()
    trace = simulate(workload, device, make_plan("sequential", workload, device))
    assert trace.header.fall_backs == ()
    sets = len({visit.block.weights for visit in workload.visits})
    expected = len(workload.visits) * (WARM_S + PREDICT_S) + sets * (COLD_S - WARM_S)
    assert trace.makespan_s == pytest.approx(expected)


def test_blocks_of_one_kind_are_pooled_and_those_that_failed_left_out(recording):
    workload = tiny()
    more = [
        samples_by_hand(PAIR, "stdit.01", workload, cold_load_ms=[700.0], warm_load_ms=[50.0] * 9),
        samples_by_hand(PAIR, "stdit.02", workload, cold_load_ms=[900.0], warm_load_ms=[50.0] * 9),
    ]
    last = recording.blocks[-1]
    failed = last.model_copy(update={"problem": "RuntimeError: timed out", "cold_load_ms": (), "warm_load_ms": ()})
    changed = recording.model_copy(update={"blocks": (*recording.blocks[:-1], *more, failed)})
    device = build_profile(changed, "pooled")
    assert device.measured[PAIR].cold_load_s == pytest.approx(0.7)
    assert device.measured[PAIR].samples == 27
    assert last.kind not in device.measured


def test_a_phone_has_no_later_loads_and_the_rate_of_those_is_called_assumed():
    recording = recording_by_hand(warm_load_ms=[], compile_ms=[], compiled_bytes=None)
    with pytest.raises(InputError, match="no later load was measured on made by hand; give --later-load-rate"):
        build_profile(recording, "phone")
    device = build_profile(recording, "phone", memory_limit_bytes=10**9, later_bytes_per_s=1e6)
    assert device.measured[PAIR].load_s is None
    assert device.measured[PAIR].cold_load_s == pytest.approx(COLD_S)
    assert device.memory_limit_bytes == 10**9
    assert device.provenance.figures["loader.bandwidth_bytes_per_s"].mark == "assumed"
    assert (device.coreml.compile_s, device.coreml.compiled_bytes) == ({}, {})
    workload = tiny()
    trace = simulate(workload, device, make_plan("sequential", workload, device))
    assert set(trace.header.fall_backs) == {f"analytic cost for kind {kind}" for kind in device.measured}
    later = [span for span in trace.of("load") if not span.cold]
    assert all(span.end_s - span.start_s == pytest.approx(span.bytes / 1e6) for span in later)
    first = [span.end_s - span.start_s for span in trace.of("load") if span.cold and span.bytes < COLD_S * 1e6]
    assert len(first) > 10
    assert first == pytest.approx([COLD_S] * len(first))


def test_what_failed_everywhere_is_an_error_with_the_first_reason():
    recording = recording_by_hand(problem="RuntimeError: no space", warm_load_ms=[])
    with pytest.raises(InputError, match="nothing was measured on made by hand: RuntimeError: no space"):
        build_profile(recording, "none")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("format", "cidl-coreml-samples/2", "format"),
        ("cold_load_ms", [0.0], r"blocks\.0\.cold_load_ms\.0"),
        ("package_bytes", -1, r"blocks\.0\.package_bytes"),
    ],
)
def test_damaged_samples_are_one_line_that_names_the_field(samples, place, value, message):
    data = json.loads(samples.read_text())
    (data if place in data else data["blocks"][0])[place] = value
    samples.write_text(json.dumps(data))
    with pytest.raises(InputError, match=rf"samples\.json: {message}"):
        read_recording(samples)


def test_the_command_makes_a_profile_of_samples_that_plan_and_simulate_take(samples, tmp_path):
    out = tmp_path / "my-mac.toml"
    answer = answer_of("coreml", "profile", "--from-samples", samples, "-o", out)
    assert (answer["device"], answer["measured_on"], answer["failed"]) == ("my-mac", "made by hand", {})
    assert read_device(out).name == "my-mac"
    planned = answer_of("plan", TINY, out, "--policy", "sequential")
    assert planned["first_run_s"] == pytest.approx(planned["makespan_s"])
    assert planned["later_run_s"] < planned["first_run_s"]
    assert "prepare" in planned["explanation"][-1]
    shown = call_cidl("coreml", "profile", "--from-samples", samples, "-o", out)
    assert "stdit.pair" in shown.out
    assert "None" not in shown.out


def test_what_cannot_go_together_or_off_macos_is_refused_in_one_line(samples, tmp_path, monkeypatch):
    profile = ("coreml", "profile", "-o", tmp_path / "device.toml")
    assert_refused(call_cidl(*profile), 2, "--packages", "--from-samples")
    assert_refused(call_cidl(*profile, "--from-samples", samples, "--device", "Phone"), 2, "--device")
    assert_refused(call_cidl(*profile, "--packages", tmp_path, "--device", "Phone"), 2, "--later-load-rate")
    assert_refused(call_cidl(*profile, "--packages", tmp_path), 2, "not an export")
    assert_refused(call_cidl(*profile, "--packages", tmp_path, "--compute-units", "ane"), 2, "cpu_and_ne")
    monkeypatch.setattr("sys.platform", "linux")
    manifest_by_hand().write(tmp_path)
    assert_refused(call_cidl(*profile, "--packages", tmp_path), 4, "macOS only", "--from-samples")
