"""What a run on this machine will take, by the profile that is kept of it, and what the profile learns from it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby

from cidl_sim.calibration.fit import Seen
from cidl_sim.calibration.profile import Observation, fit_device, learned
from cidl_sim.core.costs import execute_cost, load_cost
from cidl_sim.core.device import DeviceProfile, read_device
from cidl_sim.core.errors import CidlError, DeviceError, TraceError
from cidl_sim.core.forecast import Forecast
from cidl_sim.core.plan import Plan
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.devices.catalog import THIS_MACHINE, this_machine_file
from cidl_sim.executor.job import JobResult
from cidl_sim.executor.processor import processor_name
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.simulator.engine import simulate
from cidl_sim.simulator.quantiles import makespan_quantiles

# For the interval so many seeds are simulated, fewer of long runs: no more visits than this in all. Drift is one draw a
# run: of 40 seeds the ends are off by a quarter of their distance from the middle.
_SEEDS, _LEAST_SEEDS, _MOST_VISITS = 400, 20, 400_000


def known_machine(threads: int | None) -> DeviceProfile | None:
    """The profile that is kept of this machine, if it is of this processor and knows this number of threads."""
    try:
        device = read_device(this_machine_file())
    except CidlError:
        return None
    is_this = device.provenance.device.startswith(f"{processor_name()}, ")
    return device.with_threads(threads) if is_this and threads in device.thread_numbers else None


def compute_threads(plan: Plan) -> int:
    """With how many threads a run of `plan` computes on this machine's processor."""
    return plan.compute_threads or max(1, (os.cpu_count() or 2) - plan.channels)


def forecast(workload: Workload, plan: Plan, device: DeviceProfile, memory_limit_bytes: int) -> Forecast:
    """What `plan` will take on a profile of this machine. DeviceError if a kind of block was never measured there."""
    device = device.with_threads(compute_threads(plan))
    for block in {visit.block.kind: visit.block for visit in workload.visits}.values():
        if not (load_cost(block, device, cold=False).measured and execute_cost(block, device).measured):
            raise DeviceError(f"{device.name}: {block.kind!r} was never measured")
    limited = device.model_copy(
        update={"memory_limit_bytes": memory_limit_bytes, "baseline_bytes": plan.baseline_bytes}
    )
    trace = simulate(workload, limited, plan)
    seeds = max(_LEAST_SEEDS, min(_SEEDS, _MOST_VISITS // len(workload.visits)))
    quantiles = makespan_quantiles(workload, limited, plan, seeds)
    ends = {span.visit: span.end_s for span in trace.of("execute")}
    return Forecast(
        makespan_s=trace.makespan_s,
        low_s=min(quantiles.p5, trace.makespan_s),
        high_s=max(quantiles.p95, trace.makespan_s),
        device_sha256=device.sha256,
        ends_s=tuple(ends[visit.number] for visit in workload.visits),
    )


def learn(workload: Workload, trace: Trace, result: JobResult) -> str | None:
    """Let the kept profile of this machine learn from a run; what it learned, in a sentence, None if nothing.

    Without a profile, or with another processor's, the run makes one. A run with a number of threads that the profile
    does not know teaches it nothing.
    """
    seen = Seen(workload, trace)
    if not trace.of("load") or not trace.of("execute"):
        return None
    file = this_machine_file()
    before = known_machine(result.threads)
    if before is None:
        if file.is_file() and _is_of_this_processor():
            return None
        fit_device(THIS_MACHINE, [Observation(seen, result)]).write(file)
        return f"{THIS_MACHINE} is known from this run now"
    after = learned(before, [seen])
    after.write(file)
    return f"{THIS_MACHINE} learned from this run: {_change(before, after)}"


def learned_from_traces(
    device: DeviceProfile | None, traces: Sequence[Trace], workload: Workload | None
) -> DeviceProfile:
    """A profile from runs that were made anyway, in their order in time; `device` is what was known before.

    `workload`: that of all the traces; without it each is looked up by its name. TraceError for a trace that is not of
    real loads and executions on one machine, DeviceError for one with a number of threads that `device` does not know.
    """
    for trace in traces:
        if trace.header.origin == "simulated" or not (trace.of("load") and trace.of("execute")):
            raise TraceError(f"a trace of {trace.header.policy!r}: nothing to learn from, it is no run of a machine")
    runs = [Seen(workload or recorded_workload(trace), trace) for trace in traces]
    if device is not None:
        # Runs with another number of threads say nothing of this one's executions.
        for threads, some in groupby(runs, lambda seen: seen.trace.header.machine.get("compute_threads")):
            if threads and device.executor.threads and threads not in device.thread_numbers:
                raise DeviceError(f"{device.name}: executions were not measured with {threads} compute threads")
            device = learned(device.with_threads(threads), list(some))
        return device
    results = [_reported(trace) for trace in traces]
    return fit_device(THIS_MACHINE, [Observation(s, r) for s, r in zip(runs, results, strict=True)])


def recorded_workload(trace: Trace) -> Workload:
    """The workload that a trace is of: by its name, if that is what was run, else as far as the trace tells it.

    Then arithmetic is unknown, and weights that were never loaded have no size.
    """
    header = trace.header
    try:
        named = find_workload(header.workload_name)
    except CidlError:
        named = None
    if named is not None and header.workload_sha256 in named.identities:
        return named
    sizes: dict[str, int] = {}
    for span in trace.of("load"):
        place = header.place_of(span.visit)
        sizes[header.stages[place.stage].blocks[place.position]] = span.bytes
    stages = [
        Stage(
            name=outline.name,
            group=outline.group,
            rounds=outline.rounds,
            blocks=[
                Block(name=name, kind=kind, weight_bytes=sizes.get(name, 0))
                for name, kind in zip(outline.blocks, outline.kinds, strict=True)
            ],
        )
        for outline in header.stages
    ]
    return Workload(name=header.workload_name, settings=header.settings, stages=stages)


def _reported(trace: Trace) -> JobResult:
    machine = trace.header.machine
    baseline, threads = machine.get("measured_baseline_bytes", 0), machine.get("compute_threads", 1)
    return JobResult(baseline_bytes=int(baseline), threads=int(threads))


def _is_of_this_processor() -> bool:
    try:
        return read_device(this_machine_file()).provenance.device.startswith(f"{processor_name()}, ")
    except CidlError:
        return False


def _change(before: DeviceProfile, after: DeviceProfile) -> str:
    """By how much the costs of the kinds that both know changed, in all."""
    words = []
    for name, what in (("load_s", "loads"), ("exec_s", "executions")):
        pairs = [(getattr(known, name), getattr(after.measured[kind], name)) for kind, known in before.measured.items()]
        both = [(old, new) for old, new in pairs if old and new]
        if both:
            words.append(f"{what} {sum(new for _, new in both) / sum(old for old, _ in both) - 1:+.0%}")
    return ", ".join(words)
