"""Rows of a sweep: each point simulated by the compiled engine, with its settings, beside a bound."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.timed import timed
from cidl_sim.core.workload import Workload
from cidl_sim.devices.catalog import find_device
from cidl_sim.pipelines.catalog import find_workload, pipeline_of_workload, settings_in
from cidl_sim.planner.bounds import lower_bound_s, quick_bound_s
from cidl_sim.simulator import batch
from cidl_sim.simulator.arrays import EVALUATION, Arrays, Evaluation, arrays_of, evaluation_of
from cidl_sim.simulator.engine import simulate
from cidl_sim.sweep.patterns import keep_rows, plan_of
from cidl_sim.sweep.points import NONE, Ints, Points, count_points, points
from cidl_sim.sweep.spec import PATTERNS, Sweep, device_value, device_with_values

# A part is written at once and redone at once; sixty of them show progress, and keep many workers busy.
MOST_ROWS_PER_PART = 32_768
LEAST_ROWS_PER_PART = 256
PARTS = 64
# Of the matrix of who keeps weights after which visit, at a time.
CELLS = 8_000_000
# Simulating so many takes the engine as long as loading what numba compiled; compiling it takes ten times as long.
FEW_VISITS = 30_000
# Devices whose arrays and bounds are kept: a grid comes back to one within few parts, a sample never does.
CASES = 64

_TYPES = {"int32": pa.int32(), "float64": pa.float64(), "string": pa.string()}
# The figures are null where the plan does not fit.
_WHAT = [
    ("index", pa.int64()),
    ("workload", pa.string()),
    ("workload_sha256", pa.string()),
    ("device", pa.string()),
    ("device_sha256", pa.string()),
    ("settings", pa.string()),
    ("policy", pa.string()),
    ("pattern", pa.string()),
    ("retained", pa.int32()),
    ("lookahead", pa.int32()),
    ("pattern_seed", pa.int32()),
    ("memory_limit_bytes", pa.int64()),
    ("bandwidth_bytes_per_s", pa.float64()),
]
_FIGURES = [
    ("makespan_s", pa.float64()),
    ("lower_bound_s", pa.float64()),
    ("peak_resident_bytes", pa.int64()),
    ("loader_busy_s", pa.float64()),
    ("executor_busy_s", pa.float64()),
    ("denoising_evaluations", pa.int32()),
    ("merged_steps", pa.int32()),
]


@dataclass(frozen=True)
class Inputs:
    """A sweep, and what its names stood for when it began: sent as text, so that no worker needs the files."""

    sweep: Sweep
    workloads: tuple[str, ...]
    devices: tuple[str, ...]


def find_inputs(sweep: Sweep) -> Inputs:
    """Read every workload and device once. InputError for what is not there."""
    return Inputs(
        sweep,
        tuple(find_workload(name).model_dump_json() for name in sweep.workloads),
        tuple(find_device(name).model_dump_json() for name in sweep.devices),
    )


def rows_per_part(sweep: Sweep) -> int:
    """How many rows a part has: it depends on the sweep alone, so parts are the same however they are made."""
    return min(MOST_ROWS_PER_PART, max(LEAST_ROWS_PER_PART, -(-count_points(sweep) // PARTS)))


def count_parts(sweep: Sweep) -> int:
    """How many parts the results have."""
    return -(-count_points(sweep) // rows_per_part(sweep))


@dataclass
class _Setup:
    """One device with values set, and a workload on it; `arrays` None: too few rows for compiled code."""

    device: DeviceProfile
    arrays: Arrays | None
    bound_s: float | None


@dataclass
class Evaluator:
    """Evaluates parts of a sweep; what several of them need is worked out once. `threads` as in `evaluate_many`."""

    inputs: Inputs
    threads: int | None = None
    _workloads: dict[int, Workload] = field(default_factory=dict)
    _devices: dict[int, DeviceProfile] = field(default_factory=dict)
    _setups: OrderedDict[tuple[Any, ...], _Setup] = field(default_factory=OrderedDict)

    def part(self, number: int) -> pa.Table:
        """The rows of a part, with the columns of `schema`. DeviceError where the profile has no cost for a block."""
        sweep = self.inputs.sweep
        first = number * rows_per_part(sweep)
        return self.rows(points(sweep, first, min(first + rows_per_part(sweep), count_points(sweep))))

    def rows(self, chosen: Points) -> pa.Table:
        """The rows of some points."""
        found = np.zeros(len(chosen.index), EVALUATION)
        setup_of_row = np.zeros(len(chosen.index), np.int64)
        facts: list[dict[str, Any]] = []
        for rows in _same_setup(chosen):
            workload = self.workload(int(chosen.workload[rows[0]]))
            setup = self._setup(chosen, int(rows[0]))
            for some in _pieces(rows, max(1, CELLS // len(workload.visits))):
                found[some] = self._evaluated(workload, setup, chosen, some)
            setup_of_row[rows] = len(facts)
            facts.append(self._facts(chosen, int(rows[0]), workload, setup))
        return self._table(chosen, facts, setup_of_row, found)

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns: between what a row is and its figures the settings of the workloads' families.

        They are null where the workload is a file that tells nothing, or of another family.
        """
        found = [pipeline_of_workload(self.workload(number)) for number in range(len(self.inputs.workloads))]
        settings = {name: _TYPES[kind] for pipeline in found for name, kind in pipeline.columns.items()}
        return pa.schema([*_WHAT, *settings.items(), *_FIGURES])

    def _facts(self, chosen: Points, row: int, workload: Workload, setup: _Setup) -> dict[str, Any]:
        """What all rows with the same workload and device have in common."""
        evaluations, merged = _quality(workload)
        return {
            "workload": self.inputs.sweep.workloads[chosen.workload[row]],
            "workload_sha256": workload.sha256,
            "device": self.inputs.sweep.devices[chosen.device[row]],
            "device_sha256": setup.device.sha256,
            "settings": json.dumps(self._values(chosen, row)),
            "memory_limit_bytes": setup.device.memory_limit_bytes,
            "bandwidth_bytes_per_s": setup.device.loader.bandwidth_bytes_per_s,
            **{name: workload.settings.get(name) for name in self._setting_columns},
            "lower_bound_s": setup.bound_s,
            "denoising_evaluations": evaluations,
            "merged_steps": merged,
        }

    @property
    def _setting_columns(self) -> list[str]:
        names: list[str] = self.schema.names
        return names[len(_WHAT) : -len(_FIGURES)]

    def _table(
        self, chosen: Points, facts: list[dict[str, Any]], setup_of_row: Ints, found: NDArray[np.void]
    ) -> pa.Table:
        of_setups = pa.Table.from_pylist(facts, schema=pa.schema([f for f in self.schema if f.name in facts[0]]))
        columns = dict(zip(of_setups.column_names, of_setups.take(pa.array(setup_of_row)).columns, strict=True))
        names = [policy_name(p, d) for p, d in self._policies(chosen)]
        cannot = ~np.isfinite(found["makespan_s"])
        columns.update(
            index=pa.array(chosen.index),
            policy=pa.array(names),
            pattern=pa.array([name.partition(":")[0] for name in names]),
            **{name: _unless_none(getattr(chosen, name)) for name in ("retained", "lookahead", "pattern_seed")},
            **{name: pa.array(found[name], mask=cannot) for name in EVALUATION.names or ()},
        )
        return pa.table([columns[name] for name in self.schema.names], self.schema)

    def _policies(self, chosen: Points) -> Iterator[tuple[str, int]]:
        policies = self.inputs.sweep.policies
        for policy, retained in zip(chosen.policy.tolist(), chosen.retained.tolist(), strict=True):
            yield policies[policy], retained

    def workload(self, number: int) -> Workload:
        """The workload with that place in the sweep."""
        if number not in self._workloads:
            self._workloads[number] = Workload.model_validate_json(self.inputs.workloads[number])
        return self._workloads[number]

    def _device(self, number: int) -> DeviceProfile:
        if number not in self._devices:
            self._devices[number] = DeviceProfile.model_validate_json(self.inputs.devices[number])
        return self._devices[number]

    def _values(self, chosen: Points, row: int) -> dict[str, float | int]:
        values = zip(self.inputs.sweep.device_axes, chosen.device_values[row], strict=True)
        return {key: device_value(key, float(value)) for key, value in values}

    def _setup(self, chosen: Points, row: int) -> _Setup:
        values = self._values(chosen, row)
        place = int(chosen.workload[row]), int(chosen.device[row])
        key = *place, *values.values()
        if key not in self._setups:
            workload, device = self.workload(place[0]), device_with_values(self._device(place[1]), values)
            # In a sample nearly every row has a device of its own; a linear program for each would take too long.
            bound = quick_bound_s if self.inputs.sweep.sample is not None else lower_bound_s
            bound_s = bound(workload, device) if self.inputs.sweep.bound else None
            few = count_points(self.inputs.sweep) * len(workload.visits) <= FEW_VISITS
            self._setups[key] = _Setup(device, None if few else arrays_of(timed(workload, device)), bound_s)
            if len(self._setups) > CASES:
                self._setups.popitem(last=False)
        return self._setups[key]

    def _evaluated(self, workload: Workload, setup: _Setup, chosen: Points, rows: Ints) -> NDArray[np.void]:
        policies = self.inputs.sweep.policies
        result = np.zeros(len(rows), EVALUATION)
        at_once = np.zeros(len(rows), np.bool_)
        if setup.arrays is not None:
            at_once = np.array([name in PATTERNS for name in policies])[chosen.policy[rows]]
            several = rows[at_once]
            names = [policies[p] for p in chosen.policy[several]]
            keep = keep_rows(workload, names, chosen.retained[several], chosen.pattern_seed[several])
            ahead = np.where(chosen.lookahead[several] == NONE, len(workload.visits), chosen.lookahead[several])
            result[at_once] = batch.evaluate_many(setup.arrays, keep, ahead, self.threads)
        for place in np.flatnonzero(~at_once):
            row = rows[place]
            numbers = (_none_or(column[row]) for column in (chosen.retained, chosen.lookahead, chosen.pattern_seed))
            result[place] = astuple(_evaluated_alone(workload, setup, policies[chosen.policy[row]], *numbers))
        return result


