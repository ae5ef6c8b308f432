"""Packages of every kind that coremltools saves: compressed, with several functions, bisected; and broken ones."""

from __future__ import annotations

import json
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.proto import Model_pb2
from torch import Tensor, nn

from cidl_sim.core.errors import PackageError
from cidl_sim.mil.interpreter import load_package
from cidl_sim.mil.program import Blob, Operation, read_package
from tests.coreml.converted import convert


class Chain(nn.Module):
    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        for layer in self.layers:
            layer.weight.data = torch.randn(width, width, generator=generator) / width**0.5

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x)) + x
        return x


MODULE = Chain(2, 64).eval()
INPUT = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packages") / "plain.mlpackage"
    convert(MODULE, (INPUT,), path)
    return path


@pytest.fixture(scope="module")
def model() -> Any:
    return convert(MODULE, (INPUT,), None)


def quantised(model: Any, **config: Any) -> Any:
    import coremltools.optimize.coreml as cto

    return cto.linear_quantize_weights(
        model, cto.OptimizationConfig(cto.OpLinearQuantizerConfig(weight_threshold=0, **config))
    )


def palettised(model: Any, **config: Any) -> Any:
    import coremltools.optimize.coreml as cto

    return cto.palettize_weights(
        model, cto.OptimizationConfig(cto.OpPalettizerConfig(mode="uniform", weight_threshold=0, **config))
    )


def sparse(model: Any) -> Any:
    import coremltools.optimize.coreml as cto

    return cto.prune_weights(
        model, cto.OptimizationConfig(cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0))
    )


def sparse_and_quantised(model: Any) -> Any:
    import coremltools.optimize.coreml as cto

    config = cto.OptimizationConfig(cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0))
    return cto.linear_quantize_weights(sparse(model), config, joint_compression=True)


