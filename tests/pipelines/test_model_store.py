"""From a model to a store, and from a plan to the store it belongs to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cidl_sim.core.errors import PlanError, StoreError
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.matching import store_sizes
from cidl_sim.pipelines.model_store import build_random_store, distinct_blocks
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY
from cidl_sim.policies.catalog import make_plan
from cidl_sim.worker.sources import StoreSource
from tests.executor.tiny_runs import SETTINGS, tight_device, tiny_workload


def test_a_store_holds_every_block_that_any_run_visits(tiny_store):
    store, workload = BlockStore.open(tiny_store), tiny_workload()
    sizes = {visit.block.weights: visit.block.weight_bytes for visit in workload.visits}
    in_store = {weights: entry.data_bytes for weights, entry in store.index.blocks.items()}
    embedding = in_store.pop("t5.embedding")
    assert sizes.pop("t5.embedding") < embedding  # a run reads the rows of its prompt
    assert in_store == sizes


def test_the_same_seed_gives_the_same_store_and_another_seed_another(tiny_store, tmp_path):
    expected = BlockStore.open(tiny_store).index.blocks
    same = build_random_store(tmp_path / "same", OPENSORA_TINY, "fp32", seed=0).index.blocks
    other = build_random_store(tmp_path / "other", OPENSORA_TINY, "fp32", seed=1).index.blocks
    assert same == expected
    assert other["stdit.00"].sha256 != expected["stdit.00"].sha256


def test_blocks_of_one_kind_have_different_weights(tiny_store):
    first, second = (load_file(tiny_store / f"stdit.0{i}.safetensors") for i in range(2))
    assert first.keys() == second.keys()
    assert not first["spatial.attn.qkv.weight"].equal(second["spatial.attn.qkv.weight"])


def test_each_set_of_weights_is_built_once():
    names = [block.weights for block in distinct_blocks(OPENSORA_TINY, "fp32")]
    assert len(names) == len(set(names))


def test_a_store_knows_the_sizes_of_its_model(tiny_store):
    assert store_sizes(BlockStore.open(tiny_store)) == OPENSORA_TINY


@pytest.fixture
def own_store(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy that a test may alter."""
    return shutil.copytree(tiny_store, tmp_path / "store")


def alter_index(root: Path, **fields: object) -> BlockStore:
    index = json.loads((root / "store.json").read_text())
    (root / "store.json").write_text(json.dumps({**index, **fields}))
    return BlockStore.open(root)


def test_a_store_of_something_else_is_not_a_model_of_this_pipeline(own_store):
    with pytest.raises(StoreError, match=rf"{own_store / 'store.json'}: not a model of this pipeline"):
        store_sizes(alter_index(own_store, model={"layers": 3}))


def test_a_plan_brings_its_settings_to_the_store_it_was_made_for(tiny_store):
    workload = tiny_workload()
    plan = make_plan("lru", workload, tight_device(workload))
    prepared = StoreSource(BlockStore.open(tiny_store)).prepare(plan)
    assert prepared.settings == SETTINGS
    assert prepared.workload == workload


def test_a_plan_for_another_precision_is_refused(tiny_store):
    workload = tiny_workload(SETTINGS.model_copy(update={"dtype": "bf16"}))
    plan = make_plan("lru", workload, tight_device(workload))
    with pytest.raises(PlanError, match=r"the plan was made for workload .*bf16.*holds 'opensora-tiny' in fp32"):
        StoreSource(BlockStore.open(tiny_store)).prepare(plan)


def test_a_plan_for_another_model_is_refused(tiny_store):
    workload = tiny_workload()
    plan = make_plan("lru", workload, tight_device(workload))
    other = plan.model_copy(update={"workload_settings": {**plan.workload_settings, "model": "opensora-small"}})
    with pytest.raises(PlanError, match="holds 'opensora-tiny'"):
        StoreSource(BlockStore.open(tiny_store)).prepare(other)


def test_a_plan_whose_settings_make_another_workload_is_refused(tiny_store):
    workload = tiny_workload()
    plan = make_plan("lru", workload, tight_device(workload))
    other = plan.model_copy(update={"workload_settings": {**plan.workload_settings, "steps": 4}})
    with pytest.raises(PlanError, match="sha256"):
        StoreSource(BlockStore.open(tiny_store)).prepare(other)


def test_settings_that_cannot_be_read_are_shown(tiny_store):
    workload = tiny_workload()
    plan = make_plan("lru", workload, tight_device(workload))
    other = plan.model_copy(update={"workload_settings": {**plan.workload_settings, "height": 7}})
    with pytest.raises(PlanError, match="settings cannot be read"):
        StoreSource(BlockStore.open(tiny_store)).prepare(other)
