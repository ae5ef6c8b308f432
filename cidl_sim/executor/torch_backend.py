"""Blocks in PyTorch on the CPU: weights are views of arena slots that were read straight from disk.

A module without weights is built once for each kind of block; a visit points its parameters at the slot of
the block at hand, which costs microseconds and copies nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cidl_sim.blocks.definition import TORCH_DTYPES, BlockDefinition, StageDefinition
from cidl_sim.core.errors import StoreError
from cidl_sim.core.trace import Origin
from cidl_sim.core.workload import Visit
from cidl_sim.executor.arena import PAGE, Arena, Slot, populating
from cidl_sim.executor.backend import Call
from cidl_sim.executor.memory_limit import Heap
from cidl_sim.executor.reading import BUFFERED, read_block, read_rows
from cidl_sim.executor.store import BlockStore


class BlockModules:
    """The modules of a pipeline's blocks, without weights, and how a store's bytes become their tensors."""

    def __init__(
        self, store: BlockStore, stages: Sequence[StageDefinition], token_ids: Tensor, device: str = "cpu"
    ) -> None:
        """`token_ids` say which rows of the token embedding are read.

        Raises StoreError if the store's blocks are not those of `stages`.
        """
        self.store = store
        self.rows = torch.unique(token_ids)
        self._skeletons: dict[str, _Skeleton] = {}
        dtype = TORCH_DTYPES[store.index.dtype]
        definitions = {block.name: block for stage in stages for block in stage.blocks}
        for stage in stages:
            for block in stage.blocks:
                if block.kind not in self._skeletons:
                    self._skeletons[block.kind] = _Skeleton(block, dtype, device)
        self.layouts = {block.weights: store.layout(block.weights) for block in definitions.values()}
        for block in definitions.values():
            found = {tensor.name: (tensor.shape, tensor.dtype) for tensor in self.layouts[block.weights]}
            self._skeletons[block.kind].check(found, str(store.path(block.weights)))
        self._by_row = {block.weights: block.rows[0] for block in definitions.values() if block.rows}
        self._rows_on_device = self.rows.to(device)

    def is_by_row(self, weights: str) -> bool:
        """Whether only the rows of the run's tokens are loaded."""
        return weights in self._by_row

    def row_bytes(self, weights: str) -> int:
        """Bytes of one row of a block that is a table."""
        return self.store.entry(weights).data_bytes // self._by_row[weights]

    def bytes_to_load(self, weights: str) -> int:
        """Bytes that a run loads of a block."""
        whole = self.store.entry(weights).data_bytes
        return self.row_bytes(weights) * len(self.rows) if self.is_by_row(weights) else whole

    def tensors(self, weights: str, flat: Tensor) -> dict[str, Tensor]:
        """Views of a slot, given as bytes, by the names of the block's tensors."""
        views = {}
        for tensor in self.layouts[weights]:
            shape = (len(self.rows), *tensor.shape[1:]) if self.is_by_row(weights) else tensor.shape
            size = tensor.dtype.itemsize * torch.Size(shape).numel()
            views[tensor.name] = flat[tensor.offset : tensor.offset + size].view(tensor.dtype).view(shape)
        return views

    def bound(self, visit: Visit, tensors: Mapping[str, Tensor]) -> Call:
        """The module of the visit's kind with its parameters pointed at `tensors`."""
        skeleton = self._skeletons[visit.block.kind]
        skeleton.bind(tensors)
        if self.is_by_row(visit.block.weights):
            # The slot holds only the rows of these tokens, in the order of their ids.
            return lambda ids: skeleton.module(torch.searchsorted(self._rows_on_device, ids))
        return skeleton.module

    def unbind(self) -> None:
        """Let every module go of its weights."""
        for skeleton in self._skeletons.values():
            skeleton.unbind()


