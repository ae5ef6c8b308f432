"""A run in tables that Instruments recorded: from an app's own signposts, or from Core ML's loads and predictions.

Signposts (docs/guides/recording_traces.md): subsystem `cidl`, category `blocks`; intervals `load` and `execute` with
`visit=N` or `weights=NAME` in the message, and `run` around everything.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cidl_sim.core.errors import TraceError
from cidl_sim.core.trace import covered_s
from cidl_sim.core.workload import Workload
from cidl_sim.recordings.recorded_run import Interval, Recording, numbered
from cidl_sim.recordings.xctrace_xml import CORE_ML, GPU, NEURAL_ENGINE, SIGNPOSTS, Row, read_tables

SUBSYSTEM, CATEGORY = "cidl", "blocks"
_DESCRIPTIONS = ("machine", "os", "compute_units")
# What groups digits where a value is given as it is shown: English, German, Swiss, French (two kinds of space), Arabic.
_SIGNS = ",.'\u2019\u00a0\u2009\u202f\u066c "
_GROUPED = re.compile(rf"\d{{1,3}}(?P<sign>[{_SIGNS}])\d{{2,3}}(?:(?P=sign)\d{{2,3}})*")
# A number goes on for as long as signs and digits do, to the end of its word and with its unit (of French too): it is
# read whole or refused.
_VALUE = re.compile(rf"(\w+)=\s*((?:\d[\d{_SIGNS}]*\d\S*|\S+)(?:\s+(?:[kKMGT]i?[Bo]|B|bytes?|octets?)\b)?)")


def read_recording(files: Sequence[Path], workload: Workload) -> Recording:
    """The run of `workload` that is in some exported tables.

    TraceError names a file that is no export, a table that is missing or empty, a row that makes no sense.
    """
    tables = read_tables(list(files))
    own = _once([tables.get(name, []) for name in SIGNPOSTS])
    ours = [row for row in own if (row.text("subsystem"), row.text("category")) == (SUBSYSTEM, CATEGORY)]
    core_ml = _core_ml_intervals(tables.get(CORE_ML, []), workload)
    if ours:
        recording = _of_signposts(ours, core_ml)
    elif CORE_ML in tables:
        if not core_ml:
            raise TraceError(_no_model(tables[CORE_ML], workload))
        recording = Recording(core_ml, min(interval.start_ns for interval in core_ml))
    else:
        raise TraceError(_no_intervals(files, own, list(tables)))
    intervals = numbered(recording.intervals, workload)
    facts = {"recorded_with": "Instruments", "tables": ", ".join(tables), **recording.facts}
    last_ns = max(interval.end_ns for interval in intervals)
    process = ours[0].text("process") if ours else ""
    facts |= _hardware(tables, recording.began_ns, last_ns, process)
    return replace(recording, intervals=intervals, facts=facts)


def _once(tables: Sequence[Sequence[Row]]) -> list[Row]:
    """The rows of some tables; what is in several is the same interval under both of the table's names."""
    rows: list[Row] = []
    seen: Counter[tuple[object, ...]] = Counter()
    for table in tables:
        again = seen.copy()
        for row in table:
            interval = (*row.interval_ns, _name(row), row.message, row.text("process"))
            if again[interval]:
                again[interval] -= 1
                continue
            rows.append(row)
            seen[interval] += 1
    return rows


def _of_signposts(rows: Sequence[Row], core_ml: Sequence[Interval]) -> Recording:
    processes = list(dict.fromkeys(row.text("process") for row in rows))
    if len(processes) > 1:
        raise TraceError(f"{rows[0].file}: signposts of several processes: {', '.join(processes)}; record one")
    runs = [row for row in rows if _name(row) == "run"]
    if len(runs) > 1:
        raise TraceError(f"{runs[1].named}: a second run in one recording; record them one at a time")
    intervals = [_of_signpost(row) for row in rows if _name(row) in ("load", "execute")]
    if not intervals:
        named = ", ".join(sorted({repr(_name(row)) for row in rows}))
        raise TraceError(f"{rows[0].file}: signposts of {SUBSYSTEM!r}, but no interval 'load' or 'execute': {named}")
    told = {name: value for row in runs for name, value in _values(row.message).items()}
    peak = told.get("peak_footprint_bytes")
    return Recording(
        [_with_cold(interval, core_ml) for interval in intervals],
        # The earliest of all: times in a trace are not negative, whenever the app says that its run began.
        min(start_ns for start_ns, _ in (row.interval_ns for row in rows if _name(row) in ("run", "load", "execute"))),
        {name: told[name] for name in _DESCRIPTIONS if name in told},
        None if peak is None else _number(runs[0], "peak_footprint_bytes", peak),
    )


