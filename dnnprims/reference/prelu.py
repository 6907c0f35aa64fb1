"""Parametric ReLU in NumPy: y = x where x > 0, else slope * x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .rounding import Array, finish, widen


def prelu_forward(
    x: Any, slope: Any, *, axis: int = 1, out: Array | None = None, alpha: float = 1.0, beta: float = 0.0
) -> Array:
    """y = x where x > 0, else slope * x; a slope of 0 is relu, also at -inf, where the product would be NaN."""
    wide, factor = widen(x), _along_axis(slope, np.ndim(x), axis)
    with np.errstate(all="ignore"):
        scaled = np.where((factor == 0) & ~np.isnan(wide), 0.0, factor * wide)
        y = np.where(wide > 0, wide, scaled)
    return finish(y, x.dtype, out=out, alpha=alpha, beta=beta)


def prelu_backward(
    dy: Any,
    x: Any,
    slope: Any,
    *,
    axis: int = 1,
    needs: Sequence[str] = ("dx", "dslope"),
    dx: Array | None = None,
    dslope: Array | None = None,
) -> tuple[Array | None, Array | None]:
    """y' in x is 1 where x > 0, else slope; in slope 0 where x > 0, else x, summed over all but the channel."""
    upstream, wide, factor = widen(dy), widen(x), _along_axis(slope, np.ndim(x), axis)
    if "dx" in needs:
        with np.errstate(all="ignore"):
            gradient = np.where(wide > 0, upstream, factor * upstream)
        dx = finish(np.where(np.isnan(wide), wide, gradient), dy.dtype, out=dx)
    if "dslope" in needs:
        with np.errstate(all="ignore"):
            terms = np.where(wide > 0, 0.0, upstream * wide)
        dslope = finish(_sum_to_slope(terms, slope, axis), slope.dtype, out=dslope)
    return (dx if "dx" in needs else None), (dslope if "dslope" in needs else None)


def _along_axis(slope: Any, ndim: int, axis: int) -> Array:
    """The slopes in a shape that broadcasts over x: (1, ..., channels, ..., 1), or a scalar."""
    wide = widen(slope)
    if wide.size == 1:
        return wide.reshape(())
    shape = [1] * ndim
    shape[axis] = wide.size
    return np.asarray(wide.reshape(shape))


def _sum_to_slope(terms: Array, slope: Any, axis: int) -> Array:
    """Sum over everything that shares one slope. NaN and infinities go through as in any sum."""
    with np.errstate(all="ignore"):
        if np.size(slope) == 1:
            return np.reshape(terms.sum(), np.shape(slope))
        return np.asarray(terms.sum(axis=tuple(i for i in range(terms.ndim) if i != axis % terms.ndim)))