def _evaluated_alone(
    workload: Workload, setup: _Setup, policy: str, retained: int | None, lookahead: int | None, seed: int | None
) -> Evaluation:
    try:
        plan = plan_of(workload, setup.device, policy, retained, lookahead, seed)
    except InfeasibleError:
        return Evaluation(np.inf, 0, 0.0, 0.0, 0.0)
    if setup.arrays is not None:
        return batch.evaluate(setup.arrays, plan)
    return evaluation_of(simulate(workload, setup.device, plan))


def policy_name(policy: str, retained: int) -> str:
    """As the command line takes it: "spread:9"."""
    return policy if retained == NONE else f"{policy}:{retained}"


def _same_setup(chosen: Points) -> Iterator[Ints]:
    """The rows that share workload, device and values, in the order of their first one."""
    setups: dict[tuple[Any, ...], list[int]] = {}
    for row, key in enumerate(zip(chosen.workload, chosen.device, map(tuple, chosen.device_values), strict=True)):
        setups.setdefault(key, []).append(row)
    for rows in setups.values():
        yield np.array(rows)


def _pieces(rows: Ints, size: int) -> Iterator[Ints]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def _quality(workload: Workload) -> tuple[int | None, int | None]:
    """Evaluations of the denoiser, and how many of them run with merged tokens."""
    if "model" not in workload.settings:
        return sum(stage.rounds for stage in workload.stages if stage.group == "denoiser") or None, None
    pipeline = pipeline_of_workload(workload)
    return pipeline.quality(settings_in(workload.settings, pipeline))


def _none_or(number: np.int64) -> int | None:
    return None if number == NONE else int(number)


def _unless_none(values: Ints) -> pa.Array:
    return pa.array(values.astype(np.int32), mask=values == NONE)
