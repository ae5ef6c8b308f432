"""`cidl sweep` and `cidl simulate --row`: what they write, print and refuse."""

from __future__ import annotations

import pytest

from tests.test_cli import answer_of, assert_refused, call_cidl

SWEEP = ("sweep", "opensora-small", "iphone-15-pro")


def test_a_sweep_writes_rows_that_can_be_simulated_again(tmp_path):
    folder = tmp_path / "results.parquet"
    axes = ("--axis", "policy=spread,lru", "--axis", "retained=0..3", "--axis", "memory_limit_bytes=400e6,900e6")
    figures = answer_of(*SWEEP, *axes, "-o", folder)
    assert (figures["rows"], figures["resumed_rows"], figures["file"]) == (10, 0, str(folder))
    assert [row["settings"] for row in figures["best"]] == [
        {"memory_limit_bytes": 400_000_000},
        {"memory_limit_bytes": 900_000_000},
    ]
    assert answer_of(*SWEEP, *axes, "-o", folder) == {**figures, "resumed_rows": 10}
    for best in figures["best"]:
        again = answer_of("simulate", "--row", f"{folder}:{best['index']}")
        assert again["policy"].partition(":")[0] == best["policy"].partition(":")[0]
        assert again["makespan_s"] == pytest.approx(best["makespan_s"], rel=1e-9)
    outcome = call_cidl(*SWEEP, *axes, "-o", folder)
    assert "10 (10 were there already)" in outcome.err.replace("\n", " ")


def test_axes_from_a_file_and_options_that_replace_them(tmp_path):
    grid = tmp_path / "grid.toml"
    grid.write_text('format = "cidl-sweep/1"\n[axes]\npolicy = ["spread"]\nretained = "0..9"\n[sample]\npoints = 4\n')
    assert answer_of(*SWEEP, "--grid", grid, "-o", tmp_path / "a")["rows"] == 4
    drawn = ("--sample", "random", "--points", "6", "--seed", "2")
    assert answer_of(*SWEEP, "--grid", grid, *drawn, "--no-bound", "-o", tmp_path / "b")["rows"] == 6
    assert all(
        row["lower_bound_s"] is None
        for row in answer_of(*SWEEP, "--grid", grid, *drawn, "--no-bound", "-o", tmp_path / "b")["best"]
    )
    assert_refused(
        call_cidl(*SWEEP, "--grid", grid, "--axis", "retained=1", "-o", tmp_path / "c"), 2, "leave the sample out"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("--axis retaned=1", 2, ["unknown axis 'retaned'"]),
        ("--axis retained", 2, ["NAME=VALUES"]),
        ("--axis retained=1 --axis retained=2", 2, ["given twice", "retained=1,2"]),
        ("--axis retained=0..27/5", 2, ["no whole number"]),
        ("--axis retained=", 2, ["grid is empty"]),
        ("--axis policy=random --axis pattern_seed=0..999999 --axis lookahead=0..999", 2, ["take a sample"]),
        ("--sample lhs", 2, ["--points"]),
        ("--sample best --points 3", 2, ["random or lhs"]),
        ("--workers 2 --cluster tcp://127.0.0.1:9", 2, ["--workers", "--cluster"]),
        ("--cluster nonsense://x", 2, ["--cluster"]),
        ("--grid {folder}/none.toml", 2, ["none.toml", "No such file"]),
    ],
)
def test_what_cannot_be_swept_is_refused_in_one_line(tmp_path, arguments, code, words):
    given = arguments.format(folder=tmp_path).split()
    assert_refused(call_cidl(*SWEEP, *given, "-o", tmp_path / "results"), code, *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--row", "nonsense"], ["RESULTS:INDEX"]),
        (["--row", "nowhere:3"], ["nowhere", "no results"]),
        (["--row", "{}"], ["no 'workload'"]),
        (
            ["--row", '{"workload": "opensora-tiny", "device": "iphone-15-pro", "pattern": "lru", "retained": 2}'],
            ["lru"],
        ),
        (["opensora-tiny", "iphone-15-pro", "--row", "{}"], ["--row"]),
    ],
)
def test_rows_that_make_no_sense_are_refused_in_one_line(arguments, words):
    assert_refused(call_cidl("simulate", *arguments), 2, *words)


def test_a_damaged_part_is_named_and_made_again(tmp_path):
    folder = tmp_path / "results.parquet"
    arguments = (*SWEEP, "--axis", "policy=lru", "--axis", "memory_limit_bytes=1e8,9e8", "-o", folder)
    outcome = call_cidl(*arguments)
    assert "in 1 combinations nothing fits" in outcome.err.replace("\n", " ")
    part = folder / "part-000000.parquet"
    part.write_bytes(part.read_bytes()[:200] + bytes(200) + part.read_bytes()[400:])
    assert_refused(call_cidl("simulate", "--row", f"{folder}:0"), 2, "damaged")
    assert answer_of(*arguments)["resumed_rows"] == 0
    assert_refused(call_cidl("simulate", "--row", f"{folder}:0"), 3, "needs")