class TorchBackend:
    """Loads blocks of a store into an arena and runs them on the CPU."""

    origin: Origin = "torch-cpu"

    def __init__(
        self,
        store: BlockStore,
        stages: Sequence[StageDefinition],
        capacity_bytes: int,
        token_ids: Tensor,
    ) -> None:
        """See `BlockModules`; weights may take `capacity_bytes`."""
        self.fall_backs: list[str] = []
        self._store = store
        self._modules = BlockModules(store, stages, token_ids)
        # Every slot is rounded up to pages.
        self._rounding = PAGE * len(self._modules.layouts)
        everything = sum(self._modules.bytes_to_load(weights) for weights in self._modules.layouts)
        self._arena = Arena(capacity_bytes + self._rounding, everything + self._rounding)
        self._slots: dict[str, Slot] = {}
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._heap = Heap()

    def reserve(self, weights: str) -> None:
        """Take a slot for `weights`."""
        self._slots[weights] = self._arena.take(self._modules.bytes_to_load(weights))

    def load(self, weights: str) -> None:
        """Read `weights` into their slot in one pass and make views of the tensors. StoreError if that fails."""
        buffer = self._slots[weights].buffer()
        if self._modules.is_by_row(weights):
            read_rows(self._store, weights, self._modules.row_bytes(weights), self._modules.rows.tolist(), buffer)
        else:
            with populating(self._slots[weights]):
                direct = read_block(self._store, weights, buffer)
            if not direct and BUFFERED not in self.fall_backs:
                self.fall_backs.append(BUFFERED)
        self._tensors[weights] = self._modules.tensors(weights, torch.frombuffer(buffer, dtype=torch.uint8))

    def callable_for(self, visit: Visit) -> Call:
        """The module of the visit's kind with its parameters pointed at the loaded weights."""
        self._heap.trim_beyond(visit.block.workspace_bytes)
        return self._modules.bound(visit, self._tensors[visit.block.weights])

    def unload(self, weights: str) -> None:
        """Give the slot back; no copy, no write-back."""
        self._tensors.pop(weights, None)
        self._arena.give_back(self._slots.pop(weights))

    def make_room(self, weights_bytes: int) -> None:
        """Return free pages to the kernel until at most `weights_bytes` (and page rounding) are touched."""
        self._arena.trim(weights_bytes + PAGE * len(self._slots))

    def grow(self, capacity_bytes: int) -> None:
        """Let slots take more bytes together."""
        self._arena.grow(capacity_bytes + self._rounding)

    def footprint_bytes(self) -> int:
        """Pages of the arena that the kernel holds."""
        return self._arena.touched_bytes

    def figures(self) -> dict[str, int | str]:
        """Pages of the arena that were ever held at once, and slots made of several holes."""
        return {"touched_bytes": self._arena.peak_touched_bytes, "slots_stitched": self._arena.stitched_slots}

    def close(self) -> None:
        """Free the arena; the modules keep no weights."""
        self._modules.unbind()
        for weights in list(self._slots):
            self.unload(weights)
        self._arena.close()


class _Skeleton:
    """A module whose parameters and buffers can be pointed at weights."""

    def __init__(self, definition: BlockDefinition, dtype: torch.dtype, device: str) -> None:
        with torch.device("meta"):
            module = definition.build().to(dtype).eval()
        self._expected = {name: (tuple(t.shape), t.dtype) for name, t in module.state_dict().items()}
        self._empty = torch.empty(0, dtype=dtype, device=device)
        self._targets: dict[str, Tensor] = {}
        for prefix, child in module.named_modules():
            for table in (child._parameters, child._buffers):
                for name in [n for n, t in table.items() if t is not None]:
                    target: Any = torch.empty(0, dtype=dtype, device=device)
                    if table is child._parameters:
                        target = nn.Parameter(target, requires_grad=False)
                    table[name] = target
                    self._targets[f"{prefix}.{name}" if prefix else name] = target
        self.module = module

    def check(self, found: Mapping[str, tuple[tuple[int, ...], torch.dtype]], path: str) -> None:
        """StoreError unless the file holds exactly the tensors of this kind of block."""
        if found != self._expected:
            different = sorted({name for name, _ in set(found.items()) ^ set(self._expected.items())})
            raise StoreError(f"{path}: made for another model (differs in {different[0]!r})")

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        """Point every parameter and buffer at `tensors`."""
        for name, target in self._targets.items():
            target.data = tensors[name]

    def unbind(self) -> None:
        """Let go of the weights."""
        for target in self._targets.values():
            target.data = self._empty
