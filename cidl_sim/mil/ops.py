"""What each operation of MIL computes, as small torch functions with MIL's parameter names.

`OPS` maps the name of an operation to its function. Floats arrive in fp32 (see `cidl_sim.mil.interpreter`),
shapes, axes and flags as tensors, strings as strings. What a function returns is brought to the type that the
package declares. The definitions are those of the operations in coremltools. Operations element by element and over
axes are here; layers, shapes and compressed weights are in `mil_layers`, `mil_shapes` and `mil_weights`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cidl_sim.mil.layers import LAYERS
from cidl_sim.mil.shapes import SHAPES, Numbers, ints
from cidl_sim.mil.weights import WEIGHTS

# Element by element


def log(x: Tensor, epsilon: Tensor | float = 1e-45) -> Tensor:
    """Logarithm of x + epsilon."""
    return torch.log(x + epsilon)


def rsqrt(x: Tensor, epsilon: Tensor | float = 1e-12) -> Tensor:
    """One over the root of x + epsilon."""
    return torch.rsqrt(x + epsilon)


def inverse(x: Tensor, epsilon: Tensor | float = 1e-4) -> Tensor:
    """One over x + epsilon."""
    return 1 / (x + epsilon)


def clip(x: Tensor, alpha: Any, beta: Any) -> Tensor:
    """At least alpha, at most beta."""
    return torch.clamp(x, float(alpha), float(beta))


def threshold(x: Tensor, alpha: Any) -> Tensor:
    """At least alpha."""
    return torch.clamp(x, min=float(alpha))


def cast(x: Tensor, dtype: str) -> Tensor:
    """The same numbers: the declared type of the result does the rest."""
    return x != 0 if dtype == "bool" else x


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A where cond holds, else b."""
    return torch.where(cond, a, b)


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """GELU, exact or by one of its two approximations."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def leaky_relu(x: Tensor, alpha: Any) -> Tensor:
    """Negative numbers times alpha."""
    return torch.where(x >= 0, x, x * alpha)


def elu(x: Tensor, alpha: Any) -> Tensor:
    """Negative numbers as alpha (exp(x) - 1)."""
    return F.elu(x, float(alpha))


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """Negative numbers times the alpha of their channel, the second dimension."""
    return F.prelu(x, alpha)


def sigmoid_hard(x: Tensor, alpha: Any = 0.2, beta: Any = 0.5) -> Tensor:
    """Alpha x + beta, kept within 0 and 1."""
    return torch.clamp(alpha * x + beta, 0, 1)


# Sums and the like over axes


def _reduction(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def over(x: Tensor, axes: Numbers | None = None, keep_dims: Any = False) -> Tensor:
        return reduce(x, tuple(ints(axes)) or tuple(range(x.dim())), bool(keep_dims))

    return over


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    # Integers have a mean too; the declared type cuts its fraction off.
    return (x if x.is_floating_point() else x.double()).mean(axes, keepdim=keep)


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _argument(pick: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def along(x: Tensor, axis: Any = -1, keep_dims: Any = False) -> Tensor:
        return pick(x, int(axis), bool(keep_dims))

    return along


def cumsum(x: Tensor, axis: Any = 0, exclusive: Any = False, reverse: Any = False) -> Tensor:
    """Running sums along an axis, from either end, with or without the element itself."""
    flipped = x.flip(int(axis)) if reverse else x
    sums = flipped.cumsum(int(axis))
    sums = sums - flipped if exclusive else sums
    return sums.flip(int(axis)) if reverse else sums


def softmax(x: Tensor, axis: Any = -1) -> Tensor:
    """Softmax along an axis."""
    return torch.softmax(x, int(axis))


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    """A torch function of one tensor, or of two, under MIL's names of its parameters."""

    def of(x: Tensor, y: Tensor | None = None) -> Any:
        return function(x) if y is None else function(x, y)

    return of


_PLAIN: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "real_div": torch.true_divide,  # of integers: its declared type cuts the fraction off
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,
    "pow": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "logical_not": torch.logical_not,
    "identity": torch.clone,
    "abs": torch.abs,
    "sign": torch.sign,
    "ceil": torch.ceil,
    "floor": torch.floor,
    "round": torch.round,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "tanh": torch.tanh,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "erf": torch.erf,
    "relu": torch.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softsign": F.softsign,
}
_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "reduce_mean": _mean,
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "reduce_max": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "reduce_min": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "reduce_prod": _prod,
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "reduce_log_sum_exp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
}
_WRITTEN_OUT: tuple[Callable[..., Any], ...] = (
    log,
    rsqrt,
    inverse,
    clip,
    threshold,
    cast,
    select,
    gelu,
    leaky_relu,
    elu,
    prelu,
    sigmoid_hard,
    cumsum,
    softmax,
)
OPS: dict[str, Callable[..., Any]] = {
    **{name: _named(function) for name, function in _PLAIN.items()},
    **{name: _reduction(function) for name, function in _REDUCTIONS.items()},
    "reduce_argmax": _argument(torch.argmax),
    "reduce_argmin": _argument(torch.argmin),
    **{function.__name__: function for function in (*_WRITTEN_OUT, *LAYERS, *SHAPES, *WEIGHTS)},
}
