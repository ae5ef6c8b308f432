"""Where a model is cut into blocks: the grammar of a partition's name, and the cuts that a planner may choose among.

Every group of stages (text encoder, denoiser, decoder) may be cut in its own way: so many blocks of the reference as
one, each in halves, or all of them in so many chunks of about equal weights. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from cidl_sim.core.workload import Block, Stage, Workload, joined_kind

Dtype = Literal["fp32", "bf16", "fp16"]
Cuts = dict[str, int]  # by group: this many blocks as one, HALVES, or minus the number of chunks

HALVES = 0
WHOLE = -1
AS_GIVEN = "as given"
# This many of the reference's blocks as one; beyond, few cuts fit beside a workspace.
JOINED = (2, 4)
CHUNKS = 2
_WORDS = {"fine": HALVES, "whole": WHOLE}


@dataclass(frozen=True)
class CutGrammar:
    """How the partitions of a family are written.

    `letters`: the letter of each group, in order. `halved`: the letters of the groups whose blocks can also be cut into
    halves. `chunked`: those of groups whose blocks can all be one, or a few chunks. "reference": 1 everywhere. "fine":
    halves wherever there are any. `names`: what other words stand for. With letters t, d and v: "t2.d4.v3",
    "tfine.d2", "dchunks2.vwhole": 2 blocks as one in t's group, 4 in d's, 3 in v's; what is not named is 1.
    """

    letters: Mapping[str, str]
    halved: str = ""
    chunked: str = ""
    names: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        parts = (f"(?:{letter}(?P<{letter}>{self.values(letter)}))?" for letter in self.letters)
        return re.compile(r"\.?".join(parts))

    def values(self, letter: str) -> str:
        """How a group may be cut, as a regular expression."""
        fine = "fine|" if letter in self.halved else ""
        chunked = "whole|chunks[2-9]|" if letter in self.chunked else ""
        return rf"{fine}{chunked}[1-9]\d?"

    @property
    def fine(self) -> str:
        """What "fine" stands for."""
        return ".".join(f"{letter}fine" for letter in self.letters if letter in self.halved)

    def cuts_of(self, partition: str) -> Cuts:
        """How many blocks of the reference make one block, by group; `HALVES`: each makes two.

        ValueError for what is no partition.
        """
        every = ".".join(f"{letter}1" for letter in self.letters)
        named = {"reference": every, "fine": self.fine, **self.names}.get(partition, partition)
        match = self._pattern.fullmatch(named)
        if not named and partition != "reference":
            match = None  # a family that is not cut
        if match is None or ".".join(f"{k}{v}" for k, v in match.groupdict().items() if v) != named:
            example = ".".join(f"{letter}{count}" for letter, count in zip(self.letters, (2, 4, 2), strict=False))
            fine = "".join(f", {name}" for name in (*(["fine"] if self.fine else []), *self.names))
            cuts = f", or cuts by group such as {example}" if example else ""
            raise ValueError(f"{partition!r} is no partition: write reference{fine}{cuts}")
        values = {group: match[letter] or "1" for letter, group in self.letters.items()}
        return {group: _count(value) for group, value in values.items()}

    def partition_name(self, cuts: Mapping[str, int]) -> str:
        """The one name of a partition; groups that are not given are cut as in the reference."""
        parts = [letter + _written(cuts[group]) for letter, group in self.letters.items() if cuts.get(group, 1) != 1]
        name = ".".join(parts) or "reference"
        return {self.fine: "fine", **{written: word for word, written in self.names.items()}}.get(name, name)

    def canonical(self, partition: str) -> str:
        """A partition by its one name. ValueError if it is none."""
        return self.partition_name(self.cuts_of(partition))

    def choices(self) -> dict[str, tuple[int, ...]]:
        """How each group may be cut, the finest first."""
        return {
            group: (
                *((HALVES,) if letter in self.halved else ()),
                1,
                *JOINED,
                *((-CHUNKS, WHOLE) if letter in self.chunked else ()),
            )
            for letter, group in self.letters.items()
        }


def _count(value: str) -> int:
    if value in _WORDS:
        return _WORDS[value]
    return -int(value.removeprefix("chunks")) if value.startswith("chunks") else int(value)


def _written(count: int) -> str:
    if count < WHOLE:
        return f"chunks{-count}"
    return next((word for word, meant in _WORDS.items() if meant == count), str(count))


@dataclass(frozen=True)
class CutChoices:
    """A workload's cuts: how each group may be cut, how it is, and how a workload of another cut is made.

    `cut` gives a partition's name and its workload. `store_command(partition)`: what builds a store for it, None where
    the executor has no such model.
    """

    choices: Mapping[str, tuple[int, ...]]
    own: Cuts
    cut: Callable[[Cuts], tuple[str, Workload]]
    store_command: Callable[[str], str | None]

    @property
    def finest(self) -> Cuts:
        """Every group cut as finely as it can be."""
        return {group: counts[0] for group, counts in self.choices.items()}

    def alternatives(self, base: Cuts) -> Iterator[Cuts]:
        """All groups cut alike, then one group cut in another way than in `base`."""
        for count in sorted({c for choices in self.choices.values() for c in choices}):
            yield {group: count if count in choices else base[group] for group, choices in self.choices.items()}
        for group, choices in self.choices.items():
            yield from ({**base, group: count} for count in choices if count != base[group])


def choices_of_blocks(workload: Workload) -> CutChoices:
    """Of a workload of which nothing but its blocks is known: some neighbours joined."""
    groups = dict.fromkeys(stage.group for stage in workload.stages)

    def cut(cuts: Cuts) -> tuple[str, Workload]:
        name = ".".join(f"{group}{count}" for group, count in cuts.items() if count != 1)
        return name or AS_GIVEN, joined_workload(workload, cuts, name) if name else workload

    return CutChoices(
        choices=dict.fromkeys(groups, (1, *JOINED)),
        own=dict.fromkeys(groups, 1),
        cut=cut,
        store_command=lambda partition: None,
    )


def joined_workload(workload: Workload, cuts: Mapping[str, int], partition: str) -> Workload:
    """`workload` with so many neighbouring blocks as one, by group.

    Bytes and arithmetic are sums (weights that occur twice in a block count once). The workspace is the largest of the
    parts': each counts what is live beside its weights, hence what passes between them.
    """
    return workload.model_copy(
        update={
            "name": f"{workload.name} {partition}",
            "settings": {"workload": workload.name, "partition": partition},
            "stages": tuple(_joined_stage(stage, cuts[stage.group]) for stage in workload.stages),
        }
    )


def _joined_stage(stage: Stage, count: int) -> Stage:
    parts = [stage.blocks[start : start + count] for start in range(0, len(stage.blocks), count)]
    blocks = tuple(_joined_block(part) if len(part) > 1 else part[0] for part in parts)
    return stage.model_copy(update={"blocks": blocks})


def _joined_block(parts: tuple[Block, ...]) -> Block:
    sizes = {part.weights: part.weight_bytes for part in parts}
    return Block(
        name=f"{parts[0].name}..{parts[-1].name}",
        kind=joined_kind([part.kind for part in parts]),
        weights="+".join(sizes),
        weight_bytes=sum(sizes.values()),
        workspace_bytes=max(part.workspace_bytes for part in parts),
        flops=sum(part.flops for part in parts),
        bytes_moved=sum(part.bytes_moved for part in parts),
        like=parts,
    )
