"""Runs as child processes: results, errors and kills come back as what they are."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from cidl_sim.core.errors import InfeasibleError, InputError
from cidl_sim.core.plan import Plan
from cidl_sim.core.trace import read_trace
from cidl_sim.executor.job import Job, JobResult, run_job
from cidl_sim.executor.memory_limit import can_enforce
from cidl_sim.policies.catalog import make_plan
from tests.executor.tiny_runs import PROMPT, SETTINGS, tight_device, tiny_workload

MIB = 1 << 20
needs_enforcement = pytest.mark.skipif(
    not can_enforce(), reason="this machine gives no memory limit that the kernel enforces (can_enforce() is False)"
)


@pytest.fixture
def plan() -> Plan:
    """A plan for half of a gibibyte more than the tight device has: room for the process itself."""
    workload = tiny_workload()
    device = tight_device(workload)
    baseline = 768 * MIB
    roomy = device.model_copy(
        update={"memory_limit_bytes": device.memory_limit_bytes + baseline, "baseline_bytes": baseline}
    )
    return make_plan("lru", workload, roomy)


def job_of(store: Path, plan: Plan, **fields: object) -> Job:
    return Job(plan=plan, store=str(store), prompts=(PROMPT,), **fields)


def test_a_job_writes_video_and_trace_and_reports_what_the_kernel_saw(tiny_store, tmp_path, plan):
    job = job_of(
        tiny_store, plan, outputs=(str(tmp_path / "v.mp4"),), trace=str(tmp_path / "t.json"), sample_memory=True
    )
    progress: list[tuple[int, int, str]] = []
    result = run_job(
        job,
        kernel_limit_bytes=plan.memory_limit_bytes,
        on_progress=lambda done, total, stage: progress.append((done, total, stage)),
    )
    visits = len(tiny_workload().visits)
    assert progress[-1] == (visits, visits, "decoder.spatial.1f")
    assert [done for done, _, _ in progress] == sorted(done for done, _, _ in progress)
    trace = read_trace(tmp_path / "t.json")
    assert trace.header.origin == "torch-cpu"
    assert trace.header.enforced_by == result.enforced_by
    assert result.makespan_s == trace.makespan_s
    assert result.evaluations == SETTINGS.steps
    assert not result.killed
    assert result.peak_resident_bytes == trace.peak_resident_bytes <= plan.memory_limit_bytes
    assert result.peak_kernel_bytes is None or result.peak_kernel_bytes <= plan.memory_limit_bytes
    assert 0 < result.touched_bytes < tiny_workload().weights_bytes
    with av.open(str(tmp_path / "v.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == SETTINGS.frames
    assert (trace.header.enforced_by != "accounting") == can_enforce()


def test_what_the_child_raises_is_raised_again(tmp_path, plan):
    with pytest.raises(InputError, match="not a block store"):
        run_job(job_of(tmp_path / "nowhere", plan), kernel_limit_bytes=None)


@needs_enforcement
def test_a_child_that_the_kernel_killed_is_infeasible_unless_that_was_the_point(tiny_store, tmp_path, plan):
    job = job_of(tiny_store, plan, control=True, outputs=(str(tmp_path / "v.mp4"),))
    with pytest.raises(InfeasibleError, match=f"more than the limit of {48 * MIB} bytes"):
        run_job(job, kernel_limit_bytes=48 * MIB)
    result = run_job(job, kernel_limit_bytes=48 * MIB, tolerate_kill=True)
    assert result == JobResult(enforced_by=result.enforced_by, killed=True)
    assert result.enforced_by != "accounting"
    assert not (tmp_path / "v.mp4").exists()
