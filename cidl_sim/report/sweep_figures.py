"""What the pictures and the page of a sweep show, as plain figures: whoever reads the results fills them in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# A row of the results by column: `index`, `policy`, `makespan_s` (None where infeasible), ...
Row = Mapping[str, Any]

# Waits that differ by less than this share of the makespan are equal.
SAME_STALL = 1e-3


@dataclass(frozen=True)
class Front:
    """The rows of one product on one device that no other row beats, and some of the others.

    No other is as fast, as small and as good at once; good means many denoising evaluations and few merged steps.
    `picked` are those of `rows` that a page shows as points.
    """

    title: str
    rows: tuple[Row, ...]
    picked: tuple[Row, ...]
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


def least_stalls(curve: MemoryCurve, stalls_s: Mapping[int, float]) -> tuple[int, float]:
    """The zero-stall point of a curve: from which limit in bytes on the executor of the best row waits the least.

    `stalls_s`: by index, for how many seconds it waits after its first visit began. With the limit the least of these:
    0 where memory hides all loads but the first.
    """
    least_s = min(stalls_s[row["index"]] for row in curve.best)
    least_s = 0.0 if least_s <= SAME_STALL * min(row["makespan_s"] for row in curve.best) else least_s
    limits = [
        row["memory_limit_bytes"]
        for row in curve.best
        if stalls_s[row["index"]] <= least_s + SAME_STALL * row["makespan_s"]
    ]
    return min(limits), least_s


def least_stalls_text(limit: int, least_s: float) -> str:
    """The zero-stall point in words."""
    size, unit = byte_unit([limit])
    stalls = f"least stalls ({least_s:.3g} s)" if least_s else "no stalls"
    return f"{stalls} from {limit / size:.3g} {unit} on"


def quality_levels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of a front by quality, the best quality first, each in order of memory; named for a legend."""
    levels: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (-(row["denoising_evaluations"] or 0), row["merged_steps"] or 0)):
        levels.setdefault(quality_text(row), []).append(row)
    return {name: sorted(found, key=lambda row: int(row["peak_resident_bytes"])) for name, found in levels.items()}


def quality_text(row: Row) -> str:
    """What stands for a row's quality, in words; of workloads that are no named ones part of it is unknown."""
    evaluations, merged = row["denoising_evaluations"], row["merged_steps"]
    known = [] if evaluations is None else [f"{evaluations} evaluations"]
    return ", ".join(known + ([] if merged is None else [f"{merged} merged"])) or "any quality"


def makespan_grid(heat_map: HeatMap) -> tuple[list[int | None], list[int], list[list[Row | None]]]:
    """The lookaheads, the retained numbers, and for each of these a row of cells; None was not tried."""
    lookaheads = sorted({cell["lookahead"] for cell in heat_map.cells}, key=_as_number)
    numbers = sorted({cell["retained"] for cell in heat_map.cells})
    cells = {(cell["retained"], cell["lookahead"]): cell for cell in heat_map.cells}
    return lookaheads, numbers, [[cells.get((number, ahead)) for ahead in lookaheads] for number in numbers]


def settings_text(settings: str) -> str:
    """Settings as they are written on the command line, nothing for none."""
    values = json.loads(settings).items()
    return ", ".join(f"{k}={v:.12g}" if isinstance(v, int | float) else f"{k}={json.dumps(v)}" for k, v in values)


def lookahead_text(lookahead: int | None) -> str:
    """A lookahead for people; None is as deep as memory allows."""
    return "deep" if lookahead is None else str(lookahead)


def _as_number(lookahead: int | None) -> float:
    return float("inf") if lookahead is None else lookahead


def byte_unit(counts: Sequence[float]) -> tuple[float, str]:
    """The unit in which the largest of some numbers of bytes is written: its size in bytes and its name."""
    largest = max(counts, default=0.0)
    return next(((size, unit) for unit, size in (("GB", 1e9), ("MB", 1e6)) if largest >= size), (1.0, "bytes"))
