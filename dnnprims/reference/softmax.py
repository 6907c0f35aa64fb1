"""Softmax in NumPy, along one axis or along neighbouring axes taken as one."""

from __future__ import annotations

from typing import Any

import numpy as np

from .rounding import Array, finish, widen


def softmax_forward(
    x: Any,
    *,
    axis: int | tuple[int, ...] | str = -1,
    algorithm: str = "accurate",
    out: Array | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Array:
    """y = exp(x - max x) / sum exp(x - max x); log: y = x - max x - log sum exp(x - max x).

    The maximum cancels, so `fast`, which leaves it out, has the same value wherever it does not overflow.
    """
    axes, wide = _axes(axis, x.ndim), widen(x)
    with np.errstate(all="ignore"):
        shifted = wide - wide.max(axis=axes, keepdims=True, initial=-np.inf)
        powers = np.exp(shifted)
        total = powers.sum(axis=axes, keepdims=True)
        result = shifted - np.log(total) if algorithm == "log" else powers / total
    return finish(result, x.dtype, out=out, alpha=alpha, beta=beta)


def softmax_backward(
    dy: Any,
    y: Any,
    *,
    axis: int | tuple[int, ...] | str = -1,
    algorithm: str = "accurate",
    out: Array | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Array:
    """From dy_i/dx_j = y_i (delta_ij - y_j): dx = y (dy - sum dy y); log: dx = dy - exp(y) sum dy."""
    axes, gradient, wide = _axes(axis, y.ndim), widen(dy), widen(y)
    with np.errstate(all="ignore"):
        if algorithm == "log":
            result = gradient - np.exp(wide) * gradient.sum(axis=axes, keepdims=True)
        else:
            result = wide * (gradient - (gradient * wide).sum(axis=axes, keepdims=True))
    return finish(result, y.dtype, out=out, alpha=alpha, beta=beta)


def _axes(axis: int | tuple[int, ...] | str, ndim: int) -> tuple[int, ...]:
    """The axes meant; cuDNN's INSTANCE is all but the first, its CHANNEL the second."""
    if isinstance(axis, str):
        return tuple(range(1, ndim)) if axis == "instance" else (1,)
    return axis if isinstance(axis, tuple) else (axis,)
