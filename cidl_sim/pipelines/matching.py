"""Does this plan belong to this store, or to these packages? Answered without building any network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cidl_sim.core.errors import InputError, PlanError, StoreError
from cidl_sim.core.plan import Plan
from cidl_sim.core.workload import Workload
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import FIRST, pipeline_named, settings_in
from cidl_sim.pipelines.pipeline import Pipeline


def sizes_from(pipeline: str, model: Mapping[str, Any], file: str, error: type[InputError]) -> Any:
    """The sizes of the model that a store or an export holds. `error` if it is not one of that family."""
    family = pipeline_named(pipeline)
    try:
        return family.sizes_type.model_validate(model)
    except ValueError:
        raise error(f"{file}: not a model of this pipeline ({pipeline})") from None


def store_sizes(store: BlockStore) -> Any:
    """The sizes of the model in a store. StoreError if it is not one of its pipeline."""
    return sizes_from(store.index.pipeline, store.index.model, str(store.root / "store.json"), StoreError)


@dataclass(frozen=True)
class Held:
    """What a store or an export holds. `holder` names it; `compression`: how packages' weights are compressed."""

    pipeline: Pipeline
    sizes: Any
    dtype: str
    partition: str
    holder: str
    compression: str | None = None

    def settings_for(self, plan: Plan) -> Any:
        """The settings that a plan was made for. PlanError if it is not for what is held here."""
        values = {"pipeline": FIRST.name, **plan.workload_settings}
        if ("compression" in values) != (self.compression is not None):
            wanted = "Core ML packages: give their folder and --backend mil or coreml"
            if self.compression is not None:
                wanted = "a block store; plan for what 'cidl coreml workload' writes of the packages"
            raise PlanError(f"the plan was made for workload {plan.workload_name!r} of {wanted}")
        held = {"pipeline": self.pipeline.name, "dtype": self.dtype, "partition": self.partition}
        held |= {"compression": self.compression} if self.compression is not None else {}
        if any(values.get(name) != value for name, value in held.items()):
            raise self.refusal(plan)
        try:
            return settings_in(values, self.pipeline)
        except ValueError:
            raise PlanError(f"the plan's settings cannot be read: {plan.workload_settings}") from None

    def sizes_for(self, plan: Plan) -> Any:
        """The sizes of the held model under the name that the plan knows it by: what counts is what is held."""
        return self.sizes.model_copy(update={"name": str(plan.workload_settings.get("model", self.sizes.name))})

    def check(self, plan: Plan, workload: Workload) -> None:
        """PlanError unless `workload`, of what is held, is the one that the plan was made for."""
        if plan.workload_settings.get("model") != self.sizes.name and plan.workload_sha256 not in workload.identities:
            raise self.refusal(plan)
        plan.check_workload(workload)

    def refusal(self, plan: Plan) -> PlanError:
        """What to say of a plan for something else."""
        compressed = f", weights compressed: {self.compression}" if self.compression is not None else ""
        return PlanError(
            f"the plan was made for workload {plan.workload_name!r}, {self.holder} "
            f"{self.sizes.name!r} in {self.dtype}, cut as {self.partition!r}{compressed}"
        )


def held_by_store(store: BlockStore) -> Held:
    """What a store holds. StoreError if it is not a model of its pipeline."""
    index = store.index
    pipeline, holder = pipeline_named(index.pipeline), f"the store {store.root} holds"
    return Held(pipeline, store_sizes(store), index.dtype, index.partition, holder)
