"""How far batch norms and their gradients may lie from the reference."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ...descriptors import as_activation
from ...reference.batchnorm import clamp_limits, spread, statistics_axes
from ..bounds import (
    accumulator,
    averaged_error,
    exact_sums,
    exact_where,
    grid,
    inverse_root_error,
    lowest_bit,
    moments_errors,
    product_error,
    representable,
    rounded,
    scaled_unit,
    sum_error,
    ulp,
)
from ..calls import Arguments, Array, as_dtype, wide


def bound_training(given: Arguments, expected: list[Array]) -> list[Array]:
    """Errors of the moments, carried through the root and into every element."""
    norm, x, dtype = given["norm"], wide(given["x"]), given["x"].dtype.name
    axes, shape, kind = statistics_axes(norm, x.ndim), given["gamma"].shape, accumulator(dtype)
    count = prod(x.shape[axis] for axis in axes)
    mean, variance, mean_error, variance_error = moments_errors(x, axes, dtype)
    rstd, rstd_error = inverse_root_error(variance, variance_error, _epsilon(given), dtype)
    limits = [
        _normalised(given, expected[0], (mean, mean_error), (rstd, rstd_error)),
        rounded(mean.reshape(shape), kind, mean_error.reshape(shape)) * (mean_error.reshape(shape) > 0),
        rounded(rstd.reshape(shape), kind, rstd_error.reshape(shape)),
    ]
    for name, value, error in (("running_mean", mean, mean_error), ("running_variance", variance, variance_error)):
        if given[name] is None:
            continue
        factor, value, error = given["exponential_average_factor"], value.reshape(shape), error.reshape(shape)
        if name == "running_variance" and norm.running_variance == "unbiased" and count > 1:
            value, error = (one * count / (count - 1) for one in (value, error))
        old = np.zeros(shape) if factor == 1.0 else wide(given[name])
        moved = averaged_error(old, value, error + scaled_unit(dtype, 2.0) * np.abs(value), factor, dtype)
        limits.append(exact_where(count == 0 or factor == 0.0, rounded(expected[len(limits)], kind, moved)))
    return limits


def bound_inference(given: Arguments, expected: list[Array]) -> list[Array]:
    """As with statistics that are right, but for the root."""
    variance, ndim = wide(given["running_variance"]), given["x"].ndim
    dtype, epsilon = given["x"].dtype.name, _epsilon(given)
    rstd, error = inverse_root_error(variance, 0.0, epsilon, dtype)
    # A variance and an epsilon whose root is short: nothing of it is rounded.
    exactly = exact_sums(variance + epsilon, np.minimum(lowest_bit(variance), lowest_bit(epsilon)), dtype)
    exactly &= (rstd * rstd * (variance + epsilon) == 1.0) & representable(rstd, accumulator(dtype))
    error = exact_where(exactly, error)
    mean, rstd, error = (spread(given["norm"], one, ndim) for one in (given["running_mean"], rstd, error))
    return [_normalised(given, expected[0], (mean, np.zeros(mean.shape)), (rstd, error))]


def _epsilon(given: Arguments) -> float:
    return float(wide(as_dtype(given["norm"].epsilon, given["gamma"].dtype.name)))


def _normalised(given: Arguments, expected: Array, mean: tuple[Array, Array], rstd: tuple[Array, Array]) -> Array:
    """Act((x - mean) rstd gamma + beta + residual): a difference, products and sums; to clamp adds nothing."""
    norm, x, dtype = given["norm"], wide(given["x"]), given["x"].dtype.name
    gamma, beta = (spread(norm, given[name], x.ndim) for name in ("gamma", "beta"))
    residual = 0.0 if given["residual"] is None else wide(given["residual"])
    with np.errstate(all="ignore"):
        apart = x - mean[0]
        apart_error = mean[1] + scaled_unit(dtype, 1.0) * np.abs(apart)
        sizes = np.abs(apart * rstd[0] * gamma) + np.abs(beta) + np.abs(residual)
        error = product_error([(apart, apart_error), rstd, (gamma, 0.0)], dtype) + scaled_unit(dtype, 4.0) * sizes
        finest = np.minimum(lowest_bit(x), lowest_bit(mean[0])) * lowest_bit(rstd[0]) * lowest_bit(gamma)
        finest = np.minimum(np.minimum(finest, lowest_bit(beta)), lowest_bit(residual))
        terms = (np.abs(x) + np.abs(mean[0])) * np.abs(rstd[0] * gamma) + np.abs(beta) + np.abs(residual)
    # Equal elements leave beta and the residual alone, whatever the root is.
    alone = (
        (apart == 0)
        & (mean[1] == 0)
        & exact_sums(np.abs(beta) + np.abs(residual), np.minimum(lowest_bit(beta), lowest_bit(residual)), dtype)
    )
    exactly = ((mean[1] == 0) & (rstd[1] == 0) & exact_sums(terms, finest, dtype)) | alone
    error = exact_where(exactly, error)
    return exact_where(exactly & representable(expected, dtype), rounded(expected, dtype, error))


def bound_backward(given: Arguments, expected: list[Array]) -> list[Array]:
    """Sums of dz and of dz (x - mean), then three terms; dz jumps where z cannot be told from a kink."""
    norm, x, dtype = given["norm"], wide(given["x"]), given["x"].dtype.name
    axes, kind = statistics_axes(norm, x.ndim), accumulator(dtype)
    count = max(prod(x.shape[axis] for axis in axes), 1)
    gamma, mean, rstd = (spread(norm, given[name], x.ndim) for name in ("gamma", "mean", "rstd"))
    scale, apart, unit = rstd * gamma, x - mean, scaled_unit(dtype, 1.0)
    with np.errstate(all="ignore"):
        dz, dz_error, finest = _through(given, apart, scale)
        sums = [
            _sum(dz, dz_error, finest, axes, dtype),
            _sum(
                dz * apart, dz_error * np.abs(apart) + 2.0 * unit * np.abs(dz * apart),
                finest * grid(x, mean), axes, dtype,
            ),
        ]  # fmt: skip
        (total, total_error), (product, product_sum_error) = sums
        dgamma, dgamma_error = rstd * product, np.abs(rstd) * product_sum_error + unit * np.abs(rstd * product)
        constant, linear = total / count, rstd * dgamma / count
        sizes = np.abs(dz) + np.abs(constant) + np.abs(apart * linear)
        error = dz_error + total_error / count + np.abs(apart * rstd) * dgamma_error / count + 6.0 * unit * sizes
        if "dresidual" in given["needs"]:  # dx takes dz as it is stored there
            error = error + (0.5 * ulp(np.abs(dz) + dz_error, dtype) if dtype != kind else 0.0)
        dx_error = np.abs(scale) * error + 3.0 * unit * np.abs(scale) * sizes
        exactly = _exact_gradients(given, dz, dz_error, finest, apart, sums, count)
    shape = given["gamma"].shape
    whole = representable(dgamma, kind) & (product_sum_error == 0)
    limits = {
        "dx": lambda ideal: exact_where(exactly & representable(ideal, dtype), rounded(ideal, dtype, dx_error)),
        "dgamma": lambda ideal: exact_where(whole.reshape(shape), rounded(ideal, kind, dgamma_error.reshape(shape))),
        "dbeta": lambda ideal: exact_where(
            ((total_error == 0) & representable(total, kind)).reshape(shape),
            rounded(ideal, kind, total_error.reshape(shape)),
        ),
        "dresidual": lambda ideal: exact_where(
            (dz_error == 0) & representable(ideal, dtype), rounded(ideal, dtype, dz_error)
        ),
    }
    wanted = [name for name in limits if name in given["needs"]]
    return [limits[name](ideal) for name, ideal in zip(wanted, expected, strict=True)]


def _sum(terms: Array, error: Array, step: float, axes: tuple[int, ...], dtype: str) -> tuple[Array, Array]:
    """A sum along some axes and its error, 0 where its terms lie on one grid and are few enough."""
    absolute = np.abs(terms).sum(axes, keepdims=True)
    count = prod(terms.shape[axis] for axis in axes)
    inherited = error.sum(axes, keepdims=True)
    exactly = exact_sums(absolute, step, dtype)
    return terms.sum(axes, keepdims=True), exact_where(exactly, inherited + sum_error(count, absolute, dtype))


def _through(given: Arguments, apart: Array, scale: Array) -> tuple[Array, Array, float]:
    """Dz, its error and the step of which it is a multiple."""
    dy, mode, dtype = wide(given["dy"]), as_activation(given["activation"], given.op), given["x"].dtype.name
    if mode.mode == "identity":
        return dy, np.zeros(dy.shape), grid(dy)
    low, high = (float(wide(as_dtype(limit, given["gamma"].dtype.name))) for limit in clamp_limits(mode))
    if given["y"] is not None:
        low, high = (float(wide(as_dtype(limit, dtype))) for limit in (low, high))
        y = wide(given["y"])
        return np.where((y <= low) | (y >= high), 0.0, dy), np.zeros(dy.shape), grid(dy)
    x, beta = wide(given["x"]), spread(given["norm"], given["beta"], apart.ndim)
    z, sizes = apart * scale + beta, (np.abs(x) + np.abs(apart - x)) * np.abs(scale) + np.abs(beta)
    step = min(grid(x, wide(given["mean"])) * grid(scale), grid(beta))
    reach = exact_where(
        exact_sums(sizes, step, dtype), scaled_unit(dtype, 4.0) * (np.abs(apart * scale) + np.abs(beta))
    )
    near = (reach > 0) & ((np.abs(z - low) <= reach) | (np.abs(z - high) <= reach))
    return np.where((z <= low) | (z >= high), 0.0, dy), np.where(near, np.abs(dy), 0.0), grid(dy)


def _exact_gradients(
    given: Arguments, dz: Array, dz_error: Array, step: float, apart: Array, sums: Any, count: int
) -> Array:
    """Where dx is exact: counts of a power of two, and every term on one grid."""
    (total, total_error), (product, product_error_) = sums
    dtype, ndim = given["x"].dtype.name, given["x"].ndim
    rstd, gamma = (spread(given["norm"], given[name], ndim) for name in ("rstd", "gamma"))
    linear = rstd * rstd * product / count
    finest = min(step, step / count, grid(apart) * grid(linear))
    sizes = np.abs(dz) + np.abs(total / count) + np.abs(apart * linear)
    right = exact_sums(sizes, finest, dtype) & exact_sums(
        sizes * np.abs(rstd * gamma), finest * grid(rstd * gamma), dtype
    )
    known = (total_error == 0) & (product_error_ == 0) & (dz_error == 0)
    stored = representable(dz, dtype) if "dresidual" in given["needs"] else True
    return np.asarray(right & known & stored & (count & (count - 1) == 0))
