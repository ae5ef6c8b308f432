"""Cutting a layer graph into blocks: what is loaded, executed and dropped as one."""

from __future__ import annotations

import networkx as nx

from cidl_sim.core.errors import InfeasibleError
from cidl_sim.core.workload import Block, Stage, Workload


def partition(graph: nx.DiGraph[int], limit_bytes: int | None = None) -> list[range]:
    """Consecutive layers, block by block: as few blocks of at most `limit_bytes` of weights as there can be.

    Among these the one whose largest block is smallest. Without a limit: as few as with the largest layer
    as the limit. Tensors that layers of one block share count once.

    Raises:
        InfeasibleError: a layer alone is larger than the limit; names the largest.
    """
    largest = max(graph.nodes, key=lambda n: graph.nodes[n]["weight_bytes"])
    floor = graph.nodes[largest]["weight_bytes"]
    limit = floor if limit_bytes is None else limit_bytes
    if floor > limit:
        raise InfeasibleError(
            f"layer {graph.nodes[largest]['name']!r} alone has {floor} bytes of weights; blocks may have {limit}"
        )
    # Fuller blocks first is optimal in their number, since a part of a block is never larger than the block.
    fewest = len(_filled(graph, limit))
    low, high = floor, limit
    while low < high:
        middle = (low + high) // 2
        if len(_filled(graph, middle)) > fewest:
            low = middle + 1
        else:
            high = middle
    return _filled(graph, low)


def _filled(graph: nx.DiGraph[int], limit: int) -> list[range]:
    """Blocks filled one after another up to `limit` bytes."""
    blocks: list[range] = []
    start, held, size = 0, set[str](), 0
    for number, layer in graph.nodes.items():
        new = {name: count for name, count in layer["parameters"].items() if name not in held}
        if number > start and size + sum(new.values()) > limit:
            blocks.append(range(start, number))
            start, held, size, new = number, set(), 0, layer["parameters"]
        held.update(new)
        size += sum(new.values())
    return [*blocks, range(start, len(graph))]


def workload_of_graph(graph: nx.DiGraph[int], blocks: list[range], *, name: str, rounds: int = 1) -> Workload:
    """A workload of one stage: the graph's `blocks`, run `rounds` times.

    Blocks with the same modules, bytes and arithmetic have the same kind, and so share costs. Blocks with exactly
    the same tensors share weights; tensors shared in other ways are loaded with each block that uses them.
    """
    kinds: dict[tuple[object, ...], str] = {}
    made = []
    for layers in blocks:
        nodes = [graph.nodes[n] for n in layers]
        parameters = {name: size for node in nodes for name, size in node["parameters"].items()}
        figures = (
            sum(parameters.values()),
            sum(node["flops"] for node in nodes),
            sum(node["bytes_moved"] for node in nodes),
        )
        heaviest = max(nodes, key=lambda node: node["weight_bytes"])["module"]
        modules = tuple(node["module"] for node in nodes)
        kind = kinds.setdefault((modules, figures), f"{heaviest}.{len(kinds)}")
        made.append((nodes, parameters, kind, figures))
    names: dict[str, int] = {}
    first_with: dict[frozenset[str], str] = {}
    stage = []
    for nodes, parameters, kind, (weight_bytes, flops, bytes_moved) in made:
        ends = dict.fromkeys((nodes[0]["name"], nodes[-1]["name"]))
        block_name = "..".join(ends)
        names[block_name] = names.get(block_name, 0) + 1
        if names[block_name] > 1:
            block_name += f"#{names[block_name]}"
        stage.append(
            Block(
                name=block_name,
                kind=kind,
                weights=first_with.setdefault(frozenset(parameters), block_name) if parameters else block_name,
                weight_bytes=weight_bytes,
                workspace_bytes=max(node["workspace_bytes"] for node in nodes),
                flops=flops,
                bytes_moved=bytes_moved,
            )
        )
    return Workload(name=name, stages=(Stage(name="main", rounds=rounds, blocks=tuple(stage)),))
