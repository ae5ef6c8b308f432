"""Runs without a process of their own, for tests in which the process is not the point: it takes seconds to start."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cidl_sim.calibration import microbenchmark
from cidl_sim.commands import execute
from cidl_sim.core.progress import Progress, silent
from cidl_sim.executor import job as jobs
from cidl_sim.executor.job import Job, JobResult
from cidl_sim.validation import runs
from cidl_sim.worker.child import do


def do_here(job: Job, on_progress: Progress = silent, **_: Any) -> JobResult:
    """What `run_job` gives, made in this process; a kernel limit is accounted only."""
    threads = torch.get_num_threads()
    try:
        return do(job, on_progress)
    finally:
        torch.set_num_threads(threads)


def run_jobs_here(patch: pytest.MonkeyPatch) -> None:
    """Let every verb that makes runs make them here."""
    for module in (jobs, microbenchmark, execute, runs):
        if hasattr(module, "run_job"):  # others import it where they need it
            patch.setattr(module, "run_job", do_here)
