"""Maxout in NumPy: the largest of each group of `pool_size` neighbours along an axis, and which one it was."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .rounding import Array, finish, widen


def maxout_forward(
    x: Any, pool_size: int, *, axis: int = -1, out: Array | None = None, which: Array | None = None
) -> tuple[Array, Array]:
    """y[u] = max_k x[u * pool_size + k]; the values are moved, not computed, so that nothing rounds.

    `numpy.argmax` takes the first maximum, and the first NaN where there is one.
    """
    split, pooled = _shapes(x.shape, pool_size, axis)
    groups = np.asarray(x).reshape(split)
    chosen = widen(groups).argmax(axis=2) if groups.size else np.zeros((split[0], split[1], split[3]), np.int64)
    y = np.take_along_axis(groups, chosen[:, :, None, :], axis=2).reshape(pooled)
    index = chosen.reshape(pooled).astype(np.uint8 if pool_size <= 256 else np.int32)
    return _into(y, out), _into(index, which)


def maxout_backward(
    dy: Any,
    which: Any,
    pool_size: int,
    *,
    axis: int = -1,
    out: Array | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Array:
    """dx[u * pool_size + k] = dy[u] where k = which[u], else 0; an index outside of the group has no gradient."""
    axis %= dy.ndim
    shape = (*dy.shape[:axis], dy.shape[axis] * pool_size, *dy.shape[axis + 1 :])
    split, _ = _shapes(shape, pool_size, axis)
    flat = (split[0], split[1], 1, split[3])
    entries = np.arange(pool_size).reshape(1, 1, -1, 1)
    dx = np.where(np.asarray(which).reshape(flat) == entries, widen(dy).reshape(flat), 0.0)
    return finish(dx.reshape(shape), dy.dtype, out=out, alpha=alpha, beta=beta)


def _shapes(shape: tuple[int, ...], pool_size: int, axis: int) -> tuple[tuple[int, int, int, int], tuple[int, ...]]:
    """(outer, units, pool, inner) of x, and the shape of y."""
    axis %= len(shape)
    units = shape[axis] // pool_size
    before, after = shape[:axis], shape[axis + 1 :]
    return (prod(before), units, pool_size, prod(after)), (*before, units, *after)


def _into(result: Array, out: Array | None) -> Array:
    if out is None:
        return result
    out[...] = result
    return out
