"""What the commands say, as validated records: tables, pictures, pages and JSON read them and nothing else.

`model_dump(mode="json")` is the object that `--json` prints. Where a question was not asked, its keys are not there.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from cidl_sim.core.device import Mark
from cidl_sim.core.files import Record
from cidl_sim.core.trace import EnforcedBy

# Bytes stay whole numbers beside figures that are none.
Number = int | float
BoundBy = Literal["loader", "executor", "balanced"]


class PartialRecord(Record):
    """A record that leaves out the fields that have a default and were not given."""

    @model_serializer(mode="wrap")
    def _without_what_was_not_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        return {name: value for name, value in data.items() if name in self.model_fields_set}


# A plan


class Least(Record):
    """The least value of `parameter` with which `policy` meets the target, all else as it is; None if none does.

    `needed`: below that no plan whatsoever meets it (None where every value that is tried may do, or none does).
    """

    parameter: str
    value: Number | None = None
    policy: str | None = None
    makespan_s: float | None = None
    needed: Number | None = None
    sentence: str


class BreakPoint(Record):
    """A value of `parameter` at which something changes, in a sentence; None where there is no such value.

    `makespan_s` in seconds and `retained_blocks` are those of the plan made there.
    """

    name: str
    parameter: str
    value: Number | None = None
    makespan_s: float | None = None
    retained_blocks: int | None = None
    sentence: str


class CurvePoint(Record):
    """The makespan in seconds, the least that any plan can have, and what is retained, under one memory limit."""

    memory_limit_bytes: int
    makespan_s: float
    lower_bound_s: float
    retained_blocks: int
    policy: str


class PartitionRow(Record):
    """One cut into blocks that was looked at; makespan and bound are None where nothing fits or can be costed."""

    partition: str
    blocks: int
    largest_block_bytes: int
    makespan_s: float | None
    lower_bound_s: float | None
    derived_kinds: tuple[str, ...]
    chosen: bool
    remark: str


class PlanReport(PartialRecord):
    """What `cidl plan` says of one device: the plan's figures, the policies beside it, and what limits it.

    `baselines`: the makespan in seconds of each policy, None where it does not fit. `first_run_s` and `later_run_s`
    are None but for devices with Core ML. `partition` to `store_command` are there if the cut was chosen, `target_s`
    and `least` if a target was given, `curve_policy` to `memory_curve` if the curve was asked for.
    """

    workload: str
    device: str
    policy: str
    makespan_s: float
    lower_bound_s: float
    gap: float
    proven_optimal: bool
    proof_scope: str
    peak_resident_bytes: int
    memory_limit_bytes: int
    baselines: dict[str, float | None]
    first_run_s: float | None
    later_run_s: float | None
    fall_backs: tuple[str, ...]
    file: str | None
    explanation: tuple[str, ...]
    partition: str | None = None
    partitions: tuple[PartitionRow, ...] = ()
    store_command: str | None = None
    target_s: float | None = None
    least: tuple[Least, ...] = ()
    curve_policy: str | None = None
    memory_points: tuple[BreakPoint, ...] = ()
    memory_curve: tuple[CurvePoint, ...] = ()


class InfeasiblePlan(Record):
    """What `cidl plan` says of a device, one of several, that no plan fits."""

    workload: str
    device: str
    makespan_s: None = None
    memory_limit_bytes: int
    infeasible: str


# What if


class Sensitivity(Record):
    """What a figure of the profile does to the makespan.

    `elasticity`: per cent of makespan for each per cent of the figure, with a new plan at every value;
    `elasticity_plan_held` with the plan for the unchanged profile. None where neither side can be had. The makespans
    in seconds, with a new plan, are those at `value` / 1.1 and `value` * 1.1 (channels: half and double), None where
    the profile cannot take that value or nothing fits. `remark` says why a figure does nothing or has no elasticity.
    """

    parameter: str
    value: float | None = None
    elasticity: float | None = None
    elasticity_plan_held: float | None = None
    makespan_below_s: float | None = None
    makespan_above_s: float | None = None
    remark: str


class WhatIfReport(Record):
    """What `cidl whatif` says: sensitivities, the strongest first, break points and the memory curve of a policy."""

    workload: str
    device: str
    policy: str
    makespan_s: float
    memory_limit_bytes: int
    retained_blocks: int
    sensitivities: tuple[Sensitivity, ...]
    break_points: tuple[BreakPoint, ...]
    memory_curve: tuple[CurvePoint, ...]
    fall_backs: tuple[str, ...]
    file: str | None = None


# Simulated against measured


class MemoryFigures(Record):
    """Predicted against measured memory; measured figures are medians over the runs, None where they do not tell.

    `accounting_error`: what each run accounted for weights against the slots of the arena that it really touched (the
    largest over the runs). `touched_error`: what the simulation holds against those slots. `kernel_error`: the
    profile's process, the slots and the visit's workspace against what the kernel saw the process need, page cache
    that it could drop left out.
    """

    accounting_error: float | None
    touched_bytes: Number | None
    predicted_touched_bytes: int
    touched_error: float | None
    needed_bytes: Number | None
    needed_spread: float | None
    predicted_kernel_bytes: int | None
    kernel_error: float | None


class MakespanQuantiles(Record):
    """Makespans in seconds that 5, 50 and 95 % of the runs stay below, interpolated linearly between runs."""

    p5: float
    p50: float
    p95: float


class GroupErrors(Record):
    """Signed relative errors of one group's elapsed time, medians over the runs."""

    prediction: float
    replay: float


