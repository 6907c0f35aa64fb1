"""Gated linear units in NumPy: y = a * g(b), a and b the first and the second half of x along an axis."""

from __future__ import annotations

from collections.abc import Callable
from math import erf, erfc, pi, sqrt
from typing import Any

import numpy as np

from .rounding import Array, finish, widen


def glu_forward(
    x: Any,
    *,
    gate: str = "sigmoid",
    axis: int = -1,
    out: Array | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Array:
    """y = a * g(b) (Dauphin et al. 2017; the other gates Shazeer 2020)."""
    value, gating = np.split(widen(x), 2, axis=axis)
    with np.errstate(all="ignore"):
        y = value * GATES[gate](gating)[0]
    return finish(y, x.dtype, out=out, alpha=alpha, beta=beta)


def glu_backward(
    dy: Any,
    x: Any,
    *,
    gate: str = "sigmoid",
    axis: int = -1,
    out: Array | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Array:
    """da = dy * g(b), db = dy * g'(b) * a; where g is constant the middle product is 0 whatever dy is."""
    value, gating = np.split(widen(x), 2, axis=axis)
    upstream = widen(dy)
    with np.errstate(all="ignore"):
        function, derivative = GATES[gate](gating)
        through = np.where(derivative == 0.0, 0.0, upstream * derivative)
        dx = np.concatenate([upstream * function, through * value], axis=axis)
    return finish(dx, dy.dtype, out=out, alpha=alpha, beta=beta)


def _sigmoid(b: Array) -> tuple[Array, Array]:
    """1 / (1 + e^-b) through e^-|b|, which never overflows; g' = g (1 - g) = g(b) g(-b)."""
    small = np.exp(-np.abs(b))
    function = np.where(b < 0, small, 1.0) / (1.0 + small)
    return function, small / (1.0 + small) ** 2


def _swish(b: Array) -> tuple[Array, Array]:
    """b s(b), with its limit 0 at -inf; g' = s + b s (1 - s)."""
    function, slope = _sigmoid(b)
    finite = np.where(np.isinf(b), 0.0, b)
    return np.where(b == -np.inf, 0.0, b * function), function + finite * slope


def _gelu(b: Array) -> tuple[Array, Array]:
    """b Phi(b), Phi by erfc where it is small; g' = Phi + b phi."""
    cdf = _normal_cdf(b)
    finite = np.where(np.isinf(b), 0.0, b)
    density = np.exp(-0.5 * b * b) / sqrt(2.0 * pi)
    return np.where(b == -np.inf, 0.0, b * cdf), cdf + finite * density


def _gelu_tanh(b: Array) -> tuple[Array, Array]:
    """b (1 + tanh u) / 2 with u = sqrt(2/pi) (b + 0.044715 b^3); (1 + tanh u) / 2 is the sigmoid of 2u."""
    scale = 2.0 * sqrt(2.0 / pi)
    function, slope = _sigmoid(scale * (b + 0.044715 * b**3))
    finite = np.where(np.isinf(b), 0.0, b)
    inner = scale * (1.0 + 3.0 * 0.044715 * finite * finite)
    derivative = function + np.where(slope == 0.0, 0.0, finite * slope * inner)
    return np.where(b == -np.inf, 0.0, b * function), derivative


def _relu(b: Array) -> tuple[Array, Array]:
    """max(b, 0) with g'(0) = 0; NaN stays NaN in both."""
    nan = np.isnan(b)
    return np.where((b > 0) | nan, b, 0.0), np.where(nan, b, (b > 0).astype(np.float64))


def _identity(b: Array) -> tuple[Array, Array]:
    return b, np.ones_like(b)


def _normal_cdf(b: Array) -> Array:
    def scalar(v: float) -> float:
        return 0.5 * erfc(-v / sqrt(2.0)) if v < 0 else 0.5 + 0.5 * erf(v / sqrt(2.0))

    return np.asarray(np.fromiter(map(scalar, b.ravel().tolist()), np.float64, b.size).reshape(b.shape))


#: Gate -> its value and derivative.
GATES: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "sigmoid": _sigmoid,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "swish": _swish,
    "relu": _relu,
    "identity": _identity,
}
