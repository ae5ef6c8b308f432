"""The text encoder's blocks in a chain, against the library's whole encoder with the same weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cidl_sim.models.sizes import T5Sizes
from cidl_sim.models.t5 import (
    T5Embedding,
    T5FeedForward,
    T5FinalNorm,
    T5FirstAttention,
    T5FirstBlock,
    T5LaterAttention,
    T5LaterBlock,
    additive_mask,
)
from cidl_sim.pipelines.open_sora.whole_model import library_text_encoder

SIZES = T5Sizes(layers=3, d_model=32, d_ff=48, heads=4, d_kv=16, vocabulary=100)
TOKENS = 24


@pytest.fixture(scope="module")
def whole() -> nn.Module:
    torch.manual_seed(0)
    model = library_text_encoder(SIZES).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif "relative_attention_bias" in name:
            nn.init.normal_(parameter)
        else:
            nn.init.normal_(parameter, std=0.3)
    return model


def filled(module: nn.Module, whole: nn.Module, ours: str, theirs: str) -> nn.Module:
    """`module` with the whole model's weights; what begins with `ours` is called `theirs` there."""
    state = whole.state_dict()
    module.load_state_dict({name: state[name.replace(ours, theirs, 1)] for name in module.state_dict()})
    return module.eval()


def chained(whole: nn.Module, ids: Tensor, token_mask: Tensor) -> Tensor:
    mask = additive_mask(token_mask, torch.float32)
    with torch.no_grad():
        hidden = filled(T5Embedding(SIZES), whole, "shared", "shared")(ids)
        first = filled(T5FirstBlock(SIZES), whole, "block", "encoder.block.0")
        hidden, position_bias = first(hidden, mask)
        assert position_bias.shape == (1, SIZES.heads, TOKENS, TOKENS)
        for layer in range(1, SIZES.layers):
            later = filled(T5LaterBlock(SIZES), whole, "block", f"encoder.block.{layer}")
            hidden = later(hidden, mask, position_bias)
        return filled(T5FinalNorm(SIZES), whole, "final", "encoder.final")(hidden)


@pytest.mark.parametrize("unpadded", [TOKENS, 9, 1])
def test_the_blocks_in_a_chain_are_the_whole_encoder(whole, unpadded):
    ids = torch.randint(3, SIZES.vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(unpadded))
    token_mask = (torch.arange(TOKENS) < unpadded).long()[None]
    ids = ids * token_mask
    with torch.no_grad():
        expected = whole(input_ids=ids, attention_mask=token_mask).last_hidden_state
    assert torch.equal(chained(whole, ids, token_mask), expected)


@pytest.mark.parametrize("tokens", [1, 9, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blocks_and_their_halves_are_the_librarys_bit_for_bit(whole, dtype, tokens):
    state = copy.deepcopy(whole).to(dtype)
    hidden = torch.randn(2, tokens, SIZES.d_model, generator=torch.Generator().manual_seed(tokens)).to(dtype)
    if dtype == torch.float16:
        hidden[0, 0, 0] = torch.inf
    mask = additive_mask((torch.arange(tokens) < max(tokens // 2, 1)).long()[None], dtype)
    bias = None
    for layer, names in enumerate([(T5FirstBlock, T5FirstAttention), (T5LaterBlock, T5LaterAttention)]):
        library = state.encoder.block[layer]
        inputs = (hidden, mask) if bias is None else (hidden, mask, bias)
        with torch.no_grad():
            expected, expected_bias, _ = library(hidden, attention_mask=mask, position_bias=bias)
            given = filled(names[0](SIZES).to(dtype), state, "block", f"encoder.block.{layer}")(*inputs)
            half = filled(names[1](SIZES).to(dtype), state, "layer", f"encoder.block.{layer}.layer.0")(*inputs)
            rest = filled(T5FeedForward(SIZES).to(dtype), state, "layer", f"encoder.block.{layer}.layer.1")
            halves = rest(half[0] if bias is None else half)
        out = given[0] if bias is None else given
        torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(halves, expected, rtol=0, atol=0, equal_nan=True)
        if bias is None:
            assert torch.equal(given[1], expected_bias)
            bias = given[1]


def test_what_is_padded_does_not_change_what_is_not(whole):
    ids = torch.randint(3, SIZES.vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    token_mask = (torch.arange(TOKENS) < 10).long()[None]
    other = torch.where(token_mask.bool(), ids, (ids + 1) % SIZES.vocabulary)
    assert not torch.equal(ids, other)
    assert torch.equal(chained(whole, ids, token_mask)[:, :10], chained(whole, other, token_mask)[:, :10])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mask_is_zero_where_a_token_is_and_finite_where_none_is(dtype):
    mask = additive_mask(torch.tensor([[1, 1, 0]]), dtype)
    assert mask.shape == (1, 1, 1, 3)
    assert mask.dtype == dtype
    assert mask[0, 0, 0, :2].tolist() == [0.0, 0.0]
    assert torch.isfinite(mask).all()
    # So low that a masked score never counts, whatever the others are.
    assert torch.softmax(mask.float().flatten(), 0)[2] == 0
