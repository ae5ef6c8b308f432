"""Token merging: pairs of frames become one, and one becomes a pair."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cidl_sim.models.token_merging import merge_frames, unmerge_frames


def frames_of(count: int, seed: int = 0) -> torch.Tensor:
    """(2, count, 3, 4)."""
    return torch.randn(2, count, 3, 4, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.integers(1, 25))
def test_half_of_the_frames_rounded_up_are_attended_to(count):
    x = frames_of(count)
    assert merge_frames(x).shape == (2, math.ceil(count / 2), 3, 4)
    assert unmerge_frames(merge_frames(x), count).shape == x.shape


@settings(deadline=None)
@given(st.integers(1, 25), st.integers(0, 1000))
def test_frames_that_are_equal_in_pairs_come_back_unchanged(count, seed):
    x = frames_of(math.ceil(count / 2), seed).repeat_interleave(2, dim=1)[:, :count]
    assert torch.equal(unmerge_frames(merge_frames(x), count), x)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 1000))
def test_an_odd_last_frame_stays_alone(half, seed):
    x = frames_of(2 * half + 1, seed)
    assert torch.equal(merge_frames(x)[:, -1], x[:, -1])
    assert torch.equal(unmerge_frames(merge_frames(x), 2 * half + 1)[:, -1], x[:, -1])


@settings(deadline=None)
@given(st.integers(2, 25), st.integers(0, 1000))
def test_each_pair_becomes_its_mean_and_both_of_its_frames_get_the_result(count, seed):
    x = frames_of(count, seed)
    merged = merge_frames(x)
    unmerged = unmerge_frames(merged, count)
    for pair in range(count // 2):
        torch.testing.assert_close(merged[:, pair], x[:, 2 * pair : 2 * pair + 2].mean(dim=1))
        assert torch.equal(unmerged[:, 2 * pair], merged[:, pair])
        assert torch.equal(unmerged[:, 2 * pair + 1], merged[:, pair])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_keeps_the_dtype(dtype):
    assert merge_frames(frames_of(5).to(dtype)).dtype == dtype
