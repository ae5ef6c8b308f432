"""From definitions to the blocks of a workload: every kind is built once on the meta device and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from cidl_sim.blocks.cuts import Dtype
from cidl_sim.blocks.definition import TORCH_DTYPES, BlockDefinition, StageDefinition
from cidl_sim.blocks.layer_graph import Measurement, measure_module
from cidl_sim.blocks.meta_device import MetaDevice
from cidl_sim.core.workload import Block, Stage


@cache
def _measurements() -> dict[tuple[str, Dtype], tuple[Measurement, Measurement]]:
    """What was measured in this process, by kind: a kind knows the widths, so equal blocks of any model share it."""
    return {}


def measured_stages(
    nominal: Sequence[StageDefinition],
    longest: Sequence[StageDefinition],
    dtype: Dtype,
    state_bytes: Callable[[str], int],
) -> tuple[Stage, ...]:
    """The stages of a workload: arithmetic and weights as in `nominal`, workspace as in `longest`.

    `state_bytes(group)`: what a run of that group's blocks carries beside each block's own inputs and outputs. Of a
    table of rows only those that a run reads count, since no more is ever loaded.
    """
    stages = []
    for stage, at_longest in zip(nominal, longest, strict=True):
        blocks = [
            _measured(definition, other, dtype, state_bytes(stage.group))
            for definition, other in zip(stage.blocks, at_longest.blocks, strict=True)
        ]
        stages.append(Stage(name=stage.name, group=stage.group, rounds=stage.rounds, blocks=tuple(blocks)))
    return tuple(stages)


def _measured(definition: BlockDefinition, at_longest: BlockDefinition, dtype: Dtype, state_bytes: int) -> Block:
    known, key = _measurements(), (definition.kind, dtype)
    if key not in known:
        world = MetaDevice()
        with world.inside():
            module = definition.build().to(TORCH_DTYPES[dtype])
        nominal, longest = definition.example(), at_longest.example()
        found = measure_module(module, nominal, world)
        same = [(x.shape, x.dtype) for x in nominal] == [(x.shape, x.dtype) for x in longest]
        known[key] = (found, found if same else measure_module(module, longest, world))
    at_nominal, peak = known[key]
    return Block(
        name=definition.name,
        kind=definition.kind,
        weights=definition.weights,
        weight_bytes=definition.loaded_bytes(at_nominal.weight_bytes),
        workspace_bytes=peak.workspace_bytes + at_longest.held_bytes + state_bytes,
        flops=at_nominal.flops,
        bytes_moved=at_nominal.bytes_moved,
        like=tuple(
            _measured(other, longest, dtype, state_bytes)
            for other, longest in zip(definition.like, at_longest.like, strict=True)
        ),
    )
