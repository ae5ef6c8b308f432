"""Fronts, best rows, regrets and sensitivities against plain Python on the same rows."""

from __future__ import annotations

import json
import math
from itertools import groupby

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cidl_sim.core.errors import InfeasibleError
from cidl_sim.sweep import analysis
from cidl_sim.sweep.shown import MOST_POINTS, figures_of
from tests.sweep.small_sweep import LIMITS, SCHEMA, small_sweep


@pytest.fixture(scope="module")
def rows() -> pl.LazyFrame:
    return small_sweep().lazy()


def feasible() -> list[dict]:
    return [row for row in small_sweep().to_dicts() if row["makespan_s"] is not None]


def made_up(values: list[dict]) -> pl.LazyFrame:
    """Rows with the given values, and what they leave out made up alike."""
    plain = {
        "workload": "w.json",
        "device": "d",
        "settings": "{}",
        "policy": "lru",
        "pattern": "lru",
        "memory_limit_bytes": 100,
        "bandwidth_bytes_per_s": 1.0,
        "denoising_evaluations": 30,
        "merged_steps": 0,
    }
    return pl.DataFrame([{**plain, "index": i, **row} for i, row in enumerate(values)], schema=SCHEMA).lazy()


def test_the_sweep_of_the_tests_has_rows_that_fit_and_rows_that_do_not(rows):
    count, fitting = analysis.count(rows)
    assert 0 < fitting < count == small_sweep().height
    assert fitting == len(feasible())


def test_best_rows_are_the_fastest_and_among_equals_the_first(rows):
    keys = ("workload", "settings")
    best = analysis.best_rows(rows, keys).to_dicts()
    found = {tuple(row[key] for key in keys): row for row in best}
    assert len(found) == len(best) == len({tuple(row[key] for key in keys) for row in feasible()})
    for place, row in found.items():
        others = [other for other in feasible() if tuple(other[key] for key in keys) == place]
        assert row == min(others, key=lambda other: (other["makespan_s"], other["index"]))


def test_best_rows_tell_null_apart_from_numbers(rows):
    best = analysis.best_rows(rows, ("retained", "lookahead"))
    wanted = {(row["retained"], row["lookahead"]) for row in feasible()}
    assert set(best.select("retained", "lookahead").iter_rows()) == wanted
    assert (None, None) in wanted


def beats(a: dict, b: dict) -> bool:
    def goods(row: dict) -> tuple[float, ...]:
        return row["makespan_s"], row["peak_resident_bytes"], -row["denoising_evaluations"], row["merged_steps"]

    return all(x <= y for x, y in zip(goods(a), goods(b), strict=True)) and goods(a) != goods(b)


POINT = st.fixed_dictionaries(
    {
        "device": st.sampled_from(["a", "b"]),
        "makespan_s": st.one_of(st.none(), st.integers(1, 6).map(float)),
        "peak_resident_bytes": st.integers(1, 6),
        "denoising_evaluations": st.sampled_from([16, 30]),
        "merged_steps": st.sampled_from([0, 10]),
    }
)


@given(st.lists(POINT, min_size=1, max_size=25))
def test_the_front_is_what_no_other_row_beats(points):
    frame = made_up(points)
    front = analysis.pareto_front(analysis.labelled(frame)).to_dicts()
    fitting = [row for row in frame.collect().to_dicts() if row["makespan_s"] is not None]
    unbeaten = [row for row in fitting if not any(beats(o, row) for o in fitting if o["device"] == row["device"])]
    kinds = ("device", "makespan_s", "peak_resident_bytes", "denoising_evaluations", "merged_steps")
    assert sorted(tuple(row[kind] for kind in kinds) for row in front) == sorted(
        {tuple(row[kind] for kind in kinds) for row in unbeaten}
    )


def test_jobs_of_named_workloads_leave_out_what_makes_them_faster():
    named = {"height": 192, "width": 192, "frames": 17, "dtype": "bf16", "makespan_s": 1.0, "peak_resident_bytes": 1}
    rows = [
        {"workload": "opensora-v1.2-192x192-17f-bf16", **named},
        {"workload": "opensora-v1.2-192x192-17f-bf16-lpl15", "lpl": "15", **named},
        {"workload": "mine.json"},
    ]
    jobs = analysis.labelled(made_up(rows)).collect()["job"].to_list()
    assert jobs == ["opensora-v1.2, 192x192, 17 frames, bf16"] * 2 + ["mine.json"]


def test_other_settings_are_all_but_the_memory_limit(rows):
    for row in analysis.labelled(rows).collect().to_dicts():
        assert {**json.loads(row["other_settings"]), "memory_limit_bytes": row["memory_limit_bytes"]} == json.loads(
            row["settings"]
        )


def test_regrets_are_against_the_best_row_of_the_same_case(rows):
    case = lambda row: (row["workload"], row["settings"])  # noqa: E731
    by_case = {key: list(found) for key, found in groupby(sorted(feasible(), key=case), key=case)}
    found = {row["pattern"]: row for row in analysis.regrets(rows).to_dicts()}
    assert set(found) == {row["pattern"] for row in small_sweep().to_dicts()}
    for pattern, figures in found.items():
        shares = []
        for of_case in by_case.values():
            own = [row["makespan_s"] for row in of_case if row["pattern"] == pattern]
            shares += [min(own) / min(row["makespan_s"] for row in of_case) - 1] if own else []
        assert figures["feasible_cases"] == len(shares)
        assert figures["mean_regret"] == pytest.approx(sum(shares) / len(shares))
        assert figures["worst_regret"] == pytest.approx(max(shares))


