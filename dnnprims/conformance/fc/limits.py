"""Where results of fully connected layers go, and how far from the reference they may lie."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...descriptors import ActivationDescriptor
from ...reference import activation as elementwise
from ...reference import fc as reference
from ..activation import narrowed
from ..bounds import (
    DERIVATIVE_ULP,
    carried,
    early_rounding,
    exact_sums,
    function_error,
    grid,
    library_gelu_error,
    product_error,
    representable,
    rounded,
    slope_size,
    sum_error,
    tf32_error,
)
from ..calls import Arguments, Array, Destination, wide


def _rows(a: Array) -> Array:
    return a.reshape(int(np.prod(a.shape[:-1])), a.shape[-1])


def into_rows(given: Arguments) -> dict[str, Destination]:
    x, w = given["x"], given["w"]
    return {"out": given.destination("out", (*x.shape[:-1], w.shape[0]), x.dtype.name)}


def bound_forward(given: Arguments, expected: list[Array]) -> list[Array]:
    """A sum of k products and a bias; z is rounded before an activation, or the blend of a biased product, follows."""
    x, w, dtype, target = wide(given["x"]), wide(given["w"]), given["x"].dtype.name, into_rows(given)["out"]
    bias = 0.0 if given["b"] is None else wide(given["b"])
    z, mode = x @ w.T + bias, _mode(given)
    absolute = np.abs(x) @ np.abs(w).T + np.abs(bias)
    z_error = _product_error(given, x.shape[-1] + 1, absolute)
    if given["b"] is not None or given.beta:
        z_error = z_error + early_rounding(z - bias, dtype)
    error, scaled = z_error, given.alpha != 1.0 or given.beta != 0.0
    if mode is not None or (given["b"] is not None and scaled):
        error = rounded(z, dtype, z_error)
    if mode is not None:
        value = elementwise.activation_forward(mode, z)
        with np.errstate(all="ignore"):
            beside = [elementwise.activation_forward(mode, z + shift) for shift in (error, -error)]
        error = carried(value, beside, error) + function_error(value, dtype)
        if mode.mode == "gelu_tanh":
            error = error + library_gelu_error(z, dtype)
    limits = [given.blended(target, expected[0], error)]
    if given["aux"] is not None:
        limits.append(rounded(expected[1], dtype, z_error))
    if _keeps_numbers(given):
        step = min(grid(x) * grid(w), grid(bias))
        right = _exact_factors(given, x, w) & exact_sums(absolute, step, dtype)
        for stored in (z - bias, z, given.alpha * z):  # wherever a library rounds it
            right = right & representable(stored, dtype)
        blends = right & given.exactly(target, expected[0], absolute, step)
        limits = [np.where(mask, 0.0, limit) for mask, limit in zip((blends, right), limits, strict=False)]
    return limits


def into_product(given: Arguments) -> dict[str, Destination]:
    dy = given["dy"]
    if given.op == "fc_backward_data":
        shape = (*dy.shape[:-1], given["w"].shape[1])
    else:
        shape = dy.shape[-1:] if given.op == "fc_backward_bias" else (dy.shape[-1], given["x"].shape[-1])
    return {"out": given.destination("out", shape, dy.dtype.name)}


def bound_product(given: Arguments, expected: list[Array]) -> list[Array]:
    """A sum of n products, or of a product or term for each row."""
    dy, target = wide(given["dy"]), into_product(given)["out"]
    if given.op == "fc_backward_data":
        first, second = dy, wide(given["w"])
    else:
        first = _rows(dy).T
        second = np.ones((first.shape[1], 1)) if given.op == "fc_backward_bias" else _rows(wide(given["x"]))
    absolute = (np.abs(first) @ np.abs(second)).reshape(expected[0].shape)
    error = _product_error(given, first.shape[-1], absolute)
    if given.op != "fc_backward_bias":
        error = error + _early(given, target, expected[0])
    right = _exact_product(given, target, expected[0], first, second)
    return [np.where(right, 0.0, given.blended(target, expected[0], error))]


def _exact_factors(given: Arguments, *factors: Array) -> bool:
    """Whether TF32 leaves the factors as they are, where it is allowed."""
    return given.math != "tf32" or all(bool(np.all(representable(factor, "tf32"))) for factor in factors)


def _exact_product(given: Arguments, target: Destination, expected: Array, first: Array, second: Array) -> Array:
    """Where a blended product is exact, also where the product is stored before the old value is added to it."""
    absolute = (np.abs(first) @ np.abs(second)).reshape(expected.shape)
    right = given.exactly(target, expected, absolute, grid(first) * grid(second))
    product = expected if target.old is None else expected - given.beta * wide(target.old)
    return right & representable(product, target.dtype) & _exact_factors(given, first, second)


def _product_error(given: Arguments, terms: int, absolute: Array) -> Array:
    """Error of sums of products; the math mode ``tf32`` says that float32 factors may be rounded first."""
    dtype = given[next(iter(given.values))].dtype.name
    error = sum_error(terms, absolute, dtype)
    return error + tf32_error(absolute) if given.math == "tf32" and dtype == "float32" else error


def _early(given: Arguments, target: Destination, expected: Array) -> Array:
    """Error of storing a product before the old value is added to it."""
    if target.old is None:
        return np.zeros(())
    return early_rounding(expected - given.beta * wide(target.old), target.dtype)


def into_gradients(given: Arguments) -> dict[str, Destination]:
    """dx is never blended."""
    x, w, dtype = given["x"], given["w"], given["dy"].dtype.name
    places = {
        "dx": given.destination("dx", x.shape, dtype, blends=False),
        "dw": given.destination("dw", w.shape, dtype),
        "db": given.destination("db", w.shape[:1], dtype),
    }
    return {name: place for name, place in places.items() if name in given["needs"]}


def bound_backward(given: Arguments, expected: list[Array]) -> list[Array]:
    """dz errs by the derivative and one rounding; dx and dw carry that on, db is summed from the unrounded dz."""
    dtype = given["dy"].dtype.name
    dz, error = _before_activation(given)
    rounding = np.zeros(dz.shape) if _mode(given) is None else rounded(dz, dtype, error)
    factors = {
        "dx": (dz, rounding, wide(given["w"])),
        "dw": (_rows(dz).T, _rows(rounding).T, _rows(wide(given["x"]))),
        "db": (_rows(dz).T, _rows(error).T, np.ones((_rows(dz).shape[0], 1))),
    }
    limits = []
    for (name, target), ideal in zip(into_gradients(given).items(), expected, strict=True):
        limit = _through(given, *factors[name]).reshape(ideal.shape)
        if name == "dw":
            limit = limit + _early(given, target, ideal)
        limit = rounded(ideal, dtype, limit) if name == "dx" else given.blended(target, ideal, limit)
        right = _keeps_numbers(given) & _exact_product(given, target, ideal, factors[name][0], factors[name][2])
        limits.append(np.where(right, 0.0, limit))
    return limits


def _through(given: Arguments, dz: Array, dz_error: Array, other: Array) -> Array:
    """Error of a product with dz: that of its sums, and what it carries on."""
    other = np.abs(other)
    return np.asarray(_product_error(given, dz.shape[-1], np.abs(dz) @ other) + dz_error @ other)


def _mode(given: Arguments) -> ActivationDescriptor | None:
    """The activation, its parameters as the accumulator holds them; None where there is none."""
    mode = narrowed(given["activation"], given.values.get("dy", given["x"]).dtype.name)
    return None if mode.mode == "identity" else mode


def _keeps_numbers(given: Arguments) -> bool:
    """Whether the derivative of the activation is 0 or 1."""
    mode = _mode(given)
    return mode is None or mode.mode == "relu"


def exact_reference(given: Arguments) -> dict[str, Any]:
    return {"activation": _mode(given)}


def _before_activation(given: Arguments) -> tuple[Array, Array]:
    """dz and its error."""
    dy, mode, dtype = wide(given["dy"]), _mode(given), given["dy"].dtype.name
    if mode is None:
        return dy, np.zeros(dy.shape)
    from_input = reference.backward_needs(mode) == ("aux",)
    saved: dict[str, Any] = {"x": wide(given["aux"])} if from_input else {"y": wide(given["y"])}
    slope = elementwise.activation_backward(mode, np.ones(dy.shape), **saved)
    size = slope_size(slope, saved["x"], dtype) if from_input else slope
    error = function_error(size, dtype, DERIVATIVE_ULP, saved.get("x"))
    return dy * slope, product_error([(dy, 0.0), (slope, error)], dtype)
