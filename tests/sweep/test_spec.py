"""Axes and points: what a grid or a sample goes through."""

from __future__ import annotations

import numpy as np
import pytest

from cidl_sim.core.errors import InputError
from cidl_sim.sweep.points import NONE, Points, count_points, points
from cidl_sim.sweep.spec import Continuous, Sample, SweepError, make_sweep, parse_values, read_axes

WORKLOAD = "opensora-small"
PHONE = "iphone-15-pro"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2,4", (1, 2, 4)),
        ("0..3", (0, 1, 2, 3)),
        ("1e9..4e9/3", (1e9, 2.5e9, 4e9)),
        ("0..27/4", (0, 9, 18, 27)),
        ("fp32, bf16", ("fp32", "bf16")),
        ("2,2", (2,)),
        ("1.5", (1.5,)),
        ("256x256", ("256x256",)),
        ([1, "off"], (1, "off")),
        (3, (3,)),
        ("1e9..4e9", Continuous(low=1e9, high=4e9)),
    ],
)
def test_values_as_people_write_them(text, values):
    assert parse_values("any", text) == values


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("memory_limit_bytes", "2GB,3.3GB,512MiB", (2_000_000_000, 3_300_000_000, 536_870_912)),
        ("memory_limit_bytes", "2GB..6GB/3", (2_000_000_000, 4_000_000_000, 6_000_000_000)),
        ("memory_limit_bytes", "2GB..6e9/3", (2_000_000_000, 4_000_000_000, 6_000_000_000)),
        ("memory_limit_bytes", ["2GB", 4e9], (2_000_000_000, 4_000_000_000)),
        ("memory_limit_bytes", "2GB..6GB", Continuous(low=2e9, high=6e9)),
        ("loader.bandwidth_bytes_per_s", "1GB..4GB/3log", (1e9, 2e9, 4e9)),
        ("loader.bandwidth_bytes_per_s", "1.5GB", (1.5e9,)),
    ],
)
def test_sizes_may_have_units(name, text, values):
    parsed = parse_values(name, text)
    assert parsed == values if isinstance(values, Continuous) else parsed == pytest.approx(values, rel=1e-12)


def test_only_sizes_have_units():
    assert parse_values("executor.flops_per_s", "1GB") == ("1GB",)
    with pytest.raises(SweepError, match="axis 'memory_limit_bytes': '2G' is not a number of bytes"):
        parse_values("memory_limit_bytes", "2G..6G/9")


def test_a_range_of_values_by_ratio():
    assert parse_values("any", "1..16/5log") == pytest.approx((1, 2, 4, 8, 16))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"retaned": "1"}, "unknown axis 'retaned'"),
        ({"retained": ""}, "the grid is empty"),
        ({"retained": []}, "the grid is empty"),
        ({"retained": "4..2"}, "the lower number comes first"),
        ({"retained": "x"}, "no whole number"),
        ({"retained": "1.5..2.5"}, "only figures of the device can be continuous"),
        ({"policy": "best"}, "unknown policy 'best'"),
        ({"lookahead": "-1"}, "no whole number"),
        ({"resolution": "256"}, "write HEIGHTxWIDTH"),
        ({"lpl": "99"}, "cannot leap at step 99"),
        ({"loader.bandwith": "1"}, "no figure named"),
        ({"memory_limit_bytes": "much"}, "is not a number"),
        ({"memory_limit_bytes": "-5"}, "memory_limit_bytes"),
        ({"memory_limit_bytes": [True]}, "neither a number nor text"),
        ({"executor.flops_per_s": "1..2"}, None),
    ],
)
def test_axes_that_make_no_sense_are_named(axes, message):
    if message is None:
        make_sweep([WORKLOAD], [PHONE], axes)
        return
    with pytest.raises(InputError, match=message) as problem:
        make_sweep([WORKLOAD], [PHONE], axes)
    assert "\n" not in str(problem.value)


def test_settings_belong_to_named_workloads(tmp_path):
    path = tmp_path / "w.json"
    path.write_text("{}")
    with pytest.raises(SweepError, match="not for a file"):
        make_sweep([str(path)], [PHONE], {"steps": "10"})


def test_without_axes_every_policy_and_every_number_of_blocks():
    sweep = make_sweep([WORKLOAD], [PHONE])
    assert sweep.retained == tuple(range(17))  # the most blocks that a group has, and none
    assert count_points(sweep) == 3 * 17 + 5


