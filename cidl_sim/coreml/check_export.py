"""Every function of an export against its block in PyTorch, with the weights of the store that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from cidl_sim.blocks.definition import BlockDefinition
from cidl_sim.blocks.variants import Variants, of_kind
from cidl_sim.core.errors import InputError
from cidl_sim.core.files import Record
from cidl_sim.core.progress import Progress, silent
from cidl_sim.coreml.check import BlockErrors, compare_block
from cidl_sim.coreml.manifest import Manifest, Package, TensorSpec, read_manifest
from cidl_sim.executor.store import BlockStore
from cidl_sim.models.stdit3 import rotary_frequencies
from cidl_sim.models.t5 import MASKED

# The largest relative error in each dtype. Compressed weights have an error of their own, of any size.
ALLOWED = {"fp32": 2e-6, "fp16": 3e-3}
_TORCH = {"fp32": torch.float32, "fp16": torch.float16, "int32": torch.int32}


class CheckedFunction(Record):
    """What `cidl coreml check` says of a function; `relative_error` is None where a result is not finite.

    `overflow`, `not_a_number`, `too_many_dimensions`: the operations that are flagged. `allowed` None: any error.
    """

    weights: str
    function: str
    kind: str
    relative_error: float | None
    allowed: float | None
    overflow: tuple[str, ...]
    not_a_number: tuple[str, ...]
    too_many_dimensions: tuple[str, ...]
    passed: bool


@dataclass(frozen=True)
class FunctionCheck:
    """One function of a package: what it computes, its errors, and the largest that is allowed, if any is too large."""

    weights: str
    function: str
    kind: str
    errors: BlockErrors
    allowed: float | None

    @property
    def passed(self) -> bool:
        """Whether nothing is flagged and the error is no larger than allowed; finite, where any size is."""
        limit = float("inf") if self.allowed is None else self.allowed
        return not self.errors.flagged and self.errors.largest <= limit and self.errors.largest < float("inf")

    @property
    def figures(self) -> CheckedFunction:
        """The check as a record."""
        errors = self.errors
        return CheckedFunction(
            weights=self.weights,
            function=self.function,
            kind=self.kind,
            relative_error=errors.largest if errors.largest < float("inf") else None,
            allowed=self.allowed,
            overflow=errors.overflow,
            not_a_number=errors.not_a_number,
            too_many_dimensions=errors.too_many_dimensions,
            passed=self.passed,
        )


def check_functions(
    folder: Path,
    store: BlockStore,
    variants: Variants,
    blocks: Sequence[str] = (),
    on_function: Progress = silent,
) -> list[FunctionCheck]:
    """Compare the functions of an export with PyTorch in fp32, each on the same seeded inputs at the longest prompt.

    `variants`: the blocks that the export's functions compute. `blocks`: patterns of names of weights, all without any.
    One block is in memory at a time. InputError: no export, another store than the one it was made from, a pattern
    without a match; PackageError: a package cannot be run.
    """
    manifest = read_manifest(folder)
    vocabulary = vocabulary_of(variants)
    chosen = _chosen(manifest, folder, blocks)
    allowed = ALLOWED[manifest.dtype] if manifest.compression == "none" else None
    total = sum(len(package.functions) for package in chosen.values())
    checks: list[FunctionCheck] = []
    for weights, package in chosen.items():
        tensors = _tensors(store, weights, package, folder)
        for name, function in package.functions.items():
            module = _module(of_kind(variants[weights], function.kind).longest, tensors)
            inputs = [example_input(spec, vocabulary) for spec in function.inputs]
            errors = compare_block(module, inputs, folder / package.folder, name)
            checks.append(FunctionCheck(weights, name, function.kind, errors, allowed))
            on_function(len(checks), total, weights)
    return checks


def vocabulary_of(variants: Variants) -> int:
    """How many tokens the model's table of tokens knows; 1 for a model without one."""
    rows = [kind.longest.rows for kinds in variants.values() for kind in kinds.values() if kind.longest.rows]
    return min((count for count, _ in rows), default=1)


def _chosen(manifest: Manifest, folder: Path, patterns: Sequence[str]) -> dict[str, Package]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in manifest.packages):
            raise InputError(f"--blocks {pattern!r}: no such package in {folder}")
    chosen = {
        name: package
        for name, package in manifest.packages.items()
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    if not chosen:
        raise InputError(f"{folder}: holds no packages yet; go on with 'cidl coreml export'")
    return chosen


def _tensors(store: BlockStore, weights: str, package: Package, folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if weights not in store.index.blocks or store.entry(weights).sha256 != package.source_sha256:
        raise InputError(f"{folder}: {weights} was not made from the store {store.root}")
    try:
        return {name: tensor.float() for name, tensor in load_file(store.path(weights)).items()}
    except (OSError, SafetensorError) as problem:
        raise InputError(f"{store.path(weights)}: cannot be read ({problem})") from None


def _module(definition: BlockDefinition, tensors: dict[str, Tensor]) -> nn.Module:
    with torch.device("meta"):
        module = definition.build().eval()
    module.load_state_dict(tensors, assign=True)
    return module


def example_input(spec: TensorSpec, vocabulary: int) -> Tensor:
    """What an input may hold in a run, always the same numbers, rounded to its dtype.

    Token ids; a mask whose second half is padding; the middle of the sampler's time; 24 frames a second; the published
    rotary frequencies; normal numbers otherwise.
    """
    generator = torch.Generator().manual_seed(0)
    if spec.dtype == "int32":
        return torch.randint(0, vocabulary, spec.shape, generator=generator, dtype=torch.int32)
    if spec.name == "mask":
        made = torch.where(torch.arange(spec.shape[-1]) < (spec.shape[-1] + 1) // 2, 0.0, MASKED).expand(spec.shape)
    elif spec.name in ("timestep", "fps"):
        made = torch.full(spec.shape, {"timestep": 500.0, "fps": 24.0}[spec.name])
    elif spec.name == "frequencies":
        made = rotary_frequencies(2 * spec.shape[0])
    else:
        made = torch.randn(spec.shape, generator=generator)
    return made.to(_TORCH[spec.dtype]).float()
