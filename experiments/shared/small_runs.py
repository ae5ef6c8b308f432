"""Real runs of a small model for an experiment: a store, a profile of this machine, plans run in turns, provenance."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench_executor import processor
from plan_vs_baselines import run, threads

from cidl_sim.calibration.this_machine import Target, measure_this_machine
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import Plan
from cidl_sim.core.trace import Header, Trace
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Workload
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import workload_of
from cidl_sim.pipelines.model_store import build_random_store
from cidl_sim.pipelines.open_sora.settings import OpenSoraSizes, VideoSettings

# So much of a core in use by others disturbs a run of a thread that computes and one that loads.
DISTURBING = 0.5
Limit = Callable[[Workload, DeviceProfile], int]  # bytes for the whole process, on a profile with room for everything


@dataclass(frozen=True)
class SmallJob:
    """A small model under some settings on this machine, with a limit below its weights."""

    store: BlockStore
    settings: VideoSettings
    workload: Workload
    device: DeviceProfile


def small_jobs(
    sizes: OpenSoraSizes,
    settings: Sequence[VideoSettings],
    calibrated: Sequence[VideoSettings],
    limit: Limit,
    folder: Path,
) -> list[SmallJob]:
    """One job for each of `settings`: the store is built in `folder`, the machine measured under `calibrated`."""
    print(f"building the store of {sizes.name}", flush=True)
    store = build_random_store(folder / "store", sizes, "fp32", seed=0)
    targets: list[Target] = [(store, one) for one in calibrated]
    print("measuring this machine", flush=True)
    device = measure_this_machine(targets, compute_threads=threads())
    jobs = []
    for one in settings:
        workload = workload_of(sizes, one)
        limited = with_value(device, "memory_limit_bytes", limit(workload, device))
        jobs.append(SmallJob(store, one, workload, limited))
    return jobs


def run_in_turns(job: SmallJob, plans: Mapping[str, Plan], rounds: int, folder: Path) -> dict[str, list[Trace]]:
    """Every plan once in each round under the job's limit, in an order that turns; without killed runs."""
    names, found = list(plans), {name: list[Trace]() for name in plans}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            trace = run(job.store, plans[name], job.settings, job.device.memory_limit_bytes, folder)
            outcome = "killed for its memory" if trace is None else f"{trace.makespan_s:.2f} s"
            print(f"{job.workload.name}: round {number + 1} of {rounds}, {name}: {outcome}", flush=True)
            found[name] += [] if trace is None else [trace]
    return found


def round_seconds(trace: Trace, group: str = "denoiser") -> list[float]:
    """Seconds of each round of a group's stages: from the end of the visit before it to the end of its last one."""
    ends = [0.0, *(span.end_s for span in sorted(trace.of("execute"), key=lambda span: span.visit))]
    seconds, first = [], 0
    for outline in trace.header.stages:
        for _ in range(outline.rounds):
            last = first + len(outline.blocks)
            seconds += [ends[last] - ends[first]] if outline.group == group else []
            first = last
    return seconds


def others_load() -> float:
    """Processes that ran on this machine in the mean of the last minute; to be asked before the first own run."""
    return os.getloadavg()[0]


def provenance(header: Header, load_before: float) -> str:
    """Date, machine and versions of a run, and whether other processes disturbed it."""
    versions = ", ".join(f"{name} {version}" for name, version in header.versions.items())
    busy = (
        f" **Disturbed**: {load_before:.1f} processes of others ran on the machine in the mean of the minute before "
        "these runs, so their seconds are too long and spread more than on a quiet machine."
        if load_before > DISTURBING
        else f" In the minute before these runs {load_before:.1f} processes of others ran in the mean."
    )
    return (
        f"Date: {datetime.now(UTC).date()}. Machine: {processor()}, {os.cpu_count()} cores "
        f"({header.machine['compute_threads']} computes, one is left to the loader), {header.machine['system']} "
        f"{header.machine['release']}; limits held by {header.enforced_by}; {versions}.{busy}"
    )
