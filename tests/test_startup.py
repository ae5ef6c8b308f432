"""What is imported when, and what is said where an extra is not installed. Nothing is timed here."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
from typer.core import TyperGroup

import cidl_sim
from cidl_sim.cli import Verb, app
from cidl_sim.core.errors import MachineError
from cidl_sim.core.extras import EXTRAS, missing_extra
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.executor.job import Job
from cidl_sim.planner.planner import best_plan
from cidl_sim.policies.catalog import make_plan
from tests.conftest import analytic_device, uniform_workload
from tests.test_cli import call_cidl

ROOT = Path(__file__).parents[1]
# Slow to import, and of no use to most verbs.
HEAVY = {"matplotlib", "networkx", "numba", "numpy", "plotly", "polars", "pyarrow", "scipy", "simpy", *EXTRAS}
# Calls verbs one after another; says after each how it ended and what has been imported by then.
SCRIPT = """
import importlib.abc, io, json, sys
from contextlib import redirect_stderr, redirect_stdout

calls, refused = json.loads(sys.argv[1])

class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
from cidl_sim.cli import _exit_code
for call in calls:
    sys.argv, out, err = ["cidl", *call], io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = _exit_code()
    loaded = sorted({name.partition(".")[0] for name in sys.modules})
    print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue(), "loaded": loaded}))
"""


@dataclass(frozen=True)
class Called:
    """How a verb ended, and the top-level modules that were imported by then."""

    code: int
    out: str
    err: str
    loaded: frozenset[str]


def call_in_a_new_process(calls: Iterable[Sequence[object]], refused: Iterable[str] = ()) -> list[Called]:
    """Some verbs, one after another in one process that cannot import what is refused."""
    asked = json.dumps([[[str(word) for word in call] for call in calls], sorted(refused)])
    done = subprocess.run([sys.executable, "-c", SCRIPT, asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [Called(row["code"], row["out"], row["err"], frozenset(row["loaded"])) for row in rows]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A workload of twelve visits, and a device that holds three of its four blocks."""
    workload, device = tmp_path / "workload.json", tmp_path / "device.toml"
    uniform_workload(4, 3, weight_bytes=10, workspace_bytes=2, flops=3).write(workload)
    analytic_device(40, baseline_bytes=5).write(device)
    return workload, device


# The names of the package


def test_the_package_imports_nothing_until_a_name_is_asked_for():
    code = "import sys; before = set(sys.modules); import cidl_sim; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cidl_sim"]


def test_every_name_can_be_imported_and_is_listed():
    for name in cidl_sim.__all__:
        assert getattr(cidl_sim, name) is not None
    assert set(cidl_sim.__all__) < set(dir(cidl_sim))
    with pytest.raises(AttributeError, match="has no attribute 'simulat'"):
        _ = cidl_sim.simulat


def test_type_checkers_are_given_the_names_that_there_are():
    stub = ast.parse((ROOT / "cidl_sim" / "__init__.pyi").read_text())
    imports = [statement for statement in stub.body if isinstance(statement, ast.ImportFrom)]
    given = {alias.asname: (statement.module, alias.name) for statement in imports for alias in statement.names}
    assert sorted(given) == sorted(cidl_sim.__all__)
    for name, (module, original) in given.items():
        assert getattr(cidl_sim, name) is getattr(sys.modules[str(module)], original)


# What a verb imports


def test_verbs_import_only_what_they_need():
    light, devices, plan = call_in_a_new_process(
        [
            ["--help"],
            ["devices"],
            ["plan", "opensora-small-48x48-lpl15-tdtm8", "iphone-15-pro", "--time-limit", "0", "--json"],
        ]
    )
    assert (light.code, devices.code, plan.code) == (0, 0, 0), plan.err
    assert not light.loaded & {"pydantic", *HEAVY}
    assert not devices.loaded & HEAVY
    assert not plan.loaded & {"matplotlib", "plotly", "polars", "pyarrow", *EXTRAS}
    assert json.loads(plan.out)["workload"].startswith("opensora-small-48x48")


def verbs_of(group: TyperGroup) -> Iterable[Verb]:
    for command in group.commands.values():
        if isinstance(command, TyperGroup):
            yield from verbs_of(command)
        else:
            assert isinstance(command, Verb)
            yield command


@pytest.mark.parametrize("verb", list(verbs_of(app)), ids=lambda verb: verb.name)
def test_the_list_of_verbs_says_what_a_verbs_own_help_says(verb):
    command = verb.loaded()
    assert command.name == verb.name
    assert " ".join(command.help.partition("\n\n")[0].split()) == verb.help


# Extras


