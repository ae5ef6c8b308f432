"""What is measured on the meta device is what is measured with fake tensors of the processor."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cidl_sim.blocks.layer_graph import measure_module
from cidl_sim.blocks.meta_device import MetaDevice


class Attends(nn.Module):
    def __init__(self, heads: int, keys: int, width: int, **options: object) -> None:
        super().__init__()
        self.project = nn.Linear(heads * width, heads * width)
        self.heads, self.keys, self.width, self.options = heads, keys, width, options

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        query = self.project(x).view(1, tokens, self.heads, self.width).transpose(1, 2)
        key = x[..., : self.keys * self.width].view(1, tokens, self.keys, self.width).transpose(1, 2)
        options = dict(self.options)
        if (shape := options.pop("mask", None)) is not None:
            options["attn_mask"] = torch.zeros(shape, dtype=x.dtype)
        return functional.scaled_dot_product_attention(query, key, key, **options).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [
        partial(Attends, 2, 2, 16),
        partial(Attends, 2, 2, 16, is_causal=True),
        partial(Attends, 2, 2, 16, scale=0.5),
        partial(Attends, 2, 2, 16, mask=(70, 70)),
        partial(Attends, 2, 2, 16, mask=(1, 2, 70, 70)),
        partial(Attends, 4, 2, 16, enable_gqa=True),
    ],
    ids=["plain", "causal", "scaled", "masked", "a mask a head", "fewer keys"],
)
def test_attention_costs_the_same(make, dtype):
    def measured(world: MetaDevice | None) -> object:
        with torch.device("meta"):
            module = make().to(dtype)
            x = torch.empty(1, 70, module.heads * module.width, dtype=dtype)
        return measure_module(module, [x], world)

    assert measured(MetaDevice()) == measured(None)
