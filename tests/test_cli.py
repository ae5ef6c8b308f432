"""The command line: what it prints, what it writes, how it refuses. Most tests call it in this process."""

from __future__ import annotations

import io
import json
import resource
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import matplotlib.pyplot as plt
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from cidl_sim.cli import _exit_code, app
from cidl_sim.commands.console import PICTURES
from cidl_sim.core.device import DeviceProfile, Loader, Measured, Noise, ThermalStep, read_device
from cidl_sim.core.plan import read_plan
from cidl_sim.core.trace import read_trace
from cidl_sim.core.what_if import with_value
from cidl_sim.core.workload import Block, Stage, Workload, read_workload
from cidl_sim.demo import demo_limit
from cidl_sim.devices.catalog import THIS_MACHINE, find_device, shipped_devices, this_machine_file
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import find_workload, shipped
from cidl_sim.policies.catalog import POLICIES, STREAMING
from cidl_sim.validation.runs import Scenario, read_runs
from tests.conftest import analytic_device, spoiled, uniform_workload
from tests.in_process import run_jobs_here

TINY = "opensora-tiny-32x32-17f-2s-fp32"
# More than Python, PyTorch and the pipeline take by themselves on the machines the tests have seen.
ROOM_FOR_THE_PROCESS = 768 << 20


