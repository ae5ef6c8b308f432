"""Which files of a checkpoint's folder hold its weights, by the rules of those who publish them.

The index names the files; without one it is the plain name, then one that stands alone. Variants (`model.fp16...`) are
taken when they are asked for. What a training run leaves beside them (`optimizer.bin`) never is, nor what is hidden
(AppleDouble's `._model.safetensors`) or a download that did not end.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cidl_sim.core.errors import InputError


class CheckpointError(InputError):
    """A checkpoint that is missing, unreadable, or not of the model it should be."""


# Of what libraries write beside the weights in the same format.
_BESIDE = re.compile(r"(training_args|optimizer|scheduler|scaler|random_states?|rng_state|trainer_state)[\w-]*", re.I)
_PLAIN = ("model", "diffusion_pytorch_model", "pytorch_model")
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_ENDINGS = (".safetensors", ".bin")
_LFS = b"version https://git-lfs"
# A header beyond this is none: safetensors' own limit.
_LONGEST_HEADER = 100_000_000
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The files of `folder` that hold weights, of one variant if it is named; safetensors before .bin.

    CheckpointError if there are none, if a part of several is missing, or if it cannot be told which are meant.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder with a checkpoint")
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    variants: set[str] = set()
    for ending in _ENDINGS:
        indices = [file for file in files if file.name.endswith(f"{ending}.index.json")]
        shards = [file for file in files if file.suffix == ending and not _BESIDE.fullmatch(file.stem)]
        groups = _groups(shards)
        found = _named_by_index(folder, indices, ending, variant) or _chosen(folder, groups, ending, variant)
        if found:
            return found
        variants |= {v for v in map(_variant_of, groups) if v}
    if variants:
        wanted = f"no variant {variant!r}" if variant else "weights of variants only"
        named = ", ".join(sorted(variants))
        raise CheckpointError(f"{folder}: {wanted}; name one of these with --variant: {named}")
    unfinished = [f.name for f in folder.iterdir() if f.suffix in (".incomplete", ".part", ".aria2", ".crdownload")]
    also = f"; {unfinished[0]} is a download that did not end" if unfinished else ""
    raise CheckpointError(f"{folder}: neither .safetensors nor .bin files with weights in it{also}")


def single_file(file: Path) -> Path:
    """The file itself. CheckpointError for one that could run code when it is opened, or is no file of weights."""
    if file.suffix == ".safetensors":
        return file
    if file.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        script = (
            f"import torch, safetensors.torch as s; d = torch.load('{file.name}', weights_only=True); "
            f"d = {{k: v.contiguous() for k, v in d.get('state_dict', d).items()}}; "
            f"s.save_file(d, '{file.stem}.safetensors')"
        )
        raise CheckpointError(
            f'{file}: a pickle, which can run code, is not read; convert it where you trust it: python -c "{script}"'
        )
    raise CheckpointError(f"{file}: not a file of weights; give a .safetensors file or a checkpoint's folder")


def check_whole(shard: Path) -> None:
    """CheckpointError where a file of weights is a pointer of Git LFS's, or shorter than its own header says."""
    try:
        size = shard.stat().st_size
        with shard.open("rb") as file:
            start = file.read(len(_LFS))
            if start == _LFS:
                raise CheckpointError(f"{shard}: a pointer of Git LFS, not the weights; fetch them with 'git lfs pull'")
            if shard.suffix != ".safetensors":
                return
            file.seek(0)
            expected = _whole_size(file.read(8), file)
    except OSError as problem:
        raise CheckpointError(f"{shard}: cannot be read ({problem.strerror})") from None
    if expected is not None and size < expected:
        raise CheckpointError(f"{shard}: incomplete, {size} of {expected} bytes; download it again")


def library_words(problem: Exception) -> str:
    """What a library says of a file: its first line, whole and without colours."""
    lines = (line.strip() for line in _ESCAPES.sub("", str(problem)).splitlines())
    return next((line for line in lines if line), type(problem).__name__)


def fingerprint(files: Iterator[Path] | list[Path]) -> list[list[Any]]:
    """What tells files apart from others under the same names: size, time and inode of each."""
    states = ((file, file.stat()) for file in files)
    return [[str(file.absolute()), state.st_size, state.st_mtime_ns, state.st_ino] for file, state in states]


def _whole_size(length: bytes, file: Any) -> int | None:
    """How long a safetensors file has to be by its own header; None where that is none."""
    if len(length) < 8:
        return 8
    (size,) = struct.unpack("<Q", length)
    if not 2 <= size <= _LONGEST_HEADER:
        return None
    text = file.read(size)
    if len(text) < size:
        return 8 + int(size)
    try:
        header = json.loads(text)
        ends = [int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError):
        return None
    return 8 + int(size) + max(ends, default=0)


def _named_by_index(folder: Path, indices: list[Path], ending: str, variant: str | None) -> list[Path]:
    # Of `model.safetensors.index.fp16.json` and `model.fp16.safetensors.index.json` the second form is matched too.
    fitting = [file for file in indices if _variant_of(file.name.removesuffix(f"{ending}.index.json")) == variant]
    if not fitting:
        return []
    index = next((file for plain in _PLAIN for file in fitting if file.name.startswith(f"{plain}.")), fitting[0])
    try:
        names = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values()
        named = sorted({str(name) for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{index}: cannot be read as an index of shards") from None
    for name in named:
        if name != Path(name).name or name in ("", ".", ".."):
            raise CheckpointError(f"{index}: {name!r} is no file beside it")
        if not _is_file(folder / name):
            raise CheckpointError(f"{folder / name}: missing; {index.name} names it")
    return [folder / name for name in named]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no name that a file can have
        return False


def _groups(shards: list[Path]) -> dict[str, list[Path]]:
    """Files by what they are parts of; CheckpointError is for whoever takes a group that is not whole."""
    groups: dict[str, list[Path]] = {}
    for shard in shards:
        part = _PART.fullmatch(shard.stem)
        groups.setdefault(part["stem"] if part else shard.stem, []).append(shard)
    return groups


def _chosen(folder: Path, groups: Mapping[str, list[Path]], ending: str, variant: str | None) -> list[Path]:
    fitting = {stem: files for stem, files in groups.items() if _variant_of(stem) == variant}
    plain = [stem for name in _PLAIN for stem in fitting if stem.split(".")[0] == name]
    if not plain and len(fitting) > 1:
        named = ", ".join(sorted(file.name for files in fitting.values() for file in files)[:4])
        raise CheckpointError(f"{folder}: several {ending} files and no index that says which belong together: {named}")
    chosen = plain[0] if plain else next(iter(fitting), None)
    return [] if chosen is None else _whole_group(fitting[chosen])


def _whole_group(files: list[Path]) -> list[Path]:
    parts = {file: _PART.fullmatch(file.stem) for file in files}
    counts = {int(part["count"]) for part in parts.values() if part}
    if not counts:
        return files
    there = {int(part["number"]) for part in parts.values() if part}
    (first, part) = next((file, part) for file, part in parts.items() if part)
    for number in range(1, max(counts) + 1):
        if number not in there:
            name = f"{part['stem']}-{number:05}-of-{max(counts):05}{first.suffix}"
            raise CheckpointError(f"{first.parent / name}: missing, one of {max(counts)} parts")
    return files


def _variant_of(stem: str) -> str | None:
    """`fp16` of `model.fp16`; None of a plain name, and of names with points that are no known one's."""
    name, _, variant = stem.partition(".")
    return variant or None if name in _PLAIN else None
