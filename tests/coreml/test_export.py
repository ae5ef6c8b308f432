"""Exports of stores: what the folder holds, what a second call keeps, what is refused. All in this process."""

from __future__ import annotations

import errno
import json
import shutil
from functools import partial

import pytest
import torch

from cidl_sim.core.errors import InputError, MachineError, StoreError
from cidl_sim.coreml.conversion import convert
from cidl_sim.coreml.export import PackageJob, export_package
from cidl_sim.coreml.manifest import files_of, read_manifest
from cidl_sim.executor.store import BlockStore, write_store
from cidl_sim.pipelines.open_sora.family import OPEN_SORA
from cidl_sim.pipelines.open_sora.settings import OPENSORA_SMALL, OPENSORA_TINY, VideoSettings
from cidl_sim.pipelines.random_weights import random_weights
from cidl_sim.pipelines.variants import variants_of
from cidl_sim.worker import exporting
from tests.coreml.quick_conversion import without_self_checks
from tests.test_cli import answer_of, assert_refused, call_cidl

QUICK = ("t5.final_norm", "vae.spatial.part1")


@pytest.fixture(autouse=True, scope="module")
def quick_conversions():
    with without_self_checks():
        yield


# A process for the conversion takes seconds to start; `tests/pipelines/test_plug.py` exports with one.
export_store = partial(exporting.export_store, workers=0)


def one_block_store(root, sizes, run, weights):
    block = next(iter(variants_of(sizes, (run,))[weights].values())).longest
    blocks = [(weights, lambda: random_weights(OPEN_SORA, block, 0, torch.float32))]
    model = sizes.model_dump(mode="json")
    return write_store(root, blocks, name=sizes.name, dtype="fp32", source="random", model=model, pipeline="open_sora")


def test_plain_and_merged_blocks_share_their_weights_on_disk(tmp_path):
    run = VideoSettings(height=32, width=32, frames=17, dtype="fp16")
    store = one_block_store(tmp_path / "store", OPENSORA_SMALL, run, "stdit.00")
    entry = store.entry("stdit.00")
    job = PackageJob(
        "stdit.00",
        store.path("stdit.00"),
        entry.sha256,
        partial(variants_of, OPENSORA_SMALL, (run,)),
        "fp16",
        "none",
        tmp_path,
    )
    package = export_package(job)
    kinds = {
        "stdit_pair_fp16_5x4": "stdit.pair.fp16.5x4.w576x8x48x96",
        "stdit_pair_merged_fp16_5x4": "stdit.pair.merged.fp16.5x4.w576x8x48x96",
    }
    assert {name: function.kind for name, function in package.functions.items()} == kinds
    assert package.default_function == "stdit_pair_fp16_5x4"
    assert package.functions["stdit_pair_fp16_5x4"].inputs == package.functions["stdit_pair_merged_fp16_5x4"].inputs

    plain = variants_of(OPENSORA_SMALL, (run,))["stdit.00"]["stdit.pair.fp16.5x4.w576x8x48x96"].longest
    weights = random_weights(OPEN_SORA, plain, 0, torch.float32)
    convert(plain, package.functions["stdit_pair_fp16_5x4"], weights, "fp16").save(str(tmp_path / "plain.mlpackage"))
    alone = sum(file.bytes for file in files_of(tmp_path / "plain.mlpackage").values())
    assert alone < package.bytes <= 1.02 * alone
    assert package.bytes < 1.02 * entry.data_bytes / 2


def test_equal_exports_are_equal_bytes(tmp_path, tiny_store):
    from coremltools.proto import Model_pb2

    for name in ("a", "b"):
        export_store(BlockStore.open(tiny_store), tmp_path / name, "fp16", blocks=QUICK[:1])
    package = tmp_path / "a" / "t5.final_norm.mlpackage"
    assert files_of(package) == files_of(tmp_path / "b" / "t5.final_norm.mlpackage")
    # Maps are in one order, whatever this process's hashes are.
    written = (package / "Data/com.apple.CoreML/model.mlmodel").read_bytes()
    model = Model_pb2.Model()
    model.ParseFromString(written)
    assert model.SerializeToString(deterministic=True) == written


