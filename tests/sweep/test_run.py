"""Rows are what the engine says, however they were made, and survive what happens to files and processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from cidl_sim.core.errors import InfeasibleError, MachineError
from cidl_sim.sweep.evaluate import count_parts, rows_per_part
from cidl_sim.sweep.points import count_points
from cidl_sim.sweep.reproduce import read_row, trace_of_row
from cidl_sim.sweep.results import part_name, row_at, scan
from cidl_sim.sweep.run import run_sweep
from cidl_sim.sweep.spec import Sample, Sweep, SweepError, make_sweep

AXES = {
    "policy": "on_device_sora,lru,prefix,spread,rotating,random",
    "retained": "0..8",
    "lookahead": "1,4,deep",
    "pattern_seed": "0..7",
    "memory_limit_bytes": "350e6,600e6",
    "loader.channels": "1,2",
}


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return make_sweep(["opensora-small"], ["iphone-15-pro", "nvidia-a6000"], AXES)


@pytest.fixture(scope="module")
def results(sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "results.parquet"
    done = run_sweep(sweep, folder)
    assert (done.rows, done.resumed_rows) == (count_points(sweep), 0)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_point_has_its_row_in_order(sweep, results):
    rows = scan(results).collect()
    assert rows["index"].to_list() == list(range(count_points(sweep)))
    assert len(contents(results)) == count_parts(sweep) + 1
    assert rows["makespan_s"].is_null().any()
    assert not rows["makespan_s"].is_null().all()
    assert (rows["makespan_s"] >= rows["lower_bound_s"] * (1 - 1e-9)).all()
    assert (rows["peak_resident_bytes"] <= rows["memory_limit_bytes"]).all()


def test_a_row_is_what_the_engine_says_of_it(results):
    rows = scan(results).collect()
    for row in rows.gather_every(61).iter_rows(named=True):
        assert_is_reproduced(row)


def assert_is_reproduced(row: dict[str, object]) -> None:
    if row["makespan_s"] is None:
        with pytest.raises(InfeasibleError):
            trace_of_row(row)
        return
    trace = trace_of_row(row)
    assert trace.makespan_s == pytest.approx(row["makespan_s"], rel=1e-9)
    assert trace.peak_resident_bytes == row["peak_resident_bytes"]
    assert trace.loader_busy_s == pytest.approx(row["loader_busy_s"], rel=1e-9)
    assert trace.executor_busy_s == pytest.approx(row["executor_busy_s"], rel=1e-9)


def test_a_sample_over_ranges_is_what_the_engine_says_of_it(tmp_path):
    axes = {
        "loader.bandwidth_bytes_per_s": "0.5e9..4e9",
        "memory_limit_bytes": "350e6..900e6",
        "steps": "6,10",
        "tdtm": "0,3",
        "policy": "spread,random,lru",
    }
    sample = Sample(method="lhs", points=40, seed=3)
    run_sweep(make_sweep(["opensora-small"], ["iphone-15-pro"], axes, sample=sample), tmp_path / "r")
    rows = scan(tmp_path / "r").collect()
    assert set(rows["merged_steps"]) == {0, 3}
    assert set(rows["denoising_evaluations"]) == {6, 10}
    for row in rows.gather_every(3).iter_rows(named=True):
        assert_is_reproduced(row)


def test_a_row_by_its_place_or_as_text(results):
    row = read_row(f"{results}:200")
    assert row == row_at(results, 200)
    assert read_row('{"workload": "x"}') == {"workload": "x"}
    for text in ("nonsense", f"{results}:9999999", "[1]"):
        with pytest.raises(SweepError):
            read_row(text)


def test_a_row_whose_workload_has_changed_is_refused(results):
    row = {**row_at(results, 200), "workload_sha256": "0" * 64}
    with pytest.raises(SweepError, match="is not what it was"):
        trace_of_row(row)


def test_what_is_missing_or_damaged_is_made_again_and_nothing_else(sweep, results, tmp_path):
    folder = tmp_path / "results.parquet"
    folder.mkdir()
    whole = contents(results)
    for name, content in whole.items():
        (folder / name).write_bytes(content)
    damaged = folder / part_name(1)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 3] ^= 1
    damaged.write_bytes(content)
    halved = folder / part_name(2)
    halved.write_bytes(halved.read_bytes()[:-100])
    (folder / part_name(3)).write_bytes(whole[part_name(4)])
    (folder / part_name(5)).unlink()
    done = run_sweep(sweep, folder)
    assert contents(folder) == whole
    assert done.rows - done.resumed_rows == 4 * rows_per_part(sweep)


def test_a_folder_of_something_else_is_refused(sweep, results, tmp_path):
    other = make_sweep(["opensora-small"], ["iphone-15-pro"], {"policy": "lru"})
    with pytest.raises(SweepError, match="holds another sweep"):
        run_sweep(other, results)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SweepError, match="something else"):
        run_sweep(other, tmp_path)
    with pytest.raises(SweepError, match="is a file"):
        run_sweep(other, tmp_path / "mine.txt")
    with pytest.raises(SweepError, match="no results of a sweep"):
        scan(tmp_path)


def test_processes_make_the_same_files_though_one_is_killed(sweep, results, tmp_path, monkeypatch):
    monkeypatch.setattr("cidl_sim.sweep.run.SMALL_VISITS", 0)
    killed = []

    def kill_one(done: int, total: int) -> None:
        if done and not killed:
            killed.extend(multiprocessing.active_children())
            killed[0].kill()

    run_sweep(sweep, tmp_path / "r", on_rows=kill_one)
    assert killed
    assert contents(tmp_path / "r") == contents(results)


def test_a_sweep_that_is_killed_goes_on(sweep, results, tmp_path):
    folder = tmp_path / "r"
    axes = [f"--axis={name}={values}" for name, values in AXES.items()]
    command = [sys.executable, "-m", "cidl_sim.cli", "sweep", "opensora-small", "iphone-15-pro", "nvidia-a6000"]
    running = subprocess.Popen([*command, *axes, "-o", str(folder)], stderr=subprocess.DEVNULL)
    while not (folder / part_name(1)).exists() and running.poll() is None:
        time.sleep(0.01)
    running.kill()
    running.wait()
    done = run_sweep(sweep, folder)
    assert 0 < done.resumed_rows <= done.rows
    assert contents(folder) == contents(results)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_dask_makes_the_same_files_though_a_worker_is_killed(sweep, results, tmp_path):
    killed = []

    def kill_one(done: int, total: int) -> None:
        if done and not killed:
            killed.append(dask_worker())
            os.kill(killed[0], signal.SIGKILL)

    run_sweep(sweep, tmp_path / "r", workers=2, on_rows=kill_one)
    assert killed
    assert contents(tmp_path / "r") == contents(results)


def dask_worker() -> int:
    """One of the processes that compute: the client runs in ours, so it knows them."""
    from distributed import get_client

    return next(iter(get_client().run(os.getpid).values()))


def test_a_cluster_that_nobody_answers_for_is_one_line(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr("cidl_sim.sweep.cluster.CONNECT_S", 0.5)
    with pytest.raises(MachineError, match="no scheduler answers") as problem:
        run_sweep(sweep, tmp_path / "r", cluster="tcp://127.0.0.1:9")
    assert "\n" not in str(problem.value)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ten_million_rows_in_bounded_memory(tmp_path):
    axes = {"policy": "random", "retained": "0..27", "pattern_seed": "0..359999", "lookahead": "deep"}
    command = [sys.executable, "-m", "cidl_sim.cli", "sweep", "opensora-v1.2-192x192-17f-5s", "iphone-15-pro"]
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    arguments = [*command, *(f"--axis={name}={values}" for name, values in axes.items()), "-o", str(tmp_path / "r")]
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    rows = scan(tmp_path / "r").select(pl.len(), pl.col("makespan_s").is_null().sum()).collect()
    assert rows.row(0)[0] == 28 * 360_000
    # The largest process, in KiB: what one has after its imports is a third of that.
    assert int(ran.stdout.splitlines()[-1]) < 1_500_000
    assert math.isfinite(scan(tmp_path / "r").select(pl.col("makespan_s").min()).collect().item())
