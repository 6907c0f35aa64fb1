"""Tier T2: sums, and what matrix products add to them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .elementwise import scaled_unit
from .formats import Array, accumulator, ulp, unit_roundoff


def growth(n: int) -> float:
    """Factor of u * sum|terms| in the error of a sum of n terms, products included."""
    return float(min(4.0 * np.sqrt(n) + 8.0, max(n, 1)))


def sum_error(n: int, absolute_sum: Any, dtype: str) -> Array:
    """Error of a sum of n products in the accumulator, before it is stored."""
    kind = accumulator(dtype)
    underflow = max(n, 1) * ulp(0.0, kind)
    doubled = 2.0 if kind == "float64" else 1.0
    return np.asarray(doubled * growth(n) * unit_roundoff(kind) * np.asarray(absolute_sum) + underflow)


def sum_bound(n: int, absolute_sum: Any, dtype: str, expected: Any, stored: str | None = None) -> Array:
    """Bound of a stored sum: min(4 sqrt(n) + 8, n) u_acc S + 1.01 u_out |y| + tiny.

    `dtype` is that of the terms, which fixes the accumulator; `stored` that of the result where it is another.
    """
    kind = stored or dtype
    storing = 1.01 * unit_roundoff(kind) * np.abs(expected) + 0.5 * ulp(0.0, kind)
    return np.asarray(sum_error(n, absolute_sum, dtype) + storing)


def tf32_error(absolute_sum: Any) -> Array:
    """What TF32 adds to a sum of products: each factor keeps 10 bits, cut or rounded, and so loses at most 2^-10."""
    return (2.0 + 2.0**-10) * 2.0**-10 * np.asarray(absolute_sum)


def early_rounding(product: Any, dtype: str) -> Array:
    """Error of a product that is stored once before a bias or an old value is added to it: u_out |product|.

    cuBLASLt does so for 16-bit matrices that are not 16-byte aligned in every row, and where it splits the sum. The
    term matters where the two nearly cancel. Types that are their own accumulator lose nothing that `sum_error` lacks.
    """
    wider = accumulator(dtype) != dtype
    return unit_roundoff(dtype) * np.abs(product) if wider else np.zeros(np.shape(product))


def norm_error(n: int, norm: Any, dtype: str) -> Array:
    """Error of the root of a sum of n squares: half the relative error of the sum, and the root's own rounding."""
    return np.asarray(scaled_unit(dtype, 0.5 * growth(n) + 4.0) * np.abs(norm) + ulp(0.0, accumulator(dtype)))
