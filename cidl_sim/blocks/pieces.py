"""Networks whose state between two blocks is more than one tensor: cut into blocks, and run block by block.

A network is a row of units, each of one or several pieces. What the reference takes as a block is a unit. A piece takes
the hidden state, other tensors by name (an embedding of the time, the text), and in a UNet the skip that was put aside
last; it gives the next hidden state, may give others by name, and may put its result aside. What is put aside or kept
by name while a block runs is workspace that the block itself does not see: `BlockDefinition.held_bytes`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from cidl_sim.blocks.cuts import HALVES
from cidl_sim.blocks.definition import TORCH_DTYPES, BlockDefinition
from cidl_sim.core.workload import joined_kind

# A block of more units is named by a hash of their kinds.
_LONGEST_KIND = 4


@dataclass(frozen=True)
class Piece:
    """The smallest part that is ever a block.

    `name` within its unit, "" where it is all of it. `kind` knows the widths. `published`: the beginning of its
    tensors' keys in a checkpoint, by the beginning of their names in the module. `takes` and `gives`: tensors by name
    beside the hidden state, in the order of its module's arguments and results. `pops`: it takes the skip that was put
    aside last, as its last argument; `pushes`: its result is put aside. `rows`: see `BlockDefinition`.
    """

    name: str
    kind: str
    build: Callable[[], nn.Module]
    published: Mapping[str, str]
    takes: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    pops: bool = False
    pushes: bool = False
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Unit:
    """What the reference takes as a block. `fine`: a finer cut sets its pieces apart."""

    name: str
    kind: str
    pieces: tuple[Piece, ...]
    fine: bool = False


@dataclass(frozen=True)
class Interface:
    """What a block takes beside the hidden state, and gives: names in order, and how many skips.

    `keeps`: the hidden state that it gives is put aside too. No block gives the same tensor twice, so that blocks of
    equal layers are of one kind wherever they stand.
    """

    takes: tuple[str, ...] = ()
    pops: int = 0
    gives: tuple[str, ...] = ()
    pushes: int = 0
    keeps: bool = False


class PieceChain(nn.Module):
    """Neighbouring pieces as one block: hidden state, named tensors and skips in, the same out."""

    def __init__(self, pieces: Sequence[Piece], interface: Interface) -> None:
        super().__init__()
        self.parts = nn.ModuleList(piece.build() for piece in pieces)
        self._pieces, self._interface = tuple(pieces), interface
        # By piece: what no later one takes, so that its memory is free from there on.
        self._last = [
            [name for name in (*piece.takes, *piece.gives) if not self._is_needed_after(i, name)]
            for i, piece in enumerate(pieces)
        ]

    @property
    def inputs(self) -> tuple[str, ...]:
        """What its arguments are called, in their order."""
        return ("hidden", *self._interface.takes, *(f"skip{i}" for i in range(self._interface.pops)))

    @property
    def results(self) -> tuple[str, ...]:
        """What its results are called, in their order."""
        given = (f"{name}_out" for name in self._interface.gives)
        return ("hidden_out", *given, *(f"aside{i}" for i in range(self._interface.pushes)))

    def forward(self, hidden: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Hidden, the named tensors that are taken, the skips that are taken (the last one put aside first).

        -> hidden, the named tensors that are given, the skips that are put aside; alone where there are no others.
        """
        takes = self._interface.takes
        named = dict(zip(takes, others, strict=False))
        given = list(others[len(takes) :])
        own: list[Tensor] = []
        for i, (piece, part, last) in enumerate(zip(self._pieces, self.parts, self._last, strict=True)):
            arguments = [named[name] for name in piece.takes]
            if piece.pops:
                arguments.append(own.pop() if own else given.pop(0))
            results = part(hidden, *arguments)
            hidden, *new = results if isinstance(results, tuple) else (results,)
            named.update(zip(piece.gives, new, strict=True))
            if piece.pushes and i < len(self._pieces) - 1:
                own.append(hidden)
            del arguments, results, new
            for name in last:
                named.pop(name, None)
        results = (hidden, *(named[name] for name in self._interface.gives), *own)
        return results if len(results) > 1 else hidden

    def _is_needed_after(self, i: int, name: str) -> bool:
        return name in self._interface.gives or _is_taken(self._pieces[i + 1 :], name)


