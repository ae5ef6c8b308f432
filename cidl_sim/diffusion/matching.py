"""Does this plan belong to this store? Answered without building any network."""

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
    sizes = store_sizes(store)
    values = dict(plan.workload_settings)
    model = values.pop("model", None)
    index = store.index
    if (model, values.get("dtype"), values.get("partition")) != (sizes.name, index.dtype, index.partition):
        raise PlanError(
            f"the plan was made for workload {plan.workload_name!r}, the store {store.root} holds "
            f"{sizes.name!r} in {index.dtype}, cut as {index.partition!r}"
        )
    try:
        settings = VideoSettings.model_validate(values)
    except ValueError:
        raise PlanError(f"the plan's settings cannot be read: {plan.workload_settings}") from None
    workload = workload_of(sizes, settings)
    plan.check_workload(workload)
    return workload, settings
