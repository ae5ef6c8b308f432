"""A saved package against the PyTorch block that it was made from, on the same inputs.

The package's program runs in the interpreter (`cidl_sim.mil.interpreter`), so this finds errors of the
conversion and of fp16, not those of a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from cidl_sim.core.errors import PackageError
from cidl_sim.mil.interpreter import Mode, load_package
from cidl_sim.mil.program import Function, Operation

MOST_DIMENSIONS = 5  # of any value in a Core ML program


@dataclass(frozen=True)
class BlockErrors:
    """How far a package is from its block.

    `relative`: for each output the norm of the difference over the norm of what PyTorch gives; infinite where either
    is not finite. `overflow` and `not_a_number`: the operations whose results are so although nothing that
    they were given is. `too_many_dimensions`: those with a result of more than five.
    """

    relative: dict[str, float]
    overflow: tuple[str, ...]
    not_a_number: tuple[str, ...]
    too_many_dimensions: tuple[str, ...]

    @property
    def largest(self) -> float:
        """The largest of the relative errors."""
        return max(self.relative.values())

    @property
    def flagged(self) -> bool:
        """Whether anything but the size of the errors is wrong."""
        return bool(self.overflow or self.not_a_number or self.too_many_dimensions)


def compare_block(
    module: nn.Module, inputs: Sequence[Tensor], package: Path, function: str | None = None, *, mode: Mode = "rounded"
) -> BlockErrors:
    """Run `module` and a function of the package (by default its default) on the same inputs.

    Inputs and outputs correspond by their order. PackageError: the package cannot be read or run, or takes or
    gives another number of tensors than the block.
    """
    program = load_package(package)
    chosen = program.function(function)
    if len(chosen.inputs) != len(inputs):
        raise PackageError(f"{package}: takes {len(chosen.inputs)} inputs, the block takes {len(inputs)}")
    with torch.inference_mode():
        made = module(*inputs)
    expected = made if isinstance(made, tuple) else (made,)
    if len(chosen.outputs) != len(expected):
        raise PackageError(f"{package}: gives {len(chosen.outputs)} outputs, the block gives {len(expected)}")
    observed = _NotFinite()
    named = {value.name: x for value, x in zip(chosen.inputs, inputs, strict=True)}
    outputs = program.run(named, function, mode=mode, observe=observed)
    relative = {
        name: relative_error(outputs[name], reference) for name, reference in zip(chosen.outputs, expected, strict=True)
    }
    deep = tuple(_too_deep(chosen))
    return BlockErrors(relative, tuple(observed.overflow), tuple(observed.not_a_number), deep)


def relative_error(result: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of the reference; infinite where either is not finite."""
    difference = (result.double() - reference.double()).norm().item()
    size = reference.double().norm().item()
    if difference == 0:
        return 0.0
    error = difference / size if size else float("inf")
    return error if error < float("inf") else float("inf")


@dataclass
class _NotFinite:
    """Notes where infinities and what is no number come from."""

    overflow: list[str] = field(default_factory=list)
    not_a_number: list[str] = field(default_factory=list)
    tainted: set[str] = field(default_factory=set)

    def __call__(self, operation: Operation, results: tuple[Tensor, ...]) -> None:
        bad = [not bool(r.isfinite().all()) for r in results if r.is_floating_point()]
        if not any(bad):
            return
        if self.tainted.isdisjoint(operation.names()):
            what = f"{operation.type} {operation.name}"
            is_nan = any(bool(r.isnan().any()) for r in results)
            (self.not_a_number if is_nan else self.overflow).append(what)
        self.tainted.update(output.name for output in operation.outputs)


def _too_deep(function: Function) -> list[str]:
    return [
        f"{operation.type} {operation.name}"
        for operation in function.operations
        if any(len(output.type.shape) > MOST_DIMENSIONS for output in operation.outputs)
    ]
