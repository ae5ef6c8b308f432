"""Packages run by the interpreter and by Core ML: one contract for both, then the whole pipeline under plans.

The half about Core ML needs macOS and is skipped elsewhere. "stand-in" is what is ours of that half, over a stand-in
for the library that interprets: it says nothing about Core ML.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cidl_sim.core.errors import InputError, MachineError, PackageError, PlanError
from cidl_sim.core.feasibility import largest_need
from cidl_sim.core.plan import read_plan
from cidl_sim.core.trace import read_trace
from cidl_sim.core.workload import read_workload
from cidl_sim.coreml import macos
from cidl_sim.coreml.backend import compiled_path, runner_for
from cidl_sim.coreml.check import relative_error
from cidl_sim.coreml.check_export import example_input
from cidl_sim.coreml.packages import Packages
from cidl_sim.executor.job import Job
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import parse_name, workload_of
from cidl_sim.pipelines.open_sora.settings import OPENSORA_SMALL
from cidl_sim.pipelines.variants import variants_of
from cidl_sim.policies.catalog import make_plan
from cidl_sim.quality.scores import frame_ssim
from cidl_sim.sampling.linear_proportional_leap import StoppingRule
from cidl_sim.worker.sources import PackageSource, StoreSource, open_source
from tests.conftest import analytic_device
from tests.coreml.nano import NANO, SETTINGS, StandIn, build_store_and_export, install, named_nano
from tests.in_process import do_here, run_jobs_here
from tests.test_cli import ROOM_FOR_THE_PROCESS, answer_of, assert_refused, call_cidl

# The relative error of a block. What Core ML's own kernels give is not known.
ALLOWED = {"mil": 2e-6, "stand-in": 2e-6, "coreml": 1e-3}
SIMILAR = 0.999
PROMPTS = ("a fox in the snow", "a red ball")
PAIR, MERGED = "stdit_pair_fp32_4x4", "stdit_pair_merged_fp32_4x4"


@pytest.fixture(scope="module", autouse=True)
def model_has_a_name():
    with named_nano():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return build_store_and_export(tmp_path_factory.mktemp("nano"), NANO, NANO.name)


@pytest.fixture(scope="module")
def store(folders):
    return folders[0]


@pytest.fixture(scope="module")
def exported(folders):
    return Packages.open(folders[1])


def copy_of(packages, folder):
    """The same packages elsewhere, none of them compiled."""
    shutil.copytree(packages.root, folder, ignore=shutil.ignore_patterns("compiled"))
    return Packages.open(folder)


@pytest.fixture(scope="module")
def for_the_stand_in(exported, tmp_path_factory):
    """Packages of its own: what the stand-in compiles must not be taken for what Core ML makes."""
    return copy_of(exported, tmp_path_factory.mktemp("stand-in") / "packages")


@pytest.fixture(
    params=[
        "mil",
        "stand-in",
        pytest.param(
            "coreml",
            marks=pytest.mark.skipif(
                sys.platform != "darwin", reason="Core ML runs on macOS only (docs/guides/macos_ci.yml)"
            ),
        ),
    ]
)
def name(request, monkeypatch):
    if request.param == "stand-in":
        install(StandIn(), monkeypatch)
    return request.param


@pytest.fixture
def backend(name):
    """What --backend and a job call it."""
    return "mil" if name == "mil" else "coreml"


@pytest.fixture
def packages(name, exported, for_the_stand_in):
    return for_the_stand_in if name == "stand-in" else exported


@pytest.fixture
def runner(backend, packages):
    return runner_for(backend, packages, "cpu_only")


# The contract


def in_pytorch(store, weights, kind, inputs):
    """What the block gives with the store's weights, as a tuple."""
    (definition,) = (v.longest for k, v in variants_of(NANO, (SETTINGS,))[weights].items() if k == kind)
    with torch.device("meta"):
        module = definition.build().eval()
    module.load_state_dict(load_file(store / f"{weights}.safetensors"), assign=True)
    with torch.inference_mode():
        made = module(*inputs)
    return made if isinstance(made, tuple) else (made,)


def example_inputs(function, text_tokens=None):
    inputs = {}
    for spec in function.inputs:
        shape = tuple(text_tokens if text_tokens and i in spec.flexible else n for i, n in enumerate(spec.shape))
        inputs[spec.name] = example_input(spec.model_copy(update={"shape": shape}), NANO.t5.vocabulary)
    return inputs