def test_planning_and_simulating_need_no_extra(files, tmp_path):
    plan, rows, page = tmp_path / "plan.json", tmp_path / "rows.parquet", tmp_path / "page"
    calls = [
        ["--help"],
        ["policies"],
        ["devices", "iphone-15-pro"],
        ["workloads", "opensora-v1.2"],
        ["plan", *files, "--time-limit", 0, "-o", plan],
        ["simulate", *files, "--policy", "lru"],
        ["simulate", *files, "--plan", plan],
        ["whatif", *files],
        ["sweep", *files, "--axis", "memory_limit_bytes=30,40", "-o", rows],
        ["report", plan, *files, "-o", page],
        ["report", rows, "-o", page],
        ["coreml", "cost", *files],
    ]
    for call, called in zip(calls, call_in_a_new_process(calls, EXTRAS), strict=True):
        assert called.code == 0, (call, called.err)
        assert not called.loaded & EXTRAS.keys(), call


def test_a_missing_extra_is_one_line_that_names_it(files, tiny_store, tmp_path, monkeypatch):
    plan, store = tmp_path / "plan.json", tmp_path / "store"
    # Of its own: there another test may have left the workload that has to be measured here.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    called = call_in_a_new_process(
        [
            ["plan", "opensora-small-48x48-lpl15-tdtm8", "iphone-15-pro", "--policy", "lru", "-o", plan],
            ["model", "build", "--store", store],
            ["calibrate", "--store", tiny_store, "-o", tmp_path / "device.toml"],
            ["workloads", "opensora-tiny"],
            ["demo", "--out", tmp_path / "demo"],
            ["sweep", *files, "--workers", 2, "-o", tmp_path / "rows.parquet"],
        ],
        EXTRAS,
    )
    assert called[0].code == 0, called[0].err
    for refused in called[1:-1]:
        assert (refused.code, refused.out) == (4, "")
        assert refused.err.endswith(" is not installed: pip install 'cidl-sim[run]'\n")
        assert refused.err.startswith("cidl: ")
        assert refused.err.count("\n") == 1
    assert called[-1].code == 4
    assert called[-1].err == "cidl: distributed is not installed: pip install 'cidl-sim[cluster]'\n"


def test_a_missing_module_of_no_extra_is_an_internal_fault():
    with patch("cidl_sim.devices.catalog.shipped_devices", side_effect=ModuleNotFoundError("no xyz", name="xyz")):
        outcome = call_cidl("devices")
    assert outcome.code == 1
    assert outcome.err.startswith("cidl: internal fault: ModuleNotFoundError: no xyz")


def test_every_extra_that_is_named_is_one_of_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) == {"run", "coreml", "cluster", "exact"}
    assert extras["all"] == ["cidl-sim[run,coreml,cluster,exact]"]
    assert set(EXTRAS.values()) < extras.keys()


def test_a_part_of_a_library_is_of_its_extra():
    missing = missing_extra(ModuleNotFoundError("no module", name="torch.nn.functional"))
    assert isinstance(missing, MachineError)
    assert str(missing) == "torch is not installed: pip install 'cidl-sim[run]'"
    assert missing_extra(ModuleNotFoundError("no module")) is None


def test_a_run_imports_no_model_library():
    # They would take memory of the limit that the run is under, and seconds (experiments/startup.py).
    code = (
        "import sys, cidl_sim.worker.child, cidl_sim.pipelines.open_sora.program; "
        "from cidl_sim.pipelines.model_store import distinct_blocks; "
        "from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY; "
        "[block.build() for block in distinct_blocks(OPENSORA_TINY, 'fp32')]; "
        "print({'transformers', 'diffusers', 'scipy', 'pandas'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_worker_that_misses_a_library_says_so(tmp_path):
    workload, device = uniform_workload(2, 1), analytic_device(10)
    job = Job(plan=make_plan("lru", workload, device), store="store", prompts=("a cat",), outputs=(), seed=0)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    code = (
        "import sys; from cidl_sim.worker import child as worker; sys.modules['av'] = None; "
        "worker.do = lambda *_: __import__('av'); sys.exit(worker.main())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    message = {"error": "av is not installed: pip install 'cidl-sim[run]'", "exit_code": 4}
    assert json.loads(done.stdout) == message


def test_a_plan_is_made_without_the_exact_model_and_says_so(monkeypatch):
    # No unit divides these durations, so what is left open goes to the solver of an extra.
    blocks = [
        Block(name=f"b{i}", kind=f"k{i}", weight_bytes=3 + i, flops=f) for i, f in enumerate((0.618034, 3.141593))
    ]
    workload = Workload(name="w", stages=[Stage(name="s", rounds=4, blocks=blocks)])
    # Parts of it that another test has imported would be found although the whole is missing.
    loaded = [name for name in sys.modules if name.partition(".")[0] == "ortools"]
    for name in ("ortools", *loaded):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("cidl_sim.planner.planner.search", lambda *_, **__: (None, math.inf))
    # Nothing here takes time; a limit that a slow machine reaches would leave the exact model out for another reason.
    found = best_plan(workload, analytic_device(5), time_limit_s=60)
    missing = "ortools is not installed: pip install 'cidl-sim[exact]'"
    assert found.notes == (f"the exact model of small workloads was left out: {missing}",)
