"""What families share of reading a prompt."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cidl_sim.core.errors import InputError


class PromptError(InputError):
    """A prompt that the text encoder cannot take."""


def check_tokens(ids: Iterable[int], vocabulary: int, tokenizer: Path | None) -> None:
    """PromptError for tokens that the model's table of so many rows does not have: the tokenizer is another model's."""
    largest = max(ids, default=0)
    if largest >= vocabulary:
        said = f"{tokenizer}: another model's tokenizer" if tokenizer else "not this model's tokens"
        raise PromptError(f"{said}; it gives token {largest}, the model knows {vocabulary}")


def check_text(prompt: str) -> None:
    """PromptError for what is no valid Unicode text."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise PromptError("the prompt is not valid Unicode text") from None