def _of_signpost(row: Row) -> Interval:
    told = _values(row.message)
    numbers = {name: _number(row, name, told[name]) for name in ("visit", "cold", "channel") if name in told}
    if "visit" not in told and "weights" not in told:
        raise TraceError(f"{row.named}: {_name(row)!r} says neither visit= nor weights=: {row.message!r}")
    return Interval(
        "load" if _name(row) == "load" else "execute",
        *row.interval_ns,
        row.named,
        visit=numbers.get("visit"),
        weights=told.get("weights"),
        cold=bool(numbers["cold"]) if "cold" in numbers else None,
        channel=numbers.get("channel"),
    )


def _name(row: Row) -> str:
    return row.text("name", "signpost-name")


def _values(message: str) -> dict[str, str]:
    """`key=value` in a message; Instruments may put a space after the sign."""
    return dict(_VALUE.findall(message))


def _number(row: Row, name: str, text: str) -> int:
    text = text.rstrip(",;.")
    grouped = _GROUPED.fullmatch(text)
    digits = text.replace(grouped["sign"], "") if grouped else text
    last_group = len(text) - 1 - text.rfind(grouped["sign"]) if grouped else 3
    if not digits.isascii() or not digits.isdigit() or last_group != 3:
        raise TraceError(f"{row.named}: {name}={text} is not a number")
    return int(digits)


def _core_ml_intervals(rows: Sequence[Row], workload: Workload) -> list[Interval]:
    """Loads and predictions of the models that are called like the workload's weights."""
    known = {visit.block.weights for visit in workload.visits}
    intervals = []
    for row in rows:
        weights = _weights_of(row.text("coreml-model-name", "model-name"), known)
        event = row.text("coreml-model-event", "event")
        if weights is None or not (event == "Prediction" or event.startswith("Load")):
            continue
        is_load = event != "Prediction"
        cold = "cached" not in event.lower() if is_load else None
        intervals.append(
            Interval("load" if is_load else "execute", *row.interval_ns, row.named, weights=weights, cold=cold)
        )
    return intervals


def _weights_of(model: str, known: set[str]) -> str | None:
    """The weights that a model's name means; Instruments may number a model that is loaded again."""
    for name in (model, re.sub(r"-\d+$", "", model)):
        bare = name.removesuffix(".mlmodelc").removesuffix(".mlpackage")
        if bare in known:
            return bare
    return None


def _with_cold(interval: Interval, core_ml: Sequence[Interval]) -> Interval:
    """Whether a load was cold as Core ML says it, where the app does not."""
    if interval.operation != "load" or interval.cold is not None:
        return interval
    for other in core_ml:
        within = interval.start_ns <= other.start_ns and other.end_ns <= interval.end_ns
        if other.operation == "load" and within and interval.weights in (None, other.weights):
            return replace(interval, cold=other.cold)
    return interval


def _no_model(rows: Sequence[Row], workload: Workload) -> str:
    models = list(dict.fromkeys(row.text("coreml-model-name", "model-name") for row in rows))
    wanted = list(dict.fromkeys(visit.block.weights for visit in workload.visits))
    return (
        f"{rows[0].file}: table {CORE_ML!r} has no load or prediction of the workload's weights ({wanted[0]!r}, "
        f"{len(wanted)} in all), but of {', '.join(map(repr, models[:3]))}; a model has to be called like its weights"
    )


def _no_intervals(files: Sequence[Path], own: Sequence[Row], tables: Sequence[str]) -> str:
    named = ", ".join(str(file) for file in files)
    if own:
        return f"{named}: {len(own)} intervals, none of subsystem {SUBSYSTEM!r} and category {CATEGORY!r}"
    return f"{named}: tables {', '.join(tables)}, but none of loads and executions: {', '.join((*SIGNPOSTS, CORE_ML))}"


def _hardware(tables: dict[str, list[Row]], began_ns: int, last_ns: int, process: str) -> dict[str, str | int | float]:
    """Seconds of the run in which the Neural Engine (whoever used it) and the GPU (for the app, if known) were busy."""
    engine = [row for name in NEURAL_ENGINE for row in tables.get(name, ())]
    gpu = [row for row in tables.get(GPU, ()) if not process or row.text("process") in ("", process)]
    present = {"ane_busy_s": (engine, bool(engine)), "gpu_busy_s": (gpu, GPU in tables)}
    busy: dict[str, str | int | float] = {}
    for name, (rows, is_recorded) in present.items():
        if is_recorded:
            active = (row.interval_ns for row in rows if row.text("state") in ("", "Active"))
            clipped = ((max(start, began_ns) / 1e9, min(end, last_ns) / 1e9) for start, end in active)
            busy[name] = covered_s((start, end) for start, end in clipped if start < end)
    return busy
