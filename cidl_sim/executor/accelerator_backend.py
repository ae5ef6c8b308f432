"""Blocks in PyTorch on an accelerator with memory of its own: disk, pinned staging ring, copy stream, slot.

A loader reads a piece into one buffer of its ring while the piece before it is on its way to the device; the
copies have a stream of their own, so they run beside the kernels. A slot is one allocation: on CUDA the allocator
is asked for expandable segments, which map free pages together, so a block fits whenever its bytes do.

The same code runs on the CPU ("device memory" is then a second copy), which is the fake that the tests use. The back
end for accelerators is written and tested against fakes, it has not been run on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from cidl_sim.blocks.definition import StageDefinition
from cidl_sim.core.errors import MachineError
from cidl_sim.core.trace import Origin
from cidl_sim.core.workload import Visit
from cidl_sim.executor.arena import Arena
from cidl_sim.executor.backend import Call
from cidl_sim.executor.reading import BUFFERED, read_block_in_pieces, read_rows
from cidl_sim.executor.store import BlockStore
from cidl_sim.executor.torch_backend import BlockModules

PIECE_BYTES = 32 << 20
PIECES = 3
ORIGINS: dict[str, Origin] = {"cpu": "torch-cpu", "cuda": "torch-cuda", "mps": "torch-mps"}


# PyTorch's CUDA module is not typed throughout.
_cuda: Any = torch.cuda


class AcceleratorBackend:
    """Loads blocks of a store into the memory of `device` and runs them there."""

    def __init__(
        self,
        store: BlockStore,
        stages: Sequence[StageDefinition],
        token_ids: Tensor,
        device: str,
        limit_bytes: int | None = None,
    ) -> None:
        """See `BlockModules`. `limit_bytes` caps all that PyTorch may take of a CUDA device.

        Raises MachineError if this machine has no such device.
        """
        check_device(device)
        self.origin = ORIGINS[device]
        self.fall_backs: list[str] = []
        self._device = device
        self._store = store
        self._modules = BlockModules(store, stages, token_ids, device)
        self._slots: dict[str, Tensor] = {}
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._held_bytes = self._peak_bytes = 0
        # Slots have a pool of their own: what the kernels' stream freed may still be read by kernels in its queue, and
        # copies run on another stream.
        self._pool: Any = _cuda.Stream() if device == "cuda" else None
        self._rings = threading.local()
        self._opened: list[_Ring] = []
        if device == "cuda" and limit_bytes is not None:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total))

    def reserve(self, weights: str) -> None:
        """Take device memory for `weights`."""
        size = self._modules.bytes_to_load(weights)
        with torch.cuda.stream(self._pool) if self._pool is not None else nullcontext():
            self._slots[weights] = torch.empty(size, dtype=torch.uint8, device=self._device)
        self._held_bytes += size
        self._peak_bytes = max(self._peak_bytes, self._held_bytes)

    def load(self, weights: str) -> None:
        """Read `weights` through the calling thread's staging ring; returns when they are on the device."""
        slot, ring = self._slots[weights], self._ring()
        if self._modules.is_by_row(weights):
            buffer = Arena(len(slot))
            place = buffer.take(len(slot))
            read_rows(
                self._store, weights, self._modules.row_bytes(weights), self._modules.rows.tolist(), place.buffer()
            )
            slot.copy_(torch.frombuffer(place.buffer(), dtype=torch.uint8, count=len(slot)))
            _synchronize(self._device)
            buffer.give_back(place)
            buffer.close()
        else:
            pieces = read_block_in_pieces(
                self._store,
                weights,
                ring.next_buffer,
                lambda offset, size: ring.send(slot[offset : offset + size]),
            )
            ring.wait()
            if not pieces and BUFFERED not in self.fall_backs:
                self.fall_backs.append(BUFFERED)
        self._tensors[weights] = self._modules.tensors(weights, slot)

    def callable_for(self, visit: Visit) -> Call:
        """The bound module; its inputs are brought to the device, and it returns when the device is done."""
        module = self._modules.bound(visit, self._tensors[visit.block.weights])

        def call(*inputs: Tensor) -> Any:
            result = module(*(tensor.to(self._device) for tensor in inputs))
            # A visit ends when its kernels have: the trace shows true times, and its weights may go.
            _synchronize_stream(self._device)
            return result

        return call

    def unload(self, weights: str) -> None:
        """Let the device memory go; no write-back."""
        self._tensors.pop(weights, None)
        self._held_bytes -= len(self._slots.pop(weights))

    def make_room(self, weights_bytes: int) -> None:
        """Nothing to do: free memory of the allocator serves slots and workspace alike."""

    def grow(self, capacity_bytes: int) -> None:
        """Nothing to do: slots are allocated one by one."""

    def footprint_bytes(self) -> int:
        """Bytes held for weights on the device."""
        return self._held_bytes

    def figures(self) -> dict[str, int | str]:
        """The most bytes of weights held at once, and on CUDA the most that PyTorch held in all."""
        figures: dict[str, int | str] = {"touched_bytes": self._peak_bytes, "slots_stitched": 0}
        if self._device == "cuda":
            figures["device_peak_bytes"] = torch.cuda.max_memory_reserved()
        return figures

    def close(self) -> None:
        """Free the device memory and the staging rings."""
        self._modules.unbind()
        for weights in list(self._slots):
            self.unload(weights)
        for ring in self._opened:
            ring.close()
        self._opened.clear()

    def _ring(self) -> _Ring:
        """The staging ring of the calling loader."""
        ring: _Ring | None = getattr(self._rings, "ring", None)
        if ring is None:
            ring = self._rings.ring = _Ring(self._device)
            self._opened.append(ring)
        return ring


