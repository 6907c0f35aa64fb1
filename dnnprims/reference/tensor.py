"""Small tensor operations in NumPy: set, scale, add with broadcasting, cast."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from .rounding import Array, finish, round_to, widen


def set_tensor(y: Any, value: float) -> Array:
    """y = value, converted as `cast` does."""
    y[...] = _convert(np.asarray(float(value)), y.dtype)
    return np.asarray(y)


def scale_tensor(y: Any, alpha: float) -> Array:
    """y = alpha * y."""
    return finish(widen(y), y.dtype, out=y, alpha=alpha)


def add_tensor(a: Any, c: Any, *, alpha: float = 1.0, beta: float = 1.0) -> Array:
    """c = alpha * a + beta * c; the addend is repeated along the axes that it lacks."""
    return finish(np.broadcast_to(widen(a), c.shape), c.dtype, out=c, alpha=alpha, beta=beta)


def cast(x: Any, dtype: Any, *, out: Array | None = None) -> Array:
    """The same values in another type, rounded once; to integers: cut off, held within the range, NaN as 0."""
    name = getattr(dtype, "name", dtype)
    target = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else getattr(dtype, "numpy", dtype))
    result = _convert(np.asarray(x), target)
    if out is None:
        return result
    out[...] = result
    return out


def _convert(x: Array, dtype: np.dtype[Any]) -> Array:
    if dtype.kind not in "iu":
        if dtype.itemsize >= 4:
            return x.astype(dtype) if x.dtype.kind in "iu" else round_to(widen(x), dtype)
        return round_to(_widen_to_odd(x.astype(np.int64)) if x.dtype.kind in "iu" else widen(x), dtype)
    limits = np.iinfo(dtype)
    if x.dtype.kind in "iu":
        return np.clip(x.astype(np.int64), limits.min, limits.max).astype(dtype)
    wide = widen(x)
    low, high = wide <= limits.min, wide >= limits.max
    inside = np.where(low | high | np.isnan(wide), 0.0, wide)
    return np.asarray(np.where(low, limits.min, np.where(high, limits.max, inside.astype(np.int64)))).astype(dtype)


def _widen_to_odd(x: Array) -> Array:
    """int64 as float64; where it does not fit, the last ten bits are folded into one, as in `round_to`."""
    folded = (x >> 10 | (x & 1023 != 0)) << 10
    return np.where(np.abs(x >> 1) < 2**52, x, folded).astype(np.float64)