def largest_error(store, packages, runner, weights, name, inputs):
    """Of a loaded function against PyTorch."""
    function = packages.package(weights).functions[name]
    made = runner.run(weights, name, inputs)
    expected = in_pytorch(store, weights, function.kind, list(inputs.values()))
    assert [made[spec.name].shape for spec in function.outputs] == [tensor.shape for tensor in expected]
    return max(relative_error(made[s.name], e) for s, e in zip(function.outputs, expected, strict=True))


@pytest.mark.parametrize("weights", ["t5.embedding", "t5.00", "stdit.part2"])
def test_a_loaded_function_computes_what_the_block_computes(store, packages, runner, name, weights):
    (function,) = packages.package(weights).functions
    runner.load(weights, function)
    inputs = example_inputs(packages.package(weights).functions[function])
    assert largest_error(store, packages, runner, weights, function, inputs) <= ALLOWED[name]


def test_every_function_of_a_loaded_package_can_be_run(store, packages, runner, name):
    runner.load("stdit.00", MERGED)
    for function in (MERGED, PAIR, PAIR, MERGED):
        inputs = example_inputs(packages.package("stdit.00").functions[function])
        assert largest_error(store, packages, runner, "stdit.00", function, inputs) <= ALLOWED[name]


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_a_prompt_may_have_any_number_of_tokens(store, packages, runner, name, tokens):
    runner.load("stdit.part1", "main")
    inputs = example_inputs(packages.package("stdit.part1").functions["main"], tokens)
    assert inputs["text"].shape[1] == tokens
    assert largest_error(store, packages, runner, "stdit.part1", "main", inputs) <= ALLOWED[name]


def test_what_was_unloaded_can_be_loaded_again(packages, runner):
    inputs = example_inputs(packages.package("t5.01").functions["main"])
    results = []
    for _ in range(2):
        runner.load("t5.01", "main")
        results.append(runner.run("t5.01", "main", inputs)["hidden_out"])
        runner.unload("t5.01")
    # Results outlive the weights that they were made with.
    assert torch.equal(*results)


def test_packages_are_loaded_while_another_runs(packages, runner):
    inputs = example_inputs(packages.package("t5.01").functions["main"])
    runner.load("t5.01", "main")
    alone = runner.run("t5.01", "main", inputs)["hidden_out"]

    def load_and_unload(weights):
        for _ in range(3):
            runner.load(weights, next(iter(packages.package(weights).functions)))
            runner.unload(weights)

    threads = [threading.Thread(target=load_and_unload, args=(weights,)) for weights in ("stdit.00", "t5.00")]
    for thread in threads:
        thread.start()
    for _ in range(3):
        assert torch.equal(runner.run("t5.01", "main", inputs)["hidden_out"], alone)
    for thread in threads:
        thread.join()
    assert torch.equal(runner.run("t5.01", "main", inputs)["hidden_out"], alone)


def test_a_footprint_is_never_negative(packages, runner):
    runner.load("t5.00", "main")
    assert runner.footprint_bytes() >= 0
    runner.unload("t5.00")
    assert runner.footprint_bytes() >= 0


def test_weights_without_a_package_are_named(runner):
    with pytest.raises(PackageError, match=r"no package of 't5\.99'"):
        runner.load("t5.99", "main")


# What is one's own


def test_the_interpreter_holds_what_the_manifest_says_until_it_lets_go(exported):
    runner = runner_for("mil", exported, "all")
    for weights in ("t5.00", "stdit.00"):
        runner.load(weights, next(iter(exported.package(weights).functions)))
    assert runner.footprint_bytes() == exported.package("t5.00").bytes + exported.package("stdit.00").bytes
    runner.unload("t5.00")
    assert runner.footprint_bytes() == exported.package("stdit.00").bytes
    runner.unload("stdit.00")
    assert runner.footprint_bytes() == 0


def test_the_interpreter_needs_no_file_after_a_load(exported, tmp_path):
    copied = copy_of(exported, tmp_path / "export")
    runner = runner_for("mil", copied, "all")
    runner.load("t5.01", "main")
    shutil.rmtree(copied.path("t5.01"))
    inputs = example_inputs(exported.package("t5.01").functions["main"])
    assert runner.run("t5.01", "main", inputs)["hidden_out"].isfinite().all()


