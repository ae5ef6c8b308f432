"""Real runs for a comparison, and the folder that they are recorded in.

    FOLDER/device.toml, and FOLDER/NAME/device.toml where a policy was planned with another one
    FOLDER/NAME/workload.json, plan.json, run-1.json.gz, run-2.json.gz, ...   (video.mp4 while they are made)

The folder is all that a comparison needs: it can be repeated on another machine, without a store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cidl_sim.core.device import DeviceProfile, read_device
from cidl_sim.core.errors import InputError, TraceError
from cidl_sim.core.forecast import Forecast
from cidl_sim.core.plan import Plan, read_plan
from cidl_sim.core.progress import StepProgress, silent
from cidl_sim.core.temporary import temporary_folder
from cidl_sim.core.trace import Trace, read_trace
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Workload, read_workload
from cidl_sim.executor.job import ComputeDevice, Job, JobResult, run_job
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import pipeline_of_workload
from cidl_sim.policies.catalog import make_plan
from cidl_sim.policies.threads import with_best_threads
from cidl_sim.simulator.engine import simulate
from cidl_sim.validation.compare import MeasuredCase

DEVICE_FILE = "device.toml"


@dataclass(frozen=True)
class Scenario:
    """What is to be run: a store's blocks as a workload, a policy, a memory limit. `name` is that of its folder.

    On an accelerator the limit is about its memory, and the kernel limits nothing.
    """

    name: str
    store: BlockStore
    workload: Workload
    policy: str
    memory_limit_bytes: int
    compute_device: ComputeDevice = "cpu"


def prepare(scenarios: Sequence[Scenario], device: DeviceProfile, folder: Path) -> list[MeasuredCase]:
    """Plan each scenario and write what its runs need. InfeasibleError if a policy does not fit its limit.

    Each computes with the number of threads that makes it fastest, where the profile knows several.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device.write(folder / DEVICE_FILE)
    cases = []
    for scenario in scenarios:
        limited = with_value(device, "memory_limit_bytes", scenario.memory_limit_bytes)
        limited = with_best_threads(scenario.policy, scenario.workload, limited)
        plan = make_plan(scenario.policy, scenario.workload, limited)
        simulated = simulate(scenario.workload, limited, plan)
        figures = {"makespan_s": simulated.makespan_s, "peak_resident_bytes": simulated.peak_resident_bytes}
        plan = plan.model_copy(update=figures)
        to = folder / scenario.name
        to.mkdir(exist_ok=True)
        plan.write(to / "plan.json")
        scenario.workload.write(to / "workload.json")
        cases.append(MeasuredCase(scenario.name, scenario.workload, plan, limited, []))
    return cases


def run_round(
    scenarios: Sequence[Scenario],
    cases: Sequence[MeasuredCase],
    folder: Path,
    number: int,
    *,
    prompt: str,
    seed: int = 42,
    forecast: Forecast | None = None,
    before_run: Callable[[], None] = lambda: None,
    on_run: StepProgress = silent,
) -> None:
    """Really run every scenario once under its limit; each case gets its trace. `before_run` is called before each.

    With a `forecast`, of a single scenario, its trace holds what was estimated on the way.
    """
    for scenario, case in zip(scenarios, cases, strict=True):
        before_run()
        _run_once(scenario, case.plan, folder / scenario.name, number, prompt, seed, on_run, forecast)
        case.measured.append(read_trace(folder / scenario.name / f"run-{number}.json.gz"))


def _run_once(
    scenario: Scenario,
    plan: Plan,
    folder: Path,
    number: int,
    prompt: str,
    seed: int,
    on_run: StepProgress,
    forecast: Forecast | None,
) -> JobResult:
    pipeline = pipeline_of_workload(scenario.workload)
    with temporary_folder("run") as temporary:
        # Compressed only here: the worker writes it within the limit.
        raw = temporary / "trace.json"
        job = Job(
            plan=plan,
            workload=scenario.workload,
            store=str(scenario.store.root.absolute()),
            prompts=(prompt,),
            seed=seed,
            outputs=(str(folder / f"{pipeline.output}{pipeline.suffixes[0]}"),),
            trace=str(raw),
            device=scenario.compute_device,
            forecast=forecast,
        )
        result = run_job(
            job,
            kernel_limit_bytes=scenario.memory_limit_bytes if scenario.compute_device == "cpu" else None,
            on_progress=partial(on_run, scenario.name),
        )
        read_trace(raw).write(folder / f"run-{number}.json.gz")
    return result


def file_run(trace: Trace, workload: Workload, plan: Plan, device: DeviceProfile, folder: Path) -> Path:
    """Put a run that was recorded elsewhere into a folder that `read_runs` reads, beside earlier runs of its plan.

    Returns the trace's file. InputError if the folder is about another device.
    """
    device_file = folder / DEVICE_FILE
    if not device_file.is_file():
        device.write(device_file)
    elif read_device(device_file).sha256 != device.sha256:
        raise InputError(f"{device_file}: another device than {device.name!r} as it is given; choose another folder")
    name = plan.policy.replace(":", "-").replace("/", "-")
    to, number = folder / name, 1
    while (to / "plan.json").is_file() and read_plan(to / "plan.json").sha256 != plan.sha256:
        number += 1
        to = folder / f"{name}-{number}"
    if not (to / "plan.json").is_file():
        workload.write(to / "workload.json")
        plan.write(to / "plan.json")
    run = len(list(to.glob("run-*.json*"))) + 1
    trace.write(to / f"run-{run}.json.gz")
    return to / f"run-{run}.json.gz"


def read_runs(folder: Path) -> list[MeasuredCase]:
    """The comparison that was recorded in `folder`.

    TraceError if there is none, or if a trace was not made under the plan beside it.
    """
    if folder.is_dir() and not (folder / DEVICE_FILE).is_file():
        inner = sorted(str(file.parent) for file in folder.glob(f"*/{DEVICE_FILE}"))
        if inner:
            raise TraceError(f"{folder}: no recorded runs itself, but folders of some; name one: {', '.join(inner)}")
    device = read_device(folder / DEVICE_FILE)
    cases = []
    for plan_file in sorted(folder.glob("*/plan.json")):
        plan, workload = read_plan(plan_file), read_workload(plan_file.parent / "workload.json")
        plan.check_workload(workload)
        traces = []
        for file in sorted(plan_file.parent.glob("run-*.json*")):
            trace = read_trace(file)
            if trace.header.plan_sha256 != plan.sha256:
                raise TraceError(f"{file}: recorded under another plan than {plan_file}")
            traces.append(trace)
        if not traces:
            raise TraceError(f"{plan_file.parent}: no run-*.json or run-*.json.gz")
        # Where runs were predicted one by one, each policy has a profile of its own.
        own = plan_file.parent / DEVICE_FILE
        limited = with_value(
            read_device(own) if own.is_file() else device, "memory_limit_bytes", plan.memory_limit_bytes
        )
        limited = limited.with_threads(plan.compute_threads)
        cases.append(MeasuredCase(plan_file.parent.name, workload, plan, limited, traces))
    if not cases:
        raise TraceError(f"{folder}: no recorded runs (folders with plan.json, workload.json and run-*.json.gz)")
    return cases
