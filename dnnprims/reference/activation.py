"""Activations and their derivatives in float64.

Each mode has its function, its derivative as a function of x, and, where the output tells it too, as a function of y.
The parameters are taken in the accumulator's type, as the kernels have them: float64 for float64, else float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from .rounding import Array, finish, round_to, widen

_LARGEST = float(np.finfo(np.float64).max)
# scale, and scale * alpha in two parts: from the output the derivative is y + scale * alpha, which nearly cancel.
_SELU_SCALE, _SELU_LOW, _SELU_LOW_REST = 1.0507009873554804934193349852946, 1.7580993408473768, 1.41535193800845e-17
_GELU_LINEAR, _GELU_CUBIC = 2.0 * math.sqrt(2.0 / math.pi), 0.044715


def activation_forward(
    activation: Any, x: Any, *, out: Array | None = None, alpha: float = 1.0, beta: float = 0.0
) -> Array:
    """y = f(x)."""
    with np.errstate(all="ignore"):
        y = _FUNCTIONS[activation.mode][0](widen(x), *_parameters(activation, x.dtype))
    return finish(y, x.dtype, out=out, alpha=alpha, beta=beta)


def activation_backward(
    activation: Any,
    dy: Any,
    *,
    x: Any = None,
    y: Any = None,
    out: Array | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Array:
    """dx = dy f'(x), f' from x where given, else from y; pieces that are constant give 0 whatever dy is."""
    mode, parameters = activation.mode, _parameters(activation, dy.dtype)
    _, from_input, from_output = _FUNCTIONS[mode]
    with np.errstate(all="ignore"):
        if mode == "identity":
            slope = np.ones(dy.shape)
        elif x is not None:
            slope = from_input(widen(x), *parameters)
        elif from_output is not None and y is not None:
            slope = from_output(widen(y), *_as_stored(mode, parameters, y.dtype))
        else:
            raise ValueError(f"{mode} needs x")
        dx = widen(dy) * slope
        if mode in _PIECEWISE:
            dx = np.where(slope == 0.0, 0.0, dx)
    return finish(dx, dy.dtype, out=out, alpha=alpha, beta=beta)


def backward_needs(activation: Any) -> tuple[str, ...]:
    """Which of "x" and "y" suffice for the derivative, any one of them, the cheaper to keep first; none for identity.

    The output is as good as the input where f can be inverted, or where f' is constant between kinks that y shows.
    """
    mode, values = activation.mode, dict(activation.parameters)
    if mode == "identity":
        return ()
    injective = {
        "leaky_relu": values.get("slope", 0.0) >= 0.0,
        "elu": values.get("alpha", 0.0) >= 0.0,
        "threshold": values.get("value", 0.0) <= values.get("threshold", 0.0),
    }
    if _FUNCTIONS[mode][2] is None or not injective.get(mode, True):
        return ("x",)
    return ("y", "x")


def _parameters(activation: Any, dtype: Any) -> tuple[float, ...]:
    wide = np.dtype(dtype) == np.float64
    return tuple(float(value) if wide else float(np.float32(value)) for _, value in activation.parameters)


def _as_stored(mode: str, parameters: tuple[float, ...], dtype: Any) -> tuple[float, ...]:
    """The bounds that y itself takes, rounded as y was."""
    bounds = {"clipped_relu": (0,), "hard_tanh": (0, 1), "threshold": (1,)}.get(mode, ())
    return tuple(float(round_to(v, dtype)) if i in bounds else v for i, v in enumerate(parameters))


def _piece(inside: Array, slope: Any, v: Array) -> Array:
    """`slope` where inside, else 0; NaN where v is."""
    return np.where(np.isnan(v), v, np.where(inside, slope, 0.0))


def _finite(x: Array) -> Array:
    """x with the infinities at the largest numbers, so that a limit such as inf * 0 comes out."""
    return np.clip(x, -_LARGEST, _LARGEST)


# ---- exponential tails ----------------------------------------------------------------------------------------------


def _sigmoid(t: Array) -> Array:
    small = np.exp(-np.abs(t))
    return np.where(t < 0.0, small, 1.0) / (1.0 + small)


def _sigmoid_slope(t: Array) -> Array:
    small = np.exp(-np.abs(t))
    return small / (1.0 + small) ** 2


def _gated(x: Array, t: Array) -> Array:
    """x sigmoid(t); for t < 0 half the exponent on either side of x, so that no product is subnormal too early."""
    small, half = np.exp(-np.abs(t)), np.exp(-np.abs(t) / 2.0)
    return np.where(t < 0.0, (_finite(x) * half) * half, x) / (1.0 + small)


def _gated_slope(t: Array, growth: Array) -> Array:
    """s(t) + x t' s(t) (1 - s(t)) with growth = |x t'|: d below 0, 1 - d above."""
    small, half = np.exp(-np.abs(t)), np.exp(-np.abs(t) / 2.0)
    tail = (half * (1.0 + small - _finite(growth))) * half / (1.0 + small) ** 2
    return np.where(t < 0.0, tail, 1.0 - tail)


def _gelu_argument(x: Array) -> tuple[Array, Array]:
    """t = 2 sqrt(2 / pi) (x + 0.044715 x^3) and |x t'|; beyond 30 the gate is open or shut."""
    near = np.clip(x, -30.0, 30.0)
    square = near * near
    t = _GELU_LINEAR * near * (1.0 + _GELU_CUBIC * square)
    return t, _GELU_LINEAR * np.abs(near) * (1.0 + 3.0 * _GELU_CUBIC * square)