@dataclass(frozen=True, eq=False)
class Network:
    """Units in order. `name` begins the names of its blocks; `checkpoint` is the part that its weights come from.

    `inputs`: what the pieces take from outside, the first hidden state under the name "", without values. `outputs`:
    tensors by name that are results, beside the last hidden state.
    """

    name: str
    checkpoint: str
    units: tuple[Unit, ...]
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...] = ()

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The pieces of all units."""
        return tuple(piece for unit in self.units for piece in unit.pieces)

    def keys(self) -> list[str]:
        """The keys of all tensors in a published checkpoint."""
        found = []
        for piece in self.pieces:
            with torch.device("meta"):
                names = list(piece.build().state_dict())
            for name in names:
                beginning = max((b for b in piece.published if name.startswith(b)), key=len)
                found.append(piece.published[beginning] + name.removeprefix(beginning))
        return found

    def parameters(self) -> int:
        """How many numbers its weights are."""
        return sum(map(_numbers, self.pieces))

    @cached_property
    def _firsts(self) -> tuple[int, ...]:
        """The number of each unit's first piece, and one past the last piece at the end."""
        firsts = [0]
        for unit in self.units:
            firsts.append(firsts[-1] + len(unit.pieces))
        return tuple(firsts)

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Where the units and their pieces lie, by name: the first piece and one past the last."""
        places = {}
        for unit, first, end in zip(self.units, self._firsts, self._firsts[1:], strict=False):
            places[self._named(unit)] = (first, end)
            if len(unit.pieces) > 1:
                names = (self._named(unit, piece) for piece in unit.pieces)
                places |= {name: (first + i, first + i + 1) for i, name in enumerate(names)}
        return places

    def place(self, block: str) -> tuple[int, int]:
        """The first piece of the block of this name, and one past its last. KeyError if there is none."""
        first, _, last = block.partition("..")
        return self._places[first][0], self._places[last or first][1]

    def interface(self, block: str) -> Interface:
        """What the block of this name takes and gives. KeyError if there is none."""
        return self._interface(*self.place(block))

    def is_needed(self, name: str, end: int) -> bool:
        """Whether the tensor of this name, as it is before piece `end`, is taken from there on or is a result."""
        return _is_taken(self.pieces[end:], name, at_the_end=name in self.outputs)

    def blocks(self, cut: int, dtype: str) -> tuple[BlockDefinition, ...]:
        """The network's blocks in one cut (`cidl_sim.blocks.cuts`): so many units as one, pieces, or chunks of all."""
        state = _Shapes(self.pieces, self.inputs, TORCH_DTYPES[dtype]).states
        if cut == HALVES:
            return tuple(
                block
                for i, unit in enumerate(self.units)
                for block in (self._apart(i, state, dtype) if unit.fine else (self._joined(i, i + 1, state, dtype),))
            )
        starts = self._chunks(-cut) if cut < 0 else list(range(0, len(self.units), cut))
        ends = [*starts[1:], len(self.units)]
        return tuple(self._joined(start, end, state, dtype) for start, end in zip(starts, ends, strict=True))

    def _named(self, unit: Unit, piece: Piece | None = None) -> str:
        parts = (self.name, unit.name, piece.name if piece else "")
        return ".".join(part for part in parts if part)

    def _interface(self, first: int, end: int) -> Interface:
        takes: dict[str, None] = {}
        gives: dict[str, None] = {}
        pops = own = 0
        for piece in self.pieces[first:end]:
            takes |= dict.fromkeys(name for name in piece.takes if name not in gives)
            gives |= dict.fromkeys(piece.gives)
            if piece.pops:
                own, pops = (own - 1, pops) if own else (own, pops + 1)
            own += piece.pushes
        given = tuple(name for name in gives if self.is_needed(name, end))
        keeps = self.pieces[end - 1].pushes
        return Interface(tuple(takes), pops, given, own - keeps, keeps)

    def _chunks(self, count: int) -> list[int]:
        """The units at which `count` chunks of about equal weights begin."""
        weights = [sum(_numbers(piece) for piece in unit.pieces) for unit in self.units]
        before = [sum(weights[:i]) for i in range(len(weights))]
        wanted = (sum(weights) * k / count for k in range(count))
        return sorted({min(range(len(weights)), key=partial(_distance, before, at)) for at in wanted})

    def _joined(self, start: int, end: int, states: Sequence[_State], dtype: str) -> BlockDefinition:
        """Units from `start` up to `end` as a block."""
        first, last = self._firsts[start], self._firsts[end]
        names = self._named(self.units[start]), self._named(self.units[end - 1])
        if end - start == 1:
            unit = self.units[start]
            rows = unit.pieces[0].rows if len(unit.pieces) == 1 else None
            return replace(self._block(names[0], unit.kind, first, last, states, dtype), rows=rows)
        parts = tuple(self._joined(i, i + 1, states, dtype) for i in range(start, end))
        # The same layers are another block where one of them puts its result aside for a block outside.
        aside = [self.units[i].pieces[-1].pushes and i < end - 1 for i in range(start, end)]
        kinds = [part.kind + ".aside" * put for part, put in zip(parts, aside, strict=True)]
        kind = joined_kind(kinds)
        if len(set(kinds)) > _LONGEST_KIND:
            kind = f"joined.{self.name}.{len(kinds)}units.{hashlib.sha256(kind.encode()).hexdigest()[:16]}"
        block = self._block("..".join(names), "", first, last, states, dtype)
        # A table that is part of a larger block is loaded whole.
        return replace(block, kind=kind, like=tuple(replace(part, rows=None) for part in parts))

    def _apart(self, i: int, states: Sequence[_State], dtype: str) -> tuple[BlockDefinition, ...]:
        """The pieces of a unit, each as a block."""
        unit, whole = self.units[i], (self._joined(i, i + 1, states, dtype),)
        if len(unit.pieces) == 1:
            return whole
        first = self._firsts[i]
        return tuple(
            replace(
                self._block(self._named(unit, piece), piece.kind, first + k, first + k + 1, states, dtype), like=whole
            )
            for k, piece in enumerate(unit.pieces)
        )

    def _block(
        self, name: str, kind: str, first: int, end: int, states: Sequence[_State], dtype: str
    ) -> BlockDefinition:
        state, interface, pieces = states[first], self._interface(first, end), self.pieces[first:end]
        skips = state.skips[len(state.skips) - interface.pops :][::-1]
        inputs = (state.hidden, *(state.named[name] for name in interface.takes), *skips)
        shape = "x".join(map(str, state.hidden.shape))
        return BlockDefinition(
            name=name,
            kind=f"{kind}.{dtype}.{shape}",
            weights=name,
            build=partial(PieceChain, pieces, interface),
            example=lambda: inputs,
            checkpoint=self.checkpoint,
            published={
                f"parts.{i}.{local}": key for i, piece in enumerate(pieces) for local, key in piece.published.items()
            },
            held_bytes=state.total_bytes - sum(map(_bytes, inputs)),
        )


