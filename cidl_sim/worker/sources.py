"""What a run takes its blocks from: a block store, or the packages of an export for Core ML.

The parent of a run asks for the workload alone: back ends, and torch with them, are imported where one is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cidl_sim.core.errors import InputError, PackageError
from cidl_sim.core.files import sha256_of
from cidl_sim.core.plan import Plan
from cidl_sim.core.workload import Workload
from cidl_sim.coreml.packages import Packages
from cidl_sim.executor.backend import Backend
from cidl_sim.executor.job import BackendName
from cidl_sim.executor.source import MakeBackend, Prepared, Source, Wanted
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import parse_name, pipeline_named, workload_of
from cidl_sim.pipelines.matching import Held, held_by_store, sizes_from


class StoreSource:
    """A block store as what a run takes its blocks from."""

    def __init__(self, store: BlockStore) -> None:
        """StoreError if the store's model is not one of its family."""
        self.store = store
        self.root = store.root
        self.held = held_by_store(store)

    @property
    def sha256(self) -> str:
        """That of the store's index."""
        # The family is named beside it; stores from before name none.
        return sha256_of(self.store.index.model_dump(mode="json", exclude={"pipeline"}))

    def prepare(self, plan: Plan, workload: Workload | None = None) -> Prepared:
        """The workload of this store under the plan's settings. PlanError if the plan is not for it."""
        settings, sizes, pipeline = self.held.settings_for(plan), self.held.sizes_for(plan), self.held.pipeline
        made = workload or workload_of(sizes, settings)
        self.held.check(plan, made)

        def backend(wanted: Wanted) -> MakeBackend:
            from cidl_sim.executor.accelerator_backend import AcceleratorBackend
            from cidl_sim.executor.torch_backend import TorchBackend

            stages = pipeline.stages(sizes, settings, "nominal")

            def make(capacity_bytes: int, limit_bytes: int | None) -> Backend:
                if wanted.device == "cpu":
                    return TorchBackend(self.store, stages, capacity_bytes, wanted.token_ids)
                return AcceleratorBackend(self.store, stages, wanted.token_ids, wanted.device, limit_bytes)

            return make

        return Prepared(pipeline.name, made, sizes, settings, backend)


class PackageSource:
    """The packages of an export as what a run takes its blocks from."""

    def __init__(self, packages: Packages, backend: BackendName) -> None:
        """PackageError if the export's model is not one of its family."""
        manifest, root = packages.manifest, packages.root
        self.packages = packages
        self.root = root
        self.held = Held(
            pipeline_named(manifest.pipeline),
            sizes_from(manifest.pipeline, manifest.sizes, str(root), PackageError),
            manifest.dtype,
            manifest.partition,
            f"{root} holds packages of",
            manifest.compression,
        )
        self._backend = backend

    @property
    def sha256(self) -> str:
        """That of the manifest."""
        return self.packages.sha256

    def prepare(self, plan: Plan, workload: Workload | None = None) -> Prepared:
        """The workload of these packages under the plan's settings. PlanError if the plan is not for it."""
        settings, sizes = self.held.settings_for(plan), self.held.sizes_for(plan)
        made = workload or self.workload(settings, sizes)
        self.held.check(plan, made)

        def backend(wanted: Wanted) -> MakeBackend:
            from cidl_sim.coreml.backend import PackageBackend, runner_for

            runner = runner_for(self._backend, self.packages, wanted.compute_units)
            return lambda capacity_bytes, limit_bytes: PackageBackend(self.packages, made, runner)

        return Prepared(self.held.pipeline.name, made, sizes, settings, backend)

    def workload(self, settings: Any, sizes: Any = None) -> Workload:
        """The model under these settings with its weights as large as the packages; PackageError if one is missing.

        `sizes`: those of the model under another name.
        """
        sizes = sizes or self.held.sizes
        # Before anything is measured, which takes seconds.
        for definition in self.held.pipeline.stages(sizes, settings, "nominal"):
            for block in definition.blocks:
                self.packages.function(block.weights, block.kind)
        return self.packages.as_packages(workload_of(sizes, settings))

    def named_workload(self, name: str | None) -> Workload:
        """The named workload of this model in the packages' dtype; without a name the first that was exported.

        InputError for another model's or another cut's, PackageError if packages or functions for it are missing.
        """
        manifest = self.packages.manifest
        chosen = next(iter(manifest.workloads)) if name is None else name
        model, settings = parse_name(chosen)
        if (model, settings.partition) != (self.held.sizes, manifest.partition):
            raise InputError(
                f"workload {chosen!r}: {self.root} holds packages of {self.held.sizes.name!r}, "
                f"cut as {manifest.partition!r}"
            )
        return self.workload(settings.model_copy(update={"dtype": manifest.dtype}))


def open_source(backend: BackendName, folder: Path, *, verify: bool) -> Source:
    """The store, or the export, in `folder`; InputError if there is none or its files are damaged."""
    if backend == "torch":
        return StoreSource(BlockStore.open(folder, verify=verify))
    return PackageSource(Packages.open(folder, verify=verify), backend)
