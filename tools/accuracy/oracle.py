"""The true values of activations and their derivatives, in float64, on the host and on the GPU.

The formulas are the textbook's, in the form that keeps its relative precision: good to better than 2^-40 of the value
wherever a number of float32 can hold it, tails included, which is 2^-17 ULP of float32. Each is run against mpmath
before it judges anything (`validate.py`). They share nothing with the kernels, whose elementary functions are their
own; here they are the platform's, through a `Maths`.

Where a product such as 0 * inf has a limit, the argument is held at a number beyond which nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

Array = Any
#: Beyond it exp(-x) is nothing to any type that float64 judges, and no product of two such numbers overflows.
FAR = 1000.0


class Maths:
    """An array module with the error function: NumPy's functions by their names, and `erfc`.

    Parameters
    ----------
    module : module
        NumPy or CuPy.
    erfc : callable
        1 - erf(x) of a float64 array.
    """

    def __init__(self, module: Any, erfc: Callable[[Array], Array]) -> None:
        self.module, self.erfc = module, erfc

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def _host_erfc(x: Array) -> Array:
    return np.fromiter(map(math.erfc, x.ravel().tolist()), np.float64, x.size).reshape(x.shape)


def host() -> Maths:
    """On the CPU: NumPy and the C library."""
    return Maths(np, _host_erfc)


def device() -> Maths:
    """On the current GPU: CuPy and CUDA's double precision functions."""
    import cupy

    return Maths(cupy, cupy.ElementwiseKernel("float64 x", "float64 y", "y = erfc(x)", "accuracy_erfc"))


def _selu_constants() -> tuple[float, float, float]:
    """Scale, and scale * alpha as a sum of two numbers: y + scale * alpha has to be right where the two cancel."""
    scale = Fraction("1.0507009873554804934193349852946")
    product = scale * Fraction("1.6732632423543772848170429916717")
    return float(scale), float(product), float(product - Fraction(float(product)))


SELU_SCALE, SELU_LOW, SELU_LOW_REST = _selu_constants()
_LINEAR, _CUBIC = 2.0 * math.sqrt(2.0 / math.pi), 0.044715


def _held(m: Maths, x: Array) -> Array:
    return m.maximum(x, -FAR)


def _both_held(m: Maths, x: Array) -> Array:
    return m.minimum(m.maximum(x, -FAR), FAR)


def _inside(m: Maths, v: Array, low: float, high: float, slope: float = 1.0) -> Array:
    """slope between two bounds, 0 beyond them, NaN for NaN."""
    return _known(m, v, slope * _number(m, (v > low) & (v < high)))


def _outside(m: Maths, v: Array, bound: float) -> Array:
    return _known(m, v, _number(m, m.abs(v) > bound))


def _piecewise(m: Maths, v: Array, at: float, below: Array, above: Array) -> Array:
    """`below` up to `at`, `above` after it, NaN for NaN."""
    one = m.ones_like(v)
    return _known(m, v, m.where(v > at, above * one, below * one))


def _known(m: Maths, v: Array, result: Array) -> Array:
    return m.where(m.isnan(v), v, result)


def _number(m: Maths, condition: Array) -> Array:
    """1 where it holds, else 0: a selection between two bare numbers has no type of its own."""
    return condition.astype(m.float64)


# ---- smooth functions -----------------------------------------------------------------------------------------------


def _sigmoid(m: Maths, t: Array) -> Array:
    small = m.exp(-m.abs(t))
    return m.where(t < 0.0, small, 1.0) / (1.0 + small)


def _log1p_exp(m: Maths, t: Array) -> Array:
    return m.maximum(t, 0.0) + m.log1p(m.exp(-m.abs(t)))


def _softplus(m: Maths, x: Array, beta: float, threshold: float) -> Array:
    return _piecewise(m, beta * x, threshold, _log1p_exp(m, beta * x) / beta, x)


def _elu(m: Maths, x: Array, alpha: float, scale: float = 1.0, width: float = 1.0) -> Array:
    return m.where(x > 0.0, scale * x, alpha * m.expm1(m.minimum(x, 0.0) / width))


def _elu_slope(m: Maths, x: Array, alpha: float, scale: float = 1.0, width: float = 1.0) -> Array:
    return m.where(x > 0.0, scale, alpha * m.exp(m.minimum(x, 0.0) / width))


