"""Error bounds: derived here, and nowhere else. A tolerance written down in another file is a defect.

Every bound is an absolute error, element by element, against the reference evaluated in float64 on the very inputs that
the primitive saw. With u the unit roundoff of a type (half its spacing at 1), the parts are:

*   moving data is exact;
*   an elementwise function is right to some ULP of its accumulator (float32; float64 for float64), then rounded once;
*   a sum of n terms is right to min(4 sqrt(n) + 8, n) u_acc sum|terms|. The worst case of any order is n u; rounding
    errors that do not conspire grow like sqrt(n) (Higham and Mary, "A new approach to probabilistic rounding error
    analysis", 2019). The factor 4 is head-room over the worst order measured;
*   composite functions propagate the bounds of their parts to first order.

The float64 reference has errors of its own, of the size of a float64 kernel's. Bounds on float64 results are therefore
doubled: one share for each side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: dtype -> (bits of the significand, smallest normal exponent).
_FORMATS = {
    "float32": (24, -126),
    "float64": (53, -1022),
    "float16": (11, -14),
    "bfloat16": (8, -126),
    "tf32": (11, -126),
}

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


def accumulator(dtype: str) -> str:
    """Name of the type that a primitive computes in."""
    return "float64" if dtype == "float64" else "float32"


def unit_roundoff(dtype: str) -> float:
    """Largest relative error of one rounding to a type."""
    return float(2.0 ** -_FORMATS[dtype][0])


def largest_finite(dtype: str) -> float:
    """Largest finite number of a type."""
    digits, lowest = _FORMATS[dtype]
    return (2.0 - 2.0 ** (1 - digits)) * 2.0 ** (1 - lowest)


def ulp(value: Any, dtype: str) -> Array:
    """Spacing of a type at |value|: 2^(e - p + 1), the exponent e not below the smallest normal one."""
    digits, lowest = _FORMATS[dtype]
    _, exponent = np.frexp(np.where(np.isfinite(value), value, 0.0))
    exponent = np.where(np.asarray(value) == 0, lowest, np.maximum(exponent - 1, lowest))
    return np.asarray(np.ldexp(1.0, exponent - digits + 1))


def exact(expected: Any) -> Array:
    """No error at all: data movement, selections, sums of small integers."""
    return np.zeros(np.shape(expected))


def grid(*arrays: Any) -> float:
    """The largest power of two that divides every finite element; 1 where all are 0.

    An element is m 2^e with m an integer of 53 bits; its lowest set bit is the grid that it lies on.
    """
    exponents = []
    for a in arrays:
        values = np.asarray(a, np.float64)
        mantissa, exponent = np.frexp(values[np.isfinite(values) & (values != 0)])
        digits = np.ldexp(mantissa, 53).astype(np.int64)
        lowest = np.frexp((digits & -digits).astype(np.float64))[1] - 1
        exponents.append(np.min(exponent - 53 + lowest, initial=2000))
    least = min(exponents, default=2000)
    return 1.0 if least == 2000 else float(np.ldexp(1.0, int(least)))


def exact_sums(absolute_sum: Any, step: float, dtype: str) -> Array:
    """Where a sum is exact in the accumulator, whatever its order: sum|terms| <= 2^p step, p the accumulator's digits.

    All terms are multiples of the power of two `step`, and so is each partial sum, in any order and grouping; none
    exceeds sum|terms|. A multiple of `step` of at most 2^p step is a number of the accumulator, so that no addition and
    no fused multiply-add rounds. `step` must not lie below the least subnormal number.
    """
    digits, lowest = _FORMATS[accumulator(dtype)]
    if step < 2.0 ** (lowest - digits + 1):
        return np.zeros(np.shape(absolute_sum), bool)
    top = min(2.0**digits * step, largest_finite(accumulator(dtype)))
    return np.asarray(np.asarray(absolute_sum) <= top)


def representable(value: Any, dtype: str) -> Array:
    """Where a number is one of the type's."""
    spacing = ulp(value, dtype)
    with np.errstate(all="ignore"):
        whole = np.asarray(value) / spacing
    return np.asarray((np.trunc(whole) == whole) & (np.abs(value) <= largest_finite(dtype)))


