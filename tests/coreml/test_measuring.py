"""How packages are measured: which, with what, in which order. Core ML is played by stand-ins; nothing ran with it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import coremltools as ct
import numpy as np
import pytest
from coremltools.models.ml_program.experimental import perf_utils, remote_device
from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

from cidl_sim.core.errors import InputError, MachineError
from cidl_sim.coreml import measuring
from cidl_sim.coreml.measuring import (
    record_connected,
    record_this_mac,
    samples_of_benchmarker,
)
from cidl_sim.pipelines.catalog import parse_name
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY
from cidl_sim.pipelines.variants import blocks_by_kind, variants_of
from cidl_sim.worker.exporting import targets_of as targets_in_folder
from tests.coreml.by_hand import manifest_by_hand, tiny


def measurement(*samples_ms: float) -> MLModelBenchmarker.Measurement:
    return MLModelBenchmarker.Measurement.from_samples(list(samples_ms))


def targets_of(manifest, **options):
    return targets_in_folder(Path("export"), manifest, **options)


@pytest.fixture(scope="module")
def manifest():
    return manifest_by_hand()


@pytest.fixture
def target(manifest):
    return next(target for target in targets_of(manifest) if target.weights == "stdit.00" and target.name == "f1")


def test_one_package_of_each_kind_is_measured_or_as_many_as_asked_for(manifest):
    targets = targets_of(manifest)
    kinds = [target.function.kind for target in targets]
    assert sorted(kinds) == sorted({block.kind for stage in tiny().stages for block in stage.blocks})
    assert all(target.block.kind == target.function.kind for target in targets)
    pairs = [
        t.weights for t in targets_of(manifest, per_kind=2) if t.function.kind.startswith("stdit.pair.merged.fp16.5x4.")
    ]
    assert pairs == ["stdit.00", "stdit.01"]
    with pytest.raises(InputError, match="no packages yet"):
        targets_of(manifest.model_copy(update={"packages": {}}))


def test_every_kind_that_an_export_makes_has_a_block_in_its_workload(manifest):
    run = parse_name("opensora-tiny-48x32-17f-fp16")[1]
    named = manifest.model_copy(update={"workloads": {"opensora-tiny-48x32-17f-fp16": ()}})
    exported = {kind for by_kind in variants_of(OPENSORA_TINY, (run,)).values() for kind in by_kind}
    assert exported <= blocks_by_kind(tuple(named.workloads)).keys()


def test_inputs_have_the_functions_types_and_the_nominal_number_of_text_tokens(target):
    inputs = target.inputs()
    assert {name: (array.shape, array.dtype) for name, array in inputs.items()} == {
        "hidden": ((1, 32, 32), np.float16),
        "timestep": ((1,), np.float32),
    }


def test_a_package_with_one_function_is_asked_for_none_by_name(manifest, target):
    assert target.function_name == "f1"
    assert next(t for t in targets_of(manifest) if t.weights == "t5.00").function_name is None


def test_the_benchmarkers_samples_become_cold_loads_and_predictions_in_milliseconds():
    samples = samples_of_benchmarker(measurement(812.5), measurement(21.0, 20.0))
    assert samples == {"cold_load_ms": [812.5], "predict_ms": [21.0, 20.0]}
    with pytest.raises(ValueError, match="loaded already"):
        samples_of_benchmarker(measurement(0.0), measurement(20.0))


@pytest.fixture
def mac(monkeypatch):
    """Core ML on a Mac: notes what is asked of it, and in which process."""
    did: list[tuple[object, ...]] = []
    alive: list[int] = []

    class Compiled:
        def __init__(self, path, compute_units, function_name):
            assert not alive, "the model before was not dropped"
            alive.append(1)
            did.append(("load", compute_units.name, function_name))

        def predict(self, inputs):
            did.append(("predict", inputs["hidden"].dtype.name))
            inputs["hidden"] = inputs["hidden"].astype(np.float32)

        def __del__(self):
            alive.clear()

    def compile_model(package, destination):
        if "vae" in package:
            raise RuntimeError("compiling\nfailed")
        did.append(("compile", package.rpartition("/")[2]))
        path = measuring.Path(destination)
        path.mkdir()
        (path / "weights").write_bytes(bytes(4321))

    def in_new_process(work, *arguments):
        did.append(("process", work.__name__))
        return work(*arguments)

    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(ct.models, "CompiledMLModel", Compiled)
    monkeypatch.setattr(ct.models.utils, "compile_model", compile_model)
    monkeypatch.setattr(measuring, "_in_new_process", in_new_process)
    return did


def test_on_a_mac_the_first_load_is_one_processs_and_later_loads_are_anothers(mac, manifest, target, tmp_path):
    told = []
    recording = record_this_mac(
        tmp_path, manifest, [target], "cpu_and_ne", 3, lambda found, total: told.append((len(found.blocks), total))
    )
    load = ("load", "CPU_AND_NE", "f1")
    assert mac == [
        ("process", "first_load"),
        ("compile", "stdit.00.mlpackage"),
        load,
        ("process", "later_loads"),
        *[load] * 3,
        *[("predict", "float16")] * 4,
    ]
    (block,) = recording.blocks
    assert told == [(1, 1)]
    assert block.problem is None
    assert (block.kind, block.weights, block.function) == (target.block.kind, "stdit.00", "f1")
    assert (block.flops, block.weight_bytes) == (target.block.flops, target.block.weight_bytes)
    assert block.compiled_bytes == 4321
    samples = block.compile_ms, block.cold_load_ms, block.warm_load_ms, block.predict_ms
    assert [len(some) for some in samples] == [1, 1, 3, 3]
    assert recording.packages_bytes == sum(package.bytes for package in manifest.packages.values())
    assert recording.versions["coremltools"]


def test_a_block_that_cannot_be_measured_says_why_and_the_others_go_on(mac, manifest, target, tmp_path):
    failing = next(target for target in targets_of(manifest) if target.weights.startswith("vae"))
    recording = record_this_mac(tmp_path, manifest, [failing, target], "all", 1, lambda found, total: None)
    assert [block.problem for block in recording.blocks] == ["RuntimeError: compiling failed", None]


def test_off_macos_nothing_is_measured(manifest, target, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(MachineError, match="macOS only"):
        record_this_mac(tmp_path, manifest, [target], "all", 1, lambda found, total: None)
    with pytest.raises(MachineError, match="macOS only"):
        record_connected(tmp_path, manifest, [target], "all", 1, lambda found, total: None, device_name="Phone")


@pytest.fixture
def phone(monkeypatch):
    """A connected phone as coremltools describes it, and a benchmarker that notes what is asked of it."""
    did: list[tuple[object, ...]] = []

    async def unload():
        did.append(("unload",))

    class Benchmarker(MLModelBenchmarker):
        def __init__(self, model, device):
            did.append(("benchmark", model.name, model.function_name, device.name))
            self._loaded_model = SimpleNamespace(unload=unload)

        async def benchmark_load(self, iterations):
            did.append(("load", iterations))
            return measurement(1500.0)

        async def benchmark_predict(self, inputs, iterations, warmup):
            did.append(("predict", sorted(inputs), iterations, warmup))
            return measurement(*[30.0] * iterations)

    def model(path, *, skip_model_load, compute_units, function_name):
        assert skip_model_load
        if "t5" in path:
            raise RuntimeError("timed out")
        return SimpleNamespace(name=path.rpartition("/")[2], function_name=function_name)

    async def prepare(credentials):
        did.append(("prepare", credentials.development_team))
        return device

    device = SimpleNamespace(
        name="Phone",
        type=remote_device.DeviceType.IPHONE,
        os_version="18.0",
        os_build_number="22A",
        state=remote_device.DeviceState.CONNECTED,
        prepare_for_model_debugging=prepare,
    )
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(remote_device.Device, "get_devices", staticmethod(lambda: [device]))
    monkeypatch.setattr(perf_utils, "MLModelBenchmarker", Benchmarker)
    monkeypatch.setattr(ct.models, "MLModel", model)
    return did, device


def test_a_connected_phone_is_measured_by_the_benchmarker_and_unloads_each_block(phone, manifest, target, tmp_path):
    did, _ = phone
    failing = next(target for target in targets_of(manifest) if target.weights.startswith("t5"))
    recording = record_connected(
        tmp_path, manifest, [failing, target], "all", 2, lambda found, total: None, device_name="Phone", team="T1"
    )
    assert did == [
        ("prepare", "T1"),
        ("benchmark", "stdit.00.mlpackage", "f1", "Phone"),
        ("load", 1),
        ("predict", ["hidden", "timestep"], 2, True),
        ("unload",),
    ]
    assert (recording.measured_by, recording.device, recording.os) == (
        "remote benchmarker",
        "Phone (iphone)",
        "18.0 (22A)",
    )
    failed, measured = recording.blocks
    assert failed.problem == "RuntimeError: timed out"
    assert (measured.cold_load_ms, measured.warm_load_ms, measured.predict_ms) == ((1500.0,), (), (30.0, 30.0))


def test_a_device_that_is_not_there_or_cannot_be_prepared_is_an_error_with_a_reason(
    phone, manifest, target, tmp_path, monkeypatch
):
    _, device = phone

    def record(name: str) -> None:
        record_connected(tmp_path, manifest, [target], "all", 1, lambda found, total: None, device_name=name)

    with pytest.raises(MachineError, match=r"no such device is connected \(there are: 'Phone'\)"):
        record("Pad")

    async def refuse(credentials):
        raise ValueError("signing failed")

    device.prepare_for_model_debugging = refuse
    with pytest.raises(MachineError, match=r"runner could not be started .*signing failed"):
        record("Phone")

    def fail():
        raise OSError("xcrun: not found")

    monkeypatch.setattr(remote_device.Device, "get_devices", staticmethod(fail))
    with pytest.raises(MachineError, match=r"cannot be listed .*xcrun.*Xcode"):
        record("Phone")


def test_what_the_library_is_asked_for_is_what_the_installed_one_has():
    """The stand-ins above have its names."""

    def arguments(function):
        return function.__code__.co_varnames[: function.__code__.co_argcount]

    assert arguments(MLModelBenchmarker.__init__) == ("self", "model", "device")
    assert arguments(MLModelBenchmarker.benchmark_load) == ("self", "iterations")
    assert arguments(MLModelBenchmarker.benchmark_predict) == ("self", "inputs", "iterations", "warmup")
    assert "credentials" in arguments(remote_device.Device.prepare_for_model_debugging)
    assert {"path", "compute_units", "function_name"} < set(arguments(ct.models.CompiledMLModel.__init__))
    assert arguments(ct.models.utils.compile_model) == ("model", "destination_path")
    assert {unit.upper() for unit in measuring.COMPUTE_UNITS} == set(ct.ComputeUnit.__members__)
