"""How much each figure of a profile matters: d ln makespan / d ln figure, by finite differences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

from cidl_sim.core.costs import execute_cost, measured_kind
from cidl_sim.core.device import DeviceProfile, Executor, Loader
from cidl_sim.core.errors import DeviceError
from cidl_sim.core.progress import StepProgress, silent
from cidl_sim.core.reports import Sensitivity
from cidl_sim.core.what_if import with_value
from cidl_sim.planner.reruns import Reruns

# A figure is divided and multiplied by this. Memory works block by block: a smaller step would often see none.
STEP = 1.1
# Nothing lies between one channel and two.
CHANNELS_STEP = 2
# A figure that is zero has no logarithm; so many seconds are tried instead.
TRIAL_S = 0.001
# How many measured costs are varied, those with the most time in the run first.
MEASURED_FIGURES = 8
# An elasticity below this does not matter; below rounding it is none.
NEGLIGIBLE = 5e-4
ROUNDING = 1e-9


def sensitivities(reruns: Reruns, on_step: StepProgress = silent) -> list[Sensitivity]:
    """The sensitivity of every figure of memory, loader and executor, and of the largest measured costs.

    The strongest come first. DeviceError where a cost is unknown.
    """
    parameters = [
        "memory_limit_bytes",
        "baseline_bytes",
        *(f"loader.{field}" for field in Loader.model_fields),
        # The number of threads is an instruction to the real executor, whose speed is in the other figures.
        *(f"executor.{field}" for field in Executor.model_fields if field != "threads"),
        *_largest_measured(reruns),
    ]
    rows = []
    for done, parameter in enumerate(parameters):
        on_step("sensitivities", done, len(parameters), parameter)
        rows.append(sensitivity(parameter, reruns))
    on_step("sensitivities", len(parameters), len(parameters), "")
    return sorted(rows, key=lambda row: -max(abs(row.elasticity or 0.0), abs(row.elasticity_plan_held or 0.0)))


def sensitivity(parameter: str, reruns: Reruns) -> Sensitivity:
    """The sensitivity to one figure, named by its dotted key."""
    value = value_of(parameter, reruns.device)
    if value is None:
        return Sensitivity(parameter=parameter, remark="not given: " + _meaning_of_none(parameter))
    if value == 0:
        return _at_zero(parameter, reruns)
    factor = CHANNELS_STEP if parameter == "loader.channels" else STEP
    below, above = (_changed(parameter, v, reruns.device) for v in (value / factor, value * factor))
    below_s, above_s = (_makespan_s(reruns.replanned_s, device) for device in (below, above))
    held = [_makespan_s(reruns.held_s, device) for device in (below, above)]
    values = [value_of(parameter, device) if device else None for device in (below, above)]
    elasticity = _elasticity(values, [below_s, above_s], value, reruns.here.makespan_s)
    plan_held = _elasticity(values, held, value, reruns.here.makespan_s)
    remark = ""
    strength = max((abs(e) for e in (elasticity, plan_held) if e is not None), default=math.inf)
    if strength < NEGLIGIBLE:
        remark = _reason(parameter, reruns) if strength < ROUNDING else "counts, but too little to matter"
    if below is not None and below_s is None:
        remark = f"nothing fits at {value / factor:,.0f}"
    return Sensitivity(
        parameter=parameter,
        value=value,
        elasticity=elasticity,
        elasticity_plan_held=plan_held,
        makespan_below_s=below_s,
        makespan_above_s=above_s,
        remark=remark,
    )


def value_of(parameter: str, device: DeviceProfile) -> float | None:
    """A figure of the profile by its dotted key; kinds contain dots themselves."""
    if parameter.startswith("measured."):
        kind, _, field = parameter.removeprefix("measured.").rpartition(".")
        found = getattr(device.measured[kind], field)
    else:
        section, _, field = parameter.rpartition(".")
        found = getattr(getattr(device, section) if section else device, field)
    return None if found is None else float(found)


def _changed(parameter: str, value: float, device: DeviceProfile) -> DeviceProfile | None:
    whole = parameter.endswith("_bytes") or parameter == "loader.channels"
    try:
        return with_value(device, parameter, round(value) if whole else value)
    except DeviceError:
        return None  # beyond what the figure can be, such as an efficiency above one


def _makespan_s(makespan_s: Callable[[DeviceProfile], float | None], device: DeviceProfile | None) -> float | None:
    return None if device is None else makespan_s(device)


def _elasticity(
    values: list[float | None], makespans: list[float | None], value: float, makespan_s: float
) -> float | None:
    """The slope between the outermost points that exist, the profile itself standing in for a missing one."""
    points = [(v, m) for v, m in zip(values, makespans, strict=True) if v is not None and m is not None]
    if len(points) < 2:
        points.append((value, makespan_s))
    (v0, m0), (v1, m1) = points[0], points[-1]
    if v0 == v1 or not (v0 and m0 and m1):
        return None
    return math.log(m1 / m0) / math.log(v1 / v0)


def _at_zero(parameter: str, reruns: Reruns) -> Sensitivity:
    if not parameter.endswith("_s"):
        return Sensitivity(parameter=parameter, value=0.0, remark="zero here: it has no elasticity")
    device = _changed(parameter, TRIAL_S, reruns.device)
    above = _makespan_s(reruns.replanned_s, device)
    added = 0.0 if above is None else above - reruns.here.makespan_s
    remark = f"zero here: it has no elasticity; {1000 * TRIAL_S:g} ms would add {added:.3g} s"
    return Sensitivity(parameter=parameter, value=0.0, makespan_above_s=above, remark=remark)


def _largest_measured(reruns: Reruns) -> list[str]:
    """The measured costs that the most seconds of the run come from."""
    device, seconds = reruns.device, defaultdict[str, float](float)
    for span in reruns.trace.spans:
        if span.operation not in ("load", "execute"):
            continue
        kind = measured_kind(reruns.workload.visits[span.visit].block.kind, device)
        if kind is None:
            continue
        measured, field = device.measured[kind], "exec_s" if span.operation == "execute" else "load_s"
        if span.cold and measured.cold_load_s is not None:
            field = "cold_load_s"
        if getattr(measured, field) is not None:
            seconds[f"measured.{kind}.{field}"] += span.end_s - span.start_s
    return sorted((p for p in seconds if seconds[p] > 0), key=lambda p: -seconds[p])[:MEASURED_FIGURES]


def _meaning_of_none(parameter: str) -> str:
    if parameter == "executor.memory_bandwidth_bytes_per_s":
        return "memory traffic takes no time"
    if parameter == "loader.first_touch_bytes_per_s":
        return "new memory costs nothing"
    return "only measured costs count"


_NOTHING_HERE = {
    "memory_limit_bytes": "a tenth more or less decides about no load that the executor waits for",
    "baseline_bytes": "a tenth more or less decides about no load that the executor waits for",
    "loader.channels": "loads share the bandwidth: two at a time take as long as one after the other",
    "loader.first_touch_bytes_per_s": "hidden: the executor does not wait for loads into new memory",
}


def _reason(parameter: str, reruns: Reruns) -> str:
    """Why a figure that is given does nothing here."""
    if parameter in _NOTHING_HERE:
        return _NOTHING_HERE[parameter]
    if parameter == "executor.memory_bandwidth_bytes_per_s":
        blocks = {visit.block.kind: visit.block for visit in reruns.workload.visits}.values()
        if all(execute_cost(block, reruns.device).measured for block in blocks):
            return "overridden: every execution is measured, and measured times scale with arithmetic alone"
        return "overridden: arithmetic takes longer than memory traffic in every kind without a measurement"
    if parameter.startswith("executor.") or parameter.endswith(".exec_s"):
        return "hidden: the executor waits for the loader all the same"
    return "hidden: these loads end before the executor needs them"
