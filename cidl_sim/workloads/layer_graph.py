"""What a module weighs and costs, measured on the meta device: no memory is used for weights."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


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


def measure_module(module: nn.Module, inputs: Sequence[Tensor]) -> Measurement:
    """Measure one call of `module` (on the meta device) with `inputs` (meta tensors)."""
    weights = [*module.parameters(), *module.buffers()]
    live = _LiveBytes(ignored=weights)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, live:
        live.hold(inputs)
        outputs = module(*inputs)
    del outputs
    return Measurement(
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in weights),
        flops=counter.get_total_flops(),
        bytes_moved=live.moved_bytes,
        workspace_bytes=live.peak_bytes,
    )


class _LiveBytes(TorchDispatchMode):
    """Follows the storages that operations create; knows their peak and the traffic of heavy operations."""

    HEAVY = ("mm", "addmm", "bmm", "baddbmm", "convolution", "scaled_dot_product")

    def __init__(self, ignored: Sequence[Tensor]) -> None:
        super().__init__()
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignored}
        self._seen: set[int] = set()
        self.live_bytes = self.peak_bytes = self.moved_bytes = 0

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """Count tensors that are live from the start."""
        for tensor in tensors:
            self._count(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        if any(heavy in str(function) for heavy in self.HEAVY):
            for leaf in tree_leaves((args, result)):
                if isinstance(leaf, Tensor):
                    self.moved_bytes += leaf.numel() * leaf.element_size()
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._ignored or key in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live_bytes -= size


def megabytes(count: float) -> str:
    """A byte count as people read it: decimal units, three significant digits."""
    if count <= 0:
        return "0 B"
    power = min(4, int(math.log10(count) // 3))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