def test_an_export_lists_its_packages_and_goes_on_where_it_stopped(tmp_path, tiny_store):
    store, out = BlockStore.open(tiny_store), tmp_path / "out"
    made = []

    def call(**options):
        made.clear()
        blocks = options.pop("blocks", QUICK)
        return export_store(
            store, out, "fp16", blocks=blocks, on_package=lambda d, n, w: made.append((d, n, w)), **options
        )

    first = call(blocks=QUICK[:1])
    assert made == [(1, 1, "t5.final_norm")]
    assert list(first.packages) == ["t5.final_norm"]
    assert "vae.spatial.part1" in first.missing
    assert len(first.missing) == len(store.index.blocks) - 1
    package = first.packages["t5.final_norm"]
    assert package.files == files_of(out / package.folder)
    assert package.source_sha256 == store.entry("t5.final_norm").sha256
    assert [spec.name for spec in package.functions["main"].inputs] == ["hidden"]
    assert first.sizes == OPENSORA_TINY.model_dump(mode="json")
    assert list(first.workloads) == ["opensora-tiny-32x32-17f-6s-fp16"]
    every_kind = {
        kind
        for by_kind in variants_of(
            OPENSORA_TINY, (VideoSettings(height=32, width=32, frames=17, dtype="fp16"),)
        ).values()
        for kind in by_kind
    }
    assert set(first.workloads["opensora-tiny-32x32-17f-6s-fp16"]) == every_kind

    (out / ".exporting-killed").mkdir()
    second = call()
    assert made == [(2, 2, "vae.spatial.part1")]
    assert second == read_manifest(out)
    assert list(second.packages) == list(QUICK)
    assert {path.name for path in out.iterdir()} == {"manifest.json", *(f"{name}.mlpackage" for name in QUICK)}

    call()
    assert made == []
    damaged = next(path for path in (out / "vae.spatial.part1.mlpackage").rglob("weight.bin"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    call()
    assert [weights for _, _, weights in made] == ["vae.spatial.part1"]
    shutil.rmtree(out / "t5.final_norm.mlpackage")
    call()
    assert [weights for _, _, weights in made] == ["t5.final_norm"]


def test_two_workloads_are_two_functions_of_the_blocks_that_differ(tmp_path, tiny_store):
    names = ["opensora-tiny", "opensora-tiny-48x48"]
    manifest = export_store(BlockStore.open(tiny_store), tmp_path, "fp32", workloads=names, blocks=QUICK)
    assert list(manifest.workloads) == [f"opensora-tiny-{size}-17f-6s-fp32" for size in ("32x32", "48x48")]
    spatial = manifest.packages["vae.spatial.part1"].functions
    sizes = {name: function.inputs[0].shape for name, function in spatial.items()}
    assert sizes == {
        "vae_spatial_part1_fp32_4x4x4": (4, 4, 4, 4),
        "vae_spatial_part1_fp32_1x4x4": (1, 4, 4, 4),
        "vae_spatial_part1_fp32_4x6x6": (4, 4, 6, 6),
        "vae_spatial_part1_fp32_1x6x6": (1, 4, 6, 6),
    }
    assert list(manifest.packages["t5.final_norm"].functions) == ["main"]
    fewer = export_store(BlockStore.open(tiny_store), tmp_path, "fp32", workloads=names[:1], blocks=QUICK[:1])
    assert "vae.spatial.part1" in fewer.missing


def test_compression_is_told_in_the_manifest(tmp_path, tiny_store):
    blocks = ["stdit.part1"]
    floats = export_store(BlockStore.open(tiny_store), tmp_path / "a", "fp16", blocks=blocks)
    small = export_store(BlockStore.open(tiny_store), tmp_path / "b", "fp16", blocks=blocks, compression="int8")
    assert floats.packages["stdit.part1"].weight_error is None
    assert 0 < small.packages["stdit.part1"].weight_error < 0.01
    assert small.packages["stdit.part1"].bytes < floats.packages["stdit.part1"].bytes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workloads": ["opensora-small"]}, "the store .* holds 'opensora-tiny'"),
        ({"workloads": ["opensora-tiny-fine"]}, "cut as 'reference'"),
        ({"workloads": ["opensora-tiny-8x32"]}, "greater than or equal to 16"),
        ({"blocks": ["t6.*"]}, "no such block"),
    ],
)
def test_what_the_store_does_not_hold_is_refused(tmp_path, tiny_store, options, words):
    with pytest.raises(InputError, match=words):
        export_store(BlockStore.open(tiny_store), tmp_path / "out", "fp16", **options)
    assert not (tmp_path / "out").exists()