def test_the_best_rows_are_above_the_bound(rows):
    (gap,) = analysis.bound_gaps(rows).to_dicts()
    assert gap["device"] == "analytic"
    assert gap["mean_gap"] > 0
    assert analysis.bound_gaps(rows.with_columns(lower_bound_s=pl.lit(None, pl.Float64))).is_empty()


def test_an_axis_that_decides_everything_has_the_whole_variance():
    rows = [
        {"settings": json.dumps({"executor.launch_s": launch, "noise.load": noise}), "makespan_s": 2.0 * launch}
        for launch in (1.0, 2.0, 4.0)
        for noise in (0.0, 0.1)
    ]
    found = {row["axis"]: row for row in analysis.sensitivities(made_up(rows)).to_dicts()}
    assert set(found) == {"executor.launch_s", "noise.load"}
    assert found["executor.launch_s"] == {
        "axis": "executor.launch_s",
        "values": 3,
        "share": pytest.approx(1),
        "ratio": pytest.approx(4),
    }
    assert (found["noise.load"]["share"], found["noise.load"]["ratio"]) == (pytest.approx(0), pytest.approx(1))


def test_shares_of_a_full_grid_add_up_to_one_where_axes_do_not_interact():
    rows = [
        {"memory_limit_bytes": limit, "pattern": pattern, "makespan_s": factor / limit, "settings": f'{{"m": {limit}}}'}
        for limit in (1, 2, 8)
        for pattern, factor in (("lru", 3.0), ("spread", 5.0))
    ]
    found = {row["axis"]: row for row in analysis.sensitivities(made_up(rows)).to_dicts()}
    assert found["memory_limit_bytes"]["share"] + found["pattern"]["share"] == pytest.approx(1)
    assert found["memory_limit_bytes"]["ratio"] == pytest.approx(8)
    assert found["pattern"]["ratio"] == pytest.approx(5 / 3)


def test_an_axis_drawn_at_random_is_told_apart_by_quantiles():
    rows = [{"bandwidth_bytes_per_s": 1.0 + i, "makespan_s": math.exp((37 * i) % 200 / 100)} for i in range(200)]
    (found,) = analysis.sensitivities(made_up(rows)).to_dicts()
    assert found["values"] == analysis.QUANTILES
    assert found["share"] < 0.3


def test_an_even_sample_has_no_more_rows_than_asked_for(rows):
    for most in (1, 7, 10_000):
        sample = analysis.even_sample(rows, most)
        assert 0 < sample.height <= most
        assert sample["makespan_s"].null_count() == 0
    assert analysis.even_sample(rows, 0).is_empty()


# What is shown


def test_every_point_of_every_chart_is_among_the_points(rows):
    figures = figures_of(rows)
    shown = set(figures.points)
    assert len(shown) <= MOST_POINTS
    charts = [
        *(row for front in figures.fronts for row in (*front.rows, *front.others)),
        *(row for curve in figures.curves for row in curve.best),
        *(cell for heat_map in figures.heat_maps for cell in heat_map.cells if cell["makespan_s"] is not None),
        *figures.regrets,
        *figures.best,
    ]
    assert {row["index"] for row in charts} <= shown
    assert figures.rows == small_sweep().height


def test_a_heat_map_has_a_cell_for_everything_tried_and_its_best_row(rows):
    (heat_map, _) = figures_of(rows).heat_maps
    assert {cell["lookahead"] for cell in heat_map.cells} == {1, 2, None}
    assert {cell["retained"] for cell in heat_map.cells} == set(range(5))
    (settings,) = {cell["settings"] for cell in heat_map.cells if cell["makespan_s"] is not None}
    best = min(cell["makespan_s"] for cell in heat_map.cells if cell["makespan_s"] is not None)
    of_case = [r for r in feasible() if r["settings"] == settings and r["workload"] == heat_map.cells[-1]["workload"]]
    assert best == min(row["makespan_s"] for row in of_case if row["retained"] is not None)


def test_a_memory_curve_has_the_best_row_under_each_limit(rows):
    figures = figures_of(rows)
    assert len(figures.curves) == 2
    for curve in figures.curves:
        limits = [row["memory_limit_bytes"] for row in curve.best]
        assert limits == [limit for limit in LIMITS if limit > 16]
        makespans = [row["makespan_s"] for row in curve.best]
        assert makespans == sorted(makespans, reverse=True)
        assert set(curve.by_pattern) >= {"prefix", "spread"}


def test_a_sweep_of_many_rows_shows_no_more(rows):
    many = pl.concat([small_sweep().with_columns(device=pl.lit(f"d{i}")) for i in range(30)])
    many = many.with_columns(index=pl.int_range(pl.len(), dtype=pl.Int64))
    figures = figures_of(many.lazy())
    assert figures.rows == 30 * small_sweep().height
    assert 100 < len(figures.points) <= MOST_POINTS


def test_a_sweep_without_a_row_that_fits_says_so():
    with pytest.raises(InfeasibleError, match="none of the 2 rows"):
        figures_of(made_up([{}, {}]))
