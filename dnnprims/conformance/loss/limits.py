"""Where losses and gradients go, and how far from the reference they may lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...descriptors.loss import as_loss
from ...reference import loss as reference
from ..bounds import (
    accumulator,
    blended,
    cosine_errors,
    cross_entropy_errors,
    elementwise_loss_errors,
    exact_sums,
    exact_where,
    grid,
    growth,
    loss_grid,
    lowest_bit,
    nll_errors,
    rounded,
    scaled_unit,
    sum_error,
    ulp,
)
from ..calls import Arguments, Array, Destination, wide
from .operands import ROW_KINDS, Data


@dataclass(frozen=True)
class _Parts:
    """Unreduced losses and slopes: values, errors, and where they are exact sums: sizes and their step."""

    losses: Array
    slopes: Array
    loss_errors: Array
    slope_errors: Array
    sizes: Array
    step: float
    divisor: float
    divisor_error: float


def _parts(data: Data) -> _Parts:
    x, dtype = wide(data.prediction), data.dtype
    losses, slopes = reference._evaluate(data.loss, data.prediction, data.target, data.weight)
    divisor = reference._divisor(data.loss, data.prediction, data.target, data.weight)
    weight, sizes, step = 1.0 if data.weight is None else np.abs(wide(data.weight)), np.abs(losses), 0.0
    labels = data.target.dtype.kind == "i"
    summed = labels and data.weight is not None and data.loss.reduction == "mean_elements"
    if data.loss.kind not in ROW_KINDS:
        target = wide(data.target)
        errors = [error * weight for error in elementwise_loss_errors(data.loss, x, target, dtype)]
        sizes, step = loss_grid(data.loss, x, target, weight)
    else:
        rows = np.moveaxis(x, data.axis, -1)
        loss_errors, slope_errors = _row_errors(data, rows)
        errors = [loss_errors, np.moveaxis(slope_errors, -1, data.axis)]
        if data.loss.kind == "nll" and labels and not summed:
            step = min(grid(x), 1.0) * min(grid(weight), 1.0)
    divisor_error = scaled_unit(dtype, growth(data.target.size) if summed else 2.0)
    return _Parts(losses, slopes, errors[0], errors[1], sizes, step, divisor, divisor_error)


def _row_errors(data: Data, rows: Array) -> tuple[Array, Array]:
    """Errors of losses and slopes, a row along the last axis; the coefficients of label, smoothing and weight."""
    if data.loss.kind == "cosine":
        return cosine_errors(rows, np.moveaxis(wide(data.target), data.axis, -1), data.dtype)
    classes = rows.shape[-1]
    if data.target.dtype.kind == "i":
        share = (data.target[..., None] == np.arange(classes)).astype(np.float64)
        share = share * (data.target != data.loss.ignore_index)[..., None]
    else:
        share = np.moveaxis(wide(data.target), data.axis, -1)
    smoothing = data.loss.label_smoothing if data.loss.kind == "cross_entropy" else 0.0
    counts = share.sum(-1, keepdims=True) > 0
    a = (1.0 - smoothing) * share + smoothing / max(classes, 1) * counts
    a = a if data.weight is None else a * wide(data.weight)
    return (nll_errors if data.loss.kind == "nll" else cross_entropy_errors)(rows, a, data.dtype)


def _halves(divisor: float) -> bool:
    """Whether dividing moves the exponent alone."""
    return bool(np.frexp(divisor)[0] == 0.5)


def _loss_bound(data: Data, expected: Array) -> Array:
    """The losses are summed, divided and stored in the accumulator's type."""
    parts, dtype, kept = _parts(data), data.dtype, accumulator(data.dtype)
    if data.loss.reduction == "none":
        return exact_where(exact_sums(parts.sizes, parts.step, dtype), rounded(expected, kept, parts.loss_errors))
    size, total = parts.losses.size, np.abs(parts.losses).sum()
    error = (sum_error(size, total, dtype) + parts.loss_errors.sum()) / parts.divisor
    relative = parts.divisor_error + scaled_unit(dtype, 2.0)
    right = exact_sums(parts.sizes.sum(), parts.step, dtype) & _halves(parts.divisor)
    return exact_where(right, rounded(expected, kept, error + relative * np.abs(expected)))


def _gradient_bound(
    given: Arguments, data: Data, target: Destination, expected: Array, alpha: float, upstream: Array
) -> Array:
    """Slopes, times what reaches the loss over the divisor, blended with what is there."""
    parts, kept = _parts(data), accumulator(data.dtype)
    if parts.divisor == 0:
        return blended(expected, data.dtype, alpha=alpha, beta=given.beta, old=_old(target))
    factor = upstream / parts.divisor
    relative = parts.divisor_error + scaled_unit(data.dtype, 4.0)
    error = parts.slope_errors * np.abs(factor) + relative * np.abs(parts.slopes * factor) + ulp(0.0, kept)
    limit = blended(expected, data.dtype, error, alpha=alpha, beta=given.beta, old=_old(target))
    right = exact_sums(parts.sizes if parts.sizes.shape == parts.slopes.shape else 0.0, parts.step, data.dtype)
    step = lowest_bit(parts.slopes) * lowest_bit(factor)
    right = right & given.exactly(target, expected, parts.slopes * factor, step, alpha=alpha)
    return exact_where(right & _halves(parts.divisor), limit)


def _old(target: Destination) -> Any:
    return 0.0 if target.old is None else wide(target.old)


def into_loss(given: Arguments) -> dict[str, Destination]:
    data = Data.of(given)
    return {"out": Destination(data.result_shape, accumulator(data.dtype))}


def bound_forward(given: Arguments, expected: list[Array]) -> list[Array]:
    return [_loss_bound(Data.of(given), expected[0])]


def into_prediction(given: Arguments) -> dict[str, Destination]:
    x = given["prediction"]
    return {"out": given.destination("out", x.shape, x.dtype.name, in_place="prediction")}


def bound_backward(given: Arguments, expected: list[Array]) -> list[Array]:
    data, dloss = Data.of(given), given["dloss"]
    upstream = np.ones(()) if dloss is None else wide(dloss)
    if upstream.ndim and data.loss.kind in ROW_KINDS:
        upstream = np.expand_dims(upstream, data.axis)
    return [_gradient_bound(given, data, into_prediction(given)["out"], expected[0], given.alpha, upstream)]


def into_both(given: Arguments) -> dict[str, Destination]:
    """Loss and gradient, of which the latter may replace the prediction."""
    data = Data.of(given)
    gradient = Destination(data.prediction.shape, data.dtype, in_place="prediction")
    return {"out": Destination(data.result_shape, accumulator(data.dtype)), "dprediction": gradient}


def bound_both(given: Arguments, expected: list[Array]) -> list[Array]:
    """As the two alone; `scale` counts for the gradient."""
    data, (value, gradient) = Data.of(given), expected
    target, scale = into_both(given)["dprediction"], float(given["scale"])
    return [_loss_bound(data, value), _gradient_bound(given, data, target, gradient, scale, np.ones(()))]


def described(given: Arguments) -> dict[str, Any]:
    return {"loss": as_loss(given["loss"], given.op)}
