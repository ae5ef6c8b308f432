"""What a sweep says: Pareto fronts, best rows, regrets, sensitivities.

Everything works on a lazy frame of the results' columns (docs/reference/sweeps.md) and collects what is aggregated
already, so that millions of rows need no more memory than thousands. Where rows are equally good the first one counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import polars as pl

from cidl_sim.pipelines.catalog import job_of, setting_columns

# What has to be the same for policies to be comparable, what only the memory limit tells apart, and what has to be
# the same for one result to replace another.
CASE = ("workload", "device", "settings")
SCENE = ("workload", "device", "other_settings")
PRODUCT = ("job", "device", "other_settings")
QUALITY = ("denoising_evaluations", "merged_steps")

MEMORY, BANDWIDTH = "memory_limit_bytes", "bandwidth_bytes_per_s"
# Settings that have a column of their own.
_NAMED_SETTINGS = (MEMORY, f"loader.{BANDWIDTH}")
_POLICY_AXES = ("pattern", "retained", "lookahead", "pattern_seed")
_SETTING = "set "
# As JSON has it, with the comma after it.
_LIMIT = rf'"{MEMORY}": ?[-+0-9.eE]+(, ?)?'
# All rows of a sweep set the same keys.
_ROWS_WITH_KEYS = 100
# Of an axis with more values, such as one that was drawn at random, so many quantiles are told apart.
MOST_VALUES = 64
QUANTILES = 16
# Variances of logarithms below this come from rounding.
ROUNDING = 1e-20


def labelled(rows: pl.LazyFrame, *, is_sample: bool = False) -> pl.LazyFrame:
    """`rows` with `other_settings` (all settings but the memory limit) and `job`, what is made: model, size, dtype.

    Of a sample the settings differ from row to row; there they all count as one.
    """
    workloads = _collected(rows.group_by("workload").agg(pl.col("dtype").first()))
    jobs = pl.DataFrame(
        # A file's name stands for itself: what else makes the same is not known.
        {
            "workload": workloads["workload"],
            "job": [name if dtype is None else job_of(name) for name, dtype in workloads.iter_rows()],
        },
        schema={"workload": pl.String, "job": pl.String},
    )
    others = pl.col("settings").str.replace(_LIMIT, "").str.replace(", ?}$", "}")
    named = rows.with_columns(other_settings=pl.lit("{}") if is_sample else others)
    return named.join(jobs.lazy(), on="workload", how="left")


def count(rows: pl.LazyFrame) -> tuple[int, int]:
    """The number of rows, and of those that fit their memory limit."""
    counted = _collected(rows.select(all=pl.len(), feasible=pl.col("makespan_s").count()))
    return counted["all"].item(), counted["feasible"].item()


def best_rows(rows: pl.LazyFrame, keys: Sequence[str]) -> pl.DataFrame:
    """The row with the shortest makespan for each value of `keys`, in order of the index; none where nothing fits."""
    return _rows_at(rows, _collected(_feasible(rows).group_by(keys).agg(pl.col("makespan_s").min())), keys)


def pareto_front(rows: pl.LazyFrame, within: Sequence[str] = PRODUCT) -> pl.DataFrame:
    """The rows that no other row of the same `within` beats.

    To beat is to be no worse in any of makespan, peak memory, denoising evaluations (the more the better) and merged
    steps (the fewer the better), and better in one. `rows` have to be `labelled`.
    """
    keys = [*within, *QUALITY]
    # Unknown for workloads that are no named ones; all rows of such a job have the same.
    known = rows.with_columns(pl.col(QUALITY).fill_null(0))
    least = _feasible(known).group_by(*keys, "peak_resident_bytes").agg(pl.col("makespan_s").min())
    before = pl.col("makespan_s").cum_min().shift(1).over(keys)
    steps = _collected(
        least.sort(*keys, "peak_resident_bytes").filter(before.is_null() | (pl.col("makespan_s") < before))
    )
    # Within one quality the steps are a front. A level that is as good or better in both beats the others' steps
    # that are no smaller than one of its own and no faster.
    for evaluations, merged in steps.select(QUALITY).unique().sort(QUALITY).iter_rows():
        is_level = (pl.col(QUALITY[0]) == evaluations) & (pl.col(QUALITY[1]) == merged)
        is_worse = (pl.col(QUALITY[0]) <= evaluations) & (pl.col(QUALITY[1]) >= merged) & ~is_level
        level = steps.filter(is_level).select(*within, "peak_resident_bytes", rival_s="makespan_s")
        steps = (
            steps.sort("peak_resident_bytes")
            .join_asof(
                level.sort("peak_resident_bytes"),
                on="peak_resident_bytes",
                by=list(within),
                strategy="backward",
                check_sortedness=False,
            )
            .filter(~(is_worse & (pl.col("rival_s") <= pl.col("makespan_s"))).fill_null(value=False))
            .drop("rival_s")
        )
    front = _rows_at(known, steps, [*keys, "peak_resident_bytes"]).select("index")
    return _collected(rows.join(front.lazy(), on="index", how="semi")).sort("index")


def regrets(rows: pl.LazyFrame) -> pl.DataFrame:
    """By how much each policy at its best is slower than the best row of the same case, by device.

    A case is a workload on a device with some settings. `mean_regret` and `worst_regret` are shares of the best
    makespan over the cases in which the policy fits: `feasible_cases` of the `cases` it was tried in, null without.
    Cases in which nothing fits do not count.
    """
    at_best = rows.group_by(*CASE, "pattern").agg(pl.col("makespan_s").min())
    optimum = pl.col("makespan_s").min().over(CASE)
    regret = pl.when(optimum > 0).then(pl.col("makespan_s") / optimum - 1).otherwise(pl.col("makespan_s") * 0)
    by_device = (
        at_best.filter(optimum.is_not_null())
        .with_columns(regret=regret)
        .group_by("device", "pattern")
        .agg(
            mean_regret=pl.col("regret").mean(),
            worst_regret=pl.col("regret").max(),
            cases=pl.len(),
            feasible_cases=pl.col("regret").count(),
        )
    )
    return _collected(by_device).sort("device", "pattern")


def bound_gaps(rows: pl.LazyFrame) -> pl.DataFrame:
    """By how much the best row of a case is above the lower bound, as a share, on average over each device's cases.

    Devices without bounds in the results are not listed.
    """
    by_case = rows.group_by(CASE).agg(pl.col("makespan_s").min(), pl.col("lower_bound_s").max())
    gap = pl.col("makespan_s") / pl.col("lower_bound_s") - 1
    gaps = by_case.filter(pl.col("lower_bound_s") > 0, pl.col("makespan_s").is_not_null())
    return _collected(gaps.group_by("device").agg(mean_gap=gap.mean())).sort("device")


def sensitivities(rows: pl.LazyFrame) -> pl.DataFrame:
    """How much of the makespan each axis of the sweep decides, the first the most.

    `share` is the part of the variance of the makespan's logarithm that lies between the axis' values (the first-order
    index of a variance decomposition), `ratio` how many times as long the slowest value takes as the fastest, by
    geometric means, `values` how many there are. Policies and settings are compared within a workload on a device,
    devices within a workload, workloads within a device. Axes with one value are left out; so are rows that do not
    fit, which flatters the values that fit seldom.
    """
    wide, keys = _with_settings(_feasible(rows).filter(pl.col("makespan_s") > 0))
    settings = [name for name in setting_columns() if name in wide.collect_schema()]
    contexts = {
        **dict.fromkeys((MEMORY, BANDWIDTH, *keys, *_POLICY_AXES), ("workload", "device")),
        "device": ("workload",),
        **dict.fromkeys(("workload", *settings), ("device",)),
    }
    counted = _collected(wide.select(pl.col(axis).n_unique() for axis in contexts)) if contexts else pl.DataFrame()
    found = []
    for axis, context in contexts.items():
        if counted[axis].item() > 1 and (figures := _sensitivity(_grouped(wide, axis), axis, context)):
            found.append({"axis": axis.removeprefix(_SETTING), **figures})
    schema = {"axis": pl.String, "values": pl.Int64, "share": pl.Float64, "ratio": pl.Float64}
    return pl.DataFrame(found, schema=schema).sort("share", "axis", descending=[True, False])


def even_sample(rows: pl.LazyFrame, most: int) -> pl.DataFrame:
    """At most `most` of the rows that fit, at even distances."""
    _, feasible = count(rows)
    if most <= 0 or not feasible:
        return _collected(rows.head(0))
    step = -(-feasible // most)
    sample = _feasible(rows).with_row_index("_place").filter(pl.col("_place") % step == 0).drop("_place")
    return _collected(sample).sort("index")


# Pieces


def _collected(rows: pl.LazyFrame) -> pl.DataFrame:
    return rows.collect(engine="streaming")


def _feasible(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows.filter(pl.col("makespan_s").is_not_null())


def _rows_at(rows: pl.LazyFrame, found: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """The first whole row for each row of `found`, which has the makespan at some values of `keys`."""
    on = [*keys, "makespan_s"]
    alike = rows.join(found.lazy().select(on), on=on, how="semi", nulls_equal=True)
    first = _collected(alike.group_by(on).agg(pl.col("index").min())).select("index")
    return _collected(rows.join(first.lazy(), on="index", how="semi")).sort("index")


def _with_settings(rows: pl.LazyFrame) -> tuple[pl.LazyFrame, list[str]]:
    """`rows` with a column for each device key that was set and has no column yet, and these columns' names."""
    texts = _collected(rows.select("settings").head(_ROWS_WITH_KEYS))["settings"].unique()
    keys = sorted({key for text in texts for key in json.loads(text)} - set(_NAMED_SETTINGS))
    values = {_SETTING + key: pl.col("settings").str.json_path_match(f"$['{key}']") for key in keys}
    return rows.with_columns(**{name: value.cast(pl.Float64, strict=False) for name, value in values.items()}), [
        *values
    ]