def test_packages_are_compiled_once_and_again_when_they_change(exported, tmp_path, monkeypatch):
    copied = copy_of(exported, tmp_path / "export")
    first = install(StandIn(), monkeypatch)
    assert runner_for("coreml", copied, "all").figures()["packages_compiled"] == len(copied.manifest.packages)
    assert sorted(first.compiled) == sorted(f"{weights}.mlmodelc" for weights in copied.manifest.packages)
    assert compiled_path(copied, "t5.00") == tmp_path / "export" / "compiled" / "t5.00.mlmodelc"
    assert runner_for("coreml", copied, "all").figures()["packages_compiled"] == 0

    package = copied.manifest.packages["t5.00"]
    files = {name: file.model_copy(update={"sha256": "0" * 64}) for name, file in package.files.items()}
    changed = {**copied.manifest.packages, "t5.00": package.model_copy(update={"files": files})}
    other = Packages(copied.root, copied.manifest.model_copy(update={"packages": changed}))
    again = install(StandIn(), monkeypatch)
    assert runner_for("coreml", other, "all").figures()["packages_compiled"] == 1
    assert again.compiled == ["t5.00.mlmodelc"]


def test_what_core_ml_refuses_is_the_machines_fault_and_is_tried_again(exported, tmp_path, monkeypatch):
    class Refusing(StandIn):
        def compile_model(self, package, target):
            Path(target).mkdir()
            raise RuntimeError("Error compiling model:\nat length")

    install(Refusing(), monkeypatch)
    target = tmp_path / "compiled" / "t5.00.mlmodelc"
    for _ in range(2):
        with pytest.raises(
            MachineError, match=r"t5\.00\.mlpackage: Core ML cannot compile it \(Error compiling model:\)"
        ):
            macos.compile_package(exported.path("t5.00"), target, "any")


# The pipeline


