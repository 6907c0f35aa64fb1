"""Batch normalisation in NumPy: y = act(gamma (x - mean) rstd + beta + residual), and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import activation as elementwise
from .rounding import Array, finish, round_to, widen


def batchnorm_forward_training(
    norm: Any,
    x: Any,
    gamma: Any,
    beta: Any,
    *,
    activation: Any = None,
    residual: Any = None,
    running_mean: Array | None = None,
    running_variance: Array | None = None,
    exponential_average_factor: float = 0.1,
    out: Array | None = None,
    mean: Array | None = None,
    rstd: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Statistics in two passes: the mean, then the mean square of the deviations from it.

    running = (1 - factor) * running + factor * new, of the mean and of the variance.
    """
    axes, shape = statistics_axes(norm, x.ndim), gamma.shape
    count = prod(x.shape[axis] for axis in axes)
    with np.errstate(all="ignore"):
        centre, squares = _moments(widen(x), axes)
        variance = squares / max(count, 1)
        inverse = 1.0 / np.sqrt(variance + _narrowed(norm.epsilon, x.dtype))
        y = _normalised(norm, x, centre, inverse, gamma, beta, activation, residual)
        if count:
            divisor = max(count - 1, 1) if norm.running_variance == "unbiased" else count
            _average(running_mean, centre.reshape(shape), exponential_average_factor)
            _average(running_variance, (squares / divisor).reshape(shape), exponential_average_factor)
    mean = finish(centre.reshape(shape), gamma.dtype, out=mean)
    return finish(y, x.dtype, out=out), mean, finish(inverse.reshape(shape), gamma.dtype, out=rstd)


def batchnorm_forward_inference(
    norm: Any,
    x: Any,
    gamma: Any,
    beta: Any,
    running_mean: Any,
    running_variance: Any,
    *,
    activation: Any = None,
    residual: Any = None,
    out: Array | None = None,
) -> Array:
    """The same with statistics that are given."""
    with np.errstate(all="ignore"):
        inverse = 1.0 / np.sqrt(widen(running_variance) + _narrowed(norm.epsilon, x.dtype))
        y = _normalised(norm, x, widen(running_mean), inverse, gamma, beta, activation, residual)
    return finish(y, x.dtype, out=out)


def batchnorm_backward(
    norm: Any,
    dy: Any,
    x: Any,
    gamma: Any,
    mean: Any,
    rstd: Any,
    *,
    activation: Any = None,
    beta: Any = None,
    y: Any = None,
    needs: Sequence[str] = ("dx", "dgamma", "dbeta"),
    dx: Array | None = None,
    dgamma: Array | None = None,
    dbeta: Array | None = None,
    dresidual: Array | None = None,
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """The chain rule through mean and variance, both of which depend on every x of the channel.

    dz = dy act'(z); with h = (x - mean) rstd, dx = gamma rstd (dz - mean(dz) - h mean(dz h)).
    """
    axes = statistics_axes(norm, x.ndim)
    count = max(prod(x.shape[axis] for axis in axes), 1)
    scale, centre, inverse = (spread(norm, value, x.ndim) for value in (gamma, mean, rstd))
    with np.errstate(all="ignore"):
        apart = widen(x) - centre
        dz = _through(norm, activation, widen(dy), apart * inverse * scale, beta, y, x)
        sums = dz.sum(axes, keepdims=True), (dz * apart).sum(axes, keepdims=True) * inverse
        gradient = scale * inverse * (dz - sums[0] / count - apart * inverse * sums[1] / count)
    # dy may lie where dx or dresidual go: nothing is written before all is known.
    results = {
        "dx": (gradient, x.dtype, dx),
        "dgamma": (sums[1].reshape(gamma.shape), gamma.dtype, dgamma),
        "dbeta": (sums[0].reshape(gamma.shape), gamma.dtype, dbeta),
        "dresidual": (dz, x.dtype, dresidual),
    }
    made = {name: finish(value, kind, out=to) for name, (value, kind, to) in results.items() if name in needs}
    return made.get("dx"), made.get("dgamma"), made.get("dbeta"), made.get("dresidual")


def statistics_axes(norm: Any, ndim: int) -> tuple[int, ...]:
    """The axes over which a mean is taken."""
    if norm.mode == "per_activation":
        return (0,)
    return tuple(range(ndim - 1)) if norm.channels_last else (0, *range(2, ndim))


def spread(norm: Any, values: Any, ndim: int) -> Array:
    """Parameters in a shape that broadcasts over x."""
    wide = widen(values)
    if norm.mode == "per_activation":
        return wide[None]
    shape = [1] * ndim
    shape[-1 if norm.channels_last else 1] = -1
    return wide.reshape(shape)


def _moments(wide: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean and sum of squared deviations; of no elements both are 0. With a NaN or an infinity both are NaN."""
    count = prod(wide.shape[axis] for axis in axes)
    mean = wide.sum(axes, keepdims=True) / max(count, 1)
    squares = np.square(wide - mean).sum(axes, keepdims=True)
    return np.where(np.isnan(squares), squares, mean), squares


def _normalised(
    norm: Any, x: Any, mean: Array, rstd: Array, gamma: Any, beta: Any, activation: Any, residual: Any
) -> Array:
    centre, inverse = (a if a.ndim == x.ndim else spread(norm, a, x.ndim) for a in (mean, rstd))
    z = (widen(x) - centre) * inverse * spread(norm, gamma, x.ndim) + spread(norm, beta, x.ndim)
    z = z if residual is None else z + widen(residual)
    return z if activation is None else elementwise.activation_forward(_bent(activation, x.dtype), z)


def _through(norm: Any, activation: Any, dy: Array, scaled: Array, beta: Any, y: Any, x: Any) -> Array:
    """Dy where the activation lets it through, as y tells, or z computed once more. A NaN is on no kink."""
    if activation is None or activation.mode == "identity":
        return dy
    low, high = (_narrowed(limit, x.dtype) for limit in clamp_limits(activation))
    v = scaled + spread(norm, beta, x.ndim) if y is None else widen(y)
    if y is not None:
        low, high = (float(widen(round_to(limit, y.dtype))) for limit in (low, high))
    return np.where((v <= low) | (v >= high), 0.0, dy)


def clamp_limits(activation: Any) -> tuple[float, float]:
    """Where an activation that clamps has its kinks; NaN, which nothing reaches, where it has none."""
    given: dict[str, float] = dict(activation.parameters)
    low = 0.0 if activation.mode in ("relu", "clipped_relu") else given.get("low", float("nan"))
    return low, given.get("ceiling", given.get("high", float("nan")))


def _average(running: Array | None, new: Array, factor: float) -> None:
    """The old value is not read where the new one has all the weight."""
    if running is not None:
        old = 0.0 if factor == 1.0 else (1.0 - factor) * widen(running)
        running[...] = round_to(old + factor * new, running.dtype)


def _narrowed(value: float, dtype: Any) -> float:
    """A number as the accumulator of `dtype` holds it."""
    return float(value) if np.dtype(dtype) == np.float64 else float(np.float32(value))


def _bent(activation: Any, dtype: Any) -> Any:
    parameters = tuple((name, _narrowed(value, dtype)) for name, value in activation.parameters)
    return SimpleNamespace(mode=activation.mode, parameters=parameters)