def _normal_below(m: Maths, x: Array) -> Array:
    """The normal distribution function."""
    return 0.5 * m.erfc(x * -math.sqrt(0.5))


def _gelu(m: Maths, x: Array) -> Array:
    x = _held(m, x)
    return x * _normal_below(m, x)


def _gelu_slope(m: Maths, x: Array) -> Array:
    x = _both_held(m, x)
    return _normal_below(m, x) + x * m.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def _gated_slope(m: Maths, t: Array, growth: Array) -> Array:
    """Derivative of x sigmoid(t) with growth = x t'."""
    return _sigmoid(m, t) * (1.0 + growth * _sigmoid(m, -t))


def _gelu_tanh(m: Maths, x: Array) -> Array:
    x = _held(m, x)
    return x * _sigmoid(m, _LINEAR * x * (1.0 + _CUBIC * x * x))


def _gelu_tanh_slope(m: Maths, x: Array) -> Array:
    x = _both_held(m, x)
    square = _CUBIC * x * x
    return _gated_slope(m, _LINEAR * x * (1.0 + square), _LINEAR * x * (1.0 + 3.0 * square))


def _swish(m: Maths, x: Array, beta: float) -> Array:
    x = m.maximum(x, -FAR / beta) if beta > 0.0 else m.minimum(x, -FAR / beta)
    return x * _sigmoid(m, beta * x)


def _swish_slope(m: Maths, x: Array, beta: float) -> Array:
    t = _both_held(m, beta * x)
    return _gated_slope(m, t, t)


def _mish(m: Maths, x: Array) -> Array:
    x = _held(m, x)
    return x * m.tanh(_log1p_exp(m, x))


def _mish_slope(m: Maths, x: Array) -> Array:
    """tanh s + x sigmoid(x) / cosh^2 s with s = log(1 + e^x)."""
    x = _both_held(m, x)
    s = m.minimum(_log1p_exp(m, x), 300.0)
    return m.tanh(s) + x * _sigmoid(m, x) / m.cosh(s) ** 2


def _tanhshrink(m: Maths, x: Array) -> Array:
    """x - tanh x = (x cosh x - sinh x) / cosh x; for |x| < 2 the numerator is sum 2k x^(2k+1) / (2k+1)!."""
    near = m.minimum(m.maximum(x, -2.0), 2.0)
    square, total = near * near, m.zeros_like(near)
    for k in range(20, 0, -1):
        total = total * square + 2.0 * k / math.factorial(2 * k + 1)
    return m.where(m.abs(x) < 2.0, near * square * total / m.cosh(near), x - m.tanh(x))


def _softsign(m: Maths, x: Array) -> Array:
    return m.where(m.isinf(x), m.copysign(1.0, x), x / (1.0 + m.abs(x)))


def _hard_swish(m: Maths, x: Array) -> Array:
    middle = m.minimum(m.maximum(x, -3.0), 3.0)
    return m.where(x >= 3.0, x, middle * (middle + 3.0) / 6.0)


def _hard_swish_slope(m: Maths, x: Array) -> Array:
    return m.where(x <= -3.0, 0.0, m.where(x >= 3.0, 1.0, (2.0 * x + 3.0) / 6.0))


def _log_slope(m: Maths, x: Array) -> Array:
    return m.where(x < 0.0, math.nan, 1.0 / x)


# ---- the table ------------------------------------------------------------------------------------------------------

_Function = Callable[..., Array]

