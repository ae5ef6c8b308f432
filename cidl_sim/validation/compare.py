"""Simulated against measured: how far off, and why.

Two errors are kept apart. Prediction uses the calibrated profile alone. Structure is what is left when a
replay gets each run's own mean costs per kind: it is the error of the model, not of the rates, which drift.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from cidl_sim.core.costs import measurement_of
from cidl_sim.core.device import DeviceProfile, Measured
from cidl_sim.core.plan import Plan
from cidl_sim.core.progress import Progress, silent
from cidl_sim.core.reports import (
    BoundBy,
    ComparedPolicy,
    ErrorFigures,
    GroupErrors,
    MakespanQuantiles,
    SpanErrors,
    ValidationReport,
)
from cidl_sim.core.samples import Conditions, CostSample, by_kind, samples_of
from cidl_sim.core.trace import Operation, Trace
from cidl_sim.core.workload import Workload
from cidl_sim.simulator.engine import makespan_s, simulate
from cidl_sim.simulator.noise import Factors
from cidl_sim.simulator.quantiles import has_noise, makespan_quantiles
from cidl_sim.validation.memory import memory_of

# Loading work over execution work: beyond these a run is bound by the loader, or by the executor.
LOADER_BOUND, EXECUTOR_BOUND = 1.25, 0.8
# Drift is one draw a run, so few seeds say little of it; runs that end early go through the engine, which takes longer.
QUANTILE_SEEDS, ENGINE_SEEDS = 400, 40
CAUSES = ("execution_costs", "load_costs", "variation_within_kinds", "model")


@dataclass
class MeasuredCase:
    """One plan on one device profile, and its real runs."""

    name: str
    workload: Workload
    plan: Plan
    device: DeviceProfile
    measured: list[Trace]

    @cached_property
    def simulated(self) -> Trace:
        """The prediction: the profile alone, with the rounds that the first run really made."""
        rounds = self.measured[0].stage_rounds if self.measured else None
        return simulate(self.workload, self.device, self.plan, stage_rounds=rounds)

    @property
    def measured_makespan_s(self) -> float:
        """Median over the runs."""
        return statistics.median(trace.makespan_s for trace in self.measured)

    @property
    def prediction_error(self) -> float:
        """Relative difference of the simulated from the median measured makespan, signed."""
        return self.simulated.makespan_s / self.measured_makespan_s - 1

    @cached_property
    def replays(self) -> list[Trace]:
        """Each run's replay with its own mean costs per kind and the profile's contention."""
        return [
            simulate(self.workload, own_costs(t, self.device), self.plan, stage_rounds=t.stage_rounds)
            for t in self.measured
        ]

    @property
    def replay_errors(self) -> list[float]:
        """Relative difference of each replay from its run, signed."""
        return [r.makespan_s / t.makespan_s - 1 for r, t in zip(self.replays, self.measured, strict=True)]

    @property
    def spread(self) -> float | None:
        """(p95 - p5) / median of the measured makespans; None for a single run."""
        if len(self.measured) < 2:
            return None
        low, middle, high = np.quantile([t.makespan_s for t in self.measured], [0.05, 0.5, 0.95])
        return float((high - low) / middle)

    @property
    def bound_by(self) -> BoundBy:
        """What the median run had more of, loading or executing."""
        ratio = statistics.median(t.loader_busy_s / t.executor_busy_s for t in self.measured)
        return "loader" if ratio > LOADER_BOUND else "executor" if ratio < EXECUTOR_BOUND else "balanced"

    @property
    def peak_kernel_bytes(self) -> int | None:
        """The most that the kernel charged in any run."""
        return max((p for t in self.measured if (p := t.header.peak_kernel_bytes) is not None), default=None)

    def quantiles_s(self) -> MakespanQuantiles | None:
        """p5, p50 and p95 of the simulated makespan over seeds; None for a profile without noise."""
        if not has_noise(self.device):
            return None
        rounds = self.measured[0].stage_rounds
        seeds = ENGINE_SEEDS if rounds else QUANTILE_SEEDS
        return makespan_quantiles(self.workload, self.device, self.plan, seeds, stage_rounds=rounds)

    def shares(self) -> dict[str, float]:
        """The prediction's signed error by cause, relative to the measured makespan; medians over the runs.

        Costs are exchanged one after another: the run's own means of executions, then of loads (the replay), then
        each visit's own cost; what is left then is the model's.
        """
        runs = []
        for trace, replay in zip(self.measured, self.replays, strict=True):
            executions_own = own_costs(trace, self.device, loads=False)
            stages = [
                self.simulated.makespan_s,
                makespan_s(self.workload, executions_own, self.plan, stage_rounds=trace.stage_rounds),
                replay.makespan_s,
                self._with_own_visits(trace).makespan_s,
                trace.makespan_s,
            ]
            runs.append([(a - b) / trace.makespan_s for a, b in pairwise(stages)])
        return {cause: statistics.median(run[i] for run in runs) for i, cause in enumerate(CAUSES)}

    def _with_own_visits(self, trace: Trace) -> Trace:
        own = own_costs(trace, self.device)
        factors = own_factors(trace, own, len(self.workload.visits))
        return simulate(self.workload, own, self.plan, stage_rounds=trace.stage_rounds, factors=factors)

    def group_errors(self) -> dict[str, GroupErrors]:
        """Per group: the signed errors of prediction and replay in its own elapsed time, medians over the runs."""
        result = {}
        for group in self.simulated.groups:
            errors = {}
            for name, simulated in (("prediction", [self.simulated] * len(self.measured)), ("replay", self.replays)):
                pairs = zip(simulated, self.measured, strict=True)
                errors[name] = statistics.median(
                    s.groups[group]["elapsed_s"] / t.groups[group]["elapsed_s"] - 1 for s, t in pairs
                )
            result[group] = GroupErrors(**errors)
        return result

    def span_errors(self) -> SpanErrors:
        """Of the replays: how far starts are off, as shares of the makespan, and durations, as shares of their own.

        Errors that cancel in the total are seen here.
        """
        starts, durations = [], []
        for replay, trace in zip(self.replays, self.measured, strict=True):
            simulated = {(str(s.operation), s.visit): s for s in replay.spans if s.operation in ("load", "execute")}
            for span in trace.spans:
                twin = simulated.get((span.operation, span.visit))
                if twin is not None:
                    starts.append(abs(twin.start_s - span.start_s) / trace.makespan_s)
                    length = span.end_s - span.start_s
                    durations.append(abs(twin.end_s - twin.start_s - length) / length if length > 0 else 0.0)
        return SpanErrors(
            start_mean=statistics.fmean(starts),
            start_max=max(starts),
            duration_median=statistics.median(durations),
        )

    def row(self) -> ComparedPolicy:
        """The figures of this policy."""
        quantiles = self.quantiles_s()
        memory = memory_of(self.simulated, self.device, self.measured)
        return ComparedPolicy(
            **dict(memory),
            policy=self.name,
            plan=self.plan.policy,
            workload=self.workload.name,
            origins=tuple(sorted({trace.header.origin for trace in self.measured})),
            bound_by=self.bound_by,
            simulated_makespan_s=self.simulated.makespan_s,
            measured_makespan_s=self.measured_makespan_s,
            runs_s=tuple(trace.makespan_s for trace in self.measured),
            spread=self.spread,
            difference=self.prediction_error,
            replay_error=max(self.replay_errors, key=abs),
            shares=self.shares(),
            group_errors=self.group_errors(),
            span_errors=self.span_errors(),
            quantiles_s=quantiles,
            runs_within_quantiles=None
            if quantiles is None
            else sum(quantiles.p5 <= t.makespan_s <= quantiles.p95 for t in self.measured),
            peak_resident_bytes=self.simulated.peak_resident_bytes,
            measured_peak_resident_bytes=max(trace.peak_resident_bytes for trace in self.measured),
            peak_kernel_bytes=self.peak_kernel_bytes,
            memory_limit_bytes=self.measured[0].header.memory_limit_bytes,
            enforced_by=self.measured[0].header.enforced_by,
        )


def own_costs(trace: Trace, device: DeviceProfile, *, loads: bool = True) -> DeviceProfile:
    """The profile with a run's own mean costs per kind, free of contention and first touch, which stay the profile's.

    Without `loads` only those of executions are replaced. A kind whose cold loads are its first ones keeps a mean
    of its own for them. What passes of them whatever else happens is at least the run's own mean gap.
    """
    samples = samples_of(trace, Conditions.of(device))
    executions = _means(samples, "execute")
    all_loads, warm, cold = (
        _means(samples, "load"),
        _means(samples, "load", cold=False),
        _means(samples, "load", cold=True),
    )
    measured = {}
    for kind in {o for outline in trace.header.stages for o in outline.kinds}:
        # Without sizes nothing is scaled: these are this kind's costs at the size it has here.
        before = _unscaled(kind, device)
        update: dict[str, float | None] = {}
        if kind in executions:
            update["exec_s"] = executions[kind]
        if loads and kind in all_loads:
            # Cold loads that were no slower are loads like any other.
            is_slower = kind in warm and cold.get(kind, 0.0) > warm[kind]
            update["load_s"] = warm[kind] if is_slower else all_loads[kind]
            update["cold_load_s"] = cold[kind] if is_slower else None
        measured[kind] = before.model_copy(update=update)
    launch_s = _mean_gap_s(samples, "execute")
    latency_s = max(device.loader.latency_s, _mean_gap_s(samples, "load")) if loads else device.loader.latency_s
    return device.model_copy(
        update={
            "measured": measured,
            "loader": device.loader.model_copy(update={"latency_s": latency_s}),
            "executor": device.executor.model_copy(update={"launch_s": launch_s}),
        }
    )


def own_factors(trace: Trace, own: DeviceProfile, visits: int) -> Factors:
    """By how much each visit's own cost differs from the mean of its kind, as factors for the engine."""
    loads, executions = np.ones(visits), np.ones(visits)
    for sample in samples_of(trace, Conditions.of(own)):
        mean = own.measured[sample.kind]
        if sample.operation == "execute":
            usual = mean.exec_s
        else:
            usual = mean.cold_load_s if sample.cold and mean.cold_load_s else mean.load_s
        if usual:
            (loads if sample.operation == "load" else executions)[sample.visit] = sample.cost_s / usual
    return loads, executions


