"""How fast this machine computes at this moment, whatever it is that it computes."""

from __future__ import annotations

import time

import numpy as np

# 134 million FLOPs on 4 MB: the weights of a layer pass through the cache. The BLAS computes products of this width
# with one thread, so that no other core's guests are asked.
_PRODUCTS, _WIDTH = 256, 64
_FOR_S = 0.3


def pace() -> float:
    """FLOPs a second of small matrix products, over a third of a second: what guests take away counts as well."""
    weights = np.full((_PRODUCTS, _WIDTH, _WIDTH), 0.5, np.float32)
    tokens, out = np.full((_WIDTH, _WIDTH), 0.5, np.float32), np.empty_like(weights)
    np.matmul(tokens, weights, out=out)
    turns, began_s = 0, time.perf_counter()
    while (took_s := time.perf_counter() - began_s) < _FOR_S:
        np.matmul(tokens, weights, out=out)
        turns += 1
    return turns * 2 * _PRODUCTS * _WIDTH**3 / took_s
