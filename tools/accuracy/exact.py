"""The true values in arbitrary precision, by mpmath: the judge of float64, and of the oracle in float64.

Scalars in, scalars out, in the textbook's own words: at `DIGITS` bits no form is better than another. Results come as a
pair of float64 whose sum is right to 100 bits, so that errors of a float64 result can be measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import numpy as np

from dnnprims.reference.rounding import Array

from .questions import FORWARD, FROM_INPUT, Question

mp = mpmath.mp
#: Working precision in bits: 100 of the result and what float64 arguments lose where terms cancel.
DIGITS = 220
#: exp of it is beyond every element type, either way, with any factor.
FAR = 100_000

_Number = Any
_Function = Callable[..., _Number]


def _exp(x: _Number) -> _Number:
    return mp.exp(max(min(x, FAR), -FAR))


def _expm1(x: _Number) -> _Number:
    return mp.expm1(max(min(x, FAR), -FAR))


def _sigmoid(t: _Number) -> _Number:
    return 1 / (1 + _exp(-t))


def _log1p_exp(t: _Number) -> _Number:
    return t if t > FAR else mp.log1p(_exp(t))


def _tanh(x: _Number) -> _Number:
    return mp.tanh(max(min(x, FAR), -FAR))


def _tanhshrink(x: _Number) -> _Number:
    """The terms agree in twice the digits by which x is below 1."""
    with mp.workprec(mp.prec + 2 * max(0, -int(mp.mag(x)) if x else 0)):
        return x - _tanh(x)


def _cdf(x: _Number) -> _Number:
    return mp.erfc(-max(min(x, 1000), -1000) / mp.sqrt(2)) / 2


def _density(x: _Number) -> _Number:
    return _exp(-x * x / 2) / mp.sqrt(2 * mp.pi)


def _gelu_tanh_argument(x: _Number) -> tuple[_Number, _Number]:
    k, c = 2 * mp.sqrt(2 / mp.pi), mp.mpf("0.044715")
    return k * (x + c * x**3), k * (1 + 3 * c * x**2)


def _gelu_tanh(x: _Number) -> _Number:
    return x * _sigmoid(_gelu_tanh_argument(x)[0])


def _gelu_tanh_slope(x: _Number) -> _Number:
    t, dt = _gelu_tanh_argument(x)
    return _sigmoid(t) + x * dt * _sigmoid(t) * _sigmoid(-t)


def _swish_slope(x: _Number, beta: _Number) -> _Number:
    t = beta * x
    return _sigmoid(t) + t * _sigmoid(t) * _sigmoid(-t)


def _mish_slope(x: _Number) -> _Number:
    s = _log1p_exp(x)
    return _tanh(s) + x * _sigmoid(x) / mp.cosh(min(s, FAR)) ** 2


def _selu() -> tuple[_Number, _Number]:
    scale = mp.mpf("1.0507009873554804934193349852946")
    return scale, scale * mp.mpf("1.6732632423543772848170429916717")


def _piece(inside: bool, slope: _Number = 1) -> _Number:
    return slope if inside else mp.zero


def _clip(x: _Number, low: _Number, high: _Number) -> _Number:
    return low if x < low else high if x > high else x


def _root_slope(y: _Number) -> _Number:
    return mp.nan if y != y else 1 / (2 * y) if y else mp.inf


def _root(x: _Number) -> _Number:
    return mp.nan if x < 0 else mp.sqrt(x)


#: Mode -> f of x, f' of x, f' of y or None; parameters follow.
EXACT: dict[str, tuple[_Function, _Function, _Function | None]] = {
    "identity": (lambda x: x, lambda x: mp.one, None),
    "relu": (lambda x: max(x, mp.zero), lambda x: _piece(x > 0), lambda y: _piece(y > 0)),
    "clipped_relu": (
        lambda x, c: _clip(x, mp.zero, c),
        lambda x, c: _piece(0 < x < c),
        lambda y, c: _piece(0 < y < c),
    ),
    "leaky_relu": (
        lambda x, s: x if x > 0 else s * x,
        lambda x, s: mp.one if x > 0 else s,
        lambda y, s: mp.one if y > 0 else s,
    ),
    "threshold": (
        lambda x, t, v: x if x > t else v,
        lambda x, t, v: _piece(x > t),
        lambda y, t, v: _piece(y > t and y != v),
    ),
    "elu": (
        lambda x, a: x if x > 0 else a * _expm1(x),
        lambda x, a: mp.one if x > 0 else a * _exp(x),
        lambda y, a: mp.one if y > 0 else y + a,
    ),
    "celu": (
        lambda x, a: x if x > 0 else a * _expm1(x / a),
        lambda x, a: mp.one if x > 0 else _exp(x / a),
        lambda y, a: mp.one if y > 0 else (y + a) / a,
    ),
    "selu": (
        lambda x: _selu()[0] * x if x > 0 else _selu()[1] * _expm1(x),
        lambda x: _selu()[0] if x > 0 else _selu()[1] * _exp(x),
        lambda y: _selu()[0] if y > 0 else y + _selu()[1],
    ),
    "sigmoid": (_sigmoid, lambda x: _sigmoid(x) * _sigmoid(-x), lambda y: y * (1 - y)),
    "log_sigmoid": (lambda x: -_log1p_exp(-x), lambda x: _sigmoid(-x), lambda y: -_expm1(y)),
    "tanh": (_tanh, lambda x: 4 * _sigmoid(2 * x) * _sigmoid(-2 * x), lambda y: (1 - y) * (1 + y)),
    "softplus": (
        lambda x, b, t: x if b * x > t else _log1p_exp(b * x) / b,
        lambda x, b, t: mp.one if b * x > t else _sigmoid(b * x),
        None,
    ),
    "softsign": (lambda x: x / (1 + abs(x)), lambda x: 1 / (1 + abs(x)) ** 2, lambda y: (1 - abs(y)) ** 2),
    "tanhshrink": (_tanhshrink, lambda x: _tanh(x) ** 2, None),
    "softshrink": (
        lambda x, c: x - mp.sign(x) * c if abs(x) > c else mp.zero,
        lambda x, c: _piece(abs(x) > c),
        lambda y, c: _piece(y != 0),
    ),
    "hardshrink": (
        lambda x, c: x if abs(x) > c else mp.zero,
        lambda x, c: _piece(abs(x) > c),
        lambda y, c: _piece(y != 0),
    ),
    "gelu": (lambda x: x * _cdf(x), lambda x: _cdf(x) + x * _density(x), None),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_slope, None),
    "swish": (lambda x, b: x * _sigmoid(b * x), _swish_slope, None),
    "mish": (lambda x: x * _tanh(_log1p_exp(x)), _mish_slope, None),
    "hard_sigmoid": (
        lambda x, s, o: _clip(s * x + o, mp.zero, mp.one),
        lambda x, s, o: _piece(0 < s * x + o < 1, s),
        lambda y, s, o: _piece(0 < y < 1, s),
    ),
    "hard_sigmoid_sixth": (
        lambda x, *_: _clip((x + 3) / 6, mp.zero, mp.one),
        lambda x, *_: _piece(-3 < x < 3, mp.one / 6),
        None,
    ),
    "hard_tanh": (
        _clip,
        lambda x, low, high: _piece(low < x < high),
        lambda y, low, high: _piece(low < y < high),
    ),
    "hard_swish": (
        lambda x: x * _clip((x + 3) / 6, mp.zero, mp.one),
        lambda x: mp.one if x >= 3 else _piece(x > -3, (2 * x + 3) / 6),
        None,
    ),
    "squared_relu": (lambda x: max(x, mp.zero) ** 2, lambda x: 2 * max(x, mp.zero), None),
    "abs": (abs, mp.sign, None),
    "square": (lambda x: x * x, lambda x: 2 * x, None),
    "sqrt": (_root, lambda x: _root_slope(_root(x)), _root_slope),
    "exp": (_exp, _exp, lambda y: y),
    "log": (
        lambda x: mp.nan if x < 0 else mp.log(x) if x else -mp.inf,
        lambda x: mp.nan if x < 0 else 1 / x if x else mp.inf,
        None,
    ),
}


def function_of(question: Question) -> _Function:
    """The function that a question is about, of mpmath's numbers, its parameters put in."""
    forward, slope, slope_from_output = EXACT[question.function]
    found = {FORWARD: forward, FROM_INPUT: slope}.get(question.direction, slope_from_output)
    if found is None:
        raise ValueError(f"{question}: the output does not tell the derivative")
    parameters = [mp.mpf(value) for value in question.parameters]
    return lambda x: found(x, *parameters)


def exact(question: Question, arguments: Sequence[float] | Array) -> tuple[Array, Array]:
    """True values at finite arguments, each as a float64 number and what it lacks."""
    function = function_of(question)
    high, low = np.empty(len(arguments)), np.zeros(len(arguments))
    with mp.workprec(DIGITS):
        for i, argument in enumerate(arguments):
            value = mp.mpf(function(mp.mpf(float(argument))))
            high[i] = float(value)
            if math.isfinite(high[i]):
                low[i] = float(value - mp.mpf(high[i]))
            elif value == mp.inf and argument == 0 and math.copysign(1.0, argument) < 0:
                high[i] = -math.inf  # the pole at -0
    return high, low
