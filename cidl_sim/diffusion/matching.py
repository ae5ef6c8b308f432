"""Does this plan belong to this store, or to these packages? Answered without building any network."""

from __future__ import annotations

from cidl_sim.core.errors import PlanError, StoreError
from cidl_sim.core.plan import Plan
from cidl_sim.core.workload import Workload
from cidl_sim.executor.store import BlockStore
from cidl_sim.models.config import OpenSoraSizes, VideoSettings
from cidl_sim.workloads.catalog import workload_of

TOKENIZER_FOLDER = "tokenizer"  # beside the blocks, if the checkpoint brought one


def store_sizes(store: BlockStore) -> OpenSoraSizes:
    """The sizes of the model in a store. StoreError if it is not one of this pipeline."""
    try:
        return OpenSoraSizes.model_validate(store.index.model)
    except ValueError:
        raise StoreError(f"{store.root / 'store.json'}: not a model of this pipeline") from None


def workload_for_plan(store: BlockStore, plan: Plan) -> tuple[Workload, VideoSettings]:
    """The workload of this store under the plan's settings. PlanError if the plan is not for it."""
    sizes, index = store_sizes(store), store.index
    held = {"model": sizes.name, "dtype": index.dtype, "partition": index.partition}
    settings = settings_of(plan, held, f"the store {store.root} holds")
    workload = workload_of(sizes, settings)
    plan.check_workload(workload)
    return workload, settings


def settings_of(plan: Plan, held: dict[str, str], holder: str) -> VideoSettings:
    """The settings that a plan was made for. PlanError if it is not for what the `holder` has.

    `held`: model, dtype and partition; of packages also how their weights are compressed.
    """
    values = dict(plan.workload_settings)
    if ("compression" in values) != ("compression" in held):
        wanted = "Core ML packages: give their folder and --backend mil or coreml"
        if "compression" in held:
            wanted = "a block store; plan for what 'cidl coreml workload' writes of the packages"
        raise PlanError(f"the plan was made for workload {plan.workload_name!r} of {wanted}")
    if any(values.get(name) != value for name, value in held.items()):
        compressed = f", weights compressed: {held['compression']}" if "compression" in held else ""
        raise PlanError(
            f"the plan was made for workload {plan.workload_name!r}, {holder} "
            f"{held['model']!r} in {held['dtype']}, cut as {held['partition']!r}{compressed}"
        )
    try:
        return VideoSettings.model_validate({k: v for k, v in values.items() if k not in ("model", "compression")})
    except ValueError:
        raise PlanError(f"the plan's settings cannot be read: {plan.workload_settings}") from None
