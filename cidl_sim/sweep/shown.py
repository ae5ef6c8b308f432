"""Which rows of a sweep a report shows: a few hundred that can each be picked, whatever the number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from cidl_sim.core.errors import InfeasibleError
from cidl_sim.report.sweep_figures import Front, HeatMap, MemoryCurve, Row, SweepFigures, byte_unit, settings_text
from cidl_sim.sweep import analysis
from cidl_sim.sweep.analysis import CASE, MEMORY, PRODUCT, QUALITY, SCENE

MOST_POINTS = 300
# Of these, at most; what they leave goes to an even sample.
FRONT_ROWS, POLICY_ROWS, CURVE_ROWS, HEAT_CELLS, BEST_ROWS = 64, 70, 64, 72, 20
# More pictures side by side cannot be read.
PANELS = 4
HEAT_MAPS = 2
MOST_LOOKAHEADS = 8


def figures_of(rows: pl.LazyFrame, *, is_sample: bool = False) -> SweepFigures:
    """What the pictures and the page of a sweep show, with at most `MOST_POINTS` rows in `points`.

    In a sample no two rows have the same settings, so nothing is compared that would need that: there are no heat
    maps, memory curves and regrets. InfeasibleError if no row fits its memory limit.
    """
    rows = analysis.labelled(rows, is_sample=is_sample)
    count, feasible = analysis.count(rows)
    if not feasible:
        raise InfeasibleError(f"none of the {count} rows of the sweep fits its memory limit: there is nothing to show")
    best = analysis.best_rows(rows, ("workload", "device")).sort("workload", "device").head(BEST_ROWS)
    regrets = [] if is_sample else _regrets(rows)
    curves, heat_maps = ([], []) if is_sample else (_curves(rows), _heat_maps(rows))
    products = _products(rows)
    fronts = [_front(_of(rows, PRODUCT, product), FRONT_ROWS // len(products)) for product in products]
    parts: list[Sequence[Row]] = [best.to_dicts(), regrets, *(picked for _, picked in fronts)]
    parts += [*(curve.best for curve in curves), *(heat_map.cells for heat_map in heat_maps)]
    picked: set[int] = {row["index"] for part in parts for row in part if row["index"] is not None}
    room = (MOST_POINTS - len(picked)) // len(products)
    samples = [analysis.even_sample(_of(rows, PRODUCT, product), room) for product in products]
    picked.update(index for sample in samples for index in sample["index"])
    points = rows.filter(pl.col("index").is_in(sorted(picked))).collect(engine="streaming").sort("index").to_dicts()
    return SweepFigures(
        rows=count,
        feasible=feasible,
        fronts=tuple(
            Front(_product_title(product), tuple(front), tuple(shown), _others(points, product, shown))
            for product, (front, shown) in zip(products, fronts, strict=True)
        ),
        heat_maps=tuple(heat_maps),
        curves=tuple(curves),
        regrets=tuple(regrets),
        bound_gaps=() if is_sample else tuple(analysis.bound_gaps(rows).to_dicts()),
        sensitivities=tuple(analysis.sensitivities(rows).to_dicts()),
        best=tuple(best.to_dicts()),
        points={row["index"]: row for row in points},
    )


def _products(rows: pl.LazyFrame) -> list[dict[str, Any]]:
    """Those with the most rows, one for each job on each device."""
    found = _feasible(rows).group_by(PRODUCT).agg(n=pl.len(), first=pl.col("index").min())
    return _one_of_each(found.collect(engine="streaming").sort("n", "first", descending=[True, False]), PRODUCT)


def _front(rows: pl.LazyFrame, most: int) -> tuple[Sequence[Row], Sequence[Row]]:
    """The front by quality, then memory, and at most `most` of it, of each quality as many."""
    front = analysis.pareto_front(rows).sort(*QUALITY, "peak_resident_bytes", descending=[True, False, False])
    levels = front.partition_by(*QUALITY, maintain_order=True)
    shown = pl.concat(_thinned(level, max(1, most // len(levels))) for level in levels[:most])
    return front.to_dicts(), shown.to_dicts()


def _others(points: Sequence[Row], product: Row, front: Sequence[Row]) -> tuple[Row, ...]:
    on_front = {row["index"] for row in front}
    return tuple(
        row for row in points if row["index"] not in on_front and all(row[key] == product[key] for key in PRODUCT)
    )


def _curves(rows: pl.LazyFrame) -> list[MemoryCurve]:
    """Of the settings with the most memory limits, one for each workload on each device."""
    limits = pl.col(MEMORY).n_unique()
    found = _feasible(rows).group_by(SCENE).agg(limits=limits, first=pl.col("index").min()).filter(pl.col("limits") > 1)
    length = pl.col("other_settings").str.len_chars()
    scenes = found.collect(engine="streaming").sort(pl.col("limits"), length, "first", descending=[True, False, False])
    curves = []
    for scene in _one_of_each(scenes, SCENE):
        of_scene = _of(rows, SCENE, scene)
        best = _thinned(analysis.best_rows(of_scene, (MEMORY,)).sort(MEMORY), CURVE_ROWS // PANELS)
        at_limits = of_scene.filter(pl.col(MEMORY).is_in(best[MEMORY].to_list()))
        patterns = analysis.best_rows(at_limits, (MEMORY, "pattern")).sort(MEMORY)
        by_pattern = {name: tuple(patterns.filter(pl.col("pattern") == name).to_dicts()) for name in _names(patterns)}
        title = _title(scene["workload"], scene["device"], scene["other_settings"])
        curves.append(MemoryCurve(title, tuple(best.to_dicts()), by_pattern))
    return curves


def _heat_maps(rows: pl.LazyFrame) -> list[HeatMap]:
    """Of the cases with the most rows that in which they differ the most, one for each workload on each device.

    Cases in which nothing but the memory limit was set come first, then those in which half of the cells fit.
    """
    numbered = rows.filter(pl.col("retained").is_not_null())
    retained, ahead, makespan = pl.col("retained"), pl.col("lookahead"), pl.col("makespan_s")
    # Counting distinct cells would take memory for every row; a grid has as many rows in each.
    found = numbered.group_by(*CASE, "other_settings", MEMORY).agg(
        n=pl.len(),
        fitting=makespan.count(),
        ratio=makespan.max() / makespan.min(),
        varied=(retained.min() < retained.max())
        | (ahead.min() < ahead.max())
        | (ahead.count().is_between(1, pl.len() - 1)),
        first=pl.col("index").min(),
    )
    several = found.filter(pl.col("fitting") > 0, pl.col("varied")).collect(engine="streaming")
    fits = pl.col("fitting") * 2 >= pl.col("n")
    length = pl.col("other_settings").str.len_chars()
    cases = several.sort("n", length, fits, "ratio", "first", descending=[True, False, True, True, False])
    chosen = _one_of_each(cases, (*CASE, "other_settings", MEMORY), HEAT_MAPS)
    return [_heat_map(_of(numbered, CASE, case), case, HEAT_CELLS // len(chosen)) for case in chosen]


def _heat_map(rows: pl.LazyFrame, case: Row, most: int) -> HeatMap:
    keys = ("retained", "lookahead")
    best = analysis.best_rows(rows, keys)
    fastest = best.sort("makespan_s", "index").row(0, named=True)
    tried = rows.select(keys).unique().collect(engine="streaming")
    lookaheads = _even(sorted(tried["lookahead"].unique(), key=_as_number), fastest["lookahead"], MOST_LOOKAHEADS)
    numbers = _even(sorted(tried["retained"].unique()), fastest["retained"], max(1, most // len(lookaheads)))
    found = {(row["retained"], row["lookahead"]): row for row in best.to_dicts()}
    cells = [
        found.get(cell, {"retained": cell[0], "lookahead": cell[1], "makespan_s": None, "index": None})
        for cell in sorted(tried.iter_rows(), key=lambda cell: (cell[0], _as_number(cell[1])))
        if cell[0] in numbers and cell[1] in lookaheads
    ]
    size, unit = byte_unit([case[MEMORY]])
    limit = f"{case[MEMORY] / size:.3g} {unit}"
    return HeatMap(f"{_title(case['workload'], case['device'], case['other_settings'])}, {limit}", tuple(cells))


def _regrets(rows: pl.LazyFrame) -> Sequence[Row]:
    """With the index of each policy's best row on the device; of as many devices as there is room for."""
    regrets = analysis.regrets(rows).filter(pl.col("feasible_cases") > 0)
    most = max(1, POLICY_ROWS // max(1, regrets["pattern"].n_unique()))
    devices = regrets["device"].unique(maintain_order=True).head(most)
    best = analysis.best_rows(rows.filter(pl.col("device").is_in(devices.to_list())), ("device", "pattern"))
    return regrets.join(
        best.select("device", "pattern", "index"), on=["device", "pattern"], maintain_order="left"
    ).to_dicts()


def _feasible(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows.filter(pl.col("makespan_s").is_not_null())


def _of(rows: pl.LazyFrame, keys: Sequence[str], values: Row) -> pl.LazyFrame:
    return rows.filter(*(pl.col(key) == values[key] for key in keys))


def _one_of_each(found: pl.DataFrame, keys: Sequence[str], most: int = PANELS) -> list[dict[str, Any]]:
    """The first of each workload (or job) on each device, other devices before other workloads on the same ones."""
    place = pl.int_range(pl.len()).over("device")
    first = found.unique([keys[0], "device"], keep="first", maintain_order=True)
    return first.with_columns(_place=place).sort("_place", maintain_order=True).head(most).select(keys).to_dicts()


def _thinned(rows: pl.DataFrame, most: int) -> pl.DataFrame:
    """Rows at even distances, the first and the last among them."""
    if len(rows) <= most:
        return rows
    places: list[int] = np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int)).tolist()
    return rows[places]


def _even(values: Sequence[Any], kept: Any, most: int) -> set[Any]:
    """At most `most` values at even distances, `kept` instead of the one beside it."""
    if len(values) <= most:
        return set(values)
    places = np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))
    places[np.abs(places - values.index(kept)).argmin()] = values.index(kept)
    return {values[place] for place in places}


def _as_number(lookahead: int | None) -> float:
    return float("inf") if lookahead is None else lookahead


def _names(rows: pl.DataFrame) -> list[str]:
    return sorted(rows["pattern"].unique())


def _title(workload: str, device: str, settings: str) -> str:
    return ", ".join(filter(None, [f"{workload} on {device}", settings_text(settings)]))


def _product_title(product: Row) -> str:
    return _title(product["job"], product["device"], product["other_settings"])