#: Mode -> f of x, f' of x, f' of y or None; each takes a `Maths`, the argument and the parameters.
TRUE: dict[str, tuple[_Function, _Function, _Function | None]] = {
    "identity": (lambda m, x: x, lambda m, x: m.ones_like(x), None),
    "relu": (lambda m, x: m.maximum(x, 0.0), *(lambda m, v: _piecewise(m, v, 0.0, 0.0, 1.0),) * 2),
    "clipped_relu": (
        lambda m, x, c: m.minimum(m.maximum(x, 0.0), c),
        *(lambda m, v, c: _inside(m, v, 0.0, c),) * 2,
    ),
    "leaky_relu": (
        lambda m, x, s: _piecewise(m, x, 0.0, s * x, x),
        *(lambda m, v, s: _piecewise(m, v, 0.0, s, 1.0),) * 2,
    ),
    "threshold": (
        lambda m, x, t, v: _piecewise(m, x, t, v, x),
        lambda m, x, t, v: _piecewise(m, x, t, 0.0, 1.0),
        lambda m, y, t, v: _piecewise(m, y, t, 0.0, _number(m, y != v)),
    ),
    "elu": (_elu, _elu_slope, lambda m, y, a: m.where(y > 0.0, 1.0, y + a)),
    "celu": (
        lambda m, x, a: _elu(m, x, a, width=a),
        lambda m, x, a: _elu_slope(m, x, 1.0, width=a),
        lambda m, y, a: m.where(y > 0.0, 1.0, (y + a) / a),
    ),
    "selu": (
        lambda m, x: _elu(m, x, SELU_LOW, SELU_SCALE),
        lambda m, x: _elu_slope(m, x, SELU_LOW, SELU_SCALE),
        lambda m, y: m.where(y > 0.0, SELU_SCALE, (y + SELU_LOW) + SELU_LOW_REST),
    ),
    "sigmoid": (_sigmoid, lambda m, x: _sigmoid(m, x) * _sigmoid(m, -x), lambda m, y: y * (1.0 - y)),
    "log_sigmoid": (
        lambda m, x: -_log1p_exp(m, -x),
        lambda m, x: _sigmoid(m, -x),
        lambda m, y: -m.expm1(y),
    ),
    "tanh": (
        lambda m, x: m.tanh(x),
        lambda m, x: 4.0 * _sigmoid(m, 2.0 * x) * _sigmoid(m, -2.0 * x),
        lambda m, y: (1.0 - y) * (1.0 + y),
    ),
    "softplus": (
        _softplus,
        lambda m, x, b, t: _piecewise(m, b * x, t, _sigmoid(m, b * x), 1.0),
        None,
    ),
    "softsign": (
        _softsign,
        lambda m, x: 1.0 / (1.0 + m.abs(x)) ** 2,
        lambda m, y: (1.0 - m.abs(y)) ** 2,
    ),
    "tanhshrink": (_tanhshrink, lambda m, x: m.tanh(x) ** 2, None),
    "softshrink": (
        lambda m, x, c: m.where(m.abs(x) <= c, 0.0, x - m.copysign(c, x)),
        lambda m, x, c: _outside(m, x, c),
        lambda m, y, c: _outside(m, y, 0.0),
    ),
    "hardshrink": (
        lambda m, x, c: m.where(m.abs(x) <= c, 0.0, x),
        lambda m, x, c: _outside(m, x, c),
        lambda m, y, c: _outside(m, y, 0.0),
    ),
    "gelu": (_gelu, _gelu_slope, None),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_slope, None),
    "swish": (_swish, _swish_slope, None),
    "mish": (_mish, _mish_slope, None),
    "hard_sigmoid": (
        lambda m, x, s, o: m.minimum(m.maximum(s * x + o, 0.0), 1.0),
        lambda m, x, s, o: _inside(m, s * x + o, 0.0, 1.0, s),
        lambda m, y, s, o: _inside(m, y, 0.0, 1.0, s),
    ),
    # PyTorch's slope is no parameter, and not rounded.
    "hard_sigmoid_sixth": (
        lambda m, x, *_: m.minimum(m.maximum(x + 3.0, 0.0), 6.0) / 6.0,
        lambda m, x, *_: _inside(m, x, -3.0, 3.0) / 6.0,
        None,
    ),
    "hard_tanh": (
        lambda m, x, low, high: m.minimum(m.maximum(x, low), high),
        *(lambda m, v, low, high: _inside(m, v, low, high),) * 2,
    ),
    "hard_swish": (_hard_swish, _hard_swish_slope, None),
    "squared_relu": (lambda m, x: m.maximum(x, 0.0) ** 2, lambda m, x: 2.0 * m.maximum(x, 0.0), None),
    "abs": (lambda m, x: m.abs(x), lambda m, x: m.where(x == 0.0, 0.0, _piecewise(m, x, 0.0, -1.0, 1.0)), None),
    "square": (lambda m, x: x * x, lambda m, x: 2.0 * x, None),
    "sqrt": (lambda m, x: m.sqrt(x), lambda m, x: 0.5 / m.sqrt(x), lambda m, y: 0.5 / y),
    "exp": (lambda m, x: m.exp(x), lambda m, x: m.exp(x), lambda m, y: y),
    "log": (lambda m, x: m.log(x), _log_slope, None),
}
