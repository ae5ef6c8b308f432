"""One row of a sweep again, by the engine, from nothing but what the row says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cidl_sim.core.device import DeviceProfile
from cidl_sim.core.plan import Plan
from cidl_sim.core.trace import Trace
from cidl_sim.core.workload import Workload
from cidl_sim.devices.catalog import find_device
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.simulator.engine import simulate
from cidl_sim.sweep.patterns import plan_of
from cidl_sim.sweep.spec import SweepError, device_with_values

Row = Mapping[str, Any]


def read_row(text: str) -> dict[str, Any]:
    """A row from FOLDER:INDEX, from JSON, or from a file with JSON in it. SweepError for what is neither."""
    folder, colon, index = text.rpartition(":")
    if colon and index.isdecimal() and not text.startswith("{"):
        from cidl_sim.sweep.results import row_at

        return row_at(Path(folder), int(index))
    try:
        row = json.loads(Path(text).read_text(encoding="utf-8") if Path(text).is_file() else text)
    except (OSError, ValueError):
        raise SweepError(f"--row {text[:80]!r}: write RESULTS:INDEX, or a row as JSON") from None
    if not isinstance(row, dict):
        raise SweepError("--row: a row is a JSON object with the columns of the results")
    return row


def case_of_row(row: Row) -> tuple[Workload, DeviceProfile, Plan]:
    """Workload, device and plan of a row.

    SweepError where a column is missing or a name stands for something else by now; InfeasibleError where the plan
    does not fit.
    """
    workload, device = find_workload(_text(row, "workload")), _device(row)
    for what, known in (("workload", workload.identities), ("device", {device.sha256})):
        expected = row.get(f"{what}_sha256")
        if expected is not None and expected not in known:
            raise SweepError(f"--row: {what} {row[what]!r} is not what it was when the row was made (sha256 differs)")
    retained, ahead, seed = (_number(row, column) for column in ("retained", "lookahead", "pattern_seed"))
    plan = plan_of(workload, device, _text(row, "pattern"), retained, ahead, seed)
    return workload, device, plan


def trace_of_row(row: Row) -> Trace:
    """The simulation of a row; errors as `case_of_row`."""
    return simulate(*case_of_row(row))


def _device(row: Row) -> DeviceProfile:
    settings = row.get("settings") or "{}"
    try:
        values = json.loads(settings) if isinstance(settings, str) else dict(settings)
    except ValueError:
        raise SweepError(f"--row: settings: {settings!r} is not JSON") from None
    return device_with_values(find_device(_text(row, "device")), values)


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise SweepError(f"--row: no {column!r} in it")
    return value


def _number(row: Row, column: str) -> int | None:
    value = row.get(column)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise SweepError(f"--row: {column}: {value!r} is not a whole number from 0 on")
    return value
