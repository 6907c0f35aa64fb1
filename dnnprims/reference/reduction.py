"""Reductions over axes in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from .rounding import Array, finish, widen


def reduce_tensor(
    x: Any,
    operation: str,
    *,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Array:
    """Move the reduced axes to the end, take them as one, and reduce that."""
    given = tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(one % x.ndim for one in given)
    kept = tuple(one for one in range(x.ndim) if one not in axes)
    count = int(np.prod([x.shape[one] for one in axes], dtype=np.int64))
    wide = widen(x).transpose(kept + tuple(sorted(axes))).reshape(*(x.shape[one] for one in kept), count)
    with np.errstate(all="ignore"):
        result = _OPERATIONS[operation](wide)
    if keepdims:
        result = result.reshape([1 if one in axes else extent for one, extent in enumerate(x.shape)])
    if operation not in ("argmax", "argmin"):
        return finish(result, x.dtype, out=out, alpha=alpha, beta=beta)
    index = np.asarray(result, dtype=np.int64)
    if out is None:
        return index
    out[...] = index
    return out


def _norm2(x: Array) -> Array:
    """Euclidean norm; a power of two brings the largest element near 1 first, so that no square leaves the range."""
    top = np.abs(x).max(axis=-1, initial=0.0)
    power = np.frexp(np.where(np.isfinite(top), top, 1.0))[1]
    scaled = np.ldexp(x, -power[..., None])
    return np.asarray(np.ldexp(np.sqrt((scaled * scaled).sum(axis=-1)), power))


def _mean(x: Array) -> Array:
    return np.asarray(x.sum(axis=-1) / np.float64(x.shape[-1]))


_OPERATIONS: dict[str, Any] = {
    "sum": lambda x: x.sum(axis=-1),
    "mean": _mean,
    "product": lambda x: x.prod(axis=-1),
    "max": lambda x: x.max(axis=-1),
    "min": lambda x: x.min(axis=-1),
    "amax": lambda x: np.abs(x).max(axis=-1),
    "norm1": lambda x: np.abs(x).sum(axis=-1),
    "norm2": _norm2,
    # NumPy's argmax and argmin take the first extremum, and the first NaN where there is one
    "argmax": lambda x: x.argmax(axis=-1),
    "argmin": lambda x: x.argmin(axis=-1),
}
