"""From a prompt to tokens: cleaning, Open-Sora's suffix, and the checkpoint's tokenizer or bytes."""

from __future__ import annotations

import html
import re
import warnings
from pathlib import Path
from urllib.parse import unquote_plus

import ftfy
import torch
from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning
from torch import Tensor

from cidl_sim.pipelines.prompts import PromptError, check_text

PAD, END, OFFSET = 0, 1, 3
AESTHETIC_SUFFIX = " aesthetic score: 6.5."

Tokens = tuple[Tensor, Tensor]  # ids and mask, both (1, length)

Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*pairs: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


_DOMAIN = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILE_TYPES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DASHES = (
    "\\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b"
    "\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)

# The reference's rules in its order: what goes before markup is read, before and after character references are.
_ADDRESSES = _rules(
    (r"<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", ""),
)
_SIGNS = _rules(
    (r"@\w+\b", ""),  # user names
    ("[\u31c0-\u4dff\u4e00-\u9fff]+", ""),  # strokes, enclosed and unified ideographs, hexagrams
    (f"[{_DASHES}]+", "-"),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # network addresses
    (r"\d:\d\d\s+$", ""),  # article numbers
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_FILE_TYPES})", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    ("[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~)(\\]\\[}{|\\\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_CODES = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILE_TYPES})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", ""),  # sizes such as 1024x768
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def clean_caption(text: str) -> str:
    """The reference's caption cleaning: lower case, no markup, addresses, codes or stray signs.

    The rules are those of `clean_caption` in Open-Sora v1.2's text encoder, which applies it twice.
    """
    text = _applied(_ADDRESSES, unquote_plus(text).strip().lower())
    with warnings.catch_warnings():
        # A prompt that looks like a file's name or an address is still a prompt.
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        text = BeautifulSoup(text, features="html.parser").text
    text = _applied(_SIGNS, text)
    if len(re.findall(r"[-_]", text)) > 3:
        text = re.sub(r"[-_]", " ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _applied(_CODES, text).strip()


def _applied(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def prepared_prompt(prompt: str) -> str:
    """The text that is tokenized: the prompt with Open-Sora's suffix, cleaned twice as in the reference.

    PromptError if nothing is left of the prompt itself.
    """
    check_text(prompt)
    if not clean_caption(clean_caption(prompt)):
        raise PromptError("the prompt is empty" + (" after cleaning" if prompt.strip() else ""))
    return clean_caption(clean_caption(prompt.strip() + AESTHETIC_SUFFIX))


def encode_prompt(prompt: str, length: int, tokenizer: Path | None = None) -> Tokens:
    """Token ids and mask of a prompt, both (1, length), padded.

    With the folder of a T5 tokenizer its tokens (longer prompts are cut, as in the reference); without one the
    bytes of the text, where a prompt that is too long is a PromptError.
    """
    text = prepared_prompt(prompt)
    if tokenizer is not None:
        return _library_tokens(text, length, tokenizer)
    ids = [byte + OFFSET for byte in text.encode()] + [END]
    if len(ids) > length:
        room = length - 1 - len(clean_caption("x" + AESTHETIC_SUFFIX)) + 1
        raise PromptError(f"the prompt has {len(prompt.strip().encode())} bytes, this model takes {room}; shorten it")
    mask = [1] * len(ids) + [0] * (length - len(ids))
    ids += [PAD] * (length - len(ids))
    return torch.tensor([ids]), torch.tensor([mask])


def _library_tokens(text: str, length: int, folder: Path) -> Tokens:
    """By the tokenizer's own library: transformers would take a part of the run's memory to call it."""
    try:
        ids, pad = _ids_and_pad(text, length, folder)
    except ModuleNotFoundError:
        raise
    except Exception as problem:
        # Both libraries raise bare ones, some of them without a word.
        said = (str(problem) or type(problem).__name__).splitlines()[0]
        raise PromptError(f"{folder}: no tokenizer can be read ({said})") from None
    rest = length - len(ids)
    return torch.tensor([ids + [pad] * rest]), torch.tensor([[1] * len(ids) + [0] * rest])


def _ids_and_pad(text: str, length: int, folder: Path) -> tuple[list[int], int]:
    """Ids of at most `length` tokens, the last of which ends the text, and the id of padding."""
    file = folder / "tokenizer.json"
    if file.is_file():
        import tokenizers

        whole = tokenizers.Tokenizer.from_file(str(file))
        whole.no_padding()
        whole.enable_truncation(length)
        return whole.encode(text).ids, whole.token_to_id("<pad>") or 0
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    if pieces.eos_id() < 0:
        raise ValueError("it has no token that ends a text")
    return [*pieces.encode(text)[: length - 1], pieces.eos_id()], max(pieces.pad_id(), 0)
