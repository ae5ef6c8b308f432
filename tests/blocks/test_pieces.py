"""Networks with skips and named tensors, cut and run block by block."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cidl_sim.blocks.definition import StageDefinition
from cidl_sim.blocks.measure import measured_stages
from cidl_sim.blocks.pieces import Interface, Network, NetworkState, Piece, Unit

WIDTH = 6


class Mixed(nn.Module):
    """Adds up all it is given, each through weights of its own."""

    def __init__(self, inputs: int, gives: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(inputs, WIDTH, WIDTH))
        self.gives = gives

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        hidden = torch.tanh(sum(x @ w for x, w in zip(inputs, self.weights, strict=True)))
        return (hidden, *(hidden * (i + 2) for i in range(self.gives))) if self.gives else hidden


def piece(
    name: str = "", *, takes: str = "", gives: str = "", pops: bool = False, pushes: bool = False, kind: str = "p"
) -> Piece:
    own, given_names = tuple(takes.split()), tuple(gives.split())
    build = partial(Mixed, 1 + len(own) + pops, len(given_names))
    figures = f"{kind}.{'.'.join(own)}.{'.'.join(given_names)}{pops}{pushes}"
    return Piece(name, figures, build, {"": f"{name}."}, own, given_names, pops=pops, pushes=pushes)


def network(*units: Unit, outputs: tuple[str, ...] = ()) -> Network:
    inputs = {"": torch.empty(2, WIDTH, device="meta"), "c": torch.empty(2, WIDTH, device="meta")}
    return Network("net", "part", units, inputs, outputs)


def u_shaped() -> Network:
    return network(
        Unit("in", "in", (piece(gives="t", pushes=True),)),
        Unit(
            "down.0", "a", (piece("start", takes="t", gives="past"), piece("end", takes="past", pushes=True)), fine=True
        ),
        Unit("down.1", "b", (piece("start", takes="t c", pushes=True), piece("down", pushes=True)), fine=True),
        Unit("mid", "mid", (piece(takes="t"),)),
        Unit("up.0", "c", (piece("start", pops=True, takes="t", gives="past"), piece("end", takes="past", pops=True))),
        Unit("up.1", "d", (piece("one", pops=True), piece("two", pops=True, takes="c"))),
        Unit("out", "out", (piece(gives="result"),)),
        outputs=("result",),
    )


def result(net: Network, cut: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    modules = [p.build() for p in net.pieces]
    state, hidden = NetworkState(net), torch.linspace(-1, 1, 2 * WIDTH).view(2, WIDTH)
    named = {"c": torch.cos(hidden)}
    for block in net.blocks(cut, "fp32"):
        first, end = net.place(block.name)
        module = block.build()
        module.parts = nn.ModuleList(modules[first:end])
        with torch.no_grad():
            hidden, named = state.run(block.name, module, hidden, **named), {}
    return hidden, state.results()["result"]


@given(st.sampled_from([0, 1, 2, 3, 4, 7, 50, -1, -2, -3, -6]))
def test_every_cut_computes_the_same(cut: int) -> None:
    expected, found = result(u_shaped(), 1), result(u_shaped(), cut)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_what_a_block_takes_and_gives() -> None:
    net = u_shaped()
    assert net.interface("net.in") == Interface((), 0, ("t",), 0, keeps=True)
    assert net.interface("net.down.0") == Interface(("t",), 0, (), 0, keeps=True)
    assert net.interface("net.down.0.start") == Interface(("t",), 0, ("past",), 0)
    assert net.interface("net.down.1") == Interface(("t", "c"), 0, (), 1, keeps=True)
    assert net.interface("net.down.0..net.mid") == Interface(("t", "c"), 0, (), 3)
    assert net.interface("net.mid..net.up.1") == Interface(("t", "c"), 4, (), 0)
    assert net.interface("net.in..net.out") == Interface(("c",), 0, ("result",), 0)
    with pytest.raises(KeyError):
        net.interface("net.nothing")


def test_skips_are_held_while_blocks_run_that_do_not_take_them() -> None:
    blocks = {block.name: block for block in u_shaped().blocks(1, "fp32")}
    one = 2 * WIDTH * 4
    # The text "c" and the time "t" are kept, and what was put aside so far.
    assert blocks["net.in"].held_bytes == one
    assert blocks["net.down.0"].held_bytes == 2 * one
    assert blocks["net.down.1"].held_bytes == 2 * one
    assert blocks["net.mid"].held_bytes == 5 * one
    assert blocks["net.up.0"].held_bytes == 3 * one
    assert blocks["net.up.1"].held_bytes == 0
    assert blocks["net.out"].held_bytes == 0


def test_what_is_held_counts_as_workspace_and_equal_blocks_share_their_kind() -> None:
    net = network(
        Unit("a", "in", (piece(pushes=True),)),
        *(Unit(name, "same", (piece(),)) for name in "bcd"),
        Unit("e", "out", (piece(pops=True),)),
        Unit("f", "same", (piece(),)),
    )
    stages = [StageDefinition("s", "s", 1, net.blocks(1, "fp32"))]
    (stage,) = measured_stages(stages, stages, "fp32", lambda group: 1000)
    by_name = {block.name: block for block in stage.blocks}
    assert by_name["net.b"].kind == by_name["net.f"].kind
    assert by_name["net.b"].workspace_bytes - by_name["net.f"].workspace_bytes == 2 * WIDTH * 4


def test_chunks_are_of_about_equal_weight_and_joined_blocks_are_like_their_parts() -> None:
    units = [Unit(str(i), f"k{i}", (piece(takes="c " * 0 + ("c" if i % 2 else "")),)) for i in range(12)]
    net = network(*units)
    blocks = net.blocks(-3, "fp32")
    sizes = [sum(torch.Size(shape).numel() for shape in block.shapes().values()) for block in blocks]
    assert len(blocks) == 3
    assert max(sizes) <= 1.2 * min(sizes)
    assert [len(block.like) for block in blocks] == [4, 4, 4]
    (whole,) = net.blocks(-1, "fp32")
    assert whole.kind.startswith("joined.net.12units.")
    assert whole.name == "net.0..net.11"


def test_a_table_of_rows_is_by_rows_alone_and_whole_in_a_larger_block() -> None:
    table = Piece("", "table", partial(Mixed, 1, 0), {"": ""}, rows=(100, 7))
    net = network(Unit("table", "table", (table,)), Unit("next", "n", (piece(),)))
    assert [block.rows for block in net.blocks(1, "fp32")] == [(100, 7), None]
    (joined,) = net.blocks(2, "fp32")
    assert joined.rows is None
    assert all(part.rows is None for part in joined.like)


def test_whether_a_result_is_put_aside_makes_no_other_kind_of_block_and_no_other_module() -> None:
    net = network(
        Unit("a", "same", (Piece("", "p", partial(Mixed, 1, 0), {"": ""}, pushes=True),)),
        Unit("b", "same", (Piece("", "p", partial(Mixed, 1, 0), {"": ""}),)),
        Unit("c", "last", (piece(pops=True),)),
    )
    first, second, _ = net.blocks(1, "fp32")
    assert first.kind == second.kind
    x = torch.ones(2, WIDTH)
    for block in (first, second):
        assert isinstance(block.build()(x), Tensor)
