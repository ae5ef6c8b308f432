"""From a prompt to CLIP's tokens: the checkpoint's tokenizer, or bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cidl_sim.models.unet_sizes import CLIPSizes
from cidl_sim.pipelines.prompts import PromptError, check_text, check_tokens
from cidl_sim.pipelines.stable_diffusion.settings import ImageSizes

# What a checkpoint's folder of a tokenizer holds: either is enough.
VOCABULARY, MERGES = "vocab.json", "merges.txt"
WHOLE = "tokenizer.json"

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_END_OF_WORD = "</w>"


@dataclass(frozen=True)
class Text:
    """Token ids (1, length), and where the text ends (1,)."""

    ids: Tensor
    ends: Tensor


def encode_text(text: str, sizes: CLIPSizes, padding: str, folder: Path | None) -> Text:
    """The tokens of a text, filled up with its end or with token 0 (`padding`).

    By the tokenizer in `folder`, where a longer text is cut, as the reference does; without one by its bytes, where a
    text that is too long is a PromptError. An empty text is one.
    """
    check_text(text)
    start, end = sizes.vocabulary - 2, sizes.vocabulary - 1
    room = sizes.tokens - 2
    if folder is not None:
        ids = _library_ids(text, folder)[:room]
        check_tokens(ids, sizes.vocabulary, folder)
    else:
        ids = list(text.encode())
        if len(ids) > room:
            raise PromptError(f"the prompt has {len(ids)} bytes, this model takes {room}; shorten it")
    filled = [start, *ids, end] + [end if padding == "end" else 0] * (room - len(ids))
    return Text(torch.tensor([filled]), torch.tensor([len(ids) + 1]))


def encode_texts(texts: list[str | None], sizes: ImageSizes, folder: Path | None) -> list[list[Text | None]]:
    """By text encoder the tokens of each text, None where there is none. A second encoder's texts end in token 0."""
    encoders = [(sizes.text_encoder, sizes.padding)]
    if sizes.text_encoder_2 is not None:
        encoders.append((sizes.text_encoder_2, "zero"))
    return [
        [None if text is None else encode_text(text, own, padding, folder) for text in texts]
        for own, padding in encoders
    ]


def _library_ids(text: str, folder: Path) -> list[int]:
    """By the tokenizer's own library: transformers would take a part of the run's memory to call it."""
    try:
        ids: list[int] = _tokenizer(folder).encode(text, add_special_tokens=False).ids
    except ModuleNotFoundError:
        raise
    except Exception as problem:
        # The library raises bare ones, some of them without a word.
        said = (str(problem) or type(problem).__name__).splitlines()[0]
        raise PromptError(f"{folder}: no tokenizer can be read ({said})") from None
    return ids


def _tokenizer(folder: Path) -> Any:
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    if (folder / WHOLE).is_file():
        whole = tokenizers.Tokenizer.from_file(str(folder / WHOLE))
        whole.no_padding()
        whole.no_truncation()
        return whole
    model = models.BPE.from_file(
        str(folder / VOCABULARY),
        str(folder / MERGES),
        unk_token="<|endoftext|>",
        end_of_word_suffix=_END_OF_WORD,
        continuing_subword_prefix="",
    )
    tokenizer = tokenizers.Tokenizer(model)
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer
