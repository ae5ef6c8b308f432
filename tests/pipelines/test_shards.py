"""Which files of a checkpoint's folder hold its weights: the rules of those who publish them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from cidl_sim.pipelines.checkpoint import Checkpoint
from cidl_sim.pipelines.shards import CheckpointError, weight_files


def write(folder: Path, *names: str, content: bytes | None = None) -> None:
    """Files with a tensor named after each."""
    for name in names:
        if name.endswith(".safetensors"):
            (folder / name).write_bytes(content or save({name: torch.ones(2)}))
        else:
            torch.save({name: torch.ones(2)}, folder / name)


def write_index(folder: Path, *names: str, index: str = "model.safetensors.index.json") -> None:
    (folder / index).write_text(json.dumps({"weight_map": {f"k{i}": name for i, name in enumerate(names)}}))


def names_in(folder: Path, variant: str | None = None) -> list[str]:
    return [file.name for file in weight_files(folder, variant)]


PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_the_index_names_the_files(tmp_path):
    write(tmp_path, *PARTS, "model.safetensors", "extra.safetensors")
    write_index(tmp_path, *PARTS)
    assert names_in(tmp_path) == list(PARTS)


def test_a_shard_that_the_index_names_and_nobody_has_is_named_as_a_file(tmp_path):
    write(tmp_path, PARTS[0])
    write_index(tmp_path, *PARTS)
    with pytest.raises(CheckpointError, match=f"{tmp_path / PARTS[1]}: missing; model.safetensors.index.json names it"):
        names_in(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', "{" * 5000, '{"weight_map": {"a": "../b"}}'])
def test_an_index_that_makes_no_sense_is_named(text, tmp_path):
    write(tmp_path, "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: ") as problem:
        names_in(tmp_path)
    assert "\n" not in str(problem.value)


def test_parts_without_an_index_are_all_of_them_or_the_missing_one_is_named(tmp_path):
    write(tmp_path, *PARTS)
    assert names_in(tmp_path) == list(PARTS)
    (tmp_path / PARTS[0]).unlink()
    with pytest.raises(CheckpointError, match=f"{PARTS[0]}: missing, one of 2 parts"):
        names_in(tmp_path)


@pytest.mark.parametrize("plain", ["model", "diffusion_pytorch_model", "pytorch_model"])
@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_without_an_index_it_is_the_plain_name(plain, ending, tmp_path):
    write(tmp_path, f"{plain}{ending}", f"{plain}.fp16{ending}", f"other{ending}")
    assert names_in(tmp_path) == [f"{plain}{ending}"]


def test_safetensors_come_before_bin(tmp_path):
    write(tmp_path, "model.safetensors", "pytorch_model.bin")
    assert names_in(tmp_path) == ["model.safetensors"]


def test_a_variant_is_taken_when_it_is_asked_for_and_named_when_it_is_all_there_is(tmp_path):
    write(tmp_path, "model.fp16.safetensors", "model.non_ema.safetensors")
    assert names_in(tmp_path, "fp16") == ["model.fp16.safetensors"]
    with pytest.raises(
        CheckpointError, match="weights of variants only; name one of these with --variant: fp16, non_ema"
    ):
        names_in(tmp_path)
    with pytest.raises(CheckpointError, match="no variant 'bf16'"):
        names_in(tmp_path, "bf16")


def test_one_file_of_another_name_stands_for_itself_and_several_do_not(tmp_path):
    write(tmp_path, "sd.v1-5.safetensors")
    assert names_in(tmp_path) == ["sd.v1-5.safetensors"]
    write(tmp_path, "another.safetensors")
    with pytest.raises(CheckpointError, match=r"several \.safetensors files and no index"):
        names_in(tmp_path)


def test_what_is_hidden_or_of_a_training_or_did_not_end_is_passed_over(tmp_path):
    write(tmp_path, "model.safetensors", "training_args.bin", "optimizer.bin", "scheduler.bin", "random_states_0.bin")
    for name in ("._model.safetensors", "._model-00001-of-00002.safetensors", "model.safetensors.incomplete"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert names_in(tmp_path) == ["model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"neither .* model.safetensors.incomplete is a download that did not end"
    ):
        names_in(tmp_path)


def test_a_folder_that_is_none_and_an_empty_one_are_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError):
            weight_files(folder)


WHOLE = save({"a": torch.ones(100)})


@pytest.mark.parametrize("length", [0, 3, 20, len(WHOLE) - 1])
def test_a_download_that_ended_early_says_how_much_is_there(length, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(WHOLE[:length])
    with pytest.raises(CheckpointError, match=f"incomplete, {length} of .* bytes; download it again"):
        Checkpoint(tmp_path)


def test_a_pointer_of_git_lfs_is_called_one(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(CheckpointError, match="a pointer of Git LFS"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_what_a_library_says_of_a_file_is_one_whole_line_without_colours(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x08\0\0\0\0\0\0\0not json" * 40)
    with pytest.raises(CheckpointError, match=name) as problem:
        Checkpoint(tmp_path)
    assert "\x1b" not in str(problem.value)
    assert "\n" not in str(problem.value)
    assert str(problem.value).count("(") == str(problem.value).count(")")
