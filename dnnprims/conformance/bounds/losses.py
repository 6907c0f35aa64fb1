"""Losses and their slopes, before the reduction: the sizes of the terms, times the roundings that they go through."""

from __future__ import annotations

from typing import Any

import numpy as np

from .elementwise import scaled_unit
from .exactness import exact_sums, grid
from .formats import Array, accumulator
from .rows import log_softmax_error, softmax_error
from .sums import growth, sum_error

#: bce: least logarithm, and least denominator of the slope.
_LEAST_LOG, _LEAST_SPAN = -100.0, 1e-12
#: Kinds that are polynomials piece by piece.
_POLYNOMIAL = ("mse", "l1", "huber", "smooth_l1", "hinge")


def elementwise_loss_errors(loss: Any, x: Array, t: Array, dtype: str) -> tuple[Array, Array]:
    """Up to eight roundings and one function, of the sizes of the terms that are added.

    No kind has more than six operations (bce with two logarithms and clamping), and weights add one; the constants c
    and the margin may have to be rounded. The functions are the accumulator's for every dtype: losses are summed, and
    errors of the short types' functions, which have a sign of their own, would add up. Slopes: the same count on their
    own terms; hinge's jumps by |t| where margin - t x lies within its own error of 0, so that the accumulator cannot
    tell the side.
    """
    d, kind, c = np.abs(x - t), loss.kind, loss.delta
    jump: Any = 0.0
    if kind == "mse":
        value, slope = d * d, 2.0 * d
    elif kind == "l1":
        value, slope = d, np.ones_like(d)
    elif kind in ("huber", "smooth_l1"):
        value, slope = np.where(d <= c, 0.5 * d * d, c * (d + 0.5 * c)), np.minimum(d, c)
        value, slope = (value / c, slope / c) if kind == "smooth_l1" else (value, slope)
    elif kind == "hinge":
        value, slope = abs(loss.margin) + np.abs(t * x), np.abs(t)
        blurred = np.abs(loss.margin - t * x) <= scaled_unit(dtype, 3.0) * value
        jump = np.where(blurred & ~exact_sums(value, min(grid(loss.margin), grid(t) * grid(x)), dtype), slope, 0.0)
    else:
        value, slope = _entropies(loss, x, t)
    unit = scaled_unit(accumulator(dtype), 8.0, functions=float(kind not in _POLYNOMIAL))
    return unit * value, unit * slope + jump


def _entropies(loss: Any, x: Array, t: Array) -> tuple[Array, Array]:
    """Sizes of the terms of the kinds that have a logarithm or an exponential."""
    if loss.kind == "bce":
        first, second = np.maximum(np.log(x), _LEAST_LOG), np.maximum(np.log1p(-x), _LEAST_LOG)
        return np.abs(t * first) + np.abs((1.0 - t) * second), np.abs(x - t) / np.maximum(x * (1.0 - x), _LEAST_SPAN)
    if loss.kind == "bce_with_logits":
        e = np.exp(-np.abs(x))
        near, far = np.where(x >= 0, 1.0 - t, t), np.where(x >= 0, t, 1.0 - t)
        return np.abs(near * x) + np.log1p(e), (np.abs(near) + np.abs(far) * e) / (1.0 + e)
    p, log_p = (np.exp(t), t) if loss.log_target else (t, np.log(t))
    return np.where(p == 0, 0.0, p * (np.abs(log_p) + np.abs(x))), p


def loss_grid(loss: Any, x: Array, t: Array, weight: Any) -> tuple[Array, float]:
    """(sizes, step) of weighted losses and slopes, where they are sums of multiples of a step: `exact_sums` then tells.

    Let s be a power of two that divides x, t, c and the margin. Differences are multiples of s, squares and products of
    s^2, and a half of one of s^2 / 2; dividing by c, a power of two, scales both. Sizes are at most M + M^2 with
    M = |x| + |t| + c + margin. A step of 0 stands for a kind that is no such sum.
    """
    if loss.kind not in _POLYNOMIAL or np.frexp(loss.delta)[0] != 0.5:
        return np.zeros(x.shape), 0.0
    c = loss.delta if loss.kind in ("huber", "smooth_l1") else 0.0
    margin = abs(loss.margin) if loss.kind == "hinge" else 0.0
    s, m = grid(x, t, c, margin), np.abs(x) + np.abs(t) + c + margin
    divisor = loss.delta if loss.kind == "smooth_l1" else 1.0
    step = 0.5 * min(s, s * s) / max(1.0, divisor) * grid(weight)
    return (2.0 * m + m * m) * max(1.0, 1.0 / divisor) * np.abs(weight), step


def cosine_errors(rows: Array, targets: Array, dtype: str) -> tuple[Array, Array]:
    """1 - u.v and (u (u.v) - v) / |x|, of unit rows u = x / |x|, v = t / |t|: three sums of products over a row.

    Two of the sums stand under a root, which halves their relative error growth(n) u; the third is at most |u|.|v|
    times it. So the cosine errs by 2 growth(n) u |u|.|v|, and each factor of the slope by as much of its size; a dozen
    quotients, roots and products are added.
    """
    lengths = [np.sqrt((a * a).sum(-1, keepdims=True)) for a in (rows, targets)]
    u, v = (np.abs(a) / np.where(norm == 0, 1.0, norm) for a, norm in zip((rows, targets), lengths, strict=True))
    unit = scaled_unit(dtype, 2.0 * growth(rows.shape[-1]) + 12.0)
    size = (u * v).sum(-1, keepdims=True)
    slopes = unit * (2.0 * u * size + v) / np.where(lengths[0] == 0, 1.0, lengths[0])
    return unit * (1.0 + size[..., 0]), slopes


def nll_errors(rows: Array, a: Array, dtype: str) -> tuple[Array, Array]:
    """-sum_k a_k x_k with one coefficient other than 0: some products and the coefficient's own roundings."""
    unit, a = scaled_unit(dtype, 6.0), np.abs(a)
    return unit * (a * np.abs(rows)).sum(-1), unit * a


def cross_entropy_errors(rows: Array, a: Array, dtype: str) -> tuple[Array, Array]:
    """sum_k a_k (lse - x_k) and p_k sum(a) - a_k, with coefficients a of label, smoothing and weight.

    Each lse - x_k errs as a log-softmax does; they are weighted by a and summed. The slope is a softmax times the sum
    of the coefficients, which is a sum of n terms, less a coefficient: six roundings for what multiplies and subtracts.
    """
    n, unit, a = rows.shape[-1], scaled_unit(dtype, 6.0), np.abs(a)
    distance = np.abs(rows - rows.max(-1, keepdims=True, initial=-np.inf))
    powers = np.exp(-distance)
    total = powers.sum(-1, keepdims=True)
    p, log_p = powers / total, -distance - np.log(total)
    sizes = (a * np.abs(log_p)).sum(-1)
    each = log_softmax_error(log_p, n, powers, distance, dtype, -1)
    losses = (a * each).sum(-1) + sum_error(n, sizes, dtype) + unit * sizes
    mass = a.sum(-1, keepdims=True)
    wrong = softmax_error(p, n, powers, distance, dtype, -1) + p * scaled_unit(dtype, growth(n))
    return losses, mass * wrong + unit * (p * mass + a)
