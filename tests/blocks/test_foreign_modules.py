"""Modules as people write them: on whatever device, with values read while they are built, weights in one storage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from cidl_sim.blocks.layer_graph import layer_graph, measure_module
from cidl_sim.blocks.partition import partition, workload_of_graph
from cidl_sim.blocks.without_memory import WithoutMemory
from cidl_sim.core.errors import WorkloadError

# Values that a module's own code reads


class DropPathRates(nn.Module):
    """Rates out of a tensor, as video transformers make them."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in self.rates)

    def forward(self, x: Tensor) -> Tensor:
        for rate, layer in zip(self.rates, self.layers, strict=True):
            x = x + (1 - rate) * layer(x)
        return x


class NumpyTable(nn.Module):
    """A plain attribute made from numpy, used beside what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.frequencies = torch.from_numpy(1.0 / 10000 ** (np.arange(0, 8) / 8)).float()
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x * torch.outer(torch.arange(x.shape[-2]).float(), self.frequencies).cos())


class MaskInForward(nn.Module):
    """A mask and positions that say no device, and one that says another."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.table(torch.arange(x.shape[-2]))
        mask = torch.full((x.shape[-2], x.shape[-2]), float("-inf"), device="cuda").triu(1)
        return (x @ x.transpose(-1, -2) + mask.to(x.device)).softmax(-1) @ x


