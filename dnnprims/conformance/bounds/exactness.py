"""Tier T0: where a result is exact, whatever the order of its operations; a property of the data."""

from __future__ import annotations

from typing import Any

import numpy as np

from .formats import FORMATS, Array, accumulator, largest_finite, ulp


def exact(expected: Any) -> Array:
    """No error at all: moved data, selections, indices, flags."""
    return np.zeros(np.shape(expected))


def exact_where(mask: Any, limit: Any) -> Array:
    """0 where the result is known to be exact, else the bound given."""
    return np.asarray(np.where(mask, 0.0, limit))


def representable(value: Any, dtype: str) -> Array:
    """Where a number is one of the type's: a multiple of the spacing at its size, within the range."""
    with np.errstate(all="ignore"):
        whole = np.asarray(value) / ulp(value, dtype)
    return np.asarray((np.trunc(whole) == whole) & (np.abs(value) <= largest_finite(dtype)))


def lowest_bit(values: Any) -> Array:
    """The largest power of two that divides each number: of m 2^e, m an integer, 2^e times the lowest set bit of m.

    Infinite for 0, which everything divides, 0 for NaN and infinities. That of a product is the product of both.
    """
    a = np.asarray(values, np.float64)
    mantissa, exponent = np.frexp(np.where(np.isfinite(a), a, 0.0))
    digits = np.ldexp(mantissa, 53).astype(np.int64)
    lowest = np.ldexp((digits & -digits).astype(np.float64), exponent - 53)
    return np.asarray(np.where(np.isfinite(a), np.where(a == 0, np.inf, lowest), 0.0))


def grid(*arrays: Any) -> float:
    """The largest power of two that divides every finite element of some arrays; infinite where all are 0."""
    finite = [np.where(np.isfinite(a), a, 0.0) for a in arrays]
    return float(min((np.min(lowest_bit(a), initial=np.inf) for a in finite), default=np.inf))


def exact_sums(absolute_sum: Any, step: Any, dtype: str) -> Array:
    """Where a sum is exact in the accumulator, in any order: sum|terms| < 2^p step, p the accumulator's digits.

    All terms are multiples of the power of two `step`, hence so is every partial sum, in any order and grouping, and
    none exceeds sum|terms|. A multiple of `step` below 2^p step is a number of the accumulator. So no addition rounds,
    nor does a fused multiply-add, nor a product, which is such a term itself. For float32 and integers that is
    sum|terms| < 2^24. `step` must not lie below the least subnormal number, and the sum within the range.

    sum|terms| may itself have been added up in float64: were it 2^53 steps or more, the first partial sum that reaches
    them would be rounded to no less, and none would fall below again.
    """
    digits, lowest = FORMATS[accumulator(dtype)]
    with np.errstate(all="ignore"):
        top = np.minimum(2.0**digits * np.asarray(step), largest_finite(accumulator(dtype)))
        return np.asarray((np.asarray(absolute_sum) < top) & (2.0 ** (lowest - digits + 1) <= np.asarray(step)))


def exact_roots(root: Any, square: Any, dtype: str) -> Array:
    """Where the root of an exact number is exact, too: its square is the number, and has no more than p digits.

    IEEE arithmetic rounds a root once, so that a root with so few digits comes out as it is.
    """
    few = exact_sums(square, lowest_bit(root) ** 2, dtype)
    with np.errstate(all="ignore"):
        return np.asarray(few & (np.asarray(root) * np.asarray(root) == square))


def exact_products(x: Array, axes: tuple[int, ...], dtype: str, *, keepdims: bool = False) -> Array:
    """Where a product of many elements is exact in the accumulator, in any order.

    An element is an odd integer times a power of two. The odd part of each partial product divides the product of all
    odd parts; if that has at most p bits and no exponent on the way leaves the range, nothing rounds. A factor of 0
    makes every partial product that has it 0.
    """
    digits, lowest = FORMATS[accumulator(dtype)]
    size = np.abs(np.where(np.isfinite(x) & (x != 0), x, 1.0))
    mantissa, exponent = np.frexp(size)
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    odd = whole // (whole & -whole)
    reach = np.abs(exponent).sum(axis=axes, keepdims=keepdims)
    bits = np.log2(odd.astype(np.float64)).sum(axis=axes, keepdims=keepdims)
    known = np.isfinite(x).all(axis=axes, keepdims=keepdims)
    return np.asarray((bits <= digits) & (reach < -lowest) & known)
