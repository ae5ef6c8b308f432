"""What is identified is identified by what it holds: widths in kinds, stores under any name, files from before both."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cidl_sim.core.errors import PlanError
from cidl_sim.core.files import sha256_of
from cidl_sim.core.plan import Plan, read_plan
from cidl_sim.core.workload import Workload, kind_without_widths, read_workload, widths
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.catalog import find_workload, shipped, workload_of
from cidl_sim.pipelines.model_store import build_random_store
from cidl_sim.pipelines.open_sora.settings import OPENSORA_SMALL, OPENSORA_TINY, VideoSettings
from cidl_sim.policies.catalog import make_plan
from cidl_sim.worker.sources import StoreSource
from tests.executor.tiny_runs import SETTINGS, tight_device, tiny_workload

RECORDED = sorted((Path(__file__).parents[2] / "traces/validation").glob("*/workload.json"))


def kinds(workload: Workload) -> set[str]:
    return {block.kind for stage in workload.stages for block in stage.blocks}


def as_before(workload: Workload) -> dict:
    """A workload's file as it was written before kinds knew widths and settings their family."""
    data = workload.model_dump(mode="json")
    del data["settings"]["pipeline"]
    text = re.sub(r'\.w\d+(?:x\d+)*(?=["+])', "", json.dumps(data))
    return json.loads(text)


def test_two_architectures_share_no_kind_although_the_shapes_they_meet_are_equal():
    settings = VideoSettings(height=32, width=32, frames=17, steps=2)
    tiny, small = workload_of(OPENSORA_TINY, settings), workload_of(OPENSORA_SMALL, settings)
    assert not kinds(tiny) & kinds(small)


def test_equal_blocks_of_models_with_other_names_and_depths_share_their_kinds():
    deeper = OPENSORA_TINY.stdit.model_copy(update={"depth": 4})
    other = OPENSORA_TINY.model_copy(update={"name": "deeper", "stdit": deeper})
    assert kinds(workload_of(other, SETTINGS)) == kinds(tiny_workload())


@pytest.mark.parametrize(
    ("kind", "earlier"),
    [
        ("a.b.fp32.5x16.w1152x16x50x300", "a.b.fp32.5x16"),
        ("joined.4*a.fp32.w8x2+b.fp32.w3", "joined.4*a.fp32+b.fp32"),
        ("a.weights.w12a", "a.weights.w12a"),
        ("w5.a", "w5.a"),
    ],
)
def test_widths_are_one_part_of_a_kind(kind, earlier):
    assert kind_without_widths(kind) == earlier
    assert kind_without_widths(f"{earlier}.{widths(3, 4)}") == earlier


@pytest.mark.parametrize("name", [*shipped()[::4], "opensora-tiny-fine-tdtm2", "opensora-tiny-t2.d2.v3-2p"])
def test_a_workload_is_known_by_the_hash_that_older_files_have(name):
    workload = find_workload(name)
    assert sha256_of(as_before(workload)) in workload.identities
    assert workload.sha256 in workload.identities
    assert len(workload.identities) == 2


@pytest.mark.parametrize("file", RECORDED, ids=[file.parent.name for file in RECORDED])
def test_recorded_workloads_and_plans_are_those_of_today(file):
    recorded = read_workload(file)
    settings = {k: v for k, v in recorded.settings.items() if k != "model"}
    today = workload_of(OPENSORA_SMALL, VideoSettings.model_validate(settings))
    assert recorded.sha256 in today.identities
    read_plan(file.with_name("plan.json")).check_workload(today)


def test_a_plan_from_before_runs_on_a_store_from_before(tiny_store, tmp_path):
    workload = tiny_workload()
    plan = make_plan("lru", workload, tight_device(workload))
    settings = {k: v for k, v in plan.workload_settings.items() if k != "pipeline"}
    fields = {"workload_sha256": sha256_of(as_before(workload)), "workload_settings": settings}
    older = Plan.model_validate({**plan.model_dump(mode="json"), **fields})
    assert StoreSource(BlockStore.open(tiny_store)).prepare(older).workload == workload


def test_a_store_is_matched_by_its_model_and_not_by_the_models_name(tmp_path):
    workload = tiny_workload()
    plan = make_plan("lru", workload, tight_device(workload))
    same = build_random_store(tmp_path / "a", OPENSORA_TINY.model_copy(update={"name": "mine"}), "fp32", 0)
    assert StoreSource(same).prepare(plan).workload == workload
    narrower = OPENSORA_TINY.t5.model_copy(update={"d_ff": 32})
    other = build_random_store(tmp_path / "b", OPENSORA_TINY.model_copy(update={"t5": narrower}), "fp32", 0)
    with pytest.raises(PlanError, match="made for workload"):
        StoreSource(other).prepare(plan)
