"""Tier T1: elementary functions, short products, and the one rounding at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .exactness import representable
from .formats import Array, accumulator, both_sides, ulp, unit_roundoff

#: Largest error of an elementwise function before the rounding to storage, in ULP of the accumulator.
FUNCTION_ULP = 1.5
#: The same of its derivative.
DERIVATIVE_ULP = 3.5

#: Largest error of an activation, in ULP of the result's type. 16-bit results come from float32, so that little more
#: than the one rounding is left; the two slots of head-room are float32's 2 ULP, seen in units of the shorter type.
ELEMENTWISE_FORWARD_ULP = {"float32": 2.0, "float64": 2.0, "float16": 0.51, "bfloat16": 0.51}
#: The same of its derivative.
ELEMENTWISE_DERIVATIVE_ULP = {"float32": 4.0, "float64": 4.0, "float16": 0.51, "bfloat16": 0.51}

#: Below this size a derivative that changes sign is measured absolutely, as if it had this size: at its zero the
#: relative error of any evaluation is unbounded (gelu, swish, mish near their minimum).
DERIVATIVE_FLOOR = 2.0**-10

#: Largest slope of the activations that follow a product in the cases: how much of its error they let through. It is
#: gelu's, 1.129 at x = sqrt 2.
ACTIVATION_SLOPE = 1.13


def ulp_bound(expected: Any, dtype: str, ulps: float) -> Array:
    """So many ULP of the result's type; twice that where the expectation is itself float64."""
    return ulps * (2.0 if dtype == "float64" else 1.0) * ulp(expected, dtype)


def accumulator_error(expected: Any, dtype: str, ulps: float) -> Array:
    """So many ULP of the accumulator: the error of a value that has not been rounded to storage yet."""
    return ulp_bound(expected, accumulator(dtype), ulps)


def rounded(expected: Any, dtype: str, error: Any = 0.0) -> Array:
    """Bound of a value that errs by `error` and is then rounded to storage, half an ULP, once.

    `error` is that of the operations before the storage; where the type is its own accumulator, the last of them is the
    rounding that is counted here. The ULP is that of the larger neighbour.
    """
    return np.asarray(error) + 0.5 * both_sides(dtype) * ulp(np.abs(expected) + np.asarray(error), dtype)


def blended(
    expected: Any, dtype: str, error: Any = 0.0, *, alpha: float = 1.0, beta: float = 0.0, old: Any = 0.0
) -> Array:
    """Bound of alpha * result + beta * old, stored.

    With p = alpha * result and q = beta * old the accumulator rounds p, q and their sum: u (|p| + |q| + |p + q|), at
    most 2 u (|p| + |q|), and alpha and beta themselves where it does not hold them: another u (|p| + |q|). `expected`
    is the blend; |p| is at most |expected| + |q|.
    """
    if alpha == 1.0 and beta == 0.0:
        return rounded(expected, dtype, error)
    held = bool(np.all(representable([alpha, beta], accumulator(dtype))))
    unit = (1.0 if held else 1.5) * unit_roundoff(accumulator(dtype))
    q = np.abs(beta * np.asarray(old, np.float64)) if beta else 0.0
    p = np.abs(expected) + q
    underflow = ulp(0.0, accumulator(dtype))
    return rounded(expected, dtype, abs(alpha) * np.asarray(error) + 2.0 * unit * (p + q) + underflow)


def product_error(factors: Sequence[tuple[Any, Any]], dtype: str) -> Array:
    """Error of a product of (value, error) pairs in the accumulator: the relative errors add up, one rounding each.

    To first order |prod (v + e) - prod v| is sum_i |e_i| prod_{j != i} |v_j|; the factor 1 + 2^-10 covers the rest.
    """
    kind = accumulator(dtype)
    values = np.broadcast_arrays(*(np.abs(np.asarray(value, np.float64)) for value, _ in factors))
    size = np.prod(values, axis=0)
    total = 2.0 * (len(factors) - 1) * unit_roundoff(kind) * size + len(factors) * ulp(0.0, kind)
    for i, (_, error) in enumerate(factors):
        others = [value for j, value in enumerate(values) if j != i]
        total = total + np.asarray(error) * (np.prod(others, axis=0) if others else 1.0)
    return np.asarray((1.0 + 2.0**-10) * total)