class NetworkState:
    """What passes between the blocks of a network while they run one after another."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._named: dict[str, Tensor] = {}
        self._skips: list[Tensor] = []

    def run(self, block: str, call: Callable[..., object], hidden: Tensor, **given: Tensor) -> Tensor:
        """Call the block of this name; `given` are tensors that come from outside. -> the next hidden state."""
        self._named |= given
        interface = self._network.interface(block)
        skips = [self._skips.pop() for _ in range(interface.pops)]
        results = call(hidden, *(self._named[name] for name in interface.takes), *skips)
        del skips
        hidden, *others = results if isinstance(results, tuple) else (results,)
        names = len(interface.gives)
        self._named |= dict(zip(interface.gives, others[:names], strict=True))
        self._skips += others[names:]
        if interface.keeps:
            self._skips.append(hidden)
        end = self._network.place(block)[1]
        self._named = {name: tensor for name, tensor in self._named.items() if self._network.is_needed(name, end)}
        return hidden

    def results(self) -> dict[str, Tensor]:
        """What the last block gave by name; it is not kept."""
        results, self._named = self._named, {}
        return results


@dataclass(frozen=True)
class _State:
    """What is there before a piece: all of it without values."""

    hidden: Tensor
    named: dict[str, Tensor]
    skips: tuple[Tensor, ...]

    @property
    def total_bytes(self) -> int:
        return sum(map(_bytes, (self.hidden, *self.named.values(), *self.skips)))


class _Shapes:
    """The state before each piece, found by one call of all of them on the meta device."""

    def __init__(self, pieces: Sequence[Piece], inputs: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self.states: list[_State] = []
        hidden, named = inputs[""], {name: tensor for name, tensor in inputs.items() if name}
        skips: list[Tensor] = []
        for i, piece in enumerate(pieces):
            named = {name: tensor for name, tensor in named.items() if _is_taken(pieces[i:], name)}
            self.states.append(_State(hidden, dict(named), tuple(skips)))
            arguments = [named[name] for name in piece.takes] + ([skips.pop()] if piece.pops else [])
            with torch.device("meta"), torch.no_grad():
                results = piece.build().to(dtype)(hidden, *arguments)
            hidden, *new = results if isinstance(results, tuple) else (results,)
            named |= dict(zip(piece.gives, new, strict=True))
            if piece.pushes:
                skips.append(hidden)


def _is_taken(pieces: Sequence[Piece], name: str, *, at_the_end: bool = False) -> bool:
    """Whether some piece takes the tensor of this name before another gives a new one; `at_the_end`: if none does."""
    for piece in pieces:
        if name in piece.takes:
            return True
        if name in piece.gives:
            return False
    return at_the_end


def _distance(before: Sequence[int], at: float, i: int) -> float:
    return abs(before[i] - at)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _numbers(piece: Piece) -> int:
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in piece.build().state_dict().values())