def _square(a: Array) -> tuple[Array, Array]:
    """a^2 as a sum of two numbers (Dekker 1971)."""
    factor = 134217729.0 * a
    high = factor - (factor - a)
    low, square = a - high, a * a
    return square, ((high * high - square) + 2.0 * high * low) + low * low


def _normal_tail(a: Array) -> tuple[Any, Any]:
    """Phi(-a) and phi(a) for 0 <= a <= 40.

    erfc(z + d) = erfc(z) exp(z^2 - (z + d)^2), to first order, repairs the rounding of z = a / sqrt 2, which erfc would
    blow up by 2 z^2.
    """
    z = a / math.sqrt(2.0)
    (a_high, a_low), (z_high, z_low) = _square(a), _square(z)
    excess = (a_high - 2.0 * z_high) + (a_low - 2.0 * z_low)
    erfc = np.fromiter(map(math.erfc, z.ravel().tolist()), np.float64, z.size).reshape(z.shape)
    density = np.exp(-a_high / 2.0) * (1.0 - a_low / 2.0) / math.sqrt(2.0 * math.pi)
    return 0.5 * erfc * np.exp(-excess / 2.0), density


def _gelu(x: Array) -> Array:
    a = np.minimum(np.abs(x), 40.0)
    tail: Array = a * _normal_tail(a)[0]
    return np.where(x < 0.0, -tail, x - tail)


def _gelu_slope(x: Array) -> Array:
    a = np.minimum(np.abs(x), 40.0)
    beyond, density = _normal_tail(a)
    tail: Array = beyond - a * density
    return np.where(x < 0.0, tail, 1.0 - tail)


def _mish(x: Array) -> Array:
    """x tanh(log(1 + e^x)) = x u / (u + 2) with u = e^x (e^x + 2)."""
    near = np.minimum(x, 30.0)
    e, half = np.exp(near), np.exp(near / 2.0)
    return np.where(x > 30.0, x, (_finite(near) * half) * half * (e + 2.0) / (e * (e + 2.0) + 2.0))


def _mish_slope(x: Array) -> Array:
    near = np.clip(x, -1500.0, 30.0)
    e, half = np.exp(near), np.exp(near / 2.0)
    d = e * (e + 2.0) + 2.0
    slope: Array = half * ((e + 2.0) * d + 4.0 * near * (1.0 + e)) * half / d**2
    return slope