class Windows(nn.Module):
    """How often something runs is counted in a tensor, which a loop and a list read."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)
        counts = torch.zeros(4, dtype=torch.int64)
        counts[1:3] += 1
        self.where = counts.nonzero().flatten().tolist()

    def forward(self, x: Tensor) -> Tensor:
        times = torch.tensor([1, 2]).cumsum(0)
        for _ in range(int(times[-1])):
            x = self.proj(x)
        return x if bool((times > 0).all()) else -x


@pytest.mark.parametrize("make", [DropPathRates, NumpyTable, MaskInForward, Windows])
@pytest.mark.parametrize("where", ["on the processor", "without memory"])
def test_values_exist_where_the_modules_own_code_asks_for_them(make, where):
    world = WithoutMemory()
    if where == "without memory":
        with world.inside():
            module, x = make(), torch.zeros(1, 5, 8)
    else:
        module, x = make(), torch.zeros(1, 5, 8)
    graph = layer_graph(module, [x], world=world)
    assert sum(node["flops"] for node in graph.nodes.values()) == flops_here(make)


def flops_here(make: type[nn.Module]) -> int:
    """What a call on the processor computes."""
    from torch.utils.flop_counter import FlopCounterMode

    module = make()
    if make is MaskInForward:
        return 2 * 2 * 5 * 5 * 8
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, 5, 8))
    return counter.get_total_flops()


def test_a_value_that_follows_from_weights_is_refused_with_the_way_out():
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x if self.proj(x).mean() > 0 else -x

    with pytest.raises(WorkloadError, match=r"Gate cannot be measured without weights: .*constant there") as problem:
        layer_graph(Gate(), [torch.zeros(2, 8)])
    assert "\n" not in str(problem.value)


# What a user's own code raises


class Raises(nn.Module):
    def __init__(self, problem: Exception) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)
        self.problem = problem

    def forward(self, x: Tensor) -> Tensor:
        self.proj(x)
        raise self.problem


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (AssertionError("height has to be divisible by 16"), "height has to be divisible by 16"),
        (AssertionError(), "AssertionError"),
        (KeyError("text_embeds"), "KeyError: 'text_embeds'"),
        (AttributeError("no attribute 'shape'"), "AttributeError: no attribute 'shape'"),
        (IndexError("out of range"), "IndexError: out of range"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (StopIteration("done"), "StopIteration: done"),
        (OSError(2, "No such file or directory"), "No such file or directory"),
        (RuntimeError("\n\n first words\nand more"), "first words"),
    ],
)
def test_whatever_a_forward_raises_is_said_in_its_own_words(problem, words):
    with pytest.raises(WorkloadError, match="Raises does not run: ") as caught:
        layer_graph(Raises(problem), [torch.zeros(2, 8)])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# Weights by the bytes that they lie in


class Weight(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def fused_rows() -> list[nn.Module]:
    return [Weight(part) for part in torch.zeros(24, 8).split(8)]


def fused_columns() -> list[nn.Module]:
    return [Weight(part) for part in torch.zeros(8, 24).split(8, dim=1)]


def flat_with_gaps() -> list[nn.Module]:
    flat = torch.zeros(1000)
    return [Weight(flat[i * 100 : i * 100 + 64].view(8, 8)) for i in range(4)]


def transposed() -> list[nn.Module]:
    weight = torch.zeros(8, 8)
    return [Weight(weight), Weight(weight.t())]


def tied_objects() -> list[nn.Module]:
    one = Weight(torch.zeros(8, 8))
    return [one, Weight(one.weight)]


def tied_data() -> list[nn.Module]:
    one, other = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
    other.weight.data = one.weight.data
    return [one, other]


def slice_of_a_table() -> list[nn.Module]:
    table = torch.zeros(50, 8)
    return [Weight(table[:8]), Weight(table), Weight(table[4:20]), nn.Linear(16, 8)]


def windows_over_one_another() -> list[nn.Module]:
    flat = torch.zeros(120)
    return [Weight(flat[start : start + 64].view(8, 8)) for start in (0, 32, 56)]


def expanded() -> list[nn.Module]:
    return [Weight(torch.zeros(1, 8).expand(8, 8)), nn.Linear(8, 8)]


def computed() -> list[nn.Module]:
    return [parametrizations.weight_norm(nn.Linear(8, 8)), parametrizations.spectral_norm(nn.Linear(8, 8))]


def buffers() -> list[nn.Module]:
    return [nn.BatchNorm1d(8), nn.Linear(8, 8)]


def several_types() -> list[nn.Module]:
    storage = torch.zeros(1024, dtype=torch.uint8)
    floats = storage[:256].view(torch.float32).view(8, 8)
    module = Weight(floats)
    module.register_buffer("scales", storage[128:300].view(torch.float16))
    return [module]


STYLES = [
    fused_rows, fused_columns, flat_with_gaps, transposed, tied_objects, tied_data, slice_of_a_table,
    windows_over_one_another, expanded, computed, buffers, several_types,
]  # fmt: skip


def covered_bytes(module: nn.Module) -> int:
    """How many bytes of memory parameters and buffers lie in, one by one."""
    addresses: set[int] = set()
    for tensor in [*module.parameters(), *module.buffers()]:
        item = tensor.element_size()
        offsets = np.zeros(1, np.int64)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            offsets = np.add.outer(offsets, stride * item * np.arange(size)).ravel()
        for byte in range(item):
            addresses.update((tensor.data_ptr() + offsets + byte).tolist())
    return len(addresses)


@given(
    styles=st.lists(st.sampled_from(STYLES), min_size=1, max_size=4), where=st.sampled_from(["cpu", "meta", "world"])
)
def test_all_layers_together_have_the_bytes_that_parameters_and_buffers_cover(styles, where):
    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for style in styles:
            layers += style()
        return Reached(layers)

    world = WithoutMemory()
    expected = covered_bytes(build())
    if where == "world":
        with world.inside():
            module = build()
    else:
        with torch.device(where):
            module = build()
    graph = layer_graph(module, [torch.zeros(2, 8)], world=world)
    pieces: dict[str, int] = {}
    for node in graph.nodes.values():
        for name, size in node["parameters"].items():
            assert pieces.setdefault(name, size) == size
    assert sum(pieces.values()) == expected
    # Of blocks those that share weights count once, and no layer is left out.
    workload = workload_of_graph(graph, partition(graph), name="w")
    assert workload.weights_bytes >= expected
    assert measure_module(module, [torch.zeros(2, 8)]).weight_bytes == expected if where != "world" else True


class Reached(nn.Module):
    """Calls each layer on what fits it; what does not fit is never called, and still has weights."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            weight = layer.weight
            if weight.shape == (8, 8):
                x = layer(x)
        return x


def test_a_slice_of_a_table_counts_again_as_a_block_of_its_own():
    world = WithoutMemory()
    with world.inside():
        head, table, *_ = slice_of_a_table()
        module = nn.Sequential(head, nn.Linear(8, 8, bias=False))
        module.append(Reversed(table))
    graph = layer_graph(module, [torch.zeros(2, 8)], world=world)
    assert [node["weight_bytes"] for node in graph.nodes.values()] == [4 * 64, 4 * 64, 4 * 400]
    assert sum({k: v for n in graph.nodes.values() for k, v in n["parameters"].items()}.values()) == 4 * 464


class Reversed(nn.Module):
    def __init__(self, table: Weight) -> None:
        super().__init__()
        self.weight = table.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)