def ulp_bound(expected: Any, dtype: str, ulps: float) -> Array:
    """So many ULP of the result's type; twice that where the expectation is itself float64."""
    return ulps * (2.0 if dtype == "float64" else 1.0) * ulp(expected, dtype)


def accumulator_error(expected: Any, dtype: str, ulps: float) -> Array:
    """So many ULP of the accumulator: the error of a value that has not been rounded to storage yet."""
    return ulp_bound(expected, accumulator(dtype), ulps)


def rounded(expected: Any, dtype: str, error: Any = 0.0) -> Array:
    """Bound of a value that errs by `error` and is then rounded to storage, half an ULP, once.

    Where the type is its own accumulator the last operation's rounding is the same as the storage's, but counting it
    apart costs half an ULP of tightness and saves a case distinction. The ULP is that of the larger neighbour.
    """
    if not np.any(error):
        return 0.5 * ulp(expected, dtype) * (1.0 if dtype != "float64" else 2.0)
    return np.asarray(error) + 0.5 * ulp(np.abs(expected) + np.asarray(error), dtype)


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


def library_gelu_error(z: Any, dtype: str) -> Array:
    """Error of cuBLASLt's GELU epilogue before the result is stored, of which NVIDIA promises nothing.

    In 32 and 64 bits it behaves as 4 ULP. For 16-bit results its tanh is approximate: on an NVIDIA H200 with cuBLASLt
    13.1 the result errs by up to 2^-18 |z|, and from z = -4.2 down it is 0. Stated here as the measured property of a
    library, four times as large; our own pass obeys `ELEMENTWISE_FORWARD_ULP`.
    """
    error = accumulator_error(z, dtype, 4.0)
    return error + 2.0**-16 * np.abs(z) if accumulator(dtype) != dtype else error


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
    return np.asarray(_both_sides(dtype) * (np.asarray(y) * total + 4.0 * ulp(0.0, kind)))


def log_softmax_error(y: Any, n: int, powers: Any, distance: Any, dtype: str, axis: Any) -> Array:
    """Error of (x - m) - log s: absolute, as the relative error of s is the absolute one of its logarithm."""
    unit = unit_roundoff(accumulator(dtype))
    relative = exponential_sum(n, powers, distance, dtype, axis)
    logarithm = np.log(np.sum(powers, axis=axis, keepdims=True))
    sizes = np.abs(distance) + np.abs(logarithm) + np.abs(y)
    return np.asarray(_both_sides(dtype) * (relative + relative_unit(dtype) * np.abs(logarithm) + 2.0 * unit * sizes))


def scaled_unit(dtype: str, steps: float, *, functions: float = 0.0) -> float:
    """Relative error of so many roundings and elementary functions in the accumulator.

    It is to be taken of the sum of the sizes of all terms that are added or subtracted.
    """
    return _both_sides(dtype) * (steps * unit_roundoff(accumulator(dtype)) + functions * relative_unit(dtype))


def norm_error(n: int, norm: Any, dtype: str) -> Array:
    """Error of the root of a sum of n squares: half the relative error of the sum, and the root's own rounding."""
    return np.asarray(scaled_unit(dtype, 0.5 * growth(n) + 4.0) * np.abs(norm) + ulp(0.0, accumulator(dtype)))


def _both_sides(dtype: str) -> float:
    return 2.0 if dtype == "float64" else 1.0


#: Largest slope of the activations that follow a product in the cases: how much of its error they let through. It is
#: gelu's, 1.129 at x = sqrt 2.
ACTIVATION_SLOPE = 1.13
