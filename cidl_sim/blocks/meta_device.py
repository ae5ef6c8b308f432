"""The meta device as a place to measure modules in: for the package's own networks, which read no values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes


class World(Protocol):
    """Where modules are built and run to be measured."""

    def inside(self) -> AbstractContextManager[None]:
        """Until the end tensors are made here."""

    def tensors(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Stand-ins for tensors from elsewhere."""

    def module(self, module: nn.Module) -> nn.Module:
        """A copy of a module from elsewhere, or the module itself if it was made here."""


class MetaDevice:
    """PyTorch's meta device alone, for modules made there that read no values, as the package's own do: quick."""

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Until the end tensors are made on the meta device, unless another one is asked for."""
        with torch.device("meta"), _AttentionOfProcessors(), torch.no_grad():
            yield

    def tensors(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Stand-ins for tensors from elsewhere."""
        return [tensor.to("meta") for tensor in tensors]

    def module(self, module: nn.Module) -> nn.Module:
        """The module, which was made here."""
        return module


class _AttentionOfProcessors(TorchFunctionMode):
    """Attention as on the processor: on the meta device PyTorch takes a path of its own, with matrices of scores.

    Seen where a network calls the function itself; PyTorch's own layers call it unseen.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is not functional.scaled_dot_product_attention:
            return function(*args, **kwargs)
        return _attention(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    # The choice is the processor's own, of tensors of these shapes.
    with torch.DisableTorchFunctionSubclass(), _disable_current_modes():
        q, k, v = (_row_of_memory(x) for x in (query, key, value))
        mask = None if attn_mask is None else _row_of_memory(attn_mask)
        choice = torch._fused_sdp_choice(q, k, v, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if choice != SDPBackend.FLASH_ATTENTION.value:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    attended: Tensor = fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return attended


def _row_of_memory(tensor: Tensor) -> Tensor:
    """A real tensor of this shape and type, all rows of which are one."""
    return torch.empty(tensor.shape[-1:], dtype=tensor.dtype, device="cpu").expand(tensor.shape)