def plan_for(workload, path):
    """A plan that keeps some of the weights, in a file."""
    least, _ = largest_need(workload)
    device = analytic_device(least + workload.weights_bytes // 3)
    make_plan("spread", workload, device).write(path)
    return path


def run_job(backend, folder, settings, tmp_path, **fields):
    """The frames of each video, and the trace."""
    source = open_source(backend, folder, verify=False)
    workload = workload_of(source.held.sizes, settings) if backend == "torch" else source.workload(settings)
    tmp_path.mkdir(exist_ok=True)
    pictures = [tmp_path / f"frames-{i}" for i in range(settings.prompts)]
    job = Job(
        plan=read_plan(plan_for(workload, tmp_path / "plan.json")),
        store=str(folder),
        prompts=PROMPTS[: settings.prompts],
        picture_folders=tuple(map(str, pictures)),
        trace=str(tmp_path / "trace.json"),
        backend=backend,
        **fields,
    )
    do_here(job)
    frames = [np.stack([np.asarray(Image.open(p)) for p in sorted(folder.iterdir())]) for folder in pictures]
    return frames, read_trace(tmp_path / "trace.json")


def executed(trace):
    return [span.visit for span in trace.spans if span.operation == "execute"]


VARIANTS = {
    "static leap, merged tokens": SETTINGS,
    "dynamic leap": SETTINGS.model_copy(update={"lpl": "dynamic", "steps": 5, "tdtm": 2}),
    "two prompts": SETTINGS.model_copy(update={"steps": 2, "lpl": "off", "prompts": 2}),
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_the_video_is_that_of_the_torch_executor(settings, store, packages, backend, name, tmp_path, monkeypatch):
    eager = StoppingRule(minimum_steps=2, tolerance=10.0, patience=1)
    monkeypatch.setattr("cidl_sim.sampling.linear_proportional_leap.stopping_rule", lambda name, steps: eager)
    reference, there = run_job("torch", store, settings, tmp_path / "torch")
    videos, trace = run_job(backend, packages.root, settings, tmp_path / "packages", compute_units="cpu_only")
    assert trace.header.origin == backend
    assert trace.header.settings["compression"] == "none"
    assert executed(trace) == executed(there)
    assert [event.kind for event in trace.events] == [event.kind for event in there.events]
    assert ("stage_ended_early" in {event.kind for event in trace.events}) == (settings.lpl == "dynamic")
    for video, expected in zip(videos, reference, strict=True):
        assert expected.std() > 10
        assert min(frame_ssim(video, expected)) >= SIMILAR
    if len(videos) == 2:
        assert min(frame_ssim(*videos)) < SIMILAR
    largest = max(package.bytes for package in packages.manifest.packages.values())
    if name == "mil":
        assert largest <= trace.header.machine["touched_bytes"] < there.header.memory_limit_bytes
        assert trace.peak_resident_bytes <= trace.header.memory_limit_bytes
    else:
        assert trace.header.machine["compute_units"] == "cpu_only"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_small_model_makes_the_video_of_the_torch_executor(tmp_path):
    name = "opensora-small-48x48-lpl15-tdtm8"
    store, packages = build_store_and_export(tmp_path, OPENSORA_SMALL, name)
    settings = parse_name(name)[1]
    (reference,), _ = run_job("torch", store, settings, tmp_path / "torch")
    (video,), _ = run_job("mil", packages, settings, tmp_path / "mil")
    assert min(frame_ssim(video, reference)) >= SIMILAR


def test_a_run_that_broke_off_goes_on_with_the_same_video(packages, backend, tmp_path):
    whole, _ = run_job(backend, packages.root, SETTINGS, tmp_path / "whole")
    saved = {"saved_run": str(tmp_path / "saved")}
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "frames-0").write_text("in the way")
    with pytest.raises(MachineError, match="cannot be written"):
        run_job(backend, packages.root, SETTINGS, tmp_path / "broken", **saved)
    rest, trace = run_job(backend, packages.root, SETTINGS, tmp_path / "rest", resume=True, **saved)
    assert trace.events[0].kind == "resumed"
    assert np.array_equal(rest[0], whole[0])


def test_only_the_function_of_the_next_visit_is_loaded(for_the_stand_in, tmp_path, monkeypatch):
    stand_in = install(StandIn(), monkeypatch)
    _, trace = run_job("coreml", for_the_stand_in.root, SETTINGS, tmp_path)
    loads = [span for span in trace.spans if span.operation == "load"]
    late = trace.header.machine["functions_loaded_late"]
    assert len(stand_in.loaded) == len(loads) + late
    assert {function for name, function in stand_in.loaded if name == "stdit.00.mlmodelc"} == {MERGED, PAIR}
    assert {function for name, function in stand_in.loaded if name == "t5.00.mlmodelc"} == {None}


# Workloads and plans


def test_the_workload_weighs_what_the_packages_weigh(exported):
    workload = PackageSource(exported, "mil").named_workload("opensora-nano-7s-lpldynamic-tdtm3")
    bytes_of = {weights: package.bytes for weights, package in exported.manifest.packages.items()}
    assert {visit.block.weights: visit.block.weight_bytes for visit in workload.visits} == bytes_of
    whole_table = NANO.t5.vocabulary * NANO.t5.d_model * 4
    assert bytes_of["t5.embedding"] > whole_table
    measured = workload_of(NANO, SETTINGS.model_copy(update={"steps": 7, "lpl": "dynamic", "tdtm": 3}))
    assert workload.name == f"{measured.name}-packages"
    assert [v.block.workspace_bytes for v in workload.visits] == [v.block.workspace_bytes for v in measured.visits]


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("opensora-tiny", InputError, "holds packages of 'opensora-nano'"),
        ("opensora-nano-t2", InputError, "cut as 'v8'"),
        ("opensora-nano-48x48", PackageError, "no function for 'stdit.part1.fp32.4x9"),
    ],
)
def test_a_workload_that_was_not_exported_is_refused(exported, name, error, words):
    with pytest.raises(error, match=words):
        PackageSource(exported, "mil").named_workload(name)


def test_plans_and_folders_that_do_not_belong_together_are_refused(exported, store, tmp_path):
    def plan(workload):
        return make_plan("lru", workload, analytic_device(1 << 30))

    of_store = plan(workload_of(NANO, SETTINGS))
    packages = PackageSource(exported, "mil")
    of_packages = plan(packages.workload(SETTINGS))
    with pytest.raises(PlanError, match="of a block store; plan for what 'cidl coreml workload' writes"):
        packages.prepare(of_store)
    with pytest.raises(PlanError, match="of Core ML packages: give their folder and --backend mil or coreml"):
        StoreSource(BlockStore.open(store)).prepare(of_packages)
    in_fp16 = of_packages.model_copy(
        update={"workload_settings": {**of_packages.workload_settings, "dtype": "fp16", "compression": "int8"}}
    )
    with pytest.raises(
        PlanError, match="holds packages of 'opensora-nano' in fp32, cut as 'v8', weights compressed: none"
    ):
        packages.prepare(in_fp16)
    other = of_packages.model_copy(update={"workload_sha256": "0" * 64})
    with pytest.raises(PlanError, match="sha256"):
        packages.prepare(other)