def report(cases: Sequence[MeasuredCase], on_case: Progress = silent) -> ValidationReport:
    """The figures of `cidl validate`. Spread and tau are None where one run or one policy cannot tell.

    `on_case` observes, with the name of the case.
    """
    rows = []
    for done, case in enumerate(cases):
        on_case(done, len(cases), case.name)
        rows.append(case.row())
    on_case(len(cases), len(cases), "")
    replays = [abs(error) for case in cases for error in case.replay_errors]
    predictions = [abs(case.prediction_error) for case in cases]
    spreads = [case.spread for case in cases if case.spread is not None]
    memory = [abs(row.kernel_error) for row in rows if row.kernel_error is not None]
    touched = [abs(row.touched_error) for row in rows if row.touched_error is not None]
    accounting = [abs(row.accounting_error) for row in rows if row.accounting_error is not None]
    within = [row.runs_within_quantiles for row in rows if row.runs_within_quantiles is not None]
    spread = statistics.fmean(spreads) if spreads else None
    measured = [case.measured_makespan_s for case in cases]
    return ValidationReport(
        replay_error=ErrorFigures(mean=statistics.fmean(replays), max=max(replays)),
        prediction_error=ErrorFigures(mean=statistics.fmean(predictions), max=max(predictions)),
        run_to_run_spread=spread,
        kendall_tau=kendall_tau([c.simulated.makespan_s for c in cases], measured, spread or 0.0),
        peak_memory_error=max(memory) if memory else None,
        accounting_error=max(accounting) if accounting else None,
        touched_error=max(touched) if touched else None,
        makespan_span=max(measured) / min(measured),
        shares={cause: statistics.fmean(abs(row.shares[cause]) for row in rows) for cause in CAUSES},
        coverage=sum(within) / sum(len(c.measured) for c in cases) if within else None,
        origins=dict(sorted(Counter(t.header.origin for case in cases for t in case.measured).items())),
        mismatches=tuple(mismatches(cases)),
        policies=tuple(rows),
    )