@dataclass(frozen=True)
class Outcome:
    """What a call left behind: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Standard output as one JSON document; ValueError if there is anything else on it."""
        return json.loads(self.out, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def call_cidl(*arguments: object) -> Outcome:
    """`cidl ARGUMENTS` in this process, with the exit code that the command would leave with."""
    out, err = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", ["cidl", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        code = _exit_code()
    return Outcome(code, out.getvalue(), err.getvalue())


def answer_of(*arguments: object) -> Any:
    """What a call that must succeed says with --json."""
    outcome = call_cidl(*arguments, "--json")
    assert outcome.code == 0, outcome.err
    return outcome.data


def assert_refused(outcome: Outcome, code: int, *words: str) -> None:
    """Nothing on standard output, one line on standard error that holds every word."""
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert outcome.err.startswith("cidl: ")
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith("\n")
    for word in words:
        assert word in outcome.err


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads or writes the profile of this machine that its user has."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    """Four blocks of 10 bytes that run for 3 s, three rounds."""
    path = tmp_path / "workload.json"
    uniform_workload(4, 3, weight_bytes=10, workspace_bytes=2, flops=3).write(path)
    return path


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """Room for three of the four blocks, 10 s a load."""
    path = tmp_path / "device.toml"
    analytic_device(40, baseline_bytes=5).write(path)
    return path


@pytest.fixture
def noisy_device(tmp_path: Path) -> Path:
    path = tmp_path / "noisy.toml"
    analytic_device(40, noise=Noise(load=0.2, execute=0.1)).write(path)
    return path


@pytest.fixture
def roomy_device(tmp_path: Path) -> Path:
    """A device on which a real run of the tiny model fits beside the process."""
    path = tmp_path / "roomy.toml"
    device = analytic_device(ROOM_FOR_THE_PROCESS + 10_000_000, baseline_bytes=ROOM_FOR_THE_PROCESS)
    device.write(path)
    return path


# Looking things up


def test_workloads_lists_every_named_workload():
    rows = answer_of("workloads")["workloads"]
    assert [row["name"] for row in rows] == [find_workload(name).name for name in shipped()]
    assert [row["weights_bytes"] for row in rows] == [find_workload(name).weights_bytes for name in shipped()]


@pytest.mark.parametrize("name", [shipped()[0], TINY])
def test_workloads_with_a_name_prints_the_workload_file(name):
    assert Workload.model_validate(answer_of("workloads", name)) == find_workload(name)


def test_workloads_with_a_file_prints_the_file_itself(workload):
    assert call_cidl("workloads", workload, "--json").out == workload.read_text()


def test_devices_lists_every_profile_and_this_machine_once_it_is_measured(device):
    assert [row["name"] for row in answer_of("devices")["devices"]] == list(shipped_devices())
    this_machine_file().parent.mkdir(parents=True)
    read_device(device).model_copy(update={"name": THIS_MACHINE}).write(this_machine_file())
    assert [row["name"] for row in answer_of("devices")["devices"]] == [*shipped_devices(), THIS_MACHINE]


def test_devices_with_a_name_prints_that_profile(device):
    assert DeviceProfile.model_validate(answer_of("devices", "iphone-15-pro")) == find_device("iphone-15-pro")
    assert DeviceProfile.model_validate(answer_of("devices", device)) == read_device(device)


def test_policies_lists_every_policy():
    rows = answer_of("policies")["policies"]
    assert [row["name"].removesuffix(":d") for row in rows] == list(POLICIES)
    assert all(row["summary"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["workloads"], find_workload("opensora-small").name),
        (["workloads", TINY], "denoiser"),
        (["devices"], "iphone-15-pro"),
        (["policies"], "on_device_sora"),
        (["simulate", "{workload}", "{device}", "--policy", "lru"], "makespan"),
        (["plan", "{workload}", "{device}"], "lower bound"),
    ],
)
def test_without_json_people_get_a_table(arguments, shown, workload, device):
    outcome = call_cidl(*(a.format(workload=workload, device=device) for a in arguments))
    assert outcome.code == 0
    assert shown in outcome.out
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(outcome.out)


def test_a_device_without_json_is_shown_as_the_toml_file_it_is(device):
    assert DeviceProfile.model_validate(tomllib.loads(call_cidl("devices", device).out)) == read_device(device)


# Simulating


def test_simulate_prints_the_figures_of_the_contract(workload, device):
    figures = answer_of("simulate", workload, device, "--policy", "sequential")
    # Sequential: 12 loads of 10 s and 12 executions of 3 s, one after the other.
    assert figures["makespan_s"] == figures["executor_busy_s"] + figures["loader_busy_s"] == 36 + 120
    assert figures["overlap_s"] == 0
    assert figures["peak_resident_bytes"] == 5 + 10 + 2
    assert figures["groups"]["denoiser"]["elapsed_s"] == figures["makespan_s"]
    assert (figures["workload"], figures["device"], figures["policy"]) == ("uniform", "analytic", "sequential")


@pytest.mark.parametrize("policy", [*STREAMING, "prefix:2", "spread:denoiser=1"])
def test_simulate_takes_every_policy(policy, workload, device):
    figures = answer_of("simulate", workload, device, "--policy", policy)
    assert figures["policy"].startswith(policy.partition(":")[0])
    assert 0 < figures["peak_resident_bytes"] <= figures["memory_limit_bytes"] == 40


def test_simulate_takes_the_names_of_the_catalogs():
    figures = answer_of("simulate", "opensora-v1.2-256x256-68f", "iphone-15-pro", "--policy", "next_block")
    assert list(figures["groups"]) == ["text_encoder", "denoiser", "decoder"]
    assert sum(group["elapsed_s"] for group in figures["groups"].values()) == pytest.approx(figures["makespan_s"])


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("loader.bandwidth_bytes_per_s=2", {"loader": Loader(bandwidth_bytes_per_s=2.0)}),
        ("memory_limit_bytes=60", {"memory_limit_bytes": 60}),
    ],
)
def test_a_setting_is_worth_the_same_as_a_file_that_says_so(setting, field, workload, device, tmp_path):
    changed = tmp_path / "changed.toml"
    read_device(device).model_copy(update=field).write(changed)
    with_setting = answer_of("simulate", workload, device, "--policy", "lru", "--set", setting)
    assert with_setting == answer_of("simulate", workload, changed, "--policy", "lru")
    assert with_setting != answer_of("simulate", workload, device, "--policy", "lru")


def test_settings_add_up(workload, device):
    both = ["--set", "loader.bandwidth_bytes_per_s=2", "--set", "executor.flops_per_s=3"]
    assert answer_of("simulate", workload, device, "--policy", "sequential", *both)["makespan_s"] == 12 * (5 + 1)


def test_a_seed_changes_the_makespan_only_where_the_device_has_noise(workload, device, noisy_device):
    def makespans(file: Path) -> list[float]:
        seeds = [[], ["--seed", 1], ["--seed", 2], ["--seed", 1]]
        return [answer_of("simulate", workload, file, "--policy", "lru", *seed)["makespan_s"] for seed in seeds]

    silent = makespans(device)
    assert len(set(silent)) == 1
    plain, first, second, again = makespans(noisy_device)
    assert len({plain, first, second}) == 3
    assert first == again


def test_runs_give_quantiles_of_the_makespan(workload, noisy_device):
    arguments = ("simulate", workload, noisy_device, "--policy", "lru")
    figures = answer_of(*arguments, "--runs", 40)
    p5, p50, p95 = figures["makespan_quantiles_s"].values()
    assert list(figures["makespan_quantiles_s"]) == ["p5", "p50", "p95"]
    assert p5 < p50 < p95
    assert figures["runs"] == 40
    # The trace beside them is the one without noise, unless a seed asks for another.
    assert figures["makespan_s"] == answer_of(*arguments)["makespan_s"]
    assert answer_of(*arguments, "--runs", 40) == figures
    assert answer_of(*arguments, "--runs", 40, "--seed", 99)["makespan_quantiles_s"] != figures["makespan_quantiles_s"]
    one = answer_of(*arguments, "--runs", 1, "--seed", 3)
    assert set(one["makespan_quantiles_s"].values()) == {one["makespan_s"]}


def test_runs_without_noise_are_remarked_upon_not_refused(workload, device):
    outcome = call_cidl("simulate", workload, device, "--policy", "lru", "--runs", 5)
    assert outcome.code == 0
    assert "no figures under [noise]" in outcome.err
    seeded = call_cidl("simulate", workload, device, "--policy", "lru", "--seed", 3)
    assert seeded.code == 0
    assert seeded.err.count("no figures under [noise]") == 1
    figures = answer_of("simulate", workload, device, "--policy", "lru", "--runs", 5)
    assert set(figures["makespan_quantiles_s"].values()) == {figures["makespan_s"]}
    assert f"p50 {figures['makespan_s']:.3f} s" in outcome.out


def test_scenarios_combine_and_the_plan_does_not_know_of_them(workload, noisy_device, tmp_path):
    arguments = ("simulate", workload, noisy_device, "--policy", "spread")
    heat, shrink = ("--thermal", "60:0.25", "--thermal", "20:0.5"), ("--limit-change", "30:15")
    calm, hot, tight, both = (answer_of(*arguments, *o) for o in ((), heat, shrink, (*heat, *shrink)))
    assert calm["makespan_s"] < min(hot["makespan_s"], tight["makespan_s"])
    assert max(hot["makespan_s"], tight["makespan_s"]) < both["makespan_s"]
    assert len({figures["policy"] for figures in (calm, hot, tight, both)}) == 1
    quantiles = answer_of(*arguments, *heat, *shrink, "--runs", 20)["makespan_quantiles_s"]
    assert quantiles["p5"] < both["makespan_s"] < quantiles["p95"]


@pytest.mark.parametrize(
    ("option", "plain", "written"),
    [
        ("--set", "memory_limit_bytes=41", "memory_limit_bytes=0.041kB"),
        ("--set", "loader.bandwidth_bytes_per_s=0.5", "loader.bandwidth_bytes_per_s=0.0005kB"),
        ("--set", "loader.first_touch_bytes_per_s=2048", "loader.first_touch_bytes_per_s=2KiB"),
        ("--limit-change", "30:20", "30:20 B"),
    ],
)
def test_bytes_may_be_written_with_a_unit(option, plain, written, workload, device):
    arguments = ("simulate", workload, device, "--policy", "spread", option)
    assert answer_of(*arguments, written) == answer_of(*arguments, plain)


def test_thermal_steps_replace_those_of_the_profile(workload, device, tmp_path):
    heated = tmp_path / "heated.toml"
    read_device(device).model_copy(update={"thermal": (ThermalStep(after_s=30.0, factor=0.5),)}).write(heated)
    same = answer_of("simulate", workload, heated, "--policy", "lru")["makespan_s"]
    assert answer_of("simulate", workload, device, "--policy", "lru", "--thermal", "30:0.5")["makespan_s"] == same
    cool = answer_of("simulate", workload, heated, "--policy", "lru", "--thermal", "0:1")["makespan_s"]
    assert cool == answer_of("simulate", workload, device, "--policy", "lru")["makespan_s"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--thermal 5", ["--thermal '5'", "SECONDS:FACTOR"]),
        ("--thermal 5:0", ["--thermal '5:0'"]),
        ("--thermal=-1:0.5", ["--thermal '-1:0.5'"]),
        ("--thermal nan:1", ["--thermal 'nan:1'"]),
        ("--thermal 5:inf", ["--thermal '5:inf'"]),
        ("--thermal 5:1 --thermal 5:0.5", ["--thermal", "5 s"]),
        ("--limit-change 5:1.5", ["--limit-change '5:1.5'", "SECONDS:BYTES"]),
        ("--limit-change 5:0", ["--limit-change '5:0'"]),
        ("--limit-change 5:1G", ["--limit-change '5:1G'", "1.5GB"]),
        ("--limit-change inf:5", ["--limit-change 'inf:5'"]),
        ("--runs 0", ["--runs"]),
        ("--runs many", ["--runs"]),
    ],
)
def test_a_scenario_that_makes_no_sense_is_refused(options, words, workload, device):
    assert_refused(call_cidl("simulate", workload, device, "--policy", "lru", *options.split()), 2, *words)


@pytest.mark.parametrize("seed", [[], ["--seed", 7]])
@pytest.mark.parametrize("ending", ["json", "json.gz"])
def test_equal_calls_write_byte_identical_traces(ending, seed, workload, noisy_device, tmp_path):
    files = [tmp_path / f"{i}.{ending}" for i in range(2)]
    for file in files:
        answer_of("simulate", workload, noisy_device, "--policy", "lru", *seed, "--trace", file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert read_trace(files[0]).spans


def test_simulate_writes_trace_and_plot_and_trace_show_reads_the_trace_back(workload, device, tmp_path):
    trace_file, plot, second_plot = tmp_path / "deep" / "trace.json", tmp_path / "a.png", tmp_path / "b.png"
    simulated = answer_of("simulate", workload, device, "--policy", "lru", "--trace", trace_file, "--plot", plot)
    shown = answer_of("trace", "show", trace_file, "--plot", second_plot)
    assert shown == {key: value for key, value in simulated.items() if key not in ("workload", "device")}
    for picture in (plot, second_plot):
        height, width, _ = plt.imread(picture).shape
        assert height > 100
        assert width > 100


# Planning


def test_plan_prints_the_figures_of_the_contract_and_every_baseline(workload, device):
    figures = answer_of("plan", workload, device, "--policy", "sequential")
    assert figures["makespan_s"] == figures["baselines"]["sequential"] == 156
    assert list(figures["baselines"]) == list(POLICIES)
    # Beside a visit (12 bytes) 2 of the 4 blocks can stay: of visits 4, 5 and 6 one needs a load after the first four.
    assert figures["lower_bound_s"] == pytest.approx(5 * 10 + 6 * 3)
    assert figures["gap"] == pytest.approx(156 / 68 - 1)
    assert figures["proven_optimal"] is False
    assert figures["proof_scope"] == "any plan for this workload and device"
    assert figures["peak_resident_bytes"] == 17
    assert figures["file"] is None


def test_plan_without_a_policy_is_at_least_as_good_as_the_best_baseline(workload, device):
    figures = answer_of("plan", workload, device)
    fitting = [seconds for seconds in figures["baselines"].values() if seconds is not None]
    assert figures["lower_bound_s"] <= figures["makespan_s"] <= min(fitting)
    assert figures["makespan_s"] < figures["baselines"]["sequential"]
    quick = answer_of("plan", workload, device, "--time-limit", "0")
    assert quick["makespan_s"] == min(seconds for seconds in quick["baselines"].values() if seconds is not None)


def test_plan_answers_inverse_questions(workload, device):
    figures = answer_of("plan", workload, device, "--target-s", "100")
    assert figures["target_s"] == 100
    rows = {row["parameter"]: row for row in figures["least"]}
    assert set(rows) == {"memory_limit_bytes", "loader.bandwidth_bytes_per_s", "executor.flops_per_s"}
    assert rows["memory_limit_bytes"]["makespan_s"] <= 100
    outcome = call_cidl("plan", workload, device, "--target-s", "100")
    assert "100 s take" in outcome.out


def test_plan_draws_the_memory_curve(workload, device, tmp_path):
    picture = tmp_path / "curve.png"
    assert f"picture in {picture}" in call_cidl("plan", workload, device, "--memory-curve", "--plot", picture).out
    figures = answer_of("plan", workload, device, "--memory-curve", "--plot", picture)
    assert plt.imread(picture).shape[0] > 100
    curve = figures["memory_curve"]
    assert all(point["lower_bound_s"] <= point["makespan_s"] * (1 + 1e-9) for point in curve)
    assert [p["memory_limit_bytes"] for p in curve] == sorted(p["memory_limit_bytes"] for p in curve)
    assert {point["name"] for point in figures["memory_points"]} == {"feasible", "enough_memory", "zero_stall"}
    assert "makespan (s)" in call_cidl("plan", workload, device, "--memory-curve").out


def test_a_plan_that_meets_the_bound_is_proven_optimal(workload, device):
    figures = answer_of("plan", workload, device, "--set", "loader.bandwidth_bytes_per_s=10")
    assert figures["makespan_s"] == figures["lower_bound_s"] == 1 + 36
    assert figures["gap"] == 0
    assert figures["proven_optimal"] is True


@pytest.mark.parametrize("policy", [[], ["--policy", "spread"]])
def test_a_written_plan_simulates_to_its_own_makespan(policy, workload, device, tmp_path):
    file = tmp_path / "plan.json"
    planned = answer_of("plan", workload, device, *policy, "-o", file)
    assert planned["file"] == str(file)
    assert read_plan(file).makespan_s == planned["makespan_s"]
    simulated = answer_of("simulate", workload, device, "--plan", file)
    assert simulated["makespan_s"] == planned["makespan_s"]
    assert simulated["peak_resident_bytes"] == planned["peak_resident_bytes"]


def test_plan_for_several_devices_prints_a_list_and_writes_a_folder(workload, device, noisy_device, tmp_path):
    read_device(noisy_device).model_copy(update={"name": "noisy"}).write(noisy_device)
    figures = answer_of("plan", workload, device, noisy_device, "-o", tmp_path / "plans")
    assert [row["device"] for row in figures] == ["analytic", "noisy"]
    assert {path.name for path in (tmp_path / "plans").iterdir()} == {"analytic.json", "noisy.json"}
    for row in figures:
        assert read_plan(Path(row["file"])).makespan_s == row["makespan_s"]


def test_plan_explains_itself_in_sentences(workload, device):
    said = answer_of("plan", workload, device, "--policy", "spread:2")["explanation"]
    assert any(sentence.startswith("bound by ") for sentence in said)
    assert any(sentence.startswith("it retains 2 of the 4 blocks of the denoiser") for sentence in said)
    shown = " ".join(call_cidl("plan", workload, device, "--policy", "spread:2").out.split())
    assert all(f"- {sentence}" in shown for sentence in said)


def test_plan_draws_rounds_beside_the_reference_policy(workload, device, tmp_path):
    picture, alone = tmp_path / "rounds.png", tmp_path / "alone.png"
    answer_of("plan", workload, device, "--rounds-plot", picture)
    answer_of("plan", workload, device, "--policy", "on_device_sora", "--rounds-plot", alone)
    assert plt.imread(picture).shape[0] > 1.5 * plt.imread(alone).shape[0]
    assert_refused(call_cidl("plan", workload, device, device, "--rounds-plot", picture), 2, "--rounds-plot")


def test_plan_draws_its_rounds_alone_where_the_reference_policy_does_not_fit(device, tmp_path):
    # The reference rule counts on the workspace of the blocks that it retains, not on that of the part after them.
    last = Block(name="last", kind="last", weight_bytes=10, workspace_bytes=60)
    blocks = [*uniform_workload(4, 3, weight_bytes=10).stages[0].blocks, last]
    uneven, picture = tmp_path / "uneven.json", tmp_path / "rounds.png"
    Workload(name="uneven", stages=[Stage(name="denoiser", rounds=3, blocks=blocks)]).write(uneven)
    with patch("cidl_sim.report.rounds.draw_rounds") as drawn:
        options = ("--set", "memory_limit_bytes=75", "--rounds-plot", picture)
        figures = answer_of("plan", uneven, device, *options)
    assert figures["baselines"]["on_device_sora"] is None
    assert "on_device_sora does not fit this device" in figures["explanation"]
    traces, path, title = drawn.call_args.args
    assert ([label for label, _ in traces], path) == ([figures["policy"]], picture)
    assert title.endswith("(on_device_sora does not fit)")


def test_devices_of_one_name_do_not_overwrite_each_others_plans(workload, device, tmp_path):
    slower, plans = tmp_path / "slower.toml", tmp_path / "plans"
    with_value(read_device(device), "loader.bandwidth_bytes_per_s", 0.5).write(slower)
    figures = answer_of("plan", workload, device, slower, "-o", plans)
    assert [row["device"] for row in figures] == ["analytic", "analytic"]
    assert [Path(row["file"]).name for row in figures] == ["analytic.json", "analytic-2.json"]
    assert [read_plan(Path(row["file"])).makespan_s for row in figures] == [row["makespan_s"] for row in figures]
    assert figures[0]["makespan_s"] < figures[1]["makespan_s"]


def test_a_device_on_which_nothing_fits_is_a_row_that_says_why(workload, device, tmp_path):
    small = tmp_path / "small.toml"
    read_device(device).model_copy(update={"name": "small", "memory_limit_bytes": 16}).write(small)
    fits, other = answer_of("plan", workload, device, small)
    assert fits["makespan_s"] > 0
    assert (other["device"], other["makespan_s"]) == ("small", None)
    assert "'b0' needs 17 bytes" in other["infeasible"]
    shown = call_cidl("plan", workload, small, device)
    assert shown.code == 0
    table = shown.out[shown.out.index("on 2 devices") :]
    for words in ("analytic", "small", "memory limit 16", "best policy (s)", "gain", f"{fits['makespan_s']:.2f}"):
        assert words in table
    assert_refused(call_cidl("plan", workload, small, small), 3, "none of the devices", "small: ", "small-2: ")


def test_progress_names_the_device(workload, device, monkeypatch):
    names = []

    @contextmanager
    def noting(**_: object) -> Iterator[Callable[..., None]]:
        yield lambda name, *_: names.append(name)

    monkeypatch.setattr("cidl_sim.commands.plan.progress", noting)
    answer_of("plan", workload, device, device, "--target-s", "100", "--memory-curve")
    assert names
    assert all(name.endswith((" for analytic", " for analytic-2")) for name in names)
    assert {name.split()[-1] for name in names} == {"analytic", "analytic-2"}


def test_plan_chooses_the_partition_and_writes_the_workload_beside_the_plan(workload, tmp_path):
    device, file = tmp_path / "slow.toml", tmp_path / "plan.json"
    analytic_device(60, loader=Loader(bandwidth_bytes_per_s=1.0, latency_s=30.0)).write(device)
    figures = answer_of("plan", workload, device, "--partition", "auto", "--time-limit", "0", "-o", file)
    rows = {row["partition"]: row for row in figures["partitions"]}
    assert next(iter(rows)) == "as given"
    assert [name for name, row in rows.items() if row["chosen"]] == [figures["partition"]] != ["as given"]
    chosen = rows[figures["partition"]]
    assert chosen["makespan_s"] == figures["makespan_s"] < rows["as given"]["makespan_s"]
    assert chosen["largest_block_bytes"] > rows["as given"]["largest_block_bytes"]
    assert chosen["lower_bound_s"] == figures["lower_bound_s"]
    written = tmp_path / "plan.workload.json"
    assert answer_of("simulate", written, device, "--plan", file)["makespan_s"] == figures["makespan_s"]
    shown = call_cidl("plan", workload, device, "--partition", "auto", "--time-limit", "0").out
    assert f"{figures['partition']} is chosen" in shown


def test_a_partition_that_is_no_partition_is_refused(workload, device):
    assert_refused(call_cidl("plan", workload, device, "--partition", "fine"), 2, "--partition 'fine'", "auto")
    assert_refused(call_cidl("model", "build", "--store", "s", "--partition", "d0"), 2, "--partition", "'d0'")


def test_a_device_too_small_for_the_blocks_leaves_with_3_and_says_what_cut_would_fit():
    small = "memory_limit_bytes=200000"
    assert_refused(
        call_cidl("plan", TINY, "iphone-15-pro", "--set", small), 3, "needs", "no cut fits", "partition fine"
    )


# Making, running, measuring


def test_model_build_writes_a_store_that_depends_on_its_seed_alone(tmp_path):
    stores = [tmp_path / name for name in ("a", "b", "c")]
    answers = [
        answer_of("model", "build", "--store", store, "--size", "tiny", "--random", seed)
        for store, seed in zip(stores, (1, 1, 2), strict=True)
    ]
    assert (answers[0]["model"], answers[0]["dtype"]) == ("opensora-tiny", "fp32")
    first, second, other = [json.loads((store / "store.json").read_text()) for store in stores]
    assert first["blocks"] == second["blocks"]
    assert first["blocks"].keys() == other["blocks"].keys()
    assert first["blocks"] != other["blocks"]
    assert answers[0]["blocks"] == len(first["blocks"])
    assert answers[0]["bytes"] == sum(entry["data_bytes"] for entry in first["blocks"].values())


def test_a_store_of_the_chosen_partition_runs_its_plan(roomy_device, tmp_path, monkeypatch):
    run_jobs_here(monkeypatch)
    plan, store = tmp_path / "plan.json", tmp_path / "store"
    planned = answer_of("plan", TINY, roomy_device, "--partition", "auto", "--time-limit", 0, "-o", plan)
    command = planned["store_command"].replace("DIR", str(store)).split()
    assert command[0] == "cidl"
    answer_of(*command[1:])
    assert BlockStore.open(store).index.partition == planned["partition"] != "reference"
    result = answer_of("run", "--plan", plan, "--store", store, "--prompt", "a fox", "-o", tmp_path / "v.mp4")
    assert result["evaluations"] == 2


def test_a_run_whose_latent_is_not_finite_stops_at_that_step_unless_told_to_go_on(
    spoiled_store, roomy_device, tmp_path, monkeypatch
):
    run_jobs_here(monkeypatch)
    plan, video = tmp_path / "plan.json", tmp_path / "video.mp4"
    answer_of("plan", TINY, roomy_device, "--policy", "next_block", "-o", plan)
    arguments = ["run", "--plan", plan, "--store", spoiled_store, "--prompt", "a fox", "-o", video]
    outcome = call_cidl(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    said = outcome.err.splitlines()[-1]
    assert said.startswith("cidl: ")
    assert all(words in said for words in ("step 1 of 2", "are not finite", "--not-finite go-on"))
    assert not video.exists()
    answer_of(*arguments, "--not-finite", "go-on")
    assert video.exists()


def test_a_video_whose_pixels_are_not_finite_is_not_written(tiny_store, roomy_device, tmp_path, monkeypatch):
    run_jobs_here(monkeypatch)
    plan, video = tmp_path / "plan.json", tmp_path / "video.mp4"
    store = spoiled(tiny_store, tmp_path / "spoiled", "vae.spatial.part4", "conv_out.bias")
    answer_of("plan", TINY, roomy_device, "--policy", "next_block", "-o", plan)
    outcome = call_cidl("run", "--plan", plan, "--store", store, "--prompt", "a fox", "-o", video)
    assert (outcome.code, outcome.out) == (2, "")
    assert "cidl: decoder: " in outcome.err.splitlines()[-1]
    assert not video.exists()


def test_run_makes_the_video_of_a_plan_and_trace_show_reads_its_trace(tiny_store, roomy_device, tmp_path):
    plan, trace, video = tmp_path / "plan.json", tmp_path / "trace.json", tmp_path / "new" / "video.mp4"
    planned = answer_of("plan", TINY, roomy_device, "--policy", "next_block", "-o", plan)
    asked = ["--lpl-rule", "reference-app"]
    result = answer_of(
        "run", "--plan", plan, "--store", tiny_store, "--prompt", "a fox", *asked, "--trace", trace, "-o", video
    )
    assert result["video"] == str(video)
    assert result["memory_limit_bytes"] == planned["memory_limit_bytes"]
    assert result["evaluations"] == 2
    assert result["peak_resident_bytes"] <= planned["memory_limit_bytes"]
    assert (result["peak_kernel_bytes"] or 0) <= planned["memory_limit_bytes"]
    with av.open(str(video)) as container:
        shapes = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)]
    assert shapes == [(32, 32, 3)] * 17
    shown = answer_of("trace", "show", trace)
    assert shown["makespan_s"] == result["makespan_s"]
    assert (shown["origin"], shown["policy"]) == ("torch-cpu", "next_block")
    assert shown["enforced_by"] == result["enforced_by"]


@pytest.fixture(scope="module")
def measured(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """What `cidl calibrate` says about this machine, the file it wrote and the cache it filled."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        run_jobs_here(patched)
        answer = answer_of(
            "calibrate", "--store", tiny_store, "--workload", TINY, "--repeats", 1, "-o", folder / "device.toml"
        )
    return answer, folder / "device.toml", folder / "cache"


def test_calibrate_writes_a_profile_that_other_verbs_find_as_this_machine(measured, monkeypatch):
    answer, file, cache = measured
    profile = read_device(file)
    assert answer["device"] == profile.name == THIS_MACHINE
    assert answer["bandwidth_bytes_per_s"] == profile.loader.bandwidth_bytes_per_s
    kinds = {visit.block.kind for visit in find_workload(TINY).visits}
    assert set(profile.measured) == kinds
    assert answer["kinds"] == len(kinds)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert DeviceProfile.model_validate(answer_of("devices", THIS_MACHINE)) == profile


def validation_of(*arguments: object) -> dict[str, Any]:
    """What `cidl validate` says, its keys checked against the contract."""
    figures = answer_of("validate", *arguments)
    contract = "replay_error prediction_error run_to_run_spread kendall_tau peak_memory_error policies"
    assert set(contract.split()) <= set(figures)
    for error in ("replay_error", "prediction_error"):
        assert 0 <= figures[error]["mean"] <= figures[error]["max"]
    for row in figures["policies"]:
        assert row["difference"] == pytest.approx(row["simulated_makespan_s"] / row["measured_makespan_s"] - 1)
        # Which of the two loads further ahead depends on durations; both stay below the limit.
        assert max(row["measured_peak_resident_bytes"], row["peak_resident_bytes"]) <= row["memory_limit_bytes"]
        assert sum(row["shares"].values()) == pytest.approx(row["difference"], abs=0.02) or len(row["runs_s"]) > 1
    return figures


@pytest.fixture(scope="module")
def validated(tiny_store, measured, tmp_path_factory) -> tuple[dict[str, Any], Path]:
    """What `cidl validate` says of two policies, and the folder that it recorded them in."""
    _, profile, _ = measured
    out = tmp_path_factory.mktemp("validated") / "runs"
    store, workload = BlockStore.open(tiny_store), find_workload(TINY)
    limit = demo_limit(workload, read_device(profile))
    chosen = [Scenario(policy, store, workload, policy, limit) for policy in ("on_device_sora", "spread")]
    with pytest.MonkeyPatch.context() as patched:
        run_jobs_here(patched)
        patched.setattr("cidl_sim.calibration.this_machine.Calibration.round", lambda _: None)
        patched.setattr("cidl_sim.calibration.this_machine.Calibration.device", lambda _: read_device(profile))
        patched.setattr("cidl_sim.validation.campaign.choose_scenarios", lambda *_: chosen)
        figures = validation_of("--store", tiny_store, "--workload", TINY, "--repeats", 1, "-o", out)
    return figures, out


def test_validate_compares_simulated_with_measured_runs(validated):
    figures, out = validated
    assert [row["policy"] for row in figures["policies"]] == ["on_device_sora", "spread"]
    assert figures["run_to_run_spread"] is None
    assert figures["mismatches"] == []
    for row in figures["policies"]:
        assert row["runs_s"] == [read_trace(out / row["policy"] / "run-1.json.gz").makespan_s]
    assert json.loads((out / "validation.json").read_text()) == figures
    assert plt.imread(out / "validation.png").std() > 0


def test_recorded_runs_can_be_compared_again_without_the_store(validated, tmp_path):
    figures, out = validated
    again = validation_of("--traces", out, "-o", tmp_path)
    assert again == figures
    people = call_cidl("validate", "--traces", out, "-o", tmp_path)
    assert people.code == 0
    assert "Kendall's tau" in people.out


def test_a_trace_of_another_plan_is_refused(validated, tmp_path):
    _, out = validated
    shutil.copytree(out, tmp_path / "runs")
    shutil.copy(out / "spread" / "run-1.json.gz", tmp_path / "runs" / "on_device_sora")
    refused = call_cidl("validate", "--traces", tmp_path / "runs", "-o", tmp_path / "o")
    assert refused.code == 2
    assert "recorded under another plan" in refused.err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("arguments", [(), ("--store", "x", "--traces", "y")])
def test_validate_wants_a_store_or_traces(arguments):
    refused = call_cidl("validate", *arguments)
    assert refused.code == 2
    assert "either --store" in refused.err


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_validate_measures_the_machine_and_chooses_policies_that_calibration_never_saw(tiny_store, tmp_path):
    figures = validation_of("--store", tiny_store, "--repeats", 2, "--threads", 1, "-o", tmp_path / "o")
    assert figures["policies"]
    assert not {row["plan"] for row in figures["policies"]} & {"sequential", "next_block"}
    assert {len(row["runs_s"]) for row in figures["policies"]} == {2}
    assert figures["run_to_run_spread"] > 0
    assert len(read_runs(tmp_path / "o")) == len(figures["policies"])


# Refusing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nonsense", ["nonsense"]),
        ("--nonsense", ["--nonsense"]),
        ("trace nonsense", ["nonsense"]),
        ("workloads nonsense", ["nonsense", "opensora-v1.2"]),
        ("workloads opensora-tiny-8x32", ["workload 'opensora-tiny-8x32': height", "greater than or equal to 16"]),
        ("workloads opensora-tiny-wide", ["'wide'"]),
        ("workloads {folder}/none.json", ["none.json", "No such file"]),
        ("devices iphone-15-por", ["did you mean 'iphone-15-pro'?"]),
        ("workloads opensora-smal", ["did you mean 'opensora-small'?"]),
        ("simulate {workload} {device} --policy rotate", ["did you mean 'rotating'?"]),
        ("devices nonsense", ["nonsense", "iphone-15-pro"]),
        ("devices this-machine", ["this-machine", "cidl calibrate"]),
        ("devices {folder}/none.toml", ["none.toml", "No such file"]),
        ("simulate", ["WORKLOAD"]),
        ("simulate {workload}", ["DEVICE"]),
        ("simulate {workload} {device}", ["--policy", "--plan"]),
        ("simulate {workload} {device} --policy lru --plan {folder}/plan.json", ["--policy", "--plan"]),
        ("simulate {workload} {device} --policy nonsense", ["nonsense", "next_block"]),
        ("simulate {workload} {device} --policy lru:3", ["lru", "number"]),
        ("simulate {workload} {device} --policy prefix:-1", ["prefix:-1", "negative"]),
        ("simulate {workload} {device} --policy prefix:many", ["prefix:many"]),
        ("simulate {workload} {device} --polcy lru", ["--polcy"]),
        ("simulate {workload} {device} --policy lru --seed some", ["--seed"]),
        ("simulate {workload} {device} --plan {folder}/none.json", ["none.json", "No such file"]),
        ("simulate {workload} {device} --plan {workload}", ["workload.json", "cidl-plan/2"]),
        ("simulate {workload} nonsense --policy lru", ["nonsense"]),
        ("plan {workload}", ["DEVICE"]),
        ("plan {workload} {device} --policy nonsense", ["nonsense", "next_block"]),
        ("plan {workload} {device} nonsense", ["nonsense"]),
        ("plan {workload} {device} --time-limit -1", ["--time-limit"]),
        ("plan {workload} {device} --time-limit nan", ["--time-limit"]),
        ("plan {workload} {device} --target-s 0", ["--target-s"]),
        ("plan {workload} {device} --plot {folder}/c.png", ["--memory-curve"]),
        ("plan {workload} {device} {device} -o {workload}", ["-o", "must be a folder"]),
        ("plan {workload} {device} --rounds-plot {folder}/r.foo", ["--rounds-plot", "r.foo", ".png"]),
        ("plan {workload} {device} --memory-curve --plot {folder}/c.foo", ["--plot", "c.foo", ".png"]),
        ("simulate {workload} {device} --policy lru --plot {folder}/p.foo", ["--plot", "p.foo", ".svg"]),
        ("whatif {workload} {device} -o {folder}/w.foo", ["-o", "w.foo", ".pdf"]),
        ("model build", ["--store"]),
        ("model build --store {folder}/new --size huge", ["huge", "tiny"]),
        ("model build --store {folder}/new --dtype int8", ["int8", "bf16"]),
        ("run", ["--plan"]),
        ("run --plan {folder}/none.json --store {folder} --prompt p -o {folder}/v.mp4", ["none.json", "No such file"]),
        ("calibrate --store {folder} -o {folder}/d.toml", ["store.json", "cidl model build"]),
        ("validate", ["--store"]),
        ("validate --store {folder}", ["store.json", "cidl model build"]),
        ("validate --store {folder} --repeats 0", ["--repeats"]),
        ("validate --store {folder} --device abacus", ["abacus", "cuda"]),
        ("validate --traces {folder}", ["no recorded runs"]),
        ("trace show", ["file"]),
        ("trace show {folder}/none.json", ["none.json", "No such file"]),
        ("trace show {folder}/none.json.gz", ["none.json.gz", "No such file"]),
        ("trace show {workload}", ["workload.json", "cidl-trace/1"]),
        ("trace show {device} --plot {folder}/t.foo", ["--plot", "t.foo", ".png"]),
        ("trace show {device}", ["device.toml", "not JSON"]),
        ("demo", ["--out"]),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(arguments, words, workload, device, tmp_path):
    filled = arguments.format(workload=workload, device=device, folder=tmp_path).split()
    before = set(tmp_path.rglob("*"))
    assert_refused(call_cidl(*filled), 2, *words)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("loader.speed=1", ["loader.speed", "bandwidth_bytes_per_s"]),
        ("clock.rate=1", ["clock.rate"]),
        ("memory_limit=1", ["did you mean 'memory_limit_bytes'?"]),
        ("bandwidth_bytes_per_s=1", ["did you mean 'loader.bandwidth_bytes_per_s'?"]),
        ("loader.bandwith_bytes_per_s=1", ["did you mean 'loader.bandwidth_bytes_per_s'?"]),
        ("measured.nothing.load_s=1", ["nothing"]),
        ("format=1", ["format"]),
        ("loader.bandwidth_bytes_per_s", ["KEY=VALUE"]),
        ("loader.bandwidth_bytes_per_s=", ["not a number"]),
        ("loader.bandwidth_bytes_per_s=fast", ["'fast' is not a number"]),
        ("executor.flops_per_s=3.3T", ["executor.flops_per_s=3.3T", "the key names the unit"]),
        ("memory_limit_bytes=3.3G", ["memory_limit_bytes=3.3G", "not a number of bytes", "3.3GB"]),
        ("memory_limit_bytes=0.5B", ["not a whole number of bytes"]),
        ("memory_limit_bytes=-3GB", ["not a number of bytes"]),
        ("memory_limit_bytes=1.5", ["memory_limit_bytes", "fractional part"]),
        ("memory_limit_bytes=1e300", ["memory_limit_bytes"]),
        ("loader.bandwidth_bytes_per_s=1e999", ["loader.bandwidth_bytes_per_s", "finite"]),
        ("loader.bandwidth_bytes_per_s=1e-320", ["loader.bandwidth_bytes_per_s: ", "beyond the magnitudes"]),
        ("executor.flops_per_s=1e-320", ["executor.flops_per_s: ", "beyond the magnitudes"]),
        ("loader.bandwidth_bytes_per_s=NaN", ["loader.bandwidth_bytes_per_s", "finite"]),
        ("loader.bandwidth_bytes_per_s=-1", ["loader.bandwidth_bytes_per_s", "greater than 0"]),
        ("loader.latency_s=-0.5", ["loader.latency_s", "greater than or equal to 0"]),
        ("memory_limit_bytes=-1", [": memory_limit_bytes: Input should be greater than 0"]),
        ('memory_limit_bytes="much"', ["memory_limit_bytes", "integer"]),
        ("loader=5", ["loader"]),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(setting, words, workload, device):
    assert_refused(call_cidl("simulate", workload, device, "--policy", "lru", "--set", setting), 2, *words)


def test_a_plan_for_another_workload_is_refused(workload, device, tmp_path):
    other, plan = tmp_path / "other.json", tmp_path / "plan.json"
    uniform_workload(4, 5, weight_bytes=10, workspace_bytes=2, flops=3).write(other)
    answer_of("plan", other, device, "-o", plan)
    assert_refused(call_cidl("simulate", workload, device, "--plan", plan), 2, "made for workload")


def test_a_device_that_lacks_a_figure_is_refused_with_its_name(workload, device):
    outcome = call_cidl("simulate", workload, device, "--policy", "lru", "--set", "loader.bandwidth_bytes_per_s=null")
    assert_refused(outcome, 2, "analytic", "loader.bandwidth_bytes_per_s")


@pytest.mark.parametrize("command", ["simulate {workload} {device} --policy lru", "plan {workload} {device}"])
def test_a_kind_without_a_measurement_is_flagged(command, workload, device, tmp_path):
    measured = tmp_path / "measured.toml"
    read_device(device).model_copy(update={"measured": {"b": Measured(load_s=1, exec_s=1)}}).write(measured)
    for file, fall_backs in ((device, ["analytic cost for kind b"]), (measured, [])):
        filled = command.format(workload=workload, device=file).split()
        assert answer_of(*filled)["fall_backs"] == fall_backs
        assert ("analytic cost for kind b" in call_cidl(*filled).out) == bool(fall_backs)


@pytest.mark.parametrize("verb", ["simulate", "plan"])
def test_a_limit_below_one_block_names_the_block_and_what_it_needs(verb, workload, device):
    outcome = call_cidl(verb, workload, device, "--policy", "lru", "--set", "memory_limit_bytes=16")
    # weights 10 + workspace 2 + baseline 5
    assert_refused(outcome, 3, "'b0'", "17 bytes", "16 bytes", "raise the limit")


def test_a_plan_that_needs_more_than_the_device_has_says_how_much(workload, device, tmp_path):
    plan = tmp_path / "plan.json"
    answer_of("plan", workload, device, "--policy", "prefix:2", "-o", plan)
    outcome = call_cidl("simulate", workload, device, "--plan", plan, "--set", "memory_limit_bytes=20")
    assert_refused(outcome, 3, "memory limit is 20", "raise memory_limit_bytes to at least 27")


# Files that are not what they should be


WORKLOAD_DATA = uniform_workload(2, 1, weight_bytes=10).model_dump(mode="json")
DEVICE_DATA = tomllib.loads(analytic_device(40, noise=Noise(load=0.1)).to_toml())


def with_item(data: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A copy of nested data with the value at `path` replaced or added."""
    if not path:
        return value
    copy = list(data) if isinstance(data, list) else dict(data)
    inner = copy[path[0]] if len(path) > 1 else None
    copy[path[0]] = with_item(inner, path[1:], value)
    return copy


def places(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every path into nested data, the whole included."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("format",), "cidl-workload/2", ["format", "cidl-workload/1"]),
        (("name",), "", ["name"]),
        (("colour",), "red", ["colour", "Extra inputs"]),
        (("stages",), [], ["stages"]),
        (("stages", 0, "rounds"), 0, ["stages.0.rounds"]),
        (("stages", 0, "rounds"), 10**9, ["visits"]),
        (("stages", 0, "blocks", 0, "weight_bytes"), -1, ["stages.0.blocks.0.weight_bytes", "greater than or equal"]),
        (("stages", 0, "blocks", 0, "weight_bytes"), "heavy", ["stages.0.blocks.0.weight_bytes", "integer"]),
        (("stages", 0, "blocks", 0, "flops"), float("inf"), ["stages.0.blocks.0.flops", "finite"]),
        (("stages", 0, "blocks", 0, "flops"), float("nan"), ["stages.0.blocks.0.flops", "finite"]),
        (("stages", 0, "blocks", 0, "bytes_moved"), -1, ["stages.0.blocks.0.bytes_moved", "greater than or equal"]),
        (("stages", 0, "blocks", 0, "workspace_bytes"), 10**400, ["stages.0.blocks.0.workspace_bytes", "less than"]),
        (("stages", 0, "blocks", 1, "name"), "b0", ["stages.0", "duplicate block name 'b0'"]),
        (("stages", 0, "blocks", 1, "weights"), "b0", ["'b0'", "two sizes"]),
        (("stages", 0, "blocks", 1, "price"), 3, ["stages.0.blocks.1.price", "Extra inputs"]),
    ],
)
def test_a_damaged_workload_is_refused_with_its_file_and_field(path, value, words, device, tmp_path):
    damaged = WORKLOAD_DATA
    if "two sizes" in words:
        damaged = with_item(damaged, ("stages", 0, "blocks", 1, "weight_bytes"), 11)
    file = tmp_path / "damaged.json"
    file.write_text(json.dumps(with_item(damaged, path, value)))
    assert_refused(call_cidl("simulate", file, device, "--policy", "lru"), 2, str(file), *words)


def test_two_stages_of_one_name_are_refused(device, tmp_path):
    file = tmp_path / "damaged.json"
    file.write_text(json.dumps({**WORKLOAD_DATA, "stages": WORKLOAD_DATA["stages"] * 2}))
    assert_refused(
        call_cidl("simulate", file, device, "--policy", "lru"), 2, str(file), "duplicate stage name 'denoiser'"
    )


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("format",), "cidl-device/2", ["format", "cidl-device/1"]),
        (("name",), "", ["name"]),
        (("colour",), "red", ["colour", "Extra inputs"]),
        (("memory_limit_bytes",), -1, ["memory_limit_bytes", "greater than 0"]),
        (("loader", "bandwidth_bytes_per_s"), 0, ["loader.bandwidth_bytes_per_s", "greater than 0"]),
        (("loader", "speed"), 1, ["loader.speed", "Extra inputs"]),
        (("executor", "efficiency"), 1.5, ["executor.efficiency", "less than or equal to 1"]),
        (("noise", "load"), float("nan"), ["noise.load", "finite"]),
        (("noise", "execute"), float("inf"), ["noise.execute", "finite"]),
        (("memory_limit_bytes",), float("inf"), ["memory_limit_bytes", "finite"]),
        (("baseline_bytes",), -1, ["baseline_bytes", "greater than or equal to 0"]),
        (("loader", "latency_s"), float("-inf"), ["loader.latency_s", "finite"]),
        (("executor", "flops_per_s"), float("nan"), ["executor.flops_per_s", "finite"]),
        (("measured",), {"b": {"exec_s": float("inf")}}, ["measured.b.exec_s", "finite"]),
        (("thermal",), [{"after_s": -5, "factor": 1}], ["thermal.0.after_s", "greater than or equal to 0"]),
        (("thermal",), [{"after_s": 5, "factor": 0}], ["thermal.0.factor", "greater than 0"]),
        (("measured",), {"b": {"load_s": -1}}, ["measured.b.load_s", "greater than or equal to 0"]),
        (("thermal",), [{"after_s": 5, "factor": 1}, {"after_s": 5, "factor": 2}], ["after_s must increase"]),
    ],
)
def test_a_damaged_device_is_refused_with_its_file_and_field(path, value, words, workload, tmp_path):
    file = tmp_path / "damaged.toml"
    file.write_text(tomli_w.dumps(with_item(DEVICE_DATA, path, value)))
    assert_refused(call_cidl("simulate", workload, file, "--policy", "lru"), 2, str(file), *words)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("format",), "cidl-trace/2", ["format", "cidl-trace/1"]),
        (("spans", 0, "start_s"), -1, ["spans.0.start_s", "greater than or equal to 0"]),
        (("spans", 0, "end_s"), float("nan"), ["spans.0.end_s", "finite"]),
        (("spans", 0, "start_s"), 1e9, ["spans.0", "a negative duration"]),
        (("spans", 0, "visit"), 9999, ["spans.0.visit", "only 12 visits"]),
        (("header", "memory_limit_bytes"), -5, ["header.memory_limit_bytes", "greater than 0"]),
        (("header", "stages", 0, "rounds"), -1, ["header.stages.0.rounds", "greater than or equal to 1"]),
        (("header", "stages"), [], ["header.stages"]),
        (
            ("events",),
            [{"kind": "limit_changed", "at_s": 1, "values": {"limit_bytes": "x"}}],
            ["events.0.values.limit_bytes", "'x'"],
        ),
    ],
)
def test_a_damaged_trace_is_refused_with_its_file_and_field(path, value, words, workload, device, tmp_path):
    file = tmp_path / "trace.json"
    answer_of("simulate", workload, device, "--policy", "lru", "--trace", file)
    file.write_text(json.dumps(with_item(json.loads(file.read_text()), path, value)))
    assert_refused(call_cidl("trace", "show", file), 2, str(file), *words)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1", b"[" * 100_000, b"\x00"])
@pytest.mark.parametrize("verb", ["workloads", "trace show", "simulate {workload} {device} --plan"])
def test_a_file_that_is_not_json_is_refused(verb, content, workload, device, tmp_path):
    file = tmp_path / "damaged.json"
    file.write_bytes(content)
    assert_refused(call_cidl(*verb.format(workload=workload, device=device).split(), file), 2, str(file))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = ", b"a = 1\na = 2", b"\x00"])
def test_a_device_file_that_is_not_toml_is_refused(content, tmp_path):
    file = tmp_path / "damaged.toml"
    file.write_bytes(content)
    assert_refused(call_cidl("devices", file), 2, str(file))


junk = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([]) | st.just({}) | st.just([None])


@given(path=st.sampled_from(list(places(WORKLOAD_DATA))), value=junk)
def test_no_junk_in_a_workload_file_gets_past_the_reader(path, value, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "junk.json"
    file.write_text(json.dumps(with_item(WORKLOAD_DATA, path, value)))
    outcome = call_cidl("workloads", file, "--json")
    if outcome.code == 0:
        assert Workload.model_validate(outcome.data) == read_workload(file)
    else:
        assert_refused(outcome, 2, str(file))


@given(
    path=st.sampled_from([p for p in places(DEVICE_DATA) if p]), value=junk.filter(lambda v: v not in (None, [None]))
)
def test_no_junk_in_a_device_file_gets_past_the_reader(path, value, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "junk.toml"
    file.write_text(tomli_w.dumps(with_item(DEVICE_DATA, path, value)))
    outcome = call_cidl("devices", file, "--json")
    if outcome.code == 0:
        assert DeviceProfile.model_validate(outcome.data) == read_device(file)
    else:
        assert_refused(outcome, 2, str(file))


# Output that cannot be written


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes: what a full disk looks like."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def a_folder_has_the_name(target: Path) -> None:
    target.mkdir(parents=True)


def a_file_is_in_the_way(target: Path) -> None:
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    target.parent.write_text("in the way")


@pytest.mark.parametrize("obstacle", [a_folder_has_the_name, a_file_is_in_the_way])
@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("simulate {workload} {device} --policy lru --trace", "trace.json"),
        ("simulate {workload} {device} --policy lru --trace", "trace.json.gz"),
        ("simulate {workload} {device} --policy lru --plot", "plot.png"),
        ("plan {workload} {device} -o", "plan.json"),
    ],
)
def test_output_that_cannot_be_written_is_the_environments_fault(
    command, name, obstacle: Callable[[Path], None], workload, device, tmp_path
):
    target = tmp_path / "out" / name
    obstacle(target)
    before = set(tmp_path.rglob("*"))
    outcome = call_cidl(*command.format(workload=workload, device=device).split(), target)
    assert_refused(outcome, 4, str(target), "cannot be written")
    assert set(tmp_path.rglob("*")) == before


def test_a_folder_of_plans_cannot_replace_a_file(workload, device, tmp_path):
    target = tmp_path / "plan.json"
    target.write_text("in the way")
    assert_refused(call_cidl("plan", workload, device, device, "-o", target), 2, "plan.json", "must be a folder")
    assert target.read_text() == "in the way"


def test_a_full_disk_leaves_no_half_trace_and_the_old_one_as_it_was(workload, device, tmp_path):
    fresh, old = tmp_path / "fresh.json", tmp_path / "old.json"
    old.write_text("as it was")
    before = set(tmp_path.rglob("*"))
    for target in (fresh, old):
        with largest_file(256):
            outcome = call_cidl("simulate", workload, device, "--policy", "lru", "--trace", target)
        assert_refused(outcome, 4, str(target), "File too large")
    assert set(tmp_path.rglob("*")) == before
    assert old.read_text() == "as it was"


def test_a_full_disk_leaves_no_store(tmp_path):
    with largest_file(50_000):
        outcome = call_cidl("model", "build", "--store", tmp_path / "store", "--size", "tiny")
    assert outcome.code == 4
    assert outcome.err.splitlines()[-1].endswith("cannot be written (File too large)")
    assert not (tmp_path / "store" / "store.json").exists()
    assert all(path.stat().st_size < 50_000 for path in (tmp_path / "store").iterdir())


# As a command of its own


def run_as_a_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cidl_sim.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_prints_what_a_call_in_this_process_prints(workload, device):
    arguments = ("simulate", workload, device, "--policy", "lru", "--json")
    done = run_as_a_command(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == call_cidl(*arguments).out


@pytest.mark.parametrize(
    ("setting", "code"),
    [("loader.speed=1", 2), ("memory_limit_bytes=16", 3)],
)
def test_the_command_leaves_with_the_documented_exit_code(setting, code, workload, device):
    done = run_as_a_command("simulate", workload, device, "--policy", "lru", "--set", setting)
    assert_refused(Outcome(done.returncode, done.stdout, done.stderr), code)


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_a_signal_leaves_one_line_and_its_exit_code(raised, code, workload, device):
    with patch("cidl_sim.commands.simulate.find_workload", side_effect=raised):
        assert_refused(call_cidl("simulate", workload, device, "--policy", "lru"), code)


def test_the_help_names_every_verb():
    done = run_as_a_command("--help")
    assert done.returncode == 0
    for verb in app.commands:
        assert verb in done.stdout


# The user's own modules


@pytest.fixture
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current folder; its name."""
    source = "import torch\ndef f():\n    return [torch.nn.Linear(50, 50) for _ in range(6)], torch.empty(2, 50)\n"
    (tmp_path / "users_own_module.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "users_own_module", raising=False)
    return "users_own_module:f"


def test_a_workload_from_a_torch_module_can_be_simulated(users_module, tmp_path):
    layer = 4 * (50 * 50 + 50)
    made = answer_of(
        "workloads", "--from-torch", users_module, "--block-limit", 2 * layer, "--rounds", 5, "-o", "w.json"
    )
    workload = read_workload(tmp_path / "w.json")
    assert Workload.model_validate(made) == workload
    assert [block.weight_bytes for block in workload.stages[0].blocks] == [2 * layer] * 3
    in_kilobytes = f"{2 * layer / 1000}kB"
    written = answer_of("workloads", "--from-torch", users_module, "--block-limit", in_kilobytes, "--rounds", 5)
    assert written == made
    assert workload.stages[0].rounds == 5
    assert answer_of("simulate", "w.json", "iphone-15-pro", "--policy", "spread")["makespan_s"] > 0


def test_what_a_users_module_prints_leaves_the_json_alone(tmp_path, monkeypatch):
    source = (
        "import os, torch\nprint('imported')\n"
        "def f():\n    print('built')\n    os.write(1, b'from below\\n')\n"
        "    return torch.nn.Linear(8, 8), torch.empty(1, 8)\n"
    )
    (tmp_path / "module_that_prints.py").write_text(source)
    command = [sys.executable, "-m", "cidl_sim.cli", "workloads", "--from-torch", "module_that_prints:f", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(done.stdout)["stages"][0]["blocks"][0]["weight_bytes"] == 4 * 72
    assert done.stderr.splitlines() == ["imported", "built", "from below"]


def test_blocks_smaller_than_a_layer_are_infeasible(users_module):
    outcome = call_cidl("workloads", "--from-torch", users_module, "--block-limit", 100)
    assert outcome.code == 3
    assert "blocks may have 100" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [("--depth", "2"), ("opensora-tiny", "--from-torch", "a:b"), ("-o", "x.json"), ("--from-torch", "no_such_thing")],
)
def test_options_of_workloads_that_do_not_go_together_are_refused(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = call_cidl("workloads", *arguments)
    assert outcome.code == 2
    assert outcome.err.startswith("cidl: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", PICTURES)
def test_every_ending_that_is_offered_can_be_drawn(ending, workload, device, tmp_path):
    picture = tmp_path / f"timeline{ending}"
    answer_of("simulate", workload, device, "--policy", "lru", "--plot", picture)
    assert picture.stat().st_size > 0


def test_an_empty_prompt_is_refused_before_the_store_is_opened(workload, device, tmp_path):
    plan = tmp_path / "plan.json"
    answer_of("plan", workload, device, "--policy", "lru", "-o", plan)
    arguments = ["run", "--plan", plan, "--store", tmp_path / "none", "-o", tmp_path / "v.mp4", "--prompt", " "]
    assert_refused(call_cidl(*arguments), 2, "prompt is empty")


@pytest.mark.parametrize("arguments", [(), ("trace",), ("model",)])
def test_a_group_without_a_verb_prints_its_help_alone(arguments):
    outcome = call_cidl(*arguments)
    assert outcome.code == 2
    assert "Commands" in outcome.out
    assert outcome.err == ""
