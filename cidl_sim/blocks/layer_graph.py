"""What modules weigh and cost, layer by layer, measured without memory for weights (`without_memory`)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cidl_sim.blocks.coverage import Coverage, Piece, storage_key
from cidl_sim.blocks.meta_device import World
from cidl_sim.blocks.scratch import FLOPS, FUSED_LAYERS, scratch_bytes
from cidl_sim.blocks.without_memory import NoValueError, WithoutMemory, tensors_in
from cidl_sim.core.errors import WorkloadError


@dataclass(frozen=True)
class Measurement:
    """Bytes of parameters and buffers, arithmetic, memory traffic and live bytes of one call.

    `flops` counts matrix products, convolutions and attention (2 per multiply-add). `bytes_moved` counts
    what those operations read and write; element-wise work is taken to be fused with them.
    `workspace_bytes` is the peak of everything live beyond the weights: inputs, temporaries, outputs.
    """

    weight_bytes: int
    flops: int
    bytes_moved: int
    workspace_bytes: int


def measure_module(module: nn.Module, inputs: Sequence[Tensor], world: World | None = None) -> Measurement:
    """Measure one call of `module` with `inputs`; neither needs values. The same on every machine: without scratch."""
    graph = layer_graph(module, inputs, depth=0, scratch=False, world=world)
    (layer,) = graph.nodes.values()
    return Measurement(
        sum(layer["parameters"].values()), layer["flops"], layer["bytes_moved"], layer["workspace_bytes"]
    )


class Chain(nn.Module):
    """Modules called one after another, each with what the one before it gave (a tuple is unpacked)."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(modules)

    def forward(self, *values: Any) -> Any:
        """Whatever the first module takes -> whatever the last one gives."""
        for layer in self.layers:
            given = layer(*values)
            values = given if isinstance(given, tuple) else (given,)
        return values if len(values) > 1 else values[0]


def layer_graph(
    module: nn.Module | Sequence[nn.Module],
    inputs: Sequence[Tensor],
    *,
    depth: int | None = None,
    world: World | None = None,
    scratch: bool = True,
) -> nx.DiGraph[int]:
    """The layers of a module, or of modules in a chain, in the order in which one call runs them.

    Args:
        module: a module, or several that feed each other, on whatever device; a copy without values is measured.
        inputs: what it is called with; only shapes and dtypes matter, unless its own code reads values.
        depth: how many levels of modules are taken apart; None goes down to those without submodules, 0 takes
            the whole as one layer. Work between two layers counts with the one before it.
        world: where module and inputs were made, if they were made without memory.
        scratch: whether the workspace holds what this processor's kernels take for themselves, too.

    Returns:
        A graph whose nodes 0, 1, ... are the calls of layers. Each has `name` (dotted, as in
        `named_modules`), `module` (its class), `parameters` (bytes by name, buffers included; bytes that layers
        share have one name), `weight_bytes`, `flops`, `bytes_moved` and `workspace_bytes` as in
        `Measurement`, and `activation_bytes`: what is live after it and has to be carried on. An edge's `bytes` are
        those of the tensors that its first layer made and its second one used.

    Raises:
        WorkloadError: the module cannot be called with these inputs, or not without values.
    """
    world = world or WithoutMemory()
    root = module if isinstance(module, nn.Module) else Chain(module)
    with world.inside(), ExitStack() as stack:
        root = world.module(root).eval()
        inputs = world.tensors(inputs)
        recorder = _Recorder(root, scratch=scratch)
        for name, layer in _layers_of(root, depth, "" if isinstance(module, nn.Module) else "layers"):
            recorder.follow(name, layer, stack)
        counter = stack.enter_context(FlopCounterMode(display=False, custom_mapping=FLOPS))
        recorder.count_flops = counter.get_total_flops
        stack.enter_context(recorder)
        recorder.hold(inputs)
        try:
            outputs = root(*inputs)
        except NoValueError as problem:
            raise WorkloadError(
                f"{type(root).__name__} cannot be measured without weights: {problem}; return a constant there while "
                "it is measured, or give the parts before and after it as a list"
            ) from problem
        except Exception as problem:
            # Whatever the user's own code raises is said in its own words.
            raise WorkloadError(f"{type(root).__name__} does not run: {own_words(problem)}") from problem
        recorder.close()
    del outputs
    return recorder.graph