class _Ring:
    """Page-aligned host buffers (pinned on CUDA), used in turn; each waits for its last copy before it is refilled."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._arena = Arena(PIECES * PIECE_BYTES)
        self._slots = [self._arena.take(PIECE_BYTES) for _ in range(PIECES)]
        self._host = [torch.frombuffer(slot.buffer(), dtype=torch.uint8) for slot in self._slots]
        self._stream: Any = None
        self._copied: list[Any] = [None] * PIECES
        self._turn = -1
        if device == "cuda":
            self._stream = _cuda.Stream()
            self._copied = [_cuda.Event() for _ in range(PIECES)]
            for tensor in self._host:
                # Registered rather than allocated by PyTorch, which does not promise page alignment.
                _check_cuda(_cuda.cudart().cudaHostRegister(tensor.data_ptr(), len(tensor), 0))

    def next_buffer(self) -> memoryview:
        """The buffer whose turn it is, once its last piece has left it."""
        self._turn = (self._turn + 1) % PIECES
        if self._copied[self._turn] is not None:
            self._copied[self._turn].synchronize()
        return self._slots[self._turn].buffer()

    def send(self, target: Tensor) -> None:
        """Start copying the current buffer's beginning to `target`."""
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            target.copy_(self._host[self._turn][: len(target)], non_blocking=self._stream is not None)
            if self._stream is not None:
                self._copied[self._turn].record(self._stream)
        if self._device == "mps":
            _synchronize(self._device)

    def wait(self) -> None:
        """Until every copy has arrived."""
        if self._stream is not None:
            self._stream.synchronize()

    def close(self) -> None:
        """Free the buffers."""
        self.wait()
        if self._stream is not None:
            for tensor in self._host:
                _check_cuda(_cuda.cudart().cudaHostUnregister(tensor.data_ptr()))
        for slot in self._slots:
            self._arena.give_back(slot)
        self._arena.close()


def check_device(device: str) -> None:
    """MachineError unless this machine can run on `device`."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device, False):
        raise MachineError(f"this machine has no {device!r} device that PyTorch can use")


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _synchronize_stream(device: str) -> None:
    """Wait for the kernels, not for copies on other streams."""
    if device == "cuda":
        torch.cuda.current_stream().synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _check_cuda(code: Any) -> None:
    if int(code) != 0:
        raise MachineError(f"CUDA: staging memory cannot be pinned (error {int(code)})")
