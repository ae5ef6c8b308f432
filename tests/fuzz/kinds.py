"""Every kind of file that the package reads: how a good one is made, how it is damaged, and what reads it."""

from __future__ import annotations

import io
import json
import random
import shlex
import struct
import sys
import tomllib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
import tomli_w
import torch
from conformance_cases.records import read_case
from safetensors.torch import save

from cidl_sim.cli import _exit_code
from cidl_sim.core.device import DeviceProfile, Executor, Loader, Measured, Noise, ThermalStep, read_device
from cidl_sim.core.errors import CidlError
from cidl_sim.core.plan import read_plan
from cidl_sim.core.trace import Trace, read_trace
from cidl_sim.core.workload import Workload, read_workload
from cidl_sim.coreml.packages import Packages
from cidl_sim.executor.saved_run import read_run, save_run
from cidl_sim.executor.store import BlockStore, write_store
from cidl_sim.mil.program import read_package
from cidl_sim.pipelines.checkpoint import Checkpoint
from cidl_sim.planner.bounds import quick_bound_s
from cidl_sim.policies.catalog import make_plan
from cidl_sim.recordings.instruments import read_recording
from cidl_sim.recordings.recorded_run import recorded_plan, trace_of_recording
from cidl_sim.report.trace_export import export_trace
from cidl_sim.simulator.engine import simulate
from cidl_sim.sweep import results
from cidl_sim.sweep.spec import make_sweep, parse_values, read_axes
from tests.coreml.by_hand import manifest_by_hand
from tests.fuzz import mutations
from tests.recordings.instruments_xml import core_ml_of, signposts_of

ROOT = Path(__file__).parent.parent.parent


class InternalFaultError(Exception):
    """The command line met an exception that nobody had foreseen."""


@dataclass(frozen=True)
class Kind:
    """A kind of input. `make` writes good files into a folder, of which `target` is damaged; `use` reads them."""

    name: str
    make: Callable[[Path], None]
    target: str
    damage: mutations.Mutation
    use: Callable[[Path], object]
    share: float = 1.0  # of the inputs that others get: what takes long gets fewer


@cache
def workload() -> Workload:
    """Two stages of three blocks each."""
    block = {"weight_bytes": 10, "workspace_bytes": 2, "flops": 6.0, "bytes_moved": 3.0}
    stages = [
        {
            "name": name,
            "group": name,
            "rounds": rounds,
            "blocks": [{"name": f"{name}.{i}", "kind": f"k.{name}.fp32", **block} for i in range(3)],
        }
        for name, rounds in (("encoder", 1), ("denoiser", 4))
    ]
    return Workload.model_validate({"name": "w", "settings": {"dtype": "fp32", "steps": 4}, "stages": stages})


@cache
def device() -> DeviceProfile:
    """With a figure of every kind."""
    return DeviceProfile(
        name="d",
        memory_limit_bytes=45,
        baseline_bytes=5,
        loader=Loader(bandwidth_bytes_per_s=2.0, latency_s=0.1, slowdown_while_executing=1.2),
        executor=Executor(flops_per_s=3.0, memory_bandwidth_bytes_per_s=9.0, launch_s=0.01, threads=1),
        measured={"k.denoiser": Measured(load_s=2, cold_load_s=3, exec_s=4, weight_bytes=9, flops=5, bytes_moved=2)},
        noise=Noise(load=0.1, execute_drift=0.1),
        thermal=(ThermalStep(after_s=5, factor=0.8),),
    )


def _simulated(w: Workload, d: DeviceProfile) -> None:
    plan = make_plan("next_block", w, d)
    simulate(w, d, plan, seed=1)
    quick_bound_s(w, d)


def _small(w: Workload) -> bool:
    return len(w.visits) <= 2000


def _use_workload(folder: Path) -> None:
    found = read_workload(folder / "workload.json")
    if _small(found):
        _simulated(found, device())


def _use_plan(folder: Path) -> None:
    plan = read_plan(folder / "plan.json")
    plan.check_workload(workload())
    simulate(workload(), device(), plan)


def _make_trace(folder: Path) -> None:
    simulate(workload(), device(), make_plan("lru", workload(), device())).write(folder / "trace.json")


