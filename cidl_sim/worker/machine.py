"""What the child process sees of the machine: its memory while it runs, and what a trace says about it."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from cidl_sim.core.progress import Progress
from cidl_sim.core.workload import Visit, Workload
from cidl_sim.executor.backend import Backend
from cidl_sim.executor.memory_limit import PeakMemory, charged_to_this_process
from cidl_sim.executor.processor import processor_name

# Of what a trace names the versions, as far as it is installed.
_LIBRARIES = ("cidl-sim", "torch", "transformers", "diffusers", "coremltools")

# Of each stage so many rounds show what its visits take beside weights.
SAMPLED_ROUNDS = 2


class Watch:
    """Reports progress and looks at the memory after each round; on request after each visit of a stage's first rounds.

    Then it also measures what is needed beyond what is accounted: the peak of memory during each visit, less what
    was there before the run, the arena's pages and the visit's workspace. That is buffers of the libraries, and holes
    in the heap.
    """

    def __init__(
        self, workload: Workload, backend: Backend, peak: PeakMemory, on_round: Progress, *, sample: bool
    ) -> None:
        self._workload = workload
        self._backend = backend
        self._peak = peak
        self._on_round = on_round
        self._sample = sample
        self.excess_bytes = 0
        self.workspace_bytes: dict[str, int] = {}

    def __call__(self, visit: Visit) -> None:
        """After each visit."""
        stage = self._workload.stages[visit.stage]
        ends_round = visit.position == len(stage.blocks) - 1
        if ends_round:
            self._on_round(visit.number + 1, len(self._workload.visits), stage.name)
        # A look takes some two thirds of a millisecond: later visits show what a visit takes without it.
        sample = self._sample and visit.round < SAMPLED_ROUNDS
        peak_bytes = self._peak.look() if ends_round or sample else None
        if sample and peak_bytes is not None:
            block = visit.block
            beside_weights = peak_bytes - self._peak.start_bytes - self._backend.footprint_bytes()
            self.workspace_bytes[block.kind] = max(self.workspace_bytes.get(block.kind, 0), beside_weights)
            self.excess_bytes = max(self.excess_bytes, beside_weights - block.workspace_bytes)


def warm_up() -> None:
    """Let the libraries take their own buffers before the baseline is read."""
    a = torch.ones(256, 256)
    torch.nn.functional.conv2d(torch.ones(1, 4, 8, 8), torch.ones(4, 4, 3, 3))
    torch.nn.functional.conv3d(torch.ones(1, 4, 3, 8, 8), torch.ones(4, 4, 3, 3, 3))
    torch.nn.functional.scaled_dot_product_attention(a[None, None], a[None, None], a[None, None])
    (a @ a).softmax(-1)


def _bytes_read_from_disk() -> int:
    """What the kernel fetched from disks for this process so far; 0 where it does not tell."""
    try:
        words = Path("/proc/self/io").read_text().split()
    except OSError:
        return 0
    return int(words[words.index("read_bytes:") + 1])


class Machine:
    """What a trace's header says about the machine; made just before the run."""

    def __init__(self, backend: Backend, threads: int, baseline_bytes: int, limit_bytes: int, peak: PeakMemory) -> None:
        self._backend = backend
        self._threads = threads
        self._baseline_bytes = baseline_bytes
        self._limit_bytes = limit_bytes
        self._peak = peak
        self._read_before = _bytes_read_from_disk()

    def header_fields(self) -> dict[str, Any]:
        """The fields of a header that the plan and the workload do not know."""
        charged = charged_to_this_process()
        return {
            "origin": self._backend.origin,
            "enforced_by": charged.enforced_by if charged.limit_bytes() is not None else "accounting",
            "clock": "perf_counter",
            "memory_limit_bytes": self._limit_bytes,
            "peak_kernel_bytes": self._peak.charged_bytes(),
            "fall_backs": tuple(self._backend.fall_backs),
            "machine": {
                "system": platform.system(),
                "release": platform.release(),
                "processor": processor_name(),
                "cores": os.cpu_count() or 0,
                "compute_threads": self._threads,
                "measured_baseline_bytes": self._baseline_bytes,
                "needed_bytes": self._peak.needed_bytes,
                **self._backend.figures(),
                "read_bytes": _bytes_read_from_disk() - self._read_before,
            },
            "versions": _versions(),
            "date": datetime.now(UTC).date().isoformat(),
        }


def _versions() -> dict[str, str]:
    installed = {dist.metadata["Name"] for dist in metadata.distributions()}
    return {name: metadata.version(name) for name in _LIBRARIES if name in installed}