def test_another_export_is_not_written_over(tmp_path, tiny_store):
    store = BlockStore.open(tiny_store)
    before = export_store(store, tmp_path, "fp16", blocks=QUICK[:1])
    with pytest.raises(InputError, match="holds another export"):
        export_store(store, tmp_path, "fp32", blocks=QUICK[:1])
    with pytest.raises(InputError, match="compression none, not int8"):
        export_store(store, tmp_path, "fp16", blocks=QUICK[:1], compression="int8")
    assert read_manifest(tmp_path) == before
    (tmp_path / "manifest.json").write_text('{"format": "cidl-coreml/2"}')
    with pytest.raises(InputError, match=r"manifest\.json: format"):
        export_store(store, tmp_path, "fp16", blocks=QUICK[:1])


def test_a_folder_that_cannot_be_written_is_the_machines_fault(tmp_path, tiny_store):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot be written"):
        export_store(BlockStore.open(tiny_store), tmp_path / "file", "fp16", blocks=QUICK[:1])


def test_a_full_disk_in_the_librarys_compiled_part_is_the_machines_fault(tmp_path, tiny_store, monkeypatch):
    import coremltools as ct

    def full(*_, **__):
        # As libmodelpackage raises it.
        raise RuntimeError("filesystem error: cannot copy: No space left on device [a.mlmodel] [b.mlmodel]")

    monkeypatch.setattr(ct.models.MLModel, "save", full)
    with pytest.raises(OSError, match="No space left on device") as failed:
        export_store(BlockStore.open(tiny_store), tmp_path / "out", "fp16", blocks=QUICK[:1])
    assert failed.value.errno == errno.ENOSPC
    assert not list((tmp_path / "out").glob(".exporting*"))


def test_a_failed_package_leaves_those_before_it(tmp_path, tiny_store):
    root, out = tmp_path / "store", tmp_path / "out"
    shutil.copytree(tiny_store, root)
    store = BlockStore.open(root)
    (root / "vae.spatial.part1.safetensors").write_bytes(b"nothing")
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(StoreError, match=r"vae\.spatial\.part1\.safetensors"):
        export_store(store, out, "fp16", blocks=QUICK)
    assert list(read_manifest(out).packages) == ["t5.final_norm"]
    assert {path.name for path in out.iterdir()} == {"manifest.json", "t5.final_norm.mlpackage", "tokenizer"}
    assert (out / "tokenizer" / "tokenizer.json").read_text() == "{}"


def test_the_command_exports_and_says_what_it_did(tmp_path, tiny_store, monkeypatch):
    export_blocks = exporting.export_blocks
    monkeypatch.setattr(exporting, "export_blocks", lambda *args, **options: export_blocks(*args, **here(options)))
    arguments = ("coreml", "export", "--store", tiny_store, "--out", tmp_path, "--dtype", "fp16", "--blocks", QUICK[1])
    answer = answer_of(*arguments)
    assert answer.pop("exported") == [QUICK[1]]
    assert (answer["packages"], answer["functions"], answer["dtype"]) == (1, 2, "fp16")
    package = tmp_path / f"{QUICK[1]}.mlpackage"
    assert answer["bytes"] == sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    outcome = call_cidl(*arguments)
    assert "1 package(s) with 2 functions" in outcome.out
    # Where a line ends depends on how long the folder's name is.
    assert "0 of them made now" in " ".join(outcome.out.split())
    assert "not exported: 22 blocks, the first is t5.embedding" in outcome.out
    assert json.loads((tmp_path / "manifest.json").read_text())["missing"] == answer["missing"]


def here(options):
    assert options["workers"] == 1
    return {**options, "workers": 0}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--dtype bf16", ["--dtype 'bf16'", "fp32, fp16"]),
        ("--compress int4", ["--compress 'int4'", "palette6"]),
        ("--blocks nothing", ["no such block"]),
        ("--workload opensora-small", ["opensora-tiny"]),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path, tiny_store, given, words):
    outcome = call_cidl("coreml", "export", "--store", tiny_store, "--out", tmp_path / "out", *given.split())
    assert_refused(outcome, 2, *words)


def test_values_that_are_not_finite_are_refused(spoiled_store, tmp_path, monkeypatch):
    export_blocks = exporting.export_blocks
    monkeypatch.setattr(exporting, "export_blocks", lambda *args, **options: export_blocks(*args, **here(options)))
    asked = ("--store", spoiled_store, "--out", tmp_path / "packages", "--blocks", "stdit.part2")
    words = ("stdit.part2", "'final_layer.linear.bias' has 1 of", "not finite")
    assert_refused(call_cidl("coreml", "export", *asked), 2, *words)
    assert not list((tmp_path / "packages").glob("**/*.mlmodel"))