def kendall_tau(simulated: Sequence[float], measured: Sequence[float], spread: float) -> float | None:
    """Kendall's tau between two orders over the pairs whose measured values differ by more than `spread`.

    `spread` is relative to the smaller value; None if no pair differs by that much.
    """
    agreement = []
    for i in range(len(measured)):
        for j in range(i):
            if abs(measured[i] - measured[j]) > spread * min(measured[i], measured[j]):
                agreement.append(np.sign(measured[i] - measured[j]) * np.sign(simulated[i] - simulated[j]))
    return float(np.mean(agreement)) if agreement else None


def mismatches(cases: Sequence[MeasuredCase]) -> list[str]:
    """What differs between the machine and software of the profile and of the traces, each named once."""
    found: dict[str, None] = {}
    for case in cases:
        provenance = case.device.provenance
        for trace in case.measured:
            header = trace.header
            for name, version in provenance.versions.items():
                if header.versions.get(name, version) != version:
                    found[f"profile made with {name} {version}, trace with {header.versions[name]}"] = None
            machine = header.machine.get("processor")
            if machine is not None and provenance.mark == "measured" and not provenance.device.startswith(str(machine)):
                found[f"profile of {provenance.device!r}, trace of {machine!r}"] = None
    return list(found)


def _mean_gap_s(samples: Sequence[CostSample], operation: Operation) -> float:
    return statistics.fmean([s.gap_s for s in samples if s.operation == operation] or [0.0])


def _means(samples: Sequence[CostSample], operation: Operation, *, cold: bool | None = None) -> dict[str, float]:
    chosen = (s for s in samples if s.operation == operation and cold in (None, s.cold))
    return {kind: statistics.fmean(costs) for kind, costs in by_kind(chosen, lambda s: s.cost_s).items()}


def _unscaled(kind: str, device: DeviceProfile) -> Measured:
    known = measurement_of(kind, device) or Measured()
    return known.model_copy(update={"weight_bytes": None, "flops": None})