def own_words(problem: Exception) -> str:
    """What an exception says, in one line; its type where that says what the words do not."""
    words = next((line.strip() for line in str(problem).splitlines() if line.strip()), "")
    if isinstance(problem, RuntimeError | TypeError | ValueError | AssertionError) and words:
        return words
    return f"{type(problem).__name__}: {words}" if words else type(problem).__name__


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _layers_of(root: nn.Module, depth: int | None, transparent: str) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules to be taken as layers: those `depth` levels below the root, or without submodules."""
    seen: set[nn.Module] = set()

    def walk(name: str, module: nn.Module, level: int) -> Iterator[tuple[str, nn.Module]]:
        if module in seen:
            return
        seen.add(module)
        children = list(module.named_children())
        # A list of modules is never called itself: it is no level.
        is_list = isinstance(module, nn.ModuleList | nn.ModuleDict)
        # Of a fused layer PyTorch calls one operation, not its parts.
        if not children or (level == 0 and not is_list) or isinstance(module, FUSED_LAYERS):
            yield name, module
            return
        for child_name, child in children:
            dotted = f"{name}.{child_name}" if name and name != transparent else child_name
            yield from walk(dotted, child, level if is_list else level - 1)

    yield from walk("", root, -1 if depth is None else depth)


class _Recorder(TorchDispatchMode):
    """Follows the storages that operations create and says which layer made, used and carried what."""

    HEAVY = (
        "mm", "addmm", "bmm", "baddbmm", "convolution", "scaled_dot_product", "multi_head_attention", "encoder_layer",
    )  # fmt: skip

    def __init__(self, root: nn.Module, *, scratch: bool) -> None:
        super().__init__()
        self._with_scratch = scratch
        self.graph: nx.DiGraph[int] = nx.DiGraph()
        self.count_flops: Callable[[], int] = lambda: 0
        self._weights = Coverage(_tensors_of(root))
        self._root = root
        self._producers: dict[int, int | None] = {}
        self._carried: dict[tuple[int, int], weakref.WeakSet[Any]] = {}
        self._live_bytes = 0
        self._flops_before = 0
        self._opened = False
        self._open("", root, declared=False)

    def follow(self, name: str, layer: nn.Module, stack: ExitStack) -> None:
        """Make each call of `layer` a node."""
        forward = layer.forward

        def entered(*args: Any, **kwargs: Any) -> Any:
            if self._opened:
                self._finish()
                self._open(name, layer)
            else:
                # What ran before the first layer counts with it.
                self._opened = True
                self._name(name, layer)
            return forward(*args, **kwargs)

        # Not a hook: layers that have one do not take PyTorch's fused path.
        had_own = "forward" in vars(layer)
        layer.forward = entered
        stack.callback(setattr, layer, "forward", forward) if had_own else stack.callback(delattr, layer, "forward")

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """Count tensors that are live from the start."""
        for tensor in tensors:
            self._count(tensor, None)

    def close(self) -> None:
        """After the call: finish the last layer, and give it the parameters that no layer used."""
        self._finish()
        seen = {name for node in self.graph.nodes.values() for name in node["parameters"]}
        self._own(piece for piece in self._weights.pieces if piece.name not in seen)
        for node in self.graph.nodes.values():
            node["weight_bytes"] = sum(node["parameters"].values())

    def _open(self, name: str, module: nn.Module, *, declared: bool = True) -> None:
        self._number = len(self.graph)
        self.graph.add_node(
            self._number,
            parameters={},
            flops=0,
            bytes_moved=0,
            workspace_bytes=self._live_bytes,
            activation_bytes=0,
        )
        self._node = self.graph.nodes[self._number]
        self._node.update(name=name, module=type(module).__name__)
        if declared:
            self._name(name, module)

    def _name(self, name: str, module: nn.Module) -> None:
        self._node.update(name=name or type(self._root).__name__, module=type(module).__name__)
        for _, tensor in _tensors_of(module):
            self._own(self._weights.of(tensor) or ())

    def _own(self, pieces: Iterable[Piece]) -> None:
        self._node["parameters"].update((piece.name, piece.size_bytes) for piece in pieces)

    def _finish(self) -> None:
        flops = self.count_flops()
        self._node["flops"] += flops - self._flops_before
        self._flops_before = flops
        self._node["activation_bytes"] = self._live_bytes

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.prim.device.default:
            return result
        used, made = tensors_in((args, kwargs)), tensors_in(result)
        for tensor in used:
            self._use(tensor)
        for tensor in made:
            self._count(tensor, self._number, changed=function._schema.is_mutable)
        if self._with_scratch:
            most = self._live_bytes + scratch_bytes(function, args, made)
            self._node["workspace_bytes"] = max(self._node["workspace_bytes"], most)
        if any(heavy in str(function) for heavy in self.HEAVY):
            self._node["bytes_moved"] += sum(t.numel() * t.element_size() for t in (*used, *made))
        return result

    def _use(self, tensor: Tensor) -> None:
        weights = self._weights.of(tensor)
        if weights is not None:
            self._own(weights)
            return
        key = storage_key(tensor)
        producer = self._producers.get(key)
        if producer is None or producer == self._number:
            return
        storage = tensor.untyped_storage()
        carried = self._carried.setdefault((producer, self._number), weakref.WeakSet())
        if storage not in carried:
            carried.add(storage)
            before = self.graph.edges.get((producer, self._number), {}).get("bytes", 0)
            self.graph.add_edge(producer, self._number, bytes=before + storage.nbytes())

    def _count(self, tensor: Tensor, producer: int | None, *, changed: bool = False) -> None:
        key = storage_key(tensor)
        if self._weights.of(tensor) is not None:
            return
        if key in self._producers:
            if changed:
                self._producers[key] = producer
            return
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        self._producers[key] = producer
        self._live_bytes += size
        self._node["workspace_bytes"] = max(self._node["workspace_bytes"], self._live_bytes)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._producers.pop(key, None)
        self._live_bytes -= size
