"""From published checkpoint folders to a block store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cidl_sim.executor.store import BlockStore
from cidl_sim.pipelines.checkpoint import Checkpoint, CheckpointError
from cidl_sim.pipelines.model_store import build_random_store, distinct_blocks, import_checkpoints
from cidl_sim.pipelines.open_sora.family import OPEN_SORA
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY
from cidl_sim.pipelines.random_weights import random_weights

SIZES = OPENSORA_TINY


def published(part: str) -> dict[str, Tensor]:
    """A checkpoint as it would be published, with the random weights of seed 0."""
    state = {}
    for block in distinct_blocks(SIZES, "fp32"):
        if block.checkpoint == part:
            for name, tensor in random_weights(OPEN_SORA, block, 0, torch.float32).items():
                state[block.published_key(name)] = tensor
    for key, shape in OPEN_SORA.unused_keys(SIZES, part).items():
        state.setdefault(key, torch.zeros(shape))
    return state


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    """Sharded safetensors for T5, one file for STDiT, a .bin for the VAE."""
    made = {part: tmp_path / part for part in ("t5", "stdit", "vae")}
    for folder in made.values():
        folder.mkdir()
    t5 = sorted(published("t5").items())
    for i, shard in enumerate((dict(t5[::2]), dict(t5[1::2]))):
        save_file(shard, made["t5"] / f"model-0000{i + 1}-of-00002.safetensors")
    save_file(published("stdit"), made["stdit"] / "model.safetensors")
    torch.save(published("vae"), made["vae"] / "model.bin")
    return made


@pytest.mark.parametrize("partition", ["reference", "fine"])
def test_an_imported_store_is_the_one_built_from_the_same_weights(tmp_path, folders, partition):
    imported = import_checkpoints(tmp_path / "a", SIZES, "fp32", folders, partition=partition)
    built = build_random_store(tmp_path / "b", SIZES, "fp32", 0, partition=partition)
    assert imported.index.blocks == built.index.blocks
    assert imported.index.partition == partition


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_are_rounded_to_the_asked_for_dtype(tmp_path, folders, dtype, expected):
    store = import_checkpoints(tmp_path / "a", SIZES, dtype, folders)
    tensors = load_file(store.path("stdit.01"))
    assert {t.dtype for t in tensors.values()} == {expected}
    original = published("stdit")["spatial_blocks.1.attn.qkv.weight"]
    assert torch.equal(tensors["spatial.attn.qkv.weight"], original.to(expected))


def test_an_import_that_goes_on_with_other_files_under_the_same_names_begins_anew_and_says_so(tmp_path, folders):
    def stop(weights: str, _: int) -> None:
        if weights.startswith("stdit"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_checkpoints(tmp_path / "a", SIZES, "fp32", folders, stop)
    file = folders["t5"] / "model-00001-of-00002.safetensors"
    tensors = {key: torch.full_like(tensor, 7) for key, tensor in load_file(file).items()}
    save_file(tensors, file)
    said: list[str] = []
    store = import_checkpoints(tmp_path / "a", SIZES, "fp32", folders, on_note=said.append)
    assert len(said) == 1
    assert "begun anew" in said[0]
    whole = import_checkpoints(tmp_path / "b", SIZES, "fp32", folders, on_note=said.append)
    assert store.index.blocks == whole.index.blocks
    assert len(said) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_named_with_their_key_and_number(value, tmp_path, folders):
    file = folders["stdit"] / "model.safetensors"
    tensors = load_file(file)
    tensors["spatial_blocks.1.attn.qkv.weight"].view(-1)[3:5] = value
    save_file(tensors, file)
    with pytest.raises(
        CheckpointError, match=r"'spatial_blocks\.1\.attn\.qkv\.weight' has 2 of \d+ values that are not"
    ):
        import_checkpoints(tmp_path / "a", SIZES, "fp32", folders)
    assert not (tmp_path / "a" / "store.json").exists()


def test_values_that_do_not_fit_the_dtype_are_named_with_the_largest(tmp_path, folders):
    file = folders["stdit"] / "model.safetensors"
    tensors = load_file(file)
    tensors["spatial_blocks.1.attn.qkv.weight"].view(-1)[3] = 7e4
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"1 of \d+ values beyond float16: up to 7e\+04, at most 6.55e\+04 fits"):
        import_checkpoints(tmp_path / "a", SIZES, "fp16", folders)
    import_checkpoints(tmp_path / "b", SIZES, "bf16", folders)


def test_t5s_table_may_have_either_of_its_names(tmp_path, folders):
    both = import_checkpoints(tmp_path / "both", SIZES, "fp32", folders)
    table = published("t5")["shared.weight"]
    for file in folders["t5"].iterdir():
        tensors = load_file(file)
        held_it = tensors.pop("shared.weight", None) is not None
        tensors.pop("encoder.embed_tokens.weight", None)
        save_file(tensors | ({"encoder.embed_tokens.weight": table} if held_it else {}), file)
    one = import_checkpoints(tmp_path / "one", SIZES, "fp32", folders)
    assert one.index.blocks == both.index.blocks


def test_an_interrupted_import_goes_on_where_it_stopped(tmp_path, folders):
    done: list[str] = []

    def stop_after_three(weights: str, _: int) -> None:
        done.append(weights)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_checkpoints(tmp_path / "a", SIZES, "fp32", folders, stop_after_three)
    stamps = {w: (tmp_path / "a" / f"{w}.safetensors").stat().st_mtime_ns for w in done}
    store = import_checkpoints(tmp_path / "a", SIZES, "fp32", folders)
    assert {w: store.path(w).stat().st_mtime_ns for w in done} == stamps
    assert BlockStore.open(tmp_path / "a", verify=True).index.blocks.keys() == {
        block.weights for block in distinct_blocks(SIZES, "fp32")
    }
    assert not (tmp_path / "a" / ".writing.json").exists()


def test_what_was_begun_for_another_store_is_not_used(tmp_path, folders):
    def stop(weights: str, _: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_checkpoints(tmp_path / "a", SIZES, "bf16", folders, stop)
    store = import_checkpoints(tmp_path / "a", SIZES, "fp32", folders)
    assert {t.dtype for t in load_file(store.path("t5.embedding")).values()} == {torch.float32}


def altered(folder: Path, change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.pop("rope.freqs"), r"1 missing: rope\.freqs"),
        (lambda s: s.update(surprise=torch.zeros(1)), "1 not of this model: surprise"),
        (lambda s: s.update({"rope.freqs": torch.zeros(3)}), r"1 of another shape: rope\.freqs \[3\] instead of \[6\]"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_before_anything_is_written(tmp_path, folders, change, complaint):
    altered(folders["stdit"], change)
    with pytest.raises(CheckpointError, match=complaint):
        import_checkpoints(tmp_path / "a", SIZES, "fp32", folders)
    assert not (tmp_path / "a").exists()


def test_many_problems_are_counted_and_some_are_shown(tmp_path, folders):
    altered(folders["stdit"], lambda s: [s.pop(key) for key in list(s)[:9]])
    with pytest.raises(CheckpointError, match=r"9 missing: .* and 4 more"):
        import_checkpoints(tmp_path / "a", SIZES, "fp32", folders)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a folder"):
        Checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="neither"):
        Checkpoint(tmp_path)


def test_a_damaged_shard_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x10" * 40)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        Checkpoint(tmp_path)


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_bin_file_that_would_execute_something_is_refused(tmp_path, capsys):
    torch.save({"x": Malicious()}, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match="weights alone"):
        Checkpoint(tmp_path)
    assert "executed" not in capsys.readouterr().out


def test_the_tokenizer_comes_along(tmp_path, folders):
    (folders["t5"] / "tokenizer.json").write_text(json.dumps({"any": 1}))
    store = import_checkpoints(tmp_path / "a", SIZES, "fp32", folders)
    assert (store.root / "tokenizer" / "tokenizer.json").is_file()


def test_a_tokenizer_does_not_outlive_its_model(tmp_path, folders):
    (folders["t5"] / "tokenizer.json").write_text(json.dumps({"any": 1}))
    import_checkpoints(tmp_path / "a", SIZES, "fp32", folders)
    store = build_random_store(tmp_path / "a", SIZES, "fp32", 0)
    assert not (store.root / "tokenizer").exists()
