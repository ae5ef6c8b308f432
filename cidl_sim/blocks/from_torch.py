"""A workload from the user's own torch module, named as `module:factory`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networkx as nx
from torch import Tensor, nn

from cidl_sim.blocks.layer_graph import layer_graph
from cidl_sim.blocks.without_memory import WithoutMemory
from cidl_sim.core.errors import WorkloadError


def graph_from_torch(reference: str, *, depth: int | None = None) -> nx.DiGraph[int]:
    """The layer graph of what the function `reference` ("package.module:function") gives.

    The function takes nothing and returns a torch module, or a list of modules that feed each other, and the
    input tensor or a tuple of them. What it builds takes no memory (`without_memory`).

    Raises:
        WorkloadError: it cannot be imported or called, gives something else, or does not run without values.
    """
    factory, world = _imported(reference), WithoutMemory()
    try:
        with world.inside():
            given = factory()
    except Exception as problem:
        raise WorkloadError(f"{reference}() failed: {type(problem).__name__}: {problem}") from problem
    module, inputs = _module_and_inputs(reference, given)
    return layer_graph(module, inputs, depth=depth, world=world)


def _imported(reference: str) -> Any:
    module_name, colon, function_name = reference.partition(":")
    if not (module_name and colon and function_name):
        raise WorkloadError(f"{reference!r} does not name a function; write package.module:function")
    # As `python -m` does: the user's file lies where the user is.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
    except Exception as problem:
        raise WorkloadError(f"cannot import {reference}: {type(problem).__name__}: {problem}") from problem
    if not callable(factory):
        raise WorkloadError(f"{reference} is no function but {type(factory).__name__}")
    return factory


def _module_and_inputs(reference: str, given: Any) -> tuple[nn.Module | list[nn.Module], Sequence[Tensor]]:
    wanted = f"{reference}() has to return (module or list of modules, input tensor or tuple of tensors)"
    if not (isinstance(given, tuple) and len(given) == 2):
        raise WorkloadError(f"{wanted}, not {type(given).__name__}")
    chain, inputs = given
    inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
    if not isinstance(inputs, Sequence) or not all(isinstance(i, Tensor) for i in inputs):
        raise WorkloadError(f"{wanted}; its inputs are not tensors")
    if isinstance(chain, nn.Module):
        return chain, inputs
    if isinstance(chain, Sequence) and chain and all(isinstance(m, nn.Module) for m in chain):
        return list(chain), inputs
    raise WorkloadError(f"{wanted}; its first value holds no module")
