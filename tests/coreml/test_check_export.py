"""A whole export against PyTorch: what passes, what does not, what is refused; the command."""

from __future__ import annotations

import shutil

import pytest
import torch

from cidl_sim.core.errors import InputError
from cidl_sim.coreml.check_export import example_input
from cidl_sim.coreml.manifest import TensorSpec
from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.model_store import build_random_store
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY
from cidl_sim.worker.exporting import check_export, export_store
from tests.coreml.quick_conversion import without_self_checks
from tests.test_cli import answer_of, call_cidl

BLOCKS = ("t5.final_norm", "stdit.part1", "stdit.00")


@pytest.fixture(scope="module")
def fp32_export(tmp_path_factory, tiny_store):
    folder = tmp_path_factory.mktemp("exports") / "fp32"
    with without_self_checks():
        export_store(BlockStore.open(tiny_store), folder, "fp32", blocks=BLOCKS, workers=0)
    return folder


def test_every_function_of_an_export_is_compared_and_exact(fp32_export, tiny_store):
    seen = []
    store = BlockStore.open(tiny_store)
    checks = check_export(fp32_export, store, on_function=lambda done, total, name: seen.append((done, total, name)))
    assert [check.weights for check in checks] == ["t5.final_norm", "stdit.part1", "stdit.00", "stdit.00"]
    assert [done for done, _, _ in seen] == [1, 2, 3, 4]
    for check in checks:
        assert check.errors.largest <= 2e-6 == check.allowed
        assert check.passed


def test_weights_that_were_damaged_are_found_by_the_command(fp32_export, tiny_store, tmp_path):
    shutil.copytree(fp32_export, tmp_path / "damaged")
    (weights,) = (tmp_path / "damaged" / "stdit.00.mlpackage").rglob("weight.bin")
    stored = bytearray(weights.read_bytes())
    stored[5000:5400] = bytes(400)
    weights.write_bytes(stored)
    call = ("coreml", "check", "--packages", tmp_path / "damaged", "--store", tiny_store)
    passed = answer_of(*call, "--blocks", "stdit.part1")
    assert [(row["weights"], row["passed"], row["overflow"]) for row in passed["functions"]] == [
        ("stdit.part1", True, [])
    ]
    outcome = call_cidl(*call)
    assert outcome.code == 2
    assert "WRONG" in outcome.out
    assert "2 of 4 functions are flagged or further off than allowed, first stdit.00" in outcome.err


def test_another_store_or_no_such_block_is_refused(fp32_export, tiny_store, tmp_path):
    build_random_store(tmp_path / "other", OPENSORA_TINY, "fp32", seed=1)
    with pytest.raises(InputError, match="was not made from the store"):
        check_export(fp32_export, BlockStore.open(tmp_path / "other"), ["stdit.00"])
    with pytest.raises(InputError, match=r"--blocks 'vae\.\*': no such package"):
        check_export(fp32_export, BlockStore.open(tiny_store), ["vae.*"])


def test_inputs_are_what_a_run_may_bring():
    mask = example_input(TensorSpec(name="mask", dtype="fp16", shape=(1, 1, 1, 5)), 10)
    assert mask.reshape(-1).tolist() == [0, 0, 0, -1e4, -1e4]
    ids = example_input(TensorSpec(name="ids", dtype="int32", shape=(1, 50)), 10)
    assert (ids.min(), ids.max(), ids.dtype) == (0, 9, torch.int32)
    hidden = example_input(TensorSpec(name="hidden", dtype="fp16", shape=(3,)), 10)
    assert torch.equal(hidden, hidden.half().float())
