"""What a run takes its blocks from: a block store, or the packages of an export for Core ML."""

from __future__ import annotations

from pathlib import Path

from cidl_sim.core.files import sha256_of
from cidl_sim.core.plan import Plan
from cidl_sim.core.workload import Workload
from cidl_sim.coreml.packages import Packages
from cidl_sim.diffusion.job import BackendName
from cidl_sim.diffusion.matching import store_sizes, workload_for_plan
from cidl_sim.executor.store import BlockStore
from cidl_sim.models.config import VideoSettings


class StoreSource:
    """A block store as what a run takes its blocks from."""

    def __init__(self, store: BlockStore) -> None:
        """StoreError if the store's model is not one of this pipeline."""
        self.store = store
        self.root = store.root
        self.sizes = store_sizes(store)

    @property
    def sha256(self) -> str:
        """That of the store's index."""
        return sha256_of(self.store.index.model_dump(mode="json"))

    def workload_for_plan(self, plan: Plan) -> tuple[Workload, VideoSettings]:
        """See `matching.workload_for_plan`."""
        return workload_for_plan(self.store, plan)


Source = StoreSource | Packages


def open_source(backend: BackendName, folder: Path, *, verify: bool) -> Source:
    """The store, or the export, in `folder`; InputError if there is none or its files are damaged."""
    if backend == "torch":
        return StoreSource(BlockStore.open(folder, verify=verify))
    return Packages.open(folder, verify=verify)
