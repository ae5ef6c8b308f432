"""A sweep of a few hundred rows with the columns of real results, each simulated by the engine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product
from typing import Any

import polars as pl

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.plan import Gate, Load
from cidl_sim.core.trace import Trace
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Workload
from cidl_sim.planner.bounds import lower_bound_s
from cidl_sim.policies.catalog import make_plan
from cidl_sim.simulator.engine import simulate
from tests.conftest import analytic_device, uniform_workload

LIMITS = (16, 40, 60, 90)
BANDWIDTHS = (1.0, 4.0)
ROUNDS = {"six.json": 6, "four.json": 4}
POLICIES = [
    "sequential",
    "next_block",
    "lru",
    "on_device_sora",
    *(f"{p}:{d}" for p in ("prefix", "spread") for d in range(5)),
]

SCHEMA: dict[str, Any] = {
    "index": pl.Int64,
    **dict.fromkeys(
        ("workload", "workload_sha256", "device", "device_sha256", "settings", "policy", "pattern"), pl.String
    ),
    "retained": pl.Int32,
    "lookahead": pl.Int32,
    "pattern_seed": pl.Int64,
    "memory_limit_bytes": pl.Int64,
    "bandwidth_bytes_per_s": pl.Float64,
    **dict.fromkeys(("height", "width", "frames", "steps"), pl.Int32),
    **dict.fromkeys(("dtype", "partition", "lpl"), pl.String),
    "tdtm": pl.Int32,
    **dict.fromkeys(("makespan_s", "lower_bound_s"), pl.Float64),
    "peak_resident_bytes": pl.Int64,
    **dict.fromkeys(("loader_busy_s", "executor_busy_s"), pl.Float64),
    **dict.fromkeys(("denoising_evaluations", "merged_steps"), pl.Int32),
}


def trace_of_row(row: Mapping[str, object]) -> Trace:
    """A row simulated again. InfeasibleError where it does not fit."""
    return _trace(str(row["workload"]), str(row["settings"]), str(row["policy"]), row["lookahead"])


@cache
def small_sweep() -> pl.DataFrame:
    """Two workloads on one device, two bandwidths, four limits; lookaheads for the policies that take a number."""
    cases = product(ROUNDS, LIMITS, BANDWIDTHS, POLICIES, (1, 2, None))
    kept = [case for case in cases if ":" in case[3] or case[4] is None]
    return pl.DataFrame([_row(index, *case) for index, case in enumerate(kept)], schema=SCHEMA)


def _workload(name: str) -> Workload:
    return uniform_workload(5, ROUNDS[name], weight_bytes=10, workspace_bytes=2, flops=6)


def _device(settings: str) -> DeviceProfile:
    device = analytic_device(40, baseline_bytes=5)
    for key, value in json.loads(settings).items():
        device = with_value(device, key, value)
    return device


@cache
def _trace(workload_name: str, settings: str, policy: str, lookahead: int | None) -> Trace:
    workload, device = _workload(workload_name), _device(settings)
    plan = make_plan(policy, workload, device)
    if lookahead is not None:
        gated = [Load(visit=load.visit, gate=_gate(load.visit - lookahead)) for load in plan.loads]
        plan = plan.model_copy(update={"loads": tuple(gated)})
    return simulate(workload, device, plan)


def _gate(visit: int) -> Gate | None:
    return Gate(visit=visit, edge="start") if visit >= 0 else None


def _row(index: int, workload: str, limit: int, bandwidth: float, policy: str, lookahead: int | None) -> dict[str, Any]:
    settings = json.dumps({"memory_limit_bytes": limit, "loader.bandwidth_bytes_per_s": bandwidth})
    device = _device(settings)
    pattern, _, number = policy.partition(":")
    row = {
        "index": index,
        "workload": workload,
        "workload_sha256": _workload(workload).sha256,
        "device": device.name,
        "device_sha256": device.sha256,
        "settings": settings,
        "policy": policy,
        "pattern": pattern,
        "retained": int(number) if number else None,
        "lookahead": lookahead,
        "memory_limit_bytes": limit,
        "bandwidth_bytes_per_s": bandwidth,
        "denoising_evaluations": ROUNDS[workload],
        "merged_steps": None,
    }
    return {**row, **dict(_results(row, device))}


def _results(row: dict[str, Any], device: DeviceProfile) -> Iterator[tuple[str, Any]]:
    try:
        trace = trace_of_row(row)
    except InfeasibleError:
        return
    yield "makespan_s", trace.makespan_s
    yield "lower_bound_s", lower_bound_s(_workload(row["workload"]), device)
    yield "peak_resident_bytes", trace.peak_resident_bytes
    yield "loader_busy_s", trace.loader_busy_s
    yield "executor_busy_s", trace.executor_busy_s