def function_error(value: Any, dtype: str, ulps: float = FUNCTION_ULP, argument: Any = None) -> Array:
    """Error of an elementary function in the accumulator, before its value is used or stored.

    float32 and float64: so many ULP. The 16-bit types use functions good to about 2^-18, less than a hundredth of an
    ULP of float16 (2^-10) and bfloat16 (2^-7); where the value lies below what the short type resolves, float32's own
    ULP remains, which matters when a large factor follows.

    A float64 kernel is held against a reference no better than itself. Where that one takes no care of the argument x
    of its exponentials, which grow like x^2 / 2 (gelu) or slower than x^2 (gelu_tanh, as long as its gate is not shut),
    pass it: the relative error is some (1 + x^2) u then.
    """
    precise = accumulator_error(value, dtype, ulps)
    if dtype == "float64" and argument is not None:
        square = np.square(np.clip(argument, -40.0, 40.0))
        return np.asarray(precise + 8.0 * unit_roundoff(dtype) * (1.0 + square) * np.abs(value))
    if dtype in ("float32", "float64"):
        return precise
    return np.asarray(np.maximum(precise, np.abs(value) * 2.0**-17))


def slope_size(slope: Any, argument: Any, dtype: str) -> Array:
    """The size at which a derivative is measured that is a difference of two terms and has a zero at -2 < x < 0.

    Kernels expand about the zero and are held to `DERIVATIVE_FLOOR`; the float64 reference subtracts terms of up to
    0.25.
    """
    near = np.abs(argument) <= 2.0
    floor = np.where(near, 0.25, 0.0) if dtype == "float64" else DERIVATIVE_FLOOR
    return np.asarray(np.maximum(np.abs(slope), floor))


def relative_unit(dtype: str) -> float:
    """Relative error of an elementary function in the accumulator: what `function_error` allows, as a factor."""
    return 2.0 * FUNCTION_ULP * unit_roundoff(dtype) if dtype in ("float32", "float64") else 2.0**-17


def scaled_unit(dtype: str, steps: float, *, functions: float = 0.0) -> float:
    """Relative error of so many roundings and elementary functions in the accumulator.

    It is to be taken of the sum of the sizes of all terms that are added or subtracted.
    """
    return both_sides(dtype) * (steps * unit_roundoff(accumulator(dtype)) + functions * relative_unit(dtype))


def library_gelu_error(z: Any, dtype: str) -> Array:
    """Error of cuBLASLt's GELU epilogue before the result is stored, of which NVIDIA promises nothing.

    In 32 and 64 bits it behaves as 4 ULP. For 16-bit results its tanh is approximate: on an NVIDIA H200 with cuBLASLt
    13.1 the result errs by up to 2^-18 |z|, and from z = -4.2 down it is 0. Stated here as the measured property of a
    library, four times as large; our own pass obeys `ELEMENTWISE_FORWARD_ULP`.
    """
    error = accumulator_error(z, dtype, 4.0)
    return error + 2.0**-16 * np.abs(z) if accumulator(dtype) != dtype else error


def carried(value: Any, beside: Sequence[Any], error: Any) -> Array:
    """What an activation makes of the error e of its argument z, from its values at z, z + e and z - e.

    The gentle activations let through `ACTIVATION_SLOPE` times e at most. The others (exp, log, sqrt, square,
    squared_relu, and hardshrink with its jumps) are monotone on either side of 0, so that none of their values between
    the ends lies further from f(z) than those at the ends. Where an end lies outside of the domain it says nothing.
    """
    with np.errstate(all="ignore"):
        moved = np.fmax(*(np.abs(np.asarray(one) - value) for one in beside))
    return np.asarray(np.fmax(ACTIVATION_SLOPE * np.asarray(error), moved))