COMPRESSIONS = {
    "int8": lambda model: quantised(model, mode="linear_symmetric"),
    "int8 with an offset": lambda model: quantised(model, mode="linear"),
    "int4 by block": lambda model: quantised(model, dtype="int4", granularity="per_block", block_size=32),
    "uint4": lambda model: quantised(model, mode="linear", dtype="uint4"),
    "palette of 1 bit": lambda model: palettised(model, nbits=1),
    "palette of 2 bits": lambda model: palettised(model, nbits=2),
    "palette of 3 bits by group": lambda model: palettised(
        model, nbits=3, granularity="per_grouped_channel", group_size=8
    ),
    "palette of 4 bits": lambda model: palettised(model, nbits=4),
    "palette of 6 bits": lambda model: palettised(model, nbits=6),
    "palette of 8 bits": lambda model: palettised(model, nbits=8),
    "sparse": sparse,
    "sparse and int8": sparse_and_quantised,
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_weights_are_read_as_coremltools_means_them(compression: str, model: Any, tmp_path: Path):
    small = COMPRESSIONS[compression](model)
    small.save(str(tmp_path / "small.mlpackage"))
    weights = [
        torch.from_numpy(consumed.op.materialized_val_inference().astype(np.float32))
        for operation in small._mil_program.functions["main"].operations
        if operation.op_type == "linear"
        for consumed in [operation.inputs["weight"]]
    ]
    expected = Chain(2, 64).eval()
    for layer, original, weight in zip(expected.layers, MODULE.layers, weights, strict=True):
        layer.weight.data, layer.bias.data = weight, original.bias.data
        assert not torch.equal(weight, original.weight.data)
    assert torch.allclose(outputs(tmp_path / "small.mlpackage"), expected(INPUT), rtol=1e-5, atol=1e-5)


def outputs(package: Path, function: str | None = None) -> Tensor:
    program = load_package(package)
    results = program.run({program.function(function).inputs[0].name: INPUT}, function)
    return next(iter(results.values()))


def test_a_package_with_two_functions_runs_either(plain: Path, model: Any, tmp_path: Path):
    import coremltools as ct

    palettised(model, nbits=4).save(str(tmp_path / "small.mlpackage"))
    descriptor = ct.utils.MultiFunctionDescriptor()
    descriptor.add_function(str(plain), "main", "whole")
    descriptor.add_function(str(tmp_path / "small.mlpackage"), "main", "small")
    descriptor.default_function_name = "whole"
    ct.utils.save_multifunction(descriptor, str(tmp_path / "both.mlpackage"))
    both = tmp_path / "both.mlpackage"
    assert set(load_package(both).functions) == {"whole", "small"}
    assert torch.equal(outputs(both), outputs(plain))
    assert torch.equal(outputs(both, "whole"), outputs(plain))
    assert torch.equal(outputs(both, "small"), outputs(tmp_path / "small.mlpackage"))
    with pytest.raises(PackageError, match=r"both\.mlpackage: has no function 'other', only small, whole"):
        load_package(both).run({}, "other")


@pytest.mark.parametrize("as_pipeline", [False, True])
def test_bisected_packages_run_as_the_whole_does(as_pipeline: bool, tmp_path: Path):
    import coremltools as ct

    module, x = Chain(6, 256).eval(), torch.randn(2, 256, generator=torch.Generator().manual_seed(2))
    convert(module, (x,), tmp_path / "whole.mlpackage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ct.models.utils.bisect_model(
            str(tmp_path / "whole.mlpackage"),
            str(tmp_path / "parts"),
            merge_chunks_to_pipeline=as_pipeline,
            check_output_correctness=False,
        )
    values = {"input_0": x}
    parts = sorted((tmp_path / "parts").iterdir())
    assert len(parts) == (1 if as_pipeline else 2)
    for part in parts:
        program = load_package(part)
        # The second part also takes what the first was given.
        made = program.run({value.name: values[value.name] for value in program.function().inputs})
        values |= made
    assert torch.equal(next(iter(made.values())), load_of(tmp_path / "whole.mlpackage", x))


def load_of(package: Path, x: Tensor) -> Tensor:
    return next(iter(load_package(package).run({"input_0": x}).values()))


class Doubled(nn.Module):
    """Shapes that follow from the input's, as in the block that takes the prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = Chain(2, 64)
        self.table = nn.Parameter(torch.randn(8, 64, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x[None], self.table[None, : x.shape[0]]])
        return self.chain(both.view(2, x.shape[0], 4, 16).transpose(1, 2).reshape(2, -1, 64))


@pytest.mark.parametrize("module", [MODULE, Doubled().eval()], ids=["rows", "shapes"])
def test_an_input_of_any_length_takes_what_it_is_given(module: nn.Module, tmp_path: Path):
    import coremltools as ct

    shape = ct.Shape((ct.RangeDim(1, 8), 64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flexible = ct.convert(
            torch.jit.trace(module, (INPUT,)),
            inputs=[ct.TensorType("input_0", shape)],
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
        )
    flexible.save(str(tmp_path / "flexible.mlpackage"))
    for rows in (1, 5):
        x = INPUT[:1].expand(rows, -1)
        assert torch.allclose(load_of(tmp_path / "flexible.mlpackage", x), module(x), atol=1e-5)


def test_the_file_of_weights_reads_as_with_coremltools_own_reader(plain: Path):
    from coremltools.libmilstoragepython import _BlobStorageReader

    blobs = [
        operation.arguments["val"]
        for operation in read_package(plain).functions["main"].operations
        if operation.type == "const" and isinstance(operation.arguments["val"], Blob)
    ]
    assert len(blobs) >= 2
    for blob in blobs:
        reference = _BlobStorageReader(str(blob.path)).read_float_data(blob.position)
        assert np.array_equal(blob.read().numpy().reshape(-1), reference)


def test_values_are_dropped_after_their_last_use(tmp_path: Path):

    convert(Chain(6, 64).eval(), (INPUT,), tmp_path / "chain.mlpackage")
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def observe(operation: Operation, results: tuple[Tensor, ...]) -> None:
        made.extend(weakref.ref(result) for result in results)
        alive.append(sum(reference() is not None for reference in made))

    load_package(tmp_path / "chain.mlpackage").run({"input_0": INPUT}, observe=observe)
    assert len(made) == 18
    assert max(alive) <= 4


def test_what_is_not_finite_in_fp16_shows_when_rounded_and_not_in_exact_mode(tmp_path: Path):
    class Squares(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x / 1000

    x = torch.full((2, 2), 300.0)
    convert(Squares(), (x,), tmp_path / "squares.mlpackage", fp16=True)
    program = load_package(tmp_path / "squares.mlpackage")
    (rounded,) = program.run({"input_0": x}).values()
    (exact,) = program.run({"input_0": x}, mode="exact").values()
    assert torch.isinf(rounded).all()
    assert torch.allclose(exact, x * x / 1000, rtol=1e-3)


def test_an_operation_that_is_lacking_is_named(tmp_path: Path):
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.argsort(x, dim=-1) + 1

    convert(Sorted(), (INPUT,), tmp_path / "sorted.mlpackage")
    with pytest.raises(PackageError, match=r"sorted\.mlpackage: function main: the interpreter lacks argsort"):
        load_package(tmp_path / "sorted.mlpackage").run({"input_0": INPUT})


def test_wrong_inputs_are_named(plain: Path):
    program = load_package(plain)
    with pytest.raises(PackageError, match=r"plain\.mlpackage: function main takes input_0, not x"):
        program.run({"x": INPUT})
    with pytest.raises(PackageError, match=r"input input_0 is \(3, 63\) where \(3, 64\) is declared"):
        program.run({"input_0": INPUT[:, :63]})


def test_what_is_no_package_or_a_damaged_one_is_said_in_one_line(plain: Path, tmp_path: Path):
    with pytest.raises(PackageError, match=r"Manifest\.json: cannot be read"):
        load_package(tmp_path)
    (tmp_path / "Manifest.json").write_text("{}")
    with pytest.raises(PackageError, match=r"names no model"):
        load_package(tmp_path)
    entry = {"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "model.mlmodel"}}}
    (tmp_path / "Manifest.json").write_text(json.dumps(entry))
    with pytest.raises(PackageError, match=r"model\.mlmodel: cannot be read as a Core ML model"):
        load_package(tmp_path)
    (tmp_path / "Data").mkdir()
    (tmp_path / "Data" / "model.mlmodel").write_bytes(b"\xff\xff\xff")
    with pytest.raises(PackageError, match=r"model\.mlmodel: cannot be read as a Core ML model"):
        load_package(tmp_path)
    model = Model_pb2.Model(specificationVersion=9)
    model.mlProgram.version = 1
    (tmp_path / "Data" / "model.mlmodel").write_bytes(model.SerializeToString())
    with pytest.raises(PackageError, match="its program has no function"):
        load_package(tmp_path)


def test_a_file_of_weights_that_is_cut_off_is_named(tmp_path: Path):
    convert(MODULE, (INPUT,), tmp_path / "cut.mlpackage")
    (weights,) = (tmp_path / "cut.mlpackage").rglob("weight.bin")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PackageError, match=r"weight\.bin: no value of type FLOAT32 at"):
        load_package(tmp_path / "cut.mlpackage").run({"input_0": INPUT})
