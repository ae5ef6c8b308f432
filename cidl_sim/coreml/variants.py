"""Which kinds of block use which weights: a package holds the one, and a function for each of the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from cidl_sim.models.config import OpenSoraSizes, VideoSettings
from cidl_sim.models.open_sora import BlockDefinition, stage_definitions


@dataclass(frozen=True)
class Variant:
    """A kind of block at the longest prompt, and the same at a prompt of one token."""

    longest: BlockDefinition
    shortest: BlockDefinition


@cache
def variants_of(sizes: OpenSoraSizes, runs: tuple[VideoSettings, ...]) -> dict[str, dict[str, Variant]]:
    """For each set of weights the kinds of block that use it in these runs, plain before merged.

    Denoisers are taken plain and with merged tokens, whether the runs merge or not.
    """
    pairs = zip(_blocks(sizes, runs, sizes.stdit.max_text_tokens), _blocks(sizes, runs, 1), strict=True)
    found: dict[str, dict[str, Variant]] = {}
    for longest, shortest in pairs:
        found.setdefault(longest.weights, {}).setdefault(longest.kind, Variant(longest, shortest))
    return {weights: dict(sorted(variants.items(), key=_is_merged)) for weights, variants in found.items()}


def kinds_in(sizes: OpenSoraSizes, run: VideoSettings) -> tuple[str, ...]:
    """The kinds of block of a run, in order of first use."""
    return tuple(dict.fromkeys(block.kind for block in _blocks(sizes, (run,), sizes.stdit.max_text_tokens)))


def _blocks(sizes: OpenSoraSizes, runs: tuple[VideoSettings, ...], text_tokens: int) -> Iterator[BlockDefinition]:
    for run in runs:
        # One step with merged tokens and one without: the number of steps makes no difference to a block.
        both = run.model_copy(update={"steps": 2, "tdtm": 1, "lpl": "off", "prompts": 1})
        for stage in stage_definitions(sizes, both, text_tokens):
            yield from stage.blocks


def _is_merged(item: tuple[str, Variant]) -> bool:
    return "merged" in item[0].split(".")
