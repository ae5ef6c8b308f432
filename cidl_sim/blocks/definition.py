"""A block before it has weights: how its module is built, what it is called with, where its tensors come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from cidl_sim.blocks.joined import Joined
from cidl_sim.core.workload import joined_kind

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class BlockDefinition:
    """One block: how to build its module and what it is called with.

    `kind` names what shares costs, widths included (`widths_of`). `build` gives a module without weights when called
    under the meta device. `example` gives meta tensors of the shapes that the block meets in a run. `checkpoint` (a
    part of the published checkpoint) and `published` say where its tensors are there: the beginning of a name in the
    block, and what stands there instead. `rows`: the block is one table of so many rows, and a run reads only those
    that its input names (at most the second number). `variant`: "" for the plain one, else which other computation on
    the same weights it is. `like`: see `cidl_sim.core.workload.Block`. `held_bytes`: what the network keeps for later
    blocks while this one runs, beside what the block itself takes and gives.
    """

    name: str
    kind: str
    weights: str
    build: Callable[[], nn.Module]
    example: Callable[[], tuple[Tensor, ...]]
    checkpoint: str
    published: dict[str, str]
    rows: tuple[int, int] | None = None
    variant: str = ""
    like: tuple[BlockDefinition, ...] = ()
    held_bytes: int = 0

    def loaded_bytes(self, weight_bytes: int) -> int:
        """What a run loads at most of a block that weighs `weight_bytes`."""
        if self.rows is None:
            return weight_bytes
        rows, at_most = self.rows
        return weight_bytes // rows * at_most

    def published_key(self, name: str) -> str:
        """The key in the published checkpoint of the tensor that the block calls `name`."""
        beginning = max((b for b in self.published if name.startswith(b)), key=len)
        return self.published[beginning] + name.removeprefix(beginning)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the block's tensors by their names in its module."""
        with torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in self.build().state_dict().items()}


@dataclass(frozen=True)
class StageDefinition:
    """Ordered blocks, run `rounds` times."""

    name: str
    group: str
    rounds: int
    blocks: tuple[BlockDefinition, ...]


def joined_blocks(blocks: Sequence[BlockDefinition], count: int) -> Iterator[BlockDefinition]:
    """The blocks, `count` neighbours as one."""
    for start in range(0, len(blocks), count):
        parts = tuple(blocks[start : start + count])
        if len(parts) == 1:
            yield parts[0]
            continue
        name = f"{parts[0].name}..{parts[-1].name}"
        yield replace(
            parts[0],
            name=name,
            kind=joined_kind([part.kind for part in parts]),
            weights=name,
            build=partial(Joined.of, [part.build for part in parts]),
            published={f"parts.{i}.{local}": key for i, p in enumerate(parts) for local, key in p.published.items()},
            like=parts,
        )


def meta_tensor(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor of this shape without values."""
    return torch.empty(shape, dtype=dtype, device="meta")
