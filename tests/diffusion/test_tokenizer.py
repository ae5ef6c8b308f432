"""Prompts as bytes."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cidl_sim.diffusion.tokenizer import AESTHETIC_SUFFIX, END, OFFSET, PAD, PromptError, encode_prompt

LENGTH = 200
ROOM = LENGTH - 1 - len(AESTHETIC_SUFFIX)


def decoded(ids: list[int]) -> str:
    return bytes(token - OFFSET for token in ids[: ids.index(END)]).decode()


@settings(deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_a_prompt_can_be_read_back_from_its_tokens(prompt):
    assume(prompt.strip())
    ids, mask = encode_prompt(prompt, LENGTH)
    assert ids.shape == mask.shape == (1, LENGTH)
    assert decoded(ids[0].tolist()) == prompt.strip() + AESTHETIC_SUFFIX


@settings(deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_the_mask_covers_exactly_the_prompt_and_its_end(prompt):
    assume(prompt.strip())
    ids, mask = encode_prompt(prompt, LENGTH)
    unpadded = int(mask.sum())
    assert mask[0].tolist() == [1] * unpadded + [0] * (LENGTH - unpadded)
    assert ids[0, unpadded - 1] == END
    assert ids[0, unpadded:].tolist() == [PAD] * (LENGTH - unpadded)
    assert (ids[0, : unpadded - 1] >= OFFSET).all()
    assert (ids < OFFSET + 256).all()


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(PromptError, match="empty"):
        encode_prompt(prompt, LENGTH)


def test_a_prompt_of_exactly_the_length_fits():
    ids, mask = encode_prompt("x" * ROOM, LENGTH)
    assert mask.all()
    assert ids[0, -1] == END


@pytest.mark.parametrize(("prompt", "size"), [("x" * (ROOM + 1), ROOM + 1), ("ä" * ROOM, 2 * ROOM)])
def test_a_prompt_that_is_too_long_is_told_its_size_and_its_room_in_bytes(prompt, size):
    with pytest.raises(PromptError, match=rf"has {size} bytes, this model takes {ROOM};"):
        encode_prompt(prompt, LENGTH)


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(PromptError, match="not valid Unicode"):
        encode_prompt("fox \ud83e", LENGTH)
