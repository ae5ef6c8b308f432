"""The demo: the limit it sets, and once (slow) the whole of it."""

from __future__ import annotations

import json
from pathlib import Path

import av
import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cidl_sim.core.device import read_device
from cidl_sim.core.plan import read_plan
from cidl_sim.core.trace import read_trace
from cidl_sim.core.workload import Workload, read_workload
from cidl_sim.demo import POLICIES_TO_COMPARE, PROMPT, SETTINGS, WEIGHTS_FRACTION, demo_limit
from cidl_sim.devices.catalog import THIS_MACHINE, this_machine_file
from cidl_sim.executor.memory_limit import can_enforce
from cidl_sim.pipelines.catalog import workload_of
from cidl_sim.pipelines.open_sora.settings import OPENSORA_SMALL
from cidl_sim.policies.catalog import make_plan
from tests.conftest import analytic_device, uniform_workload
from tests.test_cli import answer_of, call_cidl

DEMO_WORKLOAD = workload_of(OPENSORA_SMALL, SETTINGS)


def weights_of(workload: Workload) -> dict[str, int]:
    """Bytes by the id of the weights."""
    return {block.weights: block.weight_bytes for stage in workload.stages for block in stage.blocks}


def test_the_demos_model_has_many_blocks_none_of_which_dominates():
    weights = weights_of(DEMO_WORKLOAD)
    total = sum(weights.values())
    assert total == DEMO_WORKLOAD.weights_bytes >= 400e6
    assert len(weights) >= 20
    assert max(weights.values()) <= 0.15 * total


@given(
    blocks=st.integers(1, 8),
    weight_bytes=st.integers(0, 10**9),
    workspace_bytes=st.integers(0, 10**9),
    baseline_bytes=st.integers(0, 10**9),
)
def test_the_limit_is_baseline_and_workspace_and_a_fraction_of_the_weights(
    blocks, weight_bytes, workspace_bytes, baseline_bytes
):
    workload = uniform_workload(blocks, 2, weight_bytes=weight_bytes, workspace_bytes=workspace_bytes)
    limit = demo_limit(workload, analytic_device(1, baseline_bytes=baseline_bytes))
    for_weights = limit - baseline_bytes - workspace_bytes
    assert abs(for_weights - WEIGHTS_FRACTION * blocks * weight_bytes) <= 1


def test_the_largest_workspace_counts_not_the_sum():
    small, large = (uniform_workload(1, 1, weight_bytes=10, workspace_bytes=size).stages[0] for size in (3, 7))
    stages = [small, large.model_copy(update={"name": "second"})]
    workload = Workload(name="two", stages=[stage.model_dump() for stage in stages])
    assert demo_limit(workload, analytic_device(1)) == 7 + int(WEIGHTS_FRACTION * 10)


def test_the_limit_does_not_depend_on_the_limit_of_the_profile():
    limits = {demo_limit(DEMO_WORKLOAD, analytic_device(limit, baseline_bytes=5)) for limit in (1, 10**10)}
    assert len(limits) == 1


@pytest.mark.parametrize("policy", POLICIES_TO_COMPARE)
def test_under_the_demos_limit_every_policy_has_a_plan_but_less_than_half_of_the_weights_fit(policy):
    baseline = 500_000_000
    limit = demo_limit(DEMO_WORKLOAD, analytic_device(1, baseline_bytes=baseline))
    assert limit - baseline < DEMO_WORKLOAD.weights_bytes / 2
    device = analytic_device(limit, baseline_bytes=baseline)
    assert make_plan(policy, DEMO_WORKLOAD, device).memory_limit_bytes == limit


def test_a_file_where_the_demos_folder_should_be_is_the_environments_fault(tmp_path):
    (tmp_path / "out").write_text("in the way")
    outcome = call_cidl("demo", "--out", tmp_path / "out", "--json")
    assert (outcome.code, outcome.out) == (4, "")
    assert outcome.err.splitlines()[-1] == f"cidl: {tmp_path / 'out'}: File exists"
    assert (tmp_path / "out").read_text() == "in the way"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """What `cidl demo --json` says, and the folder it filled."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        summary = answer_of("demo", "--out", folder / "out")
        # What the runs were planned with, and what the next one of this machine's is planned with.
        planned, kept = read_device(folder / "out" / "device.toml"), read_device(this_machine_file())
        assert "learned from" not in planned.provenance.source
        assert kept.provenance.source.startswith(f"{planned.provenance.source}; learned from ")
    return summary, folder / "out"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_makes_a_video_with_less_than_half_of_the_weights_in_memory(demo):
    summary, out = demo
    assert summary["prompt"] == PROMPT
    assert summary["enforced_by"] == summary["control"]["enforced_by"]
    weights = weights_of(read_workload(out / "workload.json"))
    assert sum(weights.values()) == summary["weights_bytes"] >= 400e6
    assert len(weights) >= 20
    assert max(weights.values()) <= 0.15 * summary["weights_bytes"]
    device = read_device(out / "device.toml")
    assert device.name == THIS_MACHINE
    assert device.memory_limit_bytes == summary["memory_limit_bytes"]
    assert summary["memory_limit_bytes"] - device.baseline_bytes < summary["weights_bytes"] / 2
    assert summary["peak_resident_bytes"] <= summary["memory_limit_bytes"]
    assert summary["peak_memory_bytes"] <= summary["memory_limit_bytes"]
    with av.open(str(out / "video.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(48, 48, 3)] * 17
    assert frames[0].std() > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demos_control_with_everything_resident_is_killed_where_the_kernel_holds_the_limit(demo):
    summary, _ = demo
    assert (summary["enforced_by"] != "accounting") == can_enforce()
    expected = "killed by the kernel" if can_enforce() else "finished"
    assert summary["control"]["outcome"] == expected
    assert (summary["control"]["makespan_s"] is None) == can_enforce()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demos_files_are_those_of_its_best_policy_and_agree_with_the_summary(demo):
    summary, out = demo
    assert json.loads((out / "summary.json").read_text()) == summary
    assert tuple(summary["policies"]) == POLICIES_TO_COMPARE
    best = summary["policies"][summary["best_policy"]]
    assert best["measured_makespan_s"] == min(p["measured_makespan_s"] for p in summary["policies"].values())
    plan, trace = read_plan(out / "plan.json"), read_trace(out / "trace.json")
    assert plan.policy == trace.header.policy == best["plan"]
    assert trace.header.plan_sha256 == plan.sha256
    assert trace.header.memory_limit_bytes == plan.memory_limit_bytes == summary["memory_limit_bytes"]
    assert plan.makespan_s == best["simulated_makespan_s"]
    assert trace.makespan_s == best["measured_makespan_s"]
    assert (out / "video.mp4").read_bytes() == (out / "runs" / best["policy"] / "video.mp4").read_bytes()
    height, width, _ = plt.imread(out / "timeline.png").shape
    assert height > 100
    assert width > 100


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_policy_of_the_demo_makes_the_same_video(demo):
    summary, out = demo
    videos = {(out / "runs" / policy / "video.mp4").read_bytes() for policy in summary["policies"]}
    assert len(videos) == 1
