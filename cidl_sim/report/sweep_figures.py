"""What the pictures and the page of a sweep show, as plain figures: whoever reads the results fills them in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# A row of the results by column: `index`, `policy`, `makespan_s` (None where infeasible), ...
Row = Mapping[str, Any]

# What is not loading is hidden: below this share of the makespan, waits count as none.
NO_STALL = 1e-3


@dataclass(frozen=True)
class Front:
    """The rows of one product on one device that no other row beats, and some of the others.

    No other is as fast, as small and as good at once; good means many denoising evaluations and few merged steps.
    """

    title: str
    rows: tuple[Row, ...]
    others: tuple[Row, ...] = ()


@dataclass(frozen=True)
class HeatMap:
    """The best row for each retained number and lookahead; without a makespan where none of them fits."""

    title: str
    cells: tuple[Row, ...]


@dataclass(frozen=True)
class MemoryCurve:
    """The best row under each memory limit, and of each policy, all in order of the limit."""

    title: str
    best: tuple[Row, ...]
    by_pattern: Mapping[str, tuple[Row, ...]]


@dataclass(frozen=True)
class SweepFigures:
    """All of it. `points`: the rows that the page shows, by index, each with a timeline of its own.

    `regrets` (device, pattern, mean_regret, worst_regret, cases, feasible_cases, index), `bound_gaps` (device,
    mean_gap) and `sensitivities` (axis, values, share, ratio) count all rows; `best` are the best rows of each
    workload on each device.
    """

    rows: int
    feasible: int
    fronts: tuple[Front, ...]
    heat_maps: tuple[HeatMap, ...]
    curves: tuple[MemoryCurve, ...]
    regrets: tuple[Row, ...]
    bound_gaps: tuple[Row, ...]
    sensitivities: tuple[Row, ...]
    best: tuple[Row, ...]
    points: Mapping[int, Row] = field(default_factory=dict)


def zero_stall_bytes(curve: MemoryCurve, stalls_s: Mapping[int, float]) -> int | None:
    """The least limit of a curve in bytes under which the executor of its best row waits for the first load alone.

    `stalls_s`: by index, for how many seconds the executor waits after that. None if it waits under every limit.
    """
    limits = (
        row["memory_limit_bytes"]
        for row in curve.best
        if stalls_s.get(row["index"], float("inf")) <= NO_STALL * row["makespan_s"]
    )
    return min(limits, default=None)


def quality_levels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of a front by quality, the best quality first, each in order of memory; named for a legend."""
    levels: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        levels.setdefault((-row["denoising_evaluations"], row["merged_steps"]), []).append(row)
    return {
        f"{-evaluations} evaluations, {merged} merged": sorted(found, key=lambda row: int(row["peak_resident_bytes"]))
        for (evaluations, merged), found in sorted(levels.items())
    }


def makespan_grid(heat_map: HeatMap) -> tuple[list[int | None], list[int], list[list[Row | None]]]:
    """The lookaheads, the retained numbers, and for each of these a row of cells; None was not tried."""
    lookaheads = sorted({cell["lookahead"] for cell in heat_map.cells}, key=_as_number)
    numbers = sorted({cell["retained"] for cell in heat_map.cells})
    cells = {(cell["retained"], cell["lookahead"]): cell for cell in heat_map.cells}
    return lookaheads, numbers, [[cells.get((number, ahead)) for ahead in lookaheads] for number in numbers]


def settings_text(settings: str) -> str:
    """Settings as they are written on the command line, nothing for none."""
    values = json.loads(settings).items()
    return ", ".join(f"{k}={v:g}" if isinstance(v, int | float) else f"{k}={json.dumps(v)}" for k, v in values)


def lookahead_text(lookahead: int | None) -> str:
    """A lookahead for people; None is as deep as memory allows."""
    return "deep" if lookahead is None else str(lookahead)


def _as_number(lookahead: int | None) -> float:
    return float("inf") if lookahead is None else lookahead


def byte_unit(counts: Sequence[float]) -> tuple[float, str]:
    """The unit in which the largest of some numbers of bytes is written: its size in bytes and its name."""
    largest = max(counts, default=0.0)
    return next(((size, unit) for unit, size in (("GB", 1e9), ("MB", 1e6)) if largest >= size), (1.0, "bytes"))