class SpanErrors(Record):
    """How far starts are off in replays, as shares of the makespan, and durations, as shares of their own."""

    start_mean: float
    start_max: float
    duration_median: float


class ComparedRuns(Record):
    """One policy's runs beside its simulation. Errors are relative to what was measured, signed; None: cannot be told.

    `policy`: the name of the comparison, `plan`: that of its plan. `replay_error`: the largest over the runs.
    `shares`: the prediction's error by cause, relative to the measured makespan. Peaks: simulated, the largest that
    runs accounted for, and the largest that the kernel charged.
    """

    policy: str
    plan: str
    workload: str
    origins: tuple[str, ...]
    bound_by: BoundBy
    simulated_makespan_s: float
    measured_makespan_s: float
    runs_s: tuple[float, ...]
    spread: float | None
    difference: float
    replay_error: float
    shares: dict[str, float]
    group_errors: dict[str, GroupErrors]
    span_errors: SpanErrors
    quantiles_s: MakespanQuantiles | None
    runs_within_quantiles: int | None
    peak_resident_bytes: int
    measured_peak_resident_bytes: int
    peak_kernel_bytes: int | None


class ComparedPolicy(MemoryFigures, ComparedRuns):
    """One policy simulated and measured, its memory too; the limit, and what held it."""

    memory_limit_bytes: int
    enforced_by: EnforcedBy


class ErrorFigures(Record):
    """Mean and largest magnitude of a relative error."""

    mean: float = Field(ge=0)
    max: float = Field(ge=0)


class ForeseenRun(Record):
    """A run that was predicted before it was made, with all that was known then, in nine of ten cases between two ends.

    `error`: of the prediction, relative to what was measured, signed. `load_rate`, `execute_rate`: how fast the machine
    was around the run, relative to the first look at it.
    """

    policy: str
    repeat: int
    predicted_s: float
    low_s: float
    high_s: float
    measured_s: float
    error: float
    load_rate: float
    execute_rate: float


class ValidationReport(Record):
    """What `cidl validate` says. Spread and tau are None where one run or one policy cannot tell.

    `shares`: means of the magnitudes of the prediction's error by cause. `coverage`: the part of the runs that lies
    between the simulated p5 and p95. `makespan_span`: the largest measured makespan over the smallest.
    """

    replay_error: ErrorFigures
    prediction_error: ErrorFigures
    run_to_run_spread: float | None
    kendall_tau: float | None
    peak_memory_error: float | None
    accounting_error: float | None
    touched_error: float | None
    makespan_span: float
    shares: dict[str, float]
    coverage: float | None
    origins: dict[str, int]
    mismatches: tuple[str, ...]
    policies: tuple[ComparedPolicy, ...]


# Core ML


class CostMarks(Record):
    """How sure the figures of a `CoreMLCost` are; `costs`: the weakest mark of the profile's, None if it has none."""

    packages_bytes: Literal["measured", "estimated"]
    compiled_bytes: Literal["measured", "estimated"]
    costs: Mark | None


class CostSources(Record):
    """Where the bytes of a `CoreMLCost` come from."""

    packages_bytes: str
    compiled_bytes: str


class CoreMLCost(Record):
    """What `cidl coreml cost` says: disk, the first run and later ones. None: the profile does not tell."""

    workload: str
    device: str
    policy: str
    packages_bytes: int
    compiled_bytes: int
    disk_bytes: int
    compile_s: float | None
    first_run_s: float | None
    first_run_at_least_s: float
    later_run_s: float
    kinds_without_cold_load: tuple[str, ...]
    share_without_cold_load: float
    marks: CostMarks
    sources: CostSources
    sentence: str
