"""A byte-level tokenizer: needs no vocabulary file, works for any text."""

from __future__ import annotations

import torch
from torch import Tensor

from cidl_sim.core.errors import InputError

PAD, END, OFFSET = 0, 1, 3
AESTHETIC_SUFFIX = " aesthetic score: 6.5."


class PromptError(InputError):
    """A prompt that the text encoder cannot take."""


def encode_prompt(prompt: str, length: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both (1, length): the prompt's bytes with Open-Sora's suffix, an end token, padding.

    PromptError if the prompt is empty or too long.
    """
    text = prompt.strip()
    if not text:
        raise PromptError("the prompt is empty")
    try:
        ids = [byte + OFFSET for byte in (text + AESTHETIC_SUFFIX).encode()] + [END]
    except UnicodeEncodeError:
        raise PromptError("the prompt is not valid Unicode text") from None
    if len(ids) > length:
        room = length - 1 - len(AESTHETIC_SUFFIX)
        raise PromptError(f"the prompt has {len(text.encode())} bytes, this model takes {room}; shorten it")
    mask = [1] * len(ids) + [0] * (length - len(ids))
    ids += [PAD] * (length - len(ids))
    return torch.tensor([ids]), torch.tensor([mask])
