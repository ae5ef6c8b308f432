"""The denoiser under no technique, CI, CI-DL and two more plans, step by step; what the paper's formula says of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cidl_sim.core.costs import execute_cost, load_cost
from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import Plan
from cidl_sim.core.trace import Trace
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.devices.published import Rows
from cidl_sim.planner.planner import best_plan
from cidl_sim.policies.build import build_plan
from cidl_sim.policies.catalog import make_plan
from cidl_sim.policies.on_device_sora import REFERENCE, repeated_body, retained_blocks
from cidl_sim.simulator.engine import simulate
from shared.small_runs import round_seconds

NONE, CI, CI_DL, NEXT, PLANNED = "no technique", "CI", "CI-DL", "next_block", "planned"
PLANNING_LIMIT_S = 5.0
SLOWDOWNS = (1.0, 1.25, 1.5, 1.75, 2.0)


@dataclass(frozen=True)
class Case:
    """One denoiser on one device: plans by name, their simulations, and real runs (none on the phone)."""

    title: str
    workload: Workload
    device: DeviceProfile
    plans: Mapping[str, Plan]
    simulated: Mapping[str, Trace]
    measured: Mapping[str, Sequence[Trace]]

    @property
    def pairs(self) -> Sequence[Block]:
        """The denoiser's repeated blocks."""
        return pairs_of(self.workload)

    def costs(self) -> tuple[float, float]:
        """Seconds of a pair's later load and of its execution by the profile."""
        pair = self.pairs[0]
        return load_cost(pair, self.device, cold=False).seconds, execute_cost(pair, self.device).seconds

    def steps_s(self, name: str, *, measured: bool) -> list[tuple[float, float]]:
        """Of each run (the simulated one, or the measured ones) the first step and the mean of the later ones."""
        traces = self.measured.get(name, ()) if measured else [self.simulated[name]]
        steps = [round_seconds(trace) for trace in traces]
        return [(one[0], statistics.fmean(one[1:])) for one in steps]


def denoiser(workload: Workload) -> Stage:
    return next(stage for stage in workload.stages if stage.group == "denoiser")


def pairs_of(workload: Workload) -> Sequence[Block]:
    stage = denoiser(workload)
    body = repeated_body(stage)
    return stage.blocks[body.start : body.stop]


def limit_retaining(count: int, workload: Workload, device: DeviceProfile) -> int:
    """A limit in bytes under which the app's rule retains `count` pairs, half a pair above the least."""
    blocks = pairs_of(workload)
    size, workspace = blocks[0].weight_bytes, max(block.workspace_bytes for block in blocks)
    limit = 2 * device.baseline_bytes + workspace + (3 + count) * size + size // 2
    assert retained_blocks(with_value(device, "memory_limit_bytes", limit), blocks) == count
    return limit


def plans_for(workload: Workload, device: DeviceProfile) -> dict[str, Plan]:
    """The plans that are compared."""
    less = with_value(device, "memory_limit_bytes", limit_retaining(0, workload, device))
    nothing_kept = make_plan(REFERENCE, workload, less)
    return {
        NONE: make_plan("sequential", workload, device),
        CI: build_plan(REFERENCE, workload, device, nothing_kept.loads, nothing_kept.keep),
        CI_DL: make_plan(REFERENCE, workload, device),
        NEXT: make_plan("next_block", workload, device),
        PLANNED: best_plan(workload, device, time_limit_s=PLANNING_LIMIT_S).plan,
    }


def saving(case: Case, step: int, name: str, *, measured: bool, base: str = NONE) -> float:
    """Seconds by which a plan's first (0) or later (1) steps are shorter than those of `base`; medians of runs."""
    with_it, without = (
        statistics.median(run[step] for run in case.steps_s(n, measured=measured)) for n in (name, base)
    )
    return without - with_it


def share(case: Case, step: int, name: str, *, measured: bool, base: str = NONE) -> float:
    """The same as a share of the step of `base`."""
    without = statistics.median(run[step] for run in case.steps_s(base, measured=measured))
    return saving(case, step, name, measured=measured, base=base) / without


