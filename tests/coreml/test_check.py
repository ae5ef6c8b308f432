"""What a comparison of a package with its block flags, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cidl_sim.core.errors import PackageError
from cidl_sim.coreml.check import compare_block, relative_error
from tests.coreml.converted import convert

INPUT = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * x + x) / 1000


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(x) + 1


class FourDimensions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x.reshape(2, 2, 2, 2)).reshape(2, 8)


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x - 1


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return tmp_path / "block.mlpackage"


def test_an_overflow_in_fp16_is_named_where_it_begins(package: Path):
    large = torch.full((2, 2), 300.0)
    convert(Squared(), (large,), package, fp16=True)
    errors = compare_block(Squared(), (large,), package)
    assert [operation.partition(" ")[0] for operation in errors.overflow] == ["mul"]
    assert errors.flagged
    assert errors.largest == float("inf")
    small = compare_block(Squared(), (large / 10,), package)
    assert not small.flagged
    assert small.largest < 3e-3


def test_what_is_no_number_is_named_where_it_begins(package: Path):
    convert(Root(), (INPUT.abs(),), package)
    errors = compare_block(Root(), (-INPUT.abs(),), package)
    assert [operation.partition(" ")[0] for operation in errors.not_a_number] == ["sqrt"]
    assert errors.overflow == ()
    assert errors.largest == float("inf")


def test_more_than_five_dimensions_are_named(package: Path):
    # The converter refuses six dimensions where it sees them, so they are written into the package by hand.
    convert(FourDimensions(), (INPUT,), package)
    assert compare_block(FourDimensions(), (INPUT,), package).too_many_dimensions == ()
    add_two_dimensions(package)
    errors = compare_block(FourDimensions(), (INPUT,), package)
    assert [o.partition(" ")[0] for o in errors.too_many_dimensions] == ["reshape", "exp"]
    assert errors.flagged
    assert errors.largest < 2e-6


def add_two_dimensions(package: Path) -> None:
    from coremltools.proto import Model_pb2

    (path,) = package.rglob("*.mlmodel")
    model = Model_pb2.Model()
    model.ParseFromString(path.read_bytes())
    function = model.mlProgram.functions["main"]
    for operation in function.block_specializations[function.opset].operations:
        (output,) = operation.outputs
        tensor = output.type.tensorType
        if operation.type == "const" and list(operation.attributes["val"].immediateValue.tensor.ints.values) == [2] * 4:
            operation.attributes["val"].immediateValue.tensor.ints.values.extend([1, 1])
            for changed in (tensor, operation.attributes["val"].type.tensorType):
                changed.dimensions[0].constant.size = 6
        elif len(tensor.dimensions) == 4:
            for _ in range(2):
                tensor.dimensions.add().constant.size = 1
            tensor.rank = 6
    path.write_bytes(model.SerializeToString())


def test_another_block_is_far_from_the_package(package: Path):
    convert(Squared(), (INPUT,), package)
    assert compare_block(Squared(), (INPUT,), package).largest < 2e-6
    assert compare_block(Root(), (INPUT.abs(),), package).largest > 0.1


def test_another_number_of_inputs_or_outputs_is_refused(package: Path):
    convert(Squared(), (INPUT,), package)
    with pytest.raises(PackageError, match=r"block\.mlpackage: takes 1 inputs, the block takes 2"):
        compare_block(Squared(), (INPUT, INPUT), package)
    with pytest.raises(PackageError, match=r"block\.mlpackage: gives 1 outputs, the block gives 2"):
        compare_block(Two(), (INPUT,), package)


def test_relative_errors_are_of_norms():
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0])) == 0
    assert relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.ones(2), torch.zeros(2)) == float("inf")
    assert relative_error(torch.tensor([float("inf")]), torch.tensor([float("inf")])) == float("inf")
