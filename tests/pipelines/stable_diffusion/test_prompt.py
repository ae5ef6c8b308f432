"""CLIP's tokens: the library's, or bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from cidl_sim.models.unet_sizes import CLIPSizes
from cidl_sim.pipelines.prompts import PromptError
from cidl_sim.pipelines.stable_diffusion.prompt import encode_text

SIZES = CLIPSizes(layers=1, width=8, heads=1, inner=8, vocabulary=525, tokens=16)
TEXTS = [
    "a red circle",
    "  A Photo\n of\tthe   SEA, it's 1988!! ",
    "caf\u00e9 na\u00efve \u00fcber \u65e5\u672c",
    "",
    "don't we'll 3.14 <|endoftext|> x",
    "a very long text " * 12,
]


def byte_symbols() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small vocabulary in the published files' form."""
    symbols = byte_symbols()
    merges = [
        ("r", "e"),
        ("re", "d</w>"),
        ("t", "h"),
        ("th", "e</w>"),
        ("c", "i"),
        ("1", "9"),
        ("l", "o"),
        ("'", "s</w>"),
        ("a", "n"),
    ]
    vocabulary = [*symbols, *(s + "</w>" for s in symbols), *("".join(pair) for pair in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return tmp_path


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("form", ["vocab.json", "tokenizer.json"])
def test_tokens_are_the_librarys(folder: Path, text: str, form: str) -> None:
    library = CLIPTokenizer.from_pretrained(str(folder))
    assert len(library) == len(byte_symbols()) * 2 + 11
    sizes = SIZES.model_copy(update={"vocabulary": len(library)})
    expected = library(text, padding="max_length", truncation=True, max_length=16, return_tensors="pt").input_ids
    if form == "tokenizer.json":
        library.save_pretrained(str(folder / "saved"))
        (folder / "saved" / "tokenizer.json").rename(folder / "tokenizer.json")
        (folder / "vocab.json").unlink()
    found = encode_text(text, sizes, "end", folder)
    assert found.ids.tolist() == expected.tolist()
    assert found.ids[0, int(found.ends)] == sizes.vocabulary - 1
    assert sizes.vocabulary - 1 not in found.ids[0, : int(found.ends)].tolist() or "<|endoftext|>" in text


def test_a_tokenizer_of_another_model_is_told(folder: Path) -> None:
    few = SIZES.model_copy(update={"vocabulary": 260})
    with pytest.raises(PromptError, match=r"another model's tokenizer; it gives token \d+, the model knows 260"):
        encode_text("a red circle", few, "end", folder)


def test_without_a_tokenizer_bytes_are_tokens() -> None:
    found = encode_text("a\u00e9", SIZES, "zero", None)
    assert found.ids.tolist() == [[523, 97, 195, 169, 524, *[0] * 11]]
    assert found.ends.tolist() == [4]
    assert encode_text("", SIZES, "end", None).ids.tolist() == [[523, *[524] * 15]]


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="has 20 bytes, this model takes 14"):
        encode_text("x" * 20, SIZES, "end", None)
    with pytest.raises(PromptError, match="no tokenizer can be read"):
        encode_text("a", SIZES, "end", tmp_path)
    with pytest.raises(PromptError, match="not valid Unicode"):
        encode_text("\ud800", SIZES, "end", None)