def _grouped(rows: pl.LazyFrame, axis: str) -> pl.LazyFrame:
    """Numbers with very many values become quantiles; a policy without a number says nothing about numbers."""
    if axis in ("retained", "pattern_seed"):
        rows = rows.filter(pl.col(axis).is_not_null())
    kind = rows.collect_schema()[axis]
    if not kind.is_numeric() or _collected(rows.select(pl.col(axis).n_unique())).item() <= MOST_VALUES:
        return rows
    places = [pl.col(axis).quantile(i / QUANTILES).alias(str(i)) for i in range(1, QUANTILES)]
    breaks = sorted(set(_collected(rows.select(places)).row(0)))
    return rows.with_columns(pl.col(axis).cut(breaks).cast(pl.String))


def _sensitivity(rows: pl.LazyFrame, axis: str, context: Sequence[str]) -> dict[str, float] | None:
    logarithm = pl.col("makespan_s").log()
    cells = _collected(
        rows.group_by(*context, axis).agg(n=pl.len(), mean=logarithm.mean(), variance=logarithm.var(ddof=0))
    )
    several = cells.filter(pl.len().over(context) > 1)
    if several.is_empty():
        return None
    weight, mean = pl.col("n"), pl.col("mean")
    middle = ((weight * mean).sum() / weight.sum()).over(context)
    between = several.select((weight * (mean - middle) ** 2).sum()).item()
    within = several.select((weight * pl.col("variance")).sum()).item()
    spans = several.group_by(context).agg(n=weight.sum(), span=mean.max() - mean.min())
    return {
        "values": several[axis].n_unique(),
        "share": between / (between + within) if between + within > ROUNDING else 0.0,
        "ratio": float(np.exp(np.average(spans["span"].to_numpy(), weights=spans["n"].to_numpy()))),
    }
