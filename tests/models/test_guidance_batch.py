"""Both halves of the guidance as one batch without padding, against the reference's masked form."""

from __future__ import annotations

import torch

from cidl_sim.models.stdit3 import CrossAttention
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY


def test_cutting_the_padding_equals_block_diagonal_attention_over_unmasked_tokens():
    torch.manual_seed(0)
    dim, heads = OPENSORA_TINY.stdit.hidden, OPENSORA_TINY.stdit.heads
    attention = CrossAttention(dim, heads).double()
    video, padded, unmasked = 7, 12, 5
    x, y = torch.randn(2, video, dim).double(), torch.randn(2, padded, dim).double()
    mask = torch.zeros(2, padded, dtype=torch.bool)
    mask[:, :unmasked] = True  # both halves have the prompt's mask

    # The reference: keep the unmasked tokens of both halves in one row, and let each video see its own.
    text = y[mask][None]
    q = attention.q_linear(x.reshape(1, 2 * video, dim)).view(2 * video, heads, -1)
    k, v = attention.kv_linear(text).view(2 * unmasked, 2, heads, -1).unbind(1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    of_video = torch.arange(2 * video) // video
    of_text = torch.arange(2 * unmasked) // unmasked
    scores = scores.masked_fill(of_video[:, None] != of_text[None], float("-inf"))
    attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(2, video, dim)

    torch.testing.assert_close(attention(x, y[:, :unmasked]), attention.proj(attended), rtol=1e-10, atol=1e-12)
