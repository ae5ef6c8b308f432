"""The workspace that is found without memory is what PyTorch really allocates on this processor."""

from __future__ import annotations

import pytest
import torch
from shared.module_zoo import STYLES, Style, allocated_bytes, in_type
from workspace_of_modules import OR_BYTES, WITHIN, workspace


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_the_workspace_is_what_is_allocated(style: Style):
    torch.manual_seed(0)
    module, inputs = in_type(style, torch.float32)
    real = allocated_bytes(module, inputs)
    assert abs(workspace(module, inputs) - real) <= max(WITHIN * real, OR_BYTES)