def formula_lines(cases: Sequence[Case]) -> list[str]:
    """The paper's reduction of a round, with each profile's load and execution, beside what came out."""
    lines = [
        "## The paper's formula",
        "",
        "r = b min(l, e) + d max(0, l - e) - alpha (1 - d/b), seconds that a later step is shorter than without: b "
        "pairs, l a later load and e an execution by the profile, d retained; alpha = 0, since none is printed. The "
        "last column is the alpha that would make CI's row exact.",
        "",
        "| case | b | l | e | r, d = 0 | CI, simulated | measured | d | r | CI-DL, simulated | measured | alpha |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        (load_s, exec_s), b, d = case.costs(), len(case.pairs), retained_blocks(case.device, case.pairs)
        simulated = {name: saving(case, 1, name, measured=False) for name in (CI, CI_DL)}
        real = {name: saving(case, 1, name, measured=True) if case.measured else None for name in (CI, CI_DL)}
        none_kept = reduction_s(b, load_s, exec_s, 0)
        shown = {name: "-" if value is None else f"{value:.2f}" for name, value in real.items()}
        alpha = none_kept - (simulated[CI] if real[CI] is None else real[CI])
        lines.append(
            f"| {case.title.partition(';')[0]} | {b} | {load_s:.4f} | {exec_s:.4f} | {none_kept:.2f} | "
            f"{simulated[CI]:.2f} | {shown[CI]} | {d} | {reduction_s(b, load_s, exec_s, d):.2f} | "
            f"{simulated[CI_DL]:.2f} | {shown[CI_DL]} | {alpha:.2f} |"
        )
    return lines


def reduction_s(b: int, load_s: float, exec_s: float, d: int) -> float:
    """The paper's r without its overhead."""
    return b * min(load_s, exec_s) + d * max(0.0, load_s - exec_s)


def retention_lines(rows: Rows, phone: Case) -> list[str]:
    """What retention saves on the phone over a run, if executions are slower while a load is in flight."""
    lines = [
        "## What would make retention worth 17 s",
        "",
        f"Published: DL saves {rows['dl.gain'].seconds:g} s over a run on top of CI. The same plans as above on the "
        "phone's profile, with executions slowed down while a load is in flight (the profile says 1.0, no figure is "
        "published; the costs were not fitted anew):",
        "",
        "| executions slowed down by | CI, all steps s | CI-DL, all steps s | DL saves s | a later step with CI s |",
        "|---|---|---|---|---|",
    ]
    for factor in SLOWDOWNS:
        device = with_value(phone.device, "executor.slowdown_while_loading", factor)
        traces = {name: simulate(phone.workload, device, phone.plans[name]) for name in (CI, CI_DL)}
        ci, dl = (traces[name].makespan_s for name in (CI, CI_DL))
        later = statistics.fmean(round_seconds(traces[CI])[1:])
        lines.append(f"| {factor:g} | {ci:.1f} | {dl:.1f} | {ci - dl:.1f} | {later:.2f} |")
    return [*lines, "", *own_costs_lines(rows, phone)]


def own_costs_lines(rows: Rows, phone: Case) -> list[str]:
    """Which costs of a pair give the published steps and what DL saves, the end parts of a step left out.

    With l the load, e the execution and s its slowdown while a load is in flight: a step of b pairs takes b (l + e);
    CI saves l / s of all pairs but the first (a load stretches the execution beside it by l (1 - 1/s)); DL, which
    retains d, saves the first pair's load and d - 1 times the stretch.
    """
    step, with_ci = rows["ci.step_without"].seconds, rows["ci.step_with"].seconds
    b, d = len(phone.pairs), retained_blocks(phone.device, phone.pairs)
    later_steps = denoiser(phone.workload).rounds - 1
    hidden = (step - with_ci) / (b - 1)
    stretched = (rows["dl.gain"].seconds / later_steps - hidden) / d
    load_s, slowdown = hidden + stretched, 1 + stretched / hidden
    exec_s = step / b - load_s
    device = with_value(phone.device, "executor.slowdown_while_loading", slowdown)
    pair = device.measured["stdit.pair"].model_copy(update={"load_s": load_s, "exec_s": exec_s})
    device = device.model_copy(update={"measured": {**device.measured, "stdit.pair": pair}})
    traces = {name: simulate(phone.workload, device, phone.plans[name]) for name in (NONE, CI, CI_DL)}
    later = {name: statistics.fmean(round_seconds(trace)[1:]) for name, trace in traces.items()}
    first = {name: round_seconds(trace)[0] for name, trace in traces.items()}
    return [
        f"The published steps ({step:g} and {with_ci:g} s) and what DL saves can be had at once: solved for three "
        f"costs they give a load of {load_s:.3f} s and an execution of {exec_s:.3f} s, slowed down by {slowdown:.2f} "
        f"while a load is in flight. Simulated with these, later steps take {later[NONE]:.1f}, {later[CI]:.1f} (CI) "
        f"and {later[CI_DL]:.1f} s (CI-DL), and DL saves {traces[CI].makespan_s - traces[CI_DL].makespan_s:.1f} s over "
        "the run. Three unknowns from three figures are no evidence that it is so, only that it is possible; the first "
        f"step, which was not used, takes {first[NONE]:.1f} s where {rows['ci.first_step_without'].seconds:g} are "
        "published. These costs are not the profile's: the times that are printed with their resolution want a pair to "
        f"load in {phone.costs()[0]:.3f} s and run in {phone.costs()[1]:.3f} s at 256x256.",
        "",
    ]
