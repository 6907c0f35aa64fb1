"""Reference of the losses: float64 inside, one rounding at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .rounding import Array, finish, widen

#: Kinds whose loss is one number for a row along an axis, and those compared with labels.
ROW_KINDS = ("cross_entropy", "nll", "cosine")
#: bce: least logarithm, and least denominator of the gradient.
LEAST_LOG, LEAST_SPAN = -100.0, 1e-12


def loss_forward(
    loss: Any, prediction: Array, target: Array, *, weight: Array | None = None, out: Array | None = None
) -> Array:
    """Sum of the losses over the divisor that the reduction stands for; the losses themselves for ``none``."""
    with np.errstate(all="ignore"):
        losses, _ = _evaluate(loss, prediction, target, weight)
        divisor = _divisor(loss, prediction, target, weight)
        return finish(_reduce(loss, losses, divisor), _accumulator(prediction), out=out)


def loss_backward(
    loss: Any,
    prediction: Array,
    target: Array,
    *,
    weight: Array | None = None,
    dloss: Array | None = None,
    out: Array | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Array:
    """Slope of each loss times what reached it: dloss / divisor."""
    with np.errstate(all="ignore"):
        _, slopes = _evaluate(loss, prediction, target, weight)
        upstream = np.ones(()) if dloss is None else widen(dloss)
        if loss.kind in ROW_KINDS and upstream.ndim:
            upstream = np.expand_dims(upstream, _row_axis(loss, prediction))
        gradient = _gradient(slopes, upstream, _divisor(loss, prediction, target, weight))
        return finish(gradient, prediction.dtype, out=out, alpha=alpha, beta=beta)


def loss_forward_backward(
    loss: Any,
    prediction: Array,
    target: Array,
    *,
    weight: Array | None = None,
    out: Array | None = None,
    dprediction: Array | None = None,
    scale: float = 1.0,
) -> tuple[Array, Array]:
    """Both of the above, the gradient times `scale`."""
    with np.errstate(all="ignore"):
        losses, slopes = _evaluate(loss, prediction, target, weight)
        divisor = _divisor(loss, prediction, target, weight)
        value = finish(_reduce(loss, losses, divisor), _accumulator(prediction), out=out)
        gradient = _gradient(slopes, np.ones(()), divisor)
        return value, finish(gradient, prediction.dtype, out=dprediction, alpha=scale)


def _accumulator(prediction: Array) -> Any:
    return np.float64 if prediction.dtype == np.float64 else np.float32


def _row_axis(loss: Any, prediction: Array) -> int:
    """Axis that a row runs along: the classes, or for cosine the last."""
    return -1 if loss.kind == "cosine" or prediction.ndim == 1 else 1


def _takes_labels(loss: Any, target: Array) -> bool:
    return loss.kind in ("cross_entropy", "nll") and np.issubdtype(target.dtype, np.integer)


def _counted(loss: Any, classes: int, target: Array) -> tuple[Array, Array]:
    """Which labels count, and which are neither in range nor ignored."""
    inside, ignored = (target >= 0) & (target < classes), target == loss.ignore_index
    return inside & ~ignored, ~inside & ~ignored


def _divisor(loss: Any, prediction: Array, target: Array, weight: Array | None) -> float:
    if loss.reduction in ("none", "sum"):
        return 1.0
    if loss.reduction == "mean_samples":
        alone = prediction.ndim == 0 or (loss.kind in ROW_KINDS and prediction.ndim == 1)
        return 1.0 if alone else float(prediction.shape[0])
    axis = _row_axis(loss, prediction)
    if _takes_labels(loss, target):
        counted, _ = _counted(loss, prediction.shape[axis], target)
        return float(counted.sum() if weight is None else widen(weight)[target[counted]].sum())
    rows = np.delete(prediction.shape, axis) if loss.kind in ROW_KINDS else prediction.shape
    return float(np.prod(rows))


def _reduce(loss: Any, losses: Array, divisor: float) -> Array:
    return losses if loss.reduction == "none" else np.asarray(np.divide(losses.sum(), divisor))


def _gradient(slopes: Array, upstream: Array, divisor: float) -> Array:
    """A mean over nothing has no gradient."""
    return slopes * (upstream / divisor) if divisor != 0 else np.zeros_like(slopes)


def _evaluate(loss: Any, prediction: Array, target: Array, weight: Array | None) -> tuple[Array, Array]:
    """Unreduced losses and, shaped as the prediction, the slope of each."""
    x = widen(prediction)
    if loss.kind == "cosine":
        return _cosine(x, widen(target))
    if loss.kind in ROW_KINDS:
        return _classes(loss, x, target, weight)
    losses, slopes = _ELEMENTWISE[loss.kind](loss, x, widen(target))
    scale = 1.0 if weight is None else widen(weight)
    return losses * scale, slopes * scale


def _classes(loss: Any, x: Array, target: Array, weight: Array | None) -> tuple[Array, Array]:
    """Cross-entropy and nll, with the classes moved to the last axis.

    The loss of a row is sum_k a_k (lse - x_k) with coefficients a, so its slope is softmax_k sum(a) - a_k; for nll the
    log-probabilities are given and the slope is -a_k. lse - x_k is (max - x_k) + log1p(sum of exp but for one maximum).
    """
    axis = _row_axis(loss, x)
    rows = np.moveaxis(x, axis, -1)
    classes = rows.shape[-1]
    counted = bad = np.zeros(rows.shape[:-1], bool)
    if _takes_labels(loss, target):
        counted, bad = _counted(loss, classes, target)
        share = (target[..., None] == np.arange(classes)).astype(np.float64)
    else:
        counted, share = ~counted, np.moveaxis(widen(target), axis, -1)
    smoothing = loss.label_smoothing if loss.kind == "cross_entropy" else 0.0
    a = (1.0 - smoothing) * share + smoothing / classes
    a = a if weight is None else a * widen(weight)
    log_p, p = _log_softmax(rows) if loss.kind == "cross_entropy" else (rows, np.zeros_like(rows))
    # A coefficient of 0 takes no part, unless the class is NaN.
    losses = -np.where((a == 0) & ~np.isnan(log_p), 0.0, a * log_p)
    losses = np.where(share != 0, losses, 0.0) if loss.kind == "nll" else losses
    mass = a.sum(-1, keepdims=True)
    # Where one class has it all, softmax - 1 is formed without cancellation.
    slopes = np.where((a == mass) & (loss.kind != "nll"), mass * np.expm1(log_p), p * mass - a)
    slopes = np.where(counted[..., None], slopes, 0.0)
    losses = np.where(counted, losses.sum(-1), np.where(bad, np.nan, 0.0))
    return losses, np.moveaxis(slopes, -1, axis)


def _log_softmax(rows: Array) -> tuple[Array, Array]:
    d = rows - rows.max(-1, keepdims=True)
    top = d == 0
    rest = np.where(top, 0.0, np.exp(d)).sum(-1, keepdims=True) + (top.sum(-1, keepdims=True) - 1)
    return d - np.log1p(rest), np.exp(d) / (1.0 + rest)


def _cosine(x: Array, t: Array) -> tuple[Array, Array]:
    """1 - u.v with u = x / |x|, v = t / |t|; d/dx = (u (u.v) - v) / |x|. A row of zeros has cosine 0 and slope 0."""

    def unit(rows: Array) -> tuple[Array, Array, Array]:
        top = np.abs(rows).max(-1, keepdims=True, initial=0.0)
        exponent = np.where(np.isfinite(top), np.frexp(top)[1], 0)
        scaled = np.ldexp(rows, -exponent)  # so that no square overflows or vanishes
        norm = np.sqrt((scaled * scaled).sum(-1, keepdims=True))
        return np.where(norm == 0, 0.0, scaled / norm), norm, exponent

    u, norm, exponent = unit(x)
    v, target_norm, _ = unit(t)
    cosine = (u * v).sum(-1, keepdims=True)
    slopes = np.ldexp((cosine * u - v) / norm, -exponent)
    return 1.0 - cosine[..., 0], np.where((norm == 0) | (target_norm == 0), 0.0, slopes)


Elementwise = Callable[[Any, Array, Array], tuple[Array, Array]]


def _signed(size: Any, d: Array) -> Array:
    return np.where(d > 0, size, np.where(d < 0, -size, d))


def _mse(_: Any, x: Array, t: Array) -> tuple[Array, Array]:
    d = x - t
    return d * d, 2.0 * d


def _l1(_: Any, x: Array, t: Array) -> tuple[Array, Array]:
    return np.abs(x - t), _signed(1.0, x - t)


def _huber(loss: Any, x: Array, t: Array) -> tuple[Array, Array]:
    d, size, c = x - t, np.abs(x - t), loss.delta
    near = size <= c
    return np.where(near, 0.5 * d * d, c * (size - 0.5 * c)), np.where(near, d, _signed(c, d))


def _smooth_l1(loss: Any, x: Array, t: Array) -> tuple[Array, Array]:
    d, size, c = x - t, np.abs(x - t), loss.delta
    near = size <= c
    return np.where(near, 0.5 * d * (d / c), size - 0.5 * c), np.where(near, d / c, _signed(1.0, d))


def _bce(_: Any, x: Array, t: Array) -> tuple[Array, Array]:
    span = x * (1.0 - x)
    losses = -(t * np.maximum(np.log(x), LEAST_LOG) + (1.0 - t) * np.maximum(np.log1p(-x), LEAST_LOG))
    return losses, np.where(span < 0, np.nan, (x - t) / np.maximum(span, LEAST_SPAN))


def _bce_with_logits(_: Any, x: Array, t: Array) -> tuple[Array, Array]:
    e = np.exp(-np.abs(x))
    near, far = 1.0 / (1.0 + e), e / (1.0 + e)
    pull = np.where(x >= 0, 1.0 - t, -t)
    slopes = np.where(x >= 0, (1.0 - t) * near - t * far, (1.0 - t) * far - t * near)
    return np.where(pull == 0, 0.0, pull * x) + np.log1p(e), slopes


def _kl_div(loss: Any, x: Array, t: Array) -> tuple[Array, Array]:
    p, log_p = (np.exp(t), t) if loss.log_target else (t, np.log(t))
    return np.where((p == 0) & ~np.isnan(x), 0.0, p * (log_p - x)), np.broadcast_to(-p, x.shape)


def _hinge(loss: Any, x: Array, t: Array) -> tuple[Array, Array]:
    gap = loss.margin - t * x
    return np.where(gap <= 0, 0.0, gap), np.where(gap <= 0, 0.0, np.where(np.isnan(gap), gap, -t))


_ELEMENTWISE: dict[str, Elementwise] = {
    "mse": _mse,
    "l1": _l1,
    "huber": _huber,
    "smooth_l1": _smooth_l1,
    "bce": _bce,
    "bce_with_logits": _bce_with_logits,
    "kl_div": _kl_div,
    "hinge": _hinge,
}
