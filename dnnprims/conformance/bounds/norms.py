"""Means and variances that are merged from parts, and what follows from them."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .elementwise import scaled_unit
from .exactness import exact_sums, lowest_bit
from .formats import Array, accumulator, ulp
from .sums import growth

#: Levels on which parts are merged: elements, rows, threads, blocks.
_LEVELS = 4.0


def moments_errors(x: Array, axes: tuple[int, ...], dtype: str) -> tuple[Array, Array, Array, Array]:
    """(mean, variance, error of each), of all x along some axes, which are kept with extent 1.

    A mean is a sum of m terms over m: it errs by e = growth(m) u mean|x|, and by another 8 u for the quotients and for
    the means about which others are taken.

    Squared deviations are positive terms: growth(m) u of their sum, as well. Where they are added up about another mean
    than their own, in pieces of 8 about that of those before, up to twice their squares go in and s^2 over the count
    comes out again: with 2 u for a deviation and growth(8) u for each of q and s, that is 2 (2 + 3 growth(8)) u. What
    means of parts err by, e_i, enters as 2 d_i e_i + e_i^2 for each pair that is merged, weighed by its elements. By
    Cauchy's inequality, with e_i of the size of e = (growth(m) + 8) u r for elements of the root mean square r, and
    with L levels of merging, the variance errs by 2 sqrt(L) e s + L e^2, s the standard deviation.

    Equal elements whose sum is exact have exactly themselves for a mean, and no deviations.
    """
    count = max(prod(x.shape[axis] for axis in axes), 1)
    with np.errstate(all="ignore"):
        mean = x.sum(axes, keepdims=True) / count
        variance = np.square(x - mean).sum(axes, keepdims=True) / count
        absolute = np.abs(x).sum(axes, keepdims=True)
        unit = scaled_unit(dtype, growth(count) + 8.0)
        error = unit * np.sqrt(variance + mean**2)
        pieces = scaled_unit(dtype, growth(count) + 2.0 * (2.0 + 3.0 * growth(8)))
        spread = pieces * variance + 2.0 * np.sqrt(_LEVELS) * error * np.sqrt(variance) + _LEVELS * error**2
    step = np.min(lowest_bit(x), axis=axes, keepdims=True, initial=np.inf)
    exactly = (variance == 0) & exact_sums(absolute, step, dtype)
    tiny = 8.0 * ulp(0.0, accumulator(dtype))
    errors = unit * absolute / count + tiny, spread + tiny
    return mean, variance, *(np.asarray(np.where(exactly, 0.0, one)) for one in errors)


def inverse_root_error(variance: Any, error: Any, epsilon: float, dtype: str) -> tuple[Array, Array]:
    """1 / sqrt(variance + epsilon) and its error: a sum, a root and a quotient are rounded, and epsilon itself.

    A variance that errs by as much as itself may be anything between 0 and twice that.
    """
    with np.errstate(all="ignore"):
        value = 1.0 / np.sqrt(variance + epsilon)
        least = 1.0 / np.sqrt(np.asarray(variance) + error + epsilon)
        most = 1.0 / np.sqrt(np.maximum(np.asarray(variance) - error, 0.0) + epsilon)
        moved = np.where(np.asarray(error) == 0, 0.0, np.maximum(most - value, value - least))
    return np.asarray(value), np.asarray(moved + scaled_unit(dtype, 3.0) * value)


def averaged_error(old: Array, new: Array, error: Array, factor: float, dtype: str) -> Array:
    """(1 - factor) old + factor new: two constants, two products and a sum are rounded."""
    sizes = np.abs((1.0 - factor) * old) + np.abs(factor * new)
    return np.asarray(factor * error + scaled_unit(dtype, 3.0) * sizes + 4.0 * ulp(0.0, accumulator(dtype)))
