"""Where the blocks of a run come from, as the parent process and the child ask it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cidl_sim.core.plan import Plan
from cidl_sim.core.workload import Workload
from cidl_sim.executor.backend import Backend
from cidl_sim.executor.job import ComputeDevice, ComputeUnits

if TYPE_CHECKING:
    from torch import Tensor

MakeBackend = Callable[[int, int | None], Backend]  # of the bytes for weights, and of the limit for everything


@dataclass(frozen=True)
class Wanted:
    """What a run asks of its back end: the rows of tables that are read, and where to compute."""

    token_ids: Tensor
    device: ComputeDevice = "cpu"
    compute_units: ComputeUnits = "all"


@dataclass(frozen=True)
class Prepared:
    """A plan's workload as a source has it: settings and sizes are those of its model family, `pipeline`.

    `backend` gives what makes the back end; the libraries that it needs are in memory after that.
    """

    pipeline: str
    workload: Workload
    sizes: Any
    settings: Any
    backend: Callable[[Wanted], MakeBackend]


class Source(Protocol):
    """A block store, the packages of an export, or a published checkpoint."""

    root: Path

    @property
    def sha256(self) -> str:
        """Identity of what it holds."""

    def prepare(self, plan: Plan, workload: Workload | None = None) -> Prepared:
        """What a run of `plan` needs; `workload` spares making it again where it was made before.

        PlanError if the plan is not for what the source holds.
        """