# The commands


@pytest.fixture(params=["this process", pytest.param("a worker", marks=pytest.mark.slow)])
def where_it_runs(request, monkeypatch):
    """A worker takes seconds to start; the command is the same."""
    if request.param == "this process":
        run_jobs_here(monkeypatch)


@pytest.mark.usefixtures("where_it_runs")
def test_packages_are_planned_and_run_from_the_command_line(folders, tmp_path):
    workload, device, plan, trace = (tmp_path / name for name in ("w.json", "d.toml", "p.json", "t.json"))
    name = "opensora-nano-3s-lpl1-tdtm1"
    made = answer_of("coreml", "workload", name, "--packages", folders[1], "-o", workload)
    assert made == json.loads(workload.read_text())
    analytic_device(ROOM_FOR_THE_PROCESS + 10_000_000, baseline_bytes=ROOM_FOR_THE_PROCESS).write(device)
    answer_of("plan", workload, device, "--policy", "lru", "-o", plan)
    run = ("run", "--backend", "mil", "--plan", plan, "--store", folders[1], "--prompt", PROMPTS[0])
    answer = answer_of(*run, "-o", tmp_path / "video.mp4", "--trace", trace)
    assert answer["evaluations"] == 2
    assert (tmp_path / "video.mp4").is_file()
    header = read_trace(trace).header
    assert (header.origin, header.workload_sha256) == ("mil", read_workload(workload).sha256)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--backend", "metal"], 2, ["--backend 'metal'", "torch, mil, coreml"]),
        (["--backend", "mil", "--device", "cuda"], 2, ["--device goes with --backend torch"]),
        (["--backend", "mil", "--compute-units", "all"], 2, ["--compute-units goes with --backend coreml"]),
        (["--backend", "coreml", "--compute-units", "gpu"], 2, ["--compute-units 'gpu'", "cpu_and_ne"]),
        (["--backend", "torch"], 2, ["not a block store"]),
        (["--backend", "mil"], 2, ["made for workload", "in fp32"]),
        pytest.param(
            ["--backend", "coreml"],
            4,
            ["Core ML runs on macOS only; --backend mil"],
            marks=pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is there"),
        ),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(folders, exported, tmp_path, options, code, words):
    workload = PackageSource(exported, "mil").workload(SETTINGS)
    settings = {**workload.settings, "dtype": "fp16"}
    plan_for(workload.model_copy(update={"settings": settings}), tmp_path / "plan.json")
    call = ("run", "--plan", tmp_path / "plan.json", "--store", folders[1], "--prompt", "a fox", *options)
    assert_refused(call_cidl(*call, "-o", tmp_path / "video.mp4"), code, *words)


def damaged(root, target, harm):
    shutil.copytree(root, target)
    (weights,) = (target / "t5.01.mlpackage").rglob("weight.bin")
    harm(weights, target / "manifest.json")
    return target


def alter(weights, _):
    stored = weights.read_bytes()
    weights.write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]))


def forget(_, manifest):
    data = json.loads(manifest.read_text())
    data["packages"].pop("t5.01")
    manifest.write_text(json.dumps(data))


def leave(_, manifest):
    data = json.loads(manifest.read_text())
    data["packages"]["t5.01"]["folder"] = "../t5.01.mlpackage"
    manifest.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda weights, _: weights.unlink(), ["weight.bin: missing or unreadable"]),
        (lambda weights, _: weights.write_bytes(b""), ["weight.bin: truncated or altered (0 bytes instead of"]),
        (alter, ["weight.bin: altered (its SHA-256 is not the one in manifest.json)"]),
        (forget, ["no package of 't5.01'; go on with 'cidl coreml export'"]),
        (leave, ["manifest.json: packages.t5.01.folder", "leaves the folder"]),
    ],
)
def test_a_damaged_export_is_refused_in_one_line(folders, exported, tmp_path, harm, words):
    plan_for(PackageSource(exported, "mil").workload(SETTINGS), tmp_path / "plan.json")
    folder = damaged(folders[1], tmp_path / "export", harm)
    call = ("run", "--backend", "mil", "--plan", tmp_path / "plan.json", "--store", folder, "--prompt", "a fox")
    assert_refused(call_cidl(*call, "-o", tmp_path / "video.mp4"), 2, *words)
