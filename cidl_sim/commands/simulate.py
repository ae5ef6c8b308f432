"""Commands that simulate and plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from cidl_sim.commands.console import (
    AsJson,
    Option,
    SetOption,
    check_picture,
    device_with,
    draw,
    messages,
    progress,
    show,
)
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InputError
from cidl_sim.core.feasibility import check_plan
from cidl_sim.core.plan import Plan, read_plan
from cidl_sim.core.quantities import parse_bytes
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Workload
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.report.tables import quantiles_line, summary_table

if TYPE_CHECKING:
    from cidl_sim.core.reports import MakespanQuantiles


def simulate(
    workload_name: Annotated[
        str | None, Argument(metavar="WORKLOAD", help="A named workload or a file; not with --row.")
    ] = None,
    device_name: Annotated[str | None, Argument(metavar="DEVICE", help="A named device or a file; likewise.")] = None,
    policy: Annotated[str | None, Option("--policy", help="See 'cidl policies'.")] = None,
    plan_file: Annotated[Path | None, Option("--plan", help="Simulate this plan instead of a policy.")] = None,
    row: Annotated[
        str | None, Option("--row", metavar="RESULTS:INDEX", help="A row of a sweep again; also as JSON.")
    ] = None,
    settings: SetOption = None,
    seed: Annotated[int | None, Option("--seed", help="Switch the device's noise on; first seed of --runs.")] = None,
    runs: Annotated[int | None, Option("--runs", min=1, help="Quantiles of the makespan over so many seeds.")] = None,
    limit_changes: Annotated[
        list[str] | None,
        Option("--limit-change", metavar="SECONDS:BYTES", help="At that time the memory limit becomes another."),
    ] = None,
    thermal_steps: Annotated[
        list[str] | None,
        Option("--thermal", metavar="SECONDS:FACTOR", help="From then on the executor's rate is times FACTOR."),
    ] = None,
    trace_file: Annotated[Path | None, Option("--trace", help="Write the simulated trace.")] = None,
    plot: Annotated[Path | None, Option("--plot", help="Draw the timeline.")] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a policy or a plan on a device."""
    check_picture("--plot", plot)
    from cidl_sim.simulator.engine import simulate as run_simulation
    from cidl_sim.simulator.quantiles import has_noise

    if row is not None:
        if workload_name or policy or plan_file or settings:
            raise InputError("--row says workload, device and policy: give none of them beside it")
        from cidl_sim.sweep.reproduce import case_of_row, read_row

        workload, device, plan = case_of_row(read_row(row))
    else:
        workload, device, plan = _case(workload_name, device_name, policy, plan_file, settings)
    changes = [_limit_change(text) for text in limit_changes or ()]
    # Like a limit that changes, heat is a scenario: the plan was made without knowing of it.
    device = _heated(device, thermal_steps or ())
    trace = run_simulation(workload, device, plan, seed=seed, limit_changes=changes)
    if (seed is not None or runs is not None) and not has_noise(device):
        messages.print(f"{device.name}: no figures under [noise], so every run takes the same time", markup=False)
    spread = None if runs is None else _quantiles(workload, device, plan, runs, seed or 0, changes)
    if trace_file is not None:
        trace.write(trace_file)
    if plot is not None:
        draw([(f"simulated, {plan.policy}", trace)], plot, f"{workload.name} on {device.name}")
    summary = {"workload": workload.name, "device": device.name, **trace.summary()}
    if spread is not None:
        summary.update(makespan_quantiles_s=spread.model_dump(), runs=runs)
    show(
        summary,
        as_json,
        lambda: [
            summary_table(f"{workload.name} on {device.name}", trace),
            *([] if spread is None else [quantiles_line(spread, runs or 0)]),
        ],
    )


def _case(
    workload_name: str | None,
    device_name: str | None,
    policy: str | None,
    plan_file: Path | None,
    settings: list[str] | None,
) -> tuple[Workload, DeviceProfile, Plan]:
    if workload_name is None or device_name is None:
        raise InputError("WORKLOAD and DEVICE are missing (see 'cidl workloads' and 'cidl devices'), or give --row")
    if (policy is None) == (plan_file is None):
        raise InputError("give either --policy or --plan")
    workload, device = find_workload(workload_name), device_with(device_name, settings)
    if plan_file is not None:
        plan = read_plan(plan_file)
        device = device.with_threads(plan.compute_threads)
        check_plan(workload, device, plan)
    else:
        from cidl_sim.policies.catalog import make_plan
        from cidl_sim.policies.threads import with_best_threads

        device = with_best_threads(policy or "", workload, device)
        plan = make_plan(policy or "", workload, device)
    return workload, device, plan


def _limit_change(text: str) -> tuple[float, int]:
    at_s, limit_bytes = _at_time("--limit-change", text, "SECONDS:BYTES, such as 2.5:1.5GB", parse_bytes)
    return at_s, int(limit_bytes)


def _heated(device: DeviceProfile, texts: Sequence[str]) -> DeviceProfile:
    """The device with these thermal steps in place of its own; as it is without any."""
    if not texts:
        return device
    steps = sorted(_at_time("--thermal", text, "SECONDS:FACTOR, such as 120:0.8") for text in texts)
    times = [at_s for at_s, _ in steps]
    if twice := next((b for a, b in pairwise(times) if a == b), None):
        raise InputError(f"--thermal: two factors from {twice:g} s on")
    return with_value(device, "thermal", [{"after_s": at_s, "factor": factor} for at_s, factor in steps])


def _at_time(option: str, text: str, form: str, parse: Callable[[str], float] = float) -> tuple[float, float]:
    """A time in seconds and a positive, finite value from then on, written with a colon between them."""
    at_s, _, value = text.partition(":")
    try:
        pair = (float(at_s), parse(value))
    except (ValueError, InputError):
        pair = (-1.0, 0.0)
    if not (0 <= pair[0] < math.inf and 0 < pair[1] < math.inf):
        raise InputError(f"{option} {text!r}: write {form}")
    return pair


def _quantiles(
    workload: Workload, device: DeviceProfile, plan: Plan, runs: int, first_seed: int, changes: list[tuple[float, int]]
) -> MakespanQuantiles:
    from cidl_sim.simulator.quantiles import makespan_quantiles

    with progress() as step:
        return makespan_quantiles(
            workload,
            device,
            plan,
            runs,
            first_seed,
            limit_changes=changes,
            on_run=partial(step, "seeded runs"),
        )
