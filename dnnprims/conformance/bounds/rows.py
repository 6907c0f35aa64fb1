"""Composite functions of a row: softmax and its logarithm, propagated from functions and sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from .elementwise import relative_unit
from .formats import Array, accumulator, both_sides, ulp, unit_roundoff
from .sums import growth


def exponential_sum(n: int, powers: Any, distance: Any, dtype: str, axis: Any) -> Array:
    """Relative error of s = sum exp(x - m).

    Each argument is rounded, u |x - m|, which is the relative error of its power; each power errs by its function's
    bound; the sum adds growth(n) u, as all terms are positive. Rescaling to a new maximum is one more function and
    product. `powers` are exp(x - m), `distance` is |x - m|, or |x| where no maximum is subtracted.
    """
    weight = np.asarray(powers) / np.sum(powers, axis=axis, keepdims=True)
    spread = np.sum(np.where(weight > 0, weight * np.asarray(distance), 0.0), axis=axis, keepdims=True)
    return np.asarray(unit_roundoff(accumulator(dtype)) * (2.0 * spread + growth(n) + 2.0) + 2.0 * relative_unit(dtype))


def softmax_error(y: Any, n: int, powers: Any, distance: Any, dtype: str, axis: Any) -> Array:
    """Error of exp(x - m) / s: relative, of numerator, sum and quotient; an ULP below the normal numbers."""
    unit, kind = unit_roundoff(accumulator(dtype)), accumulator(dtype)
    relative = 2.0 * unit * np.minimum(distance, 2000.0) + relative_unit(dtype) + 2.0 * unit
    total = relative + exponential_sum(n, powers, distance, dtype, axis)
    return np.asarray(both_sides(dtype) * (np.asarray(y) * total + 4.0 * ulp(0.0, kind)))


def log_softmax_error(y: Any, n: int, powers: Any, distance: Any, dtype: str, axis: Any) -> Array:
    """Error of (x - m) - log s: absolute, as the relative error of s is the absolute one of its logarithm."""
    unit = unit_roundoff(accumulator(dtype))
    relative = exponential_sum(n, powers, distance, dtype, axis)
    logarithm = np.log(np.sum(powers, axis=axis, keepdims=True))
    sizes = np.abs(distance) + np.abs(logarithm) + np.abs(y)
    return np.asarray(both_sides(dtype) * (relative + relative_unit(dtype) * np.abs(logarithm) + 2.0 * unit * sizes))
