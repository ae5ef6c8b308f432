"""Cutting layer graphs into blocks, and workloads from the user's own modules."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cidl_sim.blocks.from_torch import graph_from_torch
from cidl_sim.blocks.layer_graph import layer_graph
from cidl_sim.blocks.partition import partition, workload_of_graph
from cidl_sim.core.errors import InfeasibleError, WorkloadError
from cidl_sim.policies.catalog import POLICIES, make_plan
from cidl_sim.simulator.engine import simulate
from tests.conftest import analytic_device


def graph_of(layers: list[dict[str, int]]) -> nx.DiGraph:
    """A graph of layers with these tensors."""
    graph: nx.DiGraph = nx.DiGraph()
    for number, parameters in enumerate(layers):
        graph.add_node(
            number, name=f"l{number}", module="Layer", parameters=parameters, weight_bytes=sum(parameters.values()),
            flops=10 * number, bytes_moved=7, workspace_bytes=100 - number, activation_bytes=5,
        )  # fmt: skip
    return graph


def bytes_of(layers: list[dict[str, int]], block: range) -> int:
    return sum({name: size for n in block for name, size in layers[n].items()}.values())


@st.composite
def layers_with_shared_tensors(draw: st.DrawFn) -> list[dict[str, int]]:
    sizes = draw(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 30), min_size=1))
    layer = st.lists(st.sampled_from(sorted(sizes)), unique=True, max_size=4)
    return [{name: sizes[name] for name in names} for names in draw(st.lists(layer, min_size=1, max_size=9))]


def best_possible(layers: list[dict[str, int]], limit: int) -> tuple[int, int]:
    """Fewest blocks, and among those the smallest largest one, by looking at every cut."""

    @cache
    def best_from(start: int) -> list[tuple[int, int]]:
        if start == len(layers):
            return [(0, 0)]
        found = []
        for end in range(start + 1, len(layers) + 1):
            size = bytes_of(layers, range(start, end))
            if size <= limit:
                found += [(count + 1, max(size, largest)) for count, largest in best_from(end)]
        return sorted(set(found))

    return best_from(0)[0]


@given(layers_with_shared_tensors(), st.integers(0, 40))
def test_a_partition_has_the_fewest_blocks_and_the_smallest_largest_one(layers, extra):
    limit = max(sum(layer.values()) for layer in layers) + extra
    blocks = partition(graph_of(layers), limit)
    assert [n for block in blocks for n in block] == list(range(len(layers)))
    sizes = [bytes_of(layers, block) for block in blocks]
    assert (len(blocks), max(sizes)) == best_possible(layers, limit)


def test_without_a_limit_the_largest_layer_is_one():
    layers = [{"a": 3}, {"b": 2}, {"c": 5}, {"d": 1}]
    assert partition(graph_of(layers)) == [range(2), range(2, 3), range(3, 4)]


def test_a_layer_above_the_limit_is_named():
    with pytest.raises(InfeasibleError, match=r"'l1' alone has 9 bytes of weights; blocks may have 8"):
        partition(graph_of([{"a": 1}, {"b": 9}]), 8)


def test_a_block_has_the_figures_of_its_layers():
    workload = workload_of_graph(
        graph_of([{"a": 3}, {"a": 3, "b": 2}, {"c": 5}]), [range(2), range(2, 3)], name="w", rounds=4
    )
    (stage,) = workload.stages
    first, second = stage.blocks
    assert stage.rounds == 4
    assert (first.name, first.weight_bytes, first.flops, first.bytes_moved) == ("l0..l1", 5, 10, 14)
    assert first.workspace_bytes == 100
    assert (second.name, second.weight_bytes, second.workspace_bytes) == ("l2", 5, 98)


def test_like_blocks_share_a_kind_and_equal_tensors_share_weights():
    twice = nn.Linear(8, 8)
    with torch.device("meta"):
        graph = layer_graph([twice, nn.Linear(8, 8), twice], [torch.empty(3, 8)])
    workload = workload_of_graph(graph, partition(graph), name="w")
    one, other, again = workload.stages[0].blocks
    assert len({one.kind, other.kind}) == 1
    assert again.weights == one.weights != other.weights
    assert len({one.name, other.name, again.name}) == 3


@given(st.lists(st.integers(1, 40), min_size=2, max_size=8))
def test_any_chain_can_be_planned_and_simulated(widths):
    with torch.device("meta"):
        chain = [nn.Linear(a, b) for a, b in pairwise(widths)]
        graph = layer_graph(chain, [torch.empty(2, widths[0])])
    workload = workload_of_graph(graph, partition(graph), name="chain", rounds=2)
    device = analytic_device(workload.weights_bytes + 100_000)
    for policy in POLICIES:
        assert simulate(workload, device, make_plan(policy, workload, device)).makespan_s > 0


# The user's own modules

MODULES = """
import torch
from torch import nn

def chain():
    return [nn.Linear(100, 400), nn.GELU(), nn.Linear(400, 100)], torch.empty(3, 100)

def module():
    return nn.Sequential(*chain()[0]), (torch.empty(3, 100),)

def huge():
    return nn.Linear(1_000_000, 1_000_000), torch.empty(1, 1_000_000)

def fails():
    raise KeyError("no such thing")

def no_inputs():
    return nn.Linear(2, 2)

def inputs_are_no_tensors():
    return nn.Linear(2, 2), [3]

def no_module():
    return [], torch.empty(2)

def wrong_shape():
    return nn.Linear(2, 2), torch.empty(3)

number = 3
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current folder; its name."""
    name = f"users_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULES)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("factory", ["chain", "module"])
def test_a_factory_gives_a_chain_or_a_module(factory, modules):
    graph = graph_from_torch(f"{modules}:{factory}")
    assert [layer["module"] for layer in graph.nodes.values()] == ["Linear", "GELU", "Linear"]


def test_what_a_factory_builds_takes_no_memory(modules):
    (layer,) = graph_from_torch(f"{modules}:huge").nodes.values()
    assert layer["weight_bytes"] == 4 * (10**12 + 10**6)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("{}", "does not name a function"),
        ("{}:absent", "cannot import .*absent"),
        ("no_such_module_at_all:f", "cannot import"),
        ("{}:number", "is no function but int"),
        ("{}:fails", "KeyError: 'no such thing'"),
        ("{}:no_inputs", "not Linear"),
        ("{}:inputs_are_no_tensors", "inputs are not tensors"),
        ("{}:no_module", "holds no module"),
        ("{}:wrong_shape", "Linear does not run: a and b must have same reduction dim"),
    ],
)
def test_what_is_no_factory_is_refused_in_one_line(reference, message, modules):
    with pytest.raises(WorkloadError, match=message) as caught:
        graph_from_torch(reference.format(modules))
    assert "\n" not in str(caught.value)
