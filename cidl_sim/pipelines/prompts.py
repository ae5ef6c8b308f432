"""What families share of reading a prompt."""

from __future__ import annotations

from cidl_sim.core.errors import InputError


class PromptError(InputError):
    """A prompt that the text encoder cannot take."""


def check_text(prompt: str) -> None:
    """PromptError for what is no valid Unicode text."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise PromptError("the prompt is not valid Unicode text") from None