@lru_cache(maxsize=1)
def _tanh_series() -> tuple[float, ...]:
    """Coefficients of tanh x in odd powers, from tanh' = 1 - tanh^2."""
    c = [0.0, 1.0]
    for n in range(1, 96):
        c.append(-sum(c[i] * c[n - i] for i in range(n + 1)) / (n + 1))
    return tuple(c[1::2])


def _tanhshrink(x: Array) -> Array:
    """x - tanh x: by its series where the two nearly cancel, then x - 1 + 2 / (e^2x + 1)."""
    near, a = np.clip(x, -1.0, 1.0), np.abs(x)
    square = near * near
    total = np.zeros_like(near)
    for c in reversed(_tanh_series()[1:]):
        total = total * square + c
    beyond = (a - 1.0) + 2.0 / (np.exp(2.0 * a) + 1.0)
    return np.where(a < 1.0, -near * square * total, np.copysign(beyond, x))


def _tanh_slope(x: Array) -> Array:
    return np.multiply(4.0, _sigmoid_slope(2.0 * x))


def _softplus(x: Array, beta: float, threshold: float) -> Array:
    t = beta * x
    y = np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(t))) / beta
    return np.where(t > threshold, x, y)


def _log_sigmoid(x: Array) -> Array:
    return np.minimum(x, 0.0) - np.log1p(np.exp(-np.abs(x)))


def _elu(x: Array, scale: float, alpha: float, width: float = 1.0) -> Array:
    """scale * x above 0, alpha * (e^(x / width) - 1) below."""
    return np.where(x > 0.0, scale * x, alpha * np.expm1(np.where(x > 0.0, np.minimum(x, 0.0), x) / width))


# ---- pieces of straight lines ---------------------------------------------------------------------------------------


def _softsign(x: Array) -> Array:
    return np.where(np.isinf(x), np.sign(x), x / (1.0 + np.abs(x)))


def _hard_swish(x: Array) -> Array:
    middle = np.clip(x, -3.0, 3.0)
    return np.where(x <= -3.0, 0.0, np.where(x >= 3.0, x, middle * (middle + 3.0) / 6.0))


def _hard_swish_slope(x: Array) -> Array:
    return np.where(x <= -3.0, 0.0, np.where(x >= 3.0, 1.0, (2.0 * x + 3.0) / 6.0))


def _between(v: Array, low: float, high: float, slope: float = 1.0) -> Array:
    return _piece((v > low) & (v < high), slope, v)


def _positive(v: Array) -> Array:
    return _piece(v > 0.0, 1.0, v)


_Function = Callable[..., Any]