def _use_trace(path: Path) -> None:
    trace = read_trace(path)
    trace.summary()
    export_trace(trace, "chrome", path.with_name("chrome.json"))
    export_trace(trace, "perfetto", path.with_name("trace.pftrace"))


def _make_store(folder: Path) -> None:
    tensors = {"a": torch.ones(3, 4), "b": torch.zeros(5)}
    blocks = [(name, lambda: tensors) for name in ("x", "y")]
    write_store(
        folder, blocks, name="m", dtype="fp32", source="s", model={"name": "m"}, pipeline="open_sora"
    )  # fmt: skip


def _use_store(folder: Path) -> None:
    store = BlockStore.open(folder)
    for weights in store.index.blocks:
        store.layout(weights)


def _make_checkpoint(folder: Path) -> None:
    names = {}
    for number in (1, 2):
        file = f"model-{number:05}-of-00002.safetensors"
        names |= {f"layer.{number}.weight": file, f"layer.{number}.bias": file}
        tensors = {f"layer.{number}.weight": torch.ones(3, 4), f"layer.{number}.bias": torch.zeros(3)}
        (folder / file).write_bytes(save(tensors, {"format": "pt"}))
    index = {"metadata": {"total_size": 120}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _use_checkpoint(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    for key in checkpoint.shapes:
        checkpoint.tensor(key)


def _make_packages(folder: Path) -> None:
    (folder / "manifest.json").write_text(manifest_by_hand().model_dump_json())


def _make_program(folder: Path) -> None:
    from tests.coreml.converted import convert

    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    convert(module, (torch.ones(1, 4),), folder / "m.mlpackage")


def _make_instruments(folder: Path) -> None:
    trace = simulate(workload(), device(), make_plan("next_block", workload(), device()))
    (folder / "signposts.xml").write_text(signposts_of(trace))
    (folder / "coreml.xml").write_text(
        core_ml_of(trace, {visit.number: visit.block.weights for visit in workload().visits})
    )


def _use_instruments(file: Path) -> None:
    recording = read_recording([file], workload())
    trace_of_recording(recording, workload(), recorded_plan(recording, workload(), device()))


_SWEEP = {
    "format": "cidl-sweep/1",
    "axes": {
        "policy": ["lru", "spread"],
        "retained": "0..3",
        "memory_limit_bytes": "30..60/4",
        "loader.bandwidth_bytes_per_s": [1.0, 2e9],
        "steps": [4, 6],
    },
    "sample": {"method": "lhs", "points": 10, "seed": 1},
}


def _use_sweep(folder: Path) -> None:
    axes, sample = read_axes(folder / "sweep.toml")
    for name, values in axes.items():
        parse_values(name, values)
    make_sweep(["opensora-tiny"], ["iphone-15-pro"], axes, sample=sample)


def _make_results(folder: Path) -> None:
    sweep = make_sweep(["opensora-tiny"], ["iphone-15-pro"], {"policy": ["lru"]})
    results.open_folder(folder, sweep, "0" * 64)
    rows = {"index": [0, 1], "workload": ["a", "a"], "device": ["d", "d"], "makespan_s": [1.0, 2.0]}
    pl.DataFrame(rows).write_parquet(folder / results.part_name(0))


def _use_results(folder: Path) -> None:
    results.read_sweep(folder)
    results.row_at(folder, 1)


IDENTITY = {"workload": "w" * 64, "seed": 3, "prompts": ["a"]}


def _make_saved_run(folder: Path) -> None:
    save_run(folder / "run.saved", IDENTITY, 0, 7, ({"z": torch.ones(2, 3)}, {"evaluations": 2}))


def _make_prompts(folder: Path) -> None:
    (folder / "prompts.txt").write_text("a red ball\n\na blue ball\n", encoding="utf-8")
    tiny = _tiny()
    make_plan("next_block", tiny, _roomy()).write(folder / "plan.json")


@cache
def _tiny() -> Workload:
    from cidl_sim.pipelines.catalog import find_workload

    return find_workload("opensora-tiny-32x32-17f-6s-fp32-99p")


@cache
def _roomy() -> DeviceProfile:
    return device().model_copy(update={"memory_limit_bytes": 10**9, "measured": {}})


def _use_prompts(folder: Path) -> None:
    # For 99 prompts: whatever the file holds now, the run is refused once it was read.
    run_cidl(
        ["run", "--plan", folder / "plan.json", "--store", folder, "--prompts", folder / "prompts.txt", "-o", "x.mp4"]
    )


def run_cidl(words: list[Any]) -> str:
    """A call of the command line in this process. InternalFaultError where it calls its end one."""
    out, err = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", ["cidl", *map(str, words)]), redirect_stdout(out), redirect_stderr(err):
        code = _exit_code()
    said = err.getvalue()
    if code == 1 or "Traceback" in said:
        raise InternalFaultError(said)
    if code != 0 and said.count("cidl: ") != 1:
        raise InternalFaultError(f"exit code {code} without one line that says why: {said!r}")
    return out.getvalue()


_COMMANDS = (
    "workloads opensora-small --json",
    "devices iphone-15-pro --json",
    "simulate WORKLOAD DEVICE --policy prefix:2 --seed 3 --json",
    "simulate WORKLOAD DEVICE --policy lru --set loader.bandwidth_bytes_per_s=5e8 --json",
    "simulate WORKLOAD DEVICE --policy spread --set memory_limit_bytes=3.3GB --runs 5 --json",
    "simulate WORKLOAD DEVICE --policy next_block --limit-at 3=30 --json",
    "plan WORKLOAD DEVICE --policy spread:denoiser=2 --json",
    "trace show nothing.json --json",
    "sweep WORKLOAD DEVICE --axis policy=lru,spread --axis retained=0..3 --json",
)


def _make_options(folder: Path) -> None:
    workload().write(folder / "workload.json")
    device().write(folder / "device.toml")
    (folder / "command.txt").write_text(json.dumps(shlex.split(_COMMANDS[2])))


def _damaged_command(_: bytes, chance: random.Random) -> bytes:
    words = shlex.split(chance.choice(_COMMANDS))
    for _ in range(chance.choice((1, 1, 2))):
        at = chance.randrange(1, len(words))
        match chance.randrange(5):
            case 0:
                words[at] = chance.choice(mutations.TEXTS)
            case 1:
                words[at] = str(chance.choice(mutations.VALUES))
            case 2:
                words.insert(at, words[at])
            case 3:
                del words[at]
            case _:
                text = mutations.of_text(words[at].encode(), chance)
                words[at] = text.decode("utf-8", "replace")
        if len(words) < 2:
            break
    return json.dumps([word.replace("\0", "") for word in words]).encode("utf-8", "surrogatepass")


def _use_options(folder: Path) -> None:
    words = json.loads((folder / "command.txt").read_bytes().decode("utf-8", "surrogatepass"))
    places = {"WORKLOAD": folder / "workload.json", "DEVICE": folder / "device.toml"}
    words = [places.get(word, word) for word in words if word not in ("-o", "--plot", "--runs")]
    run_cidl([*words, "--time-limit", "0.2"] if words[:1] == ["plan"] else words)


def _of_toml(data: bytes, chance: random.Random) -> bytes:
    match chance.randrange(10):
        case 0 | 1:
            return mutations.of_bytes(data, chance)
        case 2 | 3 | 4:
            return mutations.of_text(data, chance)
        case _:
            document = mutations.of_document(tomllib.loads(data.decode()), chance)
            try:
                text = tomli_w.dumps(document)
            except (TypeError, ValueError, AttributeError):
                return mutations.of_text(data, chance)
            return ("\ufeff" if chance.random() < 0.05 else "").encode() + text.encode("utf-8", "replace")


def _of_safetensors(data: bytes, chance: random.Random) -> bytes:
    """The length of the header, what it says, or bytes anywhere."""
    (length,) = struct.unpack("<Q", data[:8])
    match chance.randrange(5):
        case 0:
            return (
                struct.pack("<Q", chance.choice((0, 1, 7, length - 1, length + 1, 2**31, 2**60, 2**64 - 1))) + data[8:]
            )
        case 1 | 2:
            text = mutations.of_json(data[8 : 8 + length].strip(), chance)
            return struct.pack("<Q", len(text)) + text + data[8 + length :]
        case 3:
            return data[: chance.randrange(len(data))]
        case _:
            return mutations.of_bytes(data, chance)


_BOMB = (
    '<?xml version="1.0"?><!DOCTYPE z [<!ENTITY a "aaaaaaaaaaaaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
    + "]><trace-query-result><node>&j;</node></trace-query-result>"
)


def _of_xml(data: bytes, chance: random.Random) -> bytes:
    match chance.randrange(40):
        case 0:
            return _BOMB.encode()
        case 1:
            return b"<trace-query-result>" + b"<node>" * 50_000
        case n if n < 12:
            return mutations.of_bytes(data, chance)
        case _:
            return mutations.of_text(data, chance)


def _of_gzip(data: bytes, chance: random.Random) -> bytes:
    import gzip

    return mutations.gzipped(mutations.of_json(gzip.decompress(data), chance), chance)


def _make_gzipped_trace(folder: Path) -> None:
    trace: Trace = simulate(workload(), device(), make_plan("lru", workload(), device()))
    trace.write(folder / "trace.json.gz")


KINDS: tuple[Kind, ...] = (
    Kind(
        "workload",
        lambda f: workload().write(f / "workload.json"),
        "workload.json",
        mutations.of_json,
        _use_workload,
    ),
    Kind(
        "device",
        lambda f: device().write(f / "device.toml"),
        "device.toml",
        _of_toml,
        lambda f: _simulated(workload(), read_device(f / "device.toml")),
    ),
    Kind(
        "plan",
        lambda f: make_plan("lru", workload(), device()).write(f / "plan.json"),
        "plan.json",
        mutations.of_json,
        _use_plan,
    ),
    Kind("trace", _make_trace, "trace.json", mutations.of_json, lambda f: _use_trace(f / "trace.json")),
    Kind("trace, gzip", _make_gzipped_trace, "trace.json.gz", _of_gzip, lambda f: _use_trace(f / "trace.json.gz")),
    Kind("store", _make_store, "store.json", mutations.of_json, _use_store),
    Kind("block", _make_store, "x.safetensors", _of_safetensors, _use_store),
    Kind("index of shards", _make_checkpoint, "model.safetensors.index.json", mutations.of_json, _use_checkpoint),
    Kind("shard", _make_checkpoint, "model-00001-of-00002.safetensors", _of_safetensors, _use_checkpoint),
    Kind("manifest", _make_packages, "manifest.json", mutations.of_json, Packages.open),
    Kind(
        "program",
        _make_program,
        "m.mlpackage/Data/com.apple.CoreML/model.mlmodel",
        mutations.of_bytes,
        lambda f: read_package(f / "m.mlpackage"),
    ),
    Kind(
        "package",
        _make_program,
        "m.mlpackage/Manifest.json",
        mutations.of_json,
        lambda f: read_package(f / "m.mlpackage"),
    ),
    Kind("signposts", _make_instruments, "signposts.xml", _of_xml, lambda f: _use_instruments(f / "signposts.xml")),
    Kind("Core ML's table", _make_instruments, "coreml.xml", _of_xml, lambda f: _use_instruments(f / "coreml.xml")),
    Kind(
        "sweep",
        lambda f: (f / "sweep.toml").write_text(tomli_w.dumps(_SWEEP)) and None,
        "sweep.toml",
        _of_toml,
        _use_sweep,
    ),
    Kind("results", _make_results, results.part_name(0), mutations.of_bytes, _use_results),
    Kind("what was swept", _make_results, results.SWEEP_FILE, mutations.of_json, _use_results),
    Kind("saved run", _make_saved_run, "run.saved", _of_safetensors, lambda f: read_run(f / "run.saved", IDENTITY)),
    Kind("prompts", _make_prompts, "prompts.txt", mutations.of_bytes, _use_prompts, share=0.2),
    Kind(
        "conformance case",
        lambda f: (
            (f / "case.json").write_bytes(next(iter(sorted((ROOT / "conformance/cases").glob("*.json")))).read_bytes())
            and None
        ),
        "case.json",
        mutations.of_json,
        lambda f: read_case(f / "case.json"),
    ),
    Kind("options", _make_options, "command.txt", _damaged_command, _use_options),
)

FORESEEN = (CidlError,)
