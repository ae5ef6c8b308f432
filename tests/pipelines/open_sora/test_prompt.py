"""Prompts: cleaning, the suffix, bytes or the checkpoint's own tokens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from cidl_sim.pipelines.open_sora.pretrained import pretrained_folders
from cidl_sim.pipelines.open_sora.prompt import (
    END,
    OFFSET,
    PAD,
    clean_caption,
    encode_prompt,
    prepared_prompt,
)
from cidl_sim.pipelines.prompts import PromptError

LENGTH = 200


def decoded(ids: list[int]) -> str:
    return bytes(token - OFFSET for token in ids[: ids.index(END)]).decode()


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("A Red Ball", "a red ball"),
        ("  two   spaces ", "two spaces"),
        ("a lemur https://example.com/x close up", "a lemur close up"),
        ("a lemur https://example.com/x.html?y=1 close up", "a lemur . html?y=1 close up"),
        ("j2d1a2a and ab12cd", "and"),
        ("_'a fox'_", "'a fox'"),
        ("\u6f22 a tree", "a tree"),
        ("see www.example.org now", "see now"),
        ("by @somebody in oil", "by in oil"),
        ("<b>bold</b> leaves", "bold leaves"),
        ("<person> walking", "person walking"),
        ("fish &amp; chips", "fish chips"),
        ("\u201cquoted\u201d forest", '"quoted" forest'),
        ("a forest \u2014 in fog", "a forest - in fog"),
        ("leaves #123 burning #12345678", "leaves burning"),
        ("a stack of dried leaves burning in a forest", "a stack of dried leaves burning in a forest"),
        ("img_0001.jpg of a cat", "of a cat"),
        ("1024x768 wallpaper", "wallpaper"),
        ("a-b_c-d_e-f", "a b c d e f"),
        ("free shipping cat", "cat"),
    ],
)
def test_captions_are_cleaned_by_the_references_rules(prompt, cleaned):
    assert clean_caption(prompt) == cleaned


def test_the_suffix_comes_before_the_cleaning_as_in_the_reference():
    assert prepared_prompt("A Lemur!") == "a lemur! aesthetic score: 6.5."


@settings(deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_the_tokens_of_any_prompt_read_back_as_the_prepared_text(prompt):
    try:
        ids, mask = encode_prompt(prompt, LENGTH)
    except PromptError as problem:
        assert "empty" in str(problem) or "Unicode" in str(problem)
        return
    assert ids.shape == mask.shape == (1, LENGTH)
    assert decoded(ids[0].tolist()) == prepared_prompt(prompt)
    unpadded = int(mask.sum())
    assert mask[0].tolist() == [1] * unpadded + [0] * (LENGTH - unpadded)
    assert ids[0, unpadded - 1] == END
    assert ids[0, unpadded:].tolist() == [PAD] * (LENGTH - unpadded)


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(PromptError, match=r"empty$"):
        encode_prompt(prompt, LENGTH)


def test_a_prompt_of_which_nothing_is_left_is_refused():
    with pytest.raises(PromptError, match="empty after cleaning"):
        encode_prompt("https://example.com", LENGTH)


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(PromptError, match="not valid Unicode"):
        encode_prompt("fox \ud83e", LENGTH)


def test_a_prompt_that_is_too_long_for_bytes_is_refused():
    with pytest.raises(PromptError, match="has 300 bytes, this model takes"):
        encode_prompt("x" * 300, LENGTH)


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    """A folder with a small tokenizer of T5's kind, trained here."""
    made = tokenizers.Tokenizer(tokenizers.models.Unigram())
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = tokenizers.trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>")
    made.train_from_iterator(["a red ball rolls over green grass aesthetic score: 6. 5"] * 50, trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.save(str(tmp_path / "tokenizer.json"))
    config = '{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>"}'
    (tmp_path / "tokenizer_config.json").write_text(config)
    return tmp_path


def test_the_checkpoints_tokenizer_is_used_where_there_is_one(tokenizer):
    ids, mask = encode_prompt("a red ball", 40, tokenizer)
    assert ids.shape == (1, 40)
    unpadded = int(mask.sum())
    assert ids[0, unpadded - 1] == 1
    assert (ids[0, unpadded:] == 0).all()
    read_back = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json")).decode(ids[0, :unpadded].tolist())
    letters = read_back.replace("\u2581", "").replace(" ", "")
    assert letters == prepared_prompt("a red ball").replace(" ", "")


def test_a_folder_with_a_sentencepiece_model_is_read(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red ball rolls over green grass aesthetic score: 6.5."] * 50),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "spiece.vocab").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
    ids, mask = encode_prompt("a red ball", 40, tmp_path)
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    assert ids[0, : int(mask.sum())].tolist() == [*library.encode(prepared_prompt("a red ball")), 1]


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle moves left",
        "A \u00dcn\u00efcode \u2013 \u201ctext\u201d \u65e5\u672c \U0001f388",
        "the </s> end <pad>",
        "x" * 900,
    ],
)
def test_tokens_are_those_of_the_transformers_library(prompt):
    from transformers import AutoTokenizer

    folder = pretrained_folders()["t5"]
    library = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    text = prepared_prompt(prompt)
    expected = library(text, max_length=40, padding="max_length", truncation=True, return_tensors="pt")
    ids, mask = encode_prompt(prompt, 40, folder)
    assert ids.tolist() == expected["input_ids"].tolist()
    assert mask.tolist() == expected["attention_mask"].tolist()


def test_longer_prompts_are_cut_by_the_checkpoints_tokenizer(tokenizer):
    ids, mask = encode_prompt("ball " * 50, 8, tokenizer)
    assert ids.shape == (1, 8)
    assert mask.all()


@pytest.mark.parametrize(("name", "content"), [("tokenizer.json", b"{"), ("spiece.model", b""), ("spiece.model", b"x")])
def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match="no tokenizer can be read"):
        encode_prompt("ball", 8, tmp_path)


@pytest.mark.parametrize(("library", "file"), [("tokenizers", "tokenizer.json"), ("sentencepiece", "spiece.model")])
def test_a_library_that_is_missing_is_no_fault_of_the_tokenizer(tmp_path, monkeypatch, library, file):
    (tmp_path / file).write_bytes(b"")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=library):
        encode_prompt("ball", 8, tmp_path)