#: Mode -> f(x), f' of x, f' of y or None; parameters follow in the order of the descriptor.
_FUNCTIONS: dict[str, tuple[_Function, _Function, _Function | None]] = {
    "identity": (lambda x: x, np.ones_like, np.ones_like),
    "relu": (lambda x: np.where(x <= 0.0, 0.0, x), _positive, _positive),
    "clipped_relu": (
        lambda x, c: np.clip(x, 0.0, c),
        lambda x, c: _between(x, 0.0, c),
        lambda y, c: _between(y, 0.0, c),
    ),
    "leaky_relu": (
        lambda x, s: np.where(x > 0.0, x, s * x),
        lambda x, s: np.where(np.isnan(x), x, np.where(x > 0.0, 1.0, s)),
        lambda y, s: np.where(np.isnan(y), y, np.where(y > 0.0, 1.0, s)),
    ),
    "threshold": (
        lambda x, t, v: np.where(x <= t, v, x),
        lambda x, t, v: _piece(x > t, 1.0, x),
        lambda y, t, v: _piece((y > t) & (y != v), 1.0, y),
    ),
    "elu": (
        lambda x, a: _elu(x, 1.0, a),
        lambda x, a: np.where(x > 0.0, 1.0, a * np.exp(np.where(x > 0.0, 0.0, x))),
        lambda y, a: np.where(y > 0.0, 1.0, y + a),
    ),
    "celu": (
        lambda x, a: _elu(x, 1.0, a, a),
        lambda x, a: np.where(x > 0.0, 1.0, np.exp(np.where(x > 0.0, 0.0, x) / a)),
        lambda y, a: np.where(y > 0.0, 1.0, (y + a) / a),
    ),
    "selu": (
        lambda x: _elu(x, _SELU_SCALE, _SELU_LOW),
        lambda x: np.where(x > 0.0, _SELU_SCALE, _SELU_LOW * np.exp(np.where(x > 0.0, 0.0, x))),
        lambda y: np.where(y > 0.0, _SELU_SCALE, (y + _SELU_LOW) + _SELU_LOW_REST),
    ),
    "sigmoid": (_sigmoid, _sigmoid_slope, lambda y: y * (1.0 - y)),
    "log_sigmoid": (_log_sigmoid, lambda x: _sigmoid(-x), lambda y: -np.expm1(y)),
    "tanh": (np.tanh, _tanh_slope, lambda y: (1.0 - y) * (1.0 + y)),
    "softplus": (_softplus, lambda x, b, t: np.where(b * x > t, 1.0, _sigmoid(b * x)), None),
    "softsign": (_softsign, lambda x: (1.0 / (1.0 + np.abs(x))) ** 2, lambda y: (1.0 - np.abs(y)) ** 2),
    "tanhshrink": (_tanhshrink, lambda x: np.tanh(x) ** 2, None),
    "softshrink": (
        lambda x, c: np.where(np.abs(x) <= c, 0.0, x - np.copysign(c, x)),
        lambda x, c: _piece(np.abs(x) > c, 1.0, x),
        lambda y, c: _piece(y != 0.0, 1.0, y),
    ),
    "hardshrink": (
        lambda x, c: np.where(np.abs(x) <= c, 0.0, x),
        lambda x, c: _piece(np.abs(x) > c, 1.0, x),
        lambda y, c: _piece(y != 0.0, 1.0, y),
    ),
    "gelu": (_gelu, _gelu_slope, None),
    "gelu_tanh": (lambda x: _gated(x, _gelu_argument(x)[0]), lambda x: _gated_slope(*_gelu_argument(x)), None),
    "swish": (lambda x, b: _gated(x, b * x), lambda x, b: _gated_slope(b * x, np.abs(b * x)), None),
    "mish": (_mish, _mish_slope, None),
    "hard_sigmoid": (
        lambda x, s, o: np.clip(s * x + o, 0.0, 1.0),
        lambda x, s, o: _between(s * x + o, 0.0, 1.0, s),
        lambda y, s, o: _between(y, 0.0, 1.0, s),
    ),
    "hard_tanh": (np.clip, _between, _between),
    "hard_swish": (_hard_swish, _hard_swish_slope, None),
    "squared_relu": (
        lambda x: np.where(x <= 0.0, 0.0, x * x),
        lambda x: np.where(x <= 0.0, 0.0, 2.0 * x),
        None,
    ),
    "abs": (np.abs, np.sign, None),
    "square": (np.square, lambda x: 2.0 * x, None),
    "sqrt": (np.sqrt, lambda x: 0.5 / np.sqrt(x), lambda y: 0.5 / y),
    "exp": (np.exp, np.exp, lambda y: y),
    "log": (np.log, lambda x: np.where(x < 0.0, np.nan, 1.0 / x), None),
}

#: Modes with a piece on which they are constant: there the derivative is 0 even for an infinite dy.
_PIECEWISE = frozenset(
    ("relu", "clipped_relu", "threshold", "softshrink", "hardshrink", "hard_sigmoid", "hard_tanh", "abs", "hard_swish",
     "squared_relu")
)  # fmt: skip