def test_a_grid_has_every_combination_once():
    sweep = make_sweep(
        [WORKLOAD],
        [PHONE, "ipad-pro-m2"],
        {
            "policy": "lru,prefix,random",
            "retained": "0..2",
            "lookahead": "1,deep",
            "pattern_seed": "0..3",
            "memory_limit_bytes": "1e9,2e9",
            "steps": "10,20",
        },
    )
    assert count_points(sweep) == 2 * 2 * 2 * (1 + 3 * 2 + 3 * 2 * 4)
    found = rows_of(points(sweep, 0, count_points(sweep)))
    assert len(set(found)) == len(found) == count_points(sweep)
    assert [row[4:] for row in found[:2]] == [(NONE, NONE, NONE), (0, 1, NONE)]
    # A part of the points is what all of them have there.
    assert rows_of(points(sweep, 17, 90)) == found[17:90]


def rows_of(chosen: Points) -> list[tuple[float, ...]]:
    return list(
        zip(
            chosen.workload.tolist(),
            chosen.device.tolist(),
            chosen.device_values[:, 0].tolist(),
            chosen.policy.tolist(),
            chosen.retained.tolist(),
            chosen.lookahead.tolist(),
            chosen.pattern_seed.tolist(),
            strict=True,
        )
    )


def sampled(method: str, count: int, seed: int = 0) -> Points:
    axes = {"loader.bandwidth_bytes_per_s": "1e9..3e9", "memory_limit_bytes": "1e9,2e9", "policy": "spread,prefix"}
    sample = Sample(method=method, points=count, seed=seed)
    return points(make_sweep([WORKLOAD], [PHONE], axes, sample=sample), 0, count)


@pytest.mark.parametrize("count", [1, 7, 500])
def test_a_latin_hypercube_covers_every_axis_evenly(count):
    chosen = sampled("lhs", count)
    part = np.floor((chosen.device_values[:, 0] - 1e9) / 2e9 * count)
    assert sorted(part) == list(range(count))
    for column in (chosen.device_values[:, 1] == 1e9, chosen.policy == 0):
        assert abs(column.sum() - count / 2) < 1
    counts = np.bincount(chosen.retained, minlength=17)
    assert counts.max() - counts.min() <= 3  # one point more or less at either edge


def test_samples_follow_from_their_seed():
    for method in ("lhs", "random"):
        one, same, other = sampled(method, 200), sampled(method, 200), sampled(method, 200, seed=1)
        assert (one.device_values == same.device_values).all()
        assert (one.device_values != other.device_values).any()
    # Axes have nothing to do with each other.
    chosen = sampled("random", 2000)
    assert abs(np.corrcoef(chosen.device_values[:, 0], chosen.retained)[0, 1]) < 0.1
    assert 1.9e9 < chosen.device_values[:, 0].mean() < 2.1e9


def test_what_is_endless_or_too_large_asks_for_a_sample():
    with pytest.raises(SweepError, match="is continuous: take a sample"):
        count_points(make_sweep([WORKLOAD], [PHONE], {"memory_limit_bytes": "1.5e9..2.5e9"}))
    axes = {"pattern_seed": "0..99999", "policy": "random", "lookahead": "0..999"}
    with pytest.raises(SweepError, match=r"the grid has 1,700,000,000 points.*take a sample"):
        count_points(make_sweep([WORKLOAD], [PHONE], axes))
    sample = Sample(points=100)
    with pytest.raises(SweepError, match="leave the sample out"):
        count_points(make_sweep([WORKLOAD], [PHONE], {"policy": "lru"}, sample=sample))


def test_axes_in_a_file(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(
        'format = "cidl-sweep/1"\n[axes]\nretained = "0..4"\n"loader.bandwidth_bytes_per_s" = [1e9, 2e9]\n'
        '[sample]\nmethod = "random"\npoints = 5\n'
    )
    axes, sample = read_axes(path)
    assert axes == {"retained": "0..4", "loader.bandwidth_bytes_per_s": [1e9, 2e9]}
    assert sample == Sample(method="random", points=5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "format"),
        ("format = 3", "format"),
        ("format = ", "not TOML"),
        ('format = "cidl-sweep/1"\naxis = 3', "axis: there are"),
        ('format = "cidl-sweep/1"\naxes = 3', "write a table"),
        ('format = "cidl-sweep/1"\n[sample]\npoints = 0', "points"),
    ],
)
def test_a_file_that_makes_no_sense_is_named(tmp_path, text, message):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(SweepError, match=message) as problem:
        read_axes(path)
    assert str(path) in str(problem.value)
