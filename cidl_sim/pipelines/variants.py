"""What an export of a model covers: for each set of weights the kinds of block that runs under some settings meet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from cidl_sim.blocks.cuts import Dtype
from cidl_sim.blocks.variants import Variant, Variants, variants_by_weights
from cidl_sim.core.errors import InputError
from cidl_sim.core.workload import Block
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import parse_name, pipeline_of, workload_of
from cidl_sim.pipelines.pipeline import ModelSizes, RunSettings


@cache
def variants_of(sizes: ModelSizes, runs: tuple[RunSettings, ...]) -> Variants:
    """For each set of weights the kinds of block that use it in these runs, plain before other variants.

    Every variant of a block is taken, whether the runs meet it or not.
    """
    return variants_by_weights(block for run in runs for block in _blocks(sizes, run))


def kinds_in(sizes: ModelSizes, run: RunSettings) -> tuple[str, ...]:
    """The kinds of block of a run, in order of first use."""
    return tuple(dict.fromkeys(block.longest.kind for block in _blocks(sizes, run)))


def blocks_by_kind(names: Sequence[str]) -> dict[str, Block]:
    """A block of each kind that an export for these named workloads covers, with the figures of its workload."""
    found: dict[str, Block] = {}
    for name in names:
        sizes, settings = parse_name(name)
        for stage in workload_of(sizes, pipeline_of(sizes).covering(settings)).stages:
            for block in stage.blocks:
                found.setdefault(block.kind, block)
    return found


def runs_for(store: BlockStore, sizes: ModelSizes, workloads: Sequence[str], dtype: Dtype) -> tuple[Any, ...]:
    """The settings of the named workloads, or the model's default, in this dtype and with the store's cut.

    InputError for another model's workload.
    """
    index, given = store.index, []
    for name in workloads:
        model, settings = parse_name(name)
        if (model, settings.partition) != (sizes, index.partition):
            raise InputError(
                f"workload {name!r}: the store {store.root} holds {index.name!r}, cut as {index.partition!r}"
            )
        given.append(settings)
    if not given:
        default = pipeline_of(sizes).defaults.get(sizes.name)
        if default is None:
            raise InputError(f"{store.root}: a model without default settings; give --workload")
        given.append(default.model_copy(update={"partition": index.partition}))
    return tuple(dict.fromkeys(settings.model_copy(update={"dtype": dtype}) for settings in given))


def _blocks(sizes: ModelSizes, run: RunSettings) -> Iterator[Variant]:
    pipeline = pipeline_of(sizes)
    covering = pipeline.covering(run)
    longest = pipeline.stages(sizes, covering, "longest")
    shortest = pipeline.stages(sizes, covering, "shortest")
    nominal = pipeline.stages(sizes, covering, "nominal")
    for stages in zip(longest, shortest, nominal, strict=True):
        for blocks in zip(*(stage.blocks for stage in stages), strict=True):
            yield Variant(*blocks)
