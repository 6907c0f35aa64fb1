"""Where results of convolutions go, and how far from the reference they may lie."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ...descriptors import ActivationDescriptor
from ...reference import activation as elementwise
from ...reference import convolution as reference
from ..activation import narrowed
from ..bounds import (
    carried,
    exact_sums,
    function_error,
    grid,
    lowest_bit,
    representable,
    rounded,
    scaled_unit,
    sum_bound,
    sum_error,
    tf32_error,
    ulp,
)
from ..bounds.formats import accumulator
from ..calls import Arguments, Array, Destination, wide
from .operands import laid_out


def _products_error(given: Arguments, terms: int, absolute: Array, dtype: str) -> Array:
    """Error of sums of products; the math mode ``tf32`` says that float32 factors may be rounded first."""
    error = sum_error(terms, absolute, dtype)
    return error + tf32_error(absolute) if given.math == "tf32" and dtype == "float32" else error


def _keeps_factors(given: Arguments, *factors: Array) -> bool:
    """Whether TF32 leaves the factors as they are, where it is allowed."""
    if given.math != "tf32" or given["w" if "w" in given.values else "dy"].dtype.name != "float32":
        return True
    return all(bool(np.all(representable(factor, "tf32"))) for factor in factors)


# -- forward ----------------------------------------------------------------------------------------------------------


def into_forward(given: Arguments) -> dict[str, Destination]:
    """The result may take the place of what is added to it."""
    place = "residual" if given["residual"] is not None else ""
    shape, dtype = _result_shape(given["conv"], given["x"], given["w"]), given["x"].dtype.name
    places = {"out": given.destination("out", shape, dtype, in_place=place)}
    if given["with_sums"]:
        places["sums"] = given.destination("sums", (2, given["w"].shape[0]), accumulator(dtype), blends=False)
    return places


def _result_shape(conv: Any, x: Array, w: Array) -> tuple[int, ...]:
    (batch, _, *image), (filters, _, *taps) = _in_front(conv, x.shape), _in_front(conv, w.shape)
    return laid_out(conv, (batch, filters, *reference.output_extents(conv, image, taps)))


def _in_front(conv: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[-1], *shape[1:-1]) if conv.channels_last else shape


@dataclass
class _Running:
    """A value that operations are made on, and what is known of it.

    Attributes
    ----------
    value : array
        In float64.
    size : array
        Sum of the sizes of its terms as they are rounded.
    absolute, step : array, float
        Sum of the sizes of all its terms, the sums' own ones included, and what divides them all.
    error : array
        Of its terms.
    roundings : int
        Operations that a term may have been through.
    exact : array or bool
        Where nothing has been rounded yet.
    """

    value: Array
    size: Array
    absolute: Array
    step: float
    error: Array
    roundings: int
    exact: Any

    def times(self, factor: Any, roundings: int = 1) -> None:
        """One product."""
        finest = float(np.min(lowest_bit(factor), initial=np.inf))
        self.value, self.step = self.value * factor, self.step * finest
        self.size, self.absolute, self.error = (np.abs(factor) * a for a in (self.size, self.absolute, self.error))
        self.roundings += roundings

    def plus(self, term: Array, step: float, roundings: int = 1) -> None:
        """One sum."""
        self.value, self.step = self.value + term, min(self.step, step)
        self.size, self.absolute = self.size + np.abs(term), self.absolute + np.abs(term)
        self.roundings += roundings

    def settle(self, dtype: str) -> None:
        """Note whether what there is now is exact."""
        self.exact = self.exact & exact_sums(self.absolute, self.step, dtype)


def bound_forward(given: Arguments, expected: list[Array]) -> list[Array]:
    """A sum of products, the operations that follow it, an activation, and a blend; one rounding to storage."""
    dtype, target = given["x"].dtype.name, into_forward(given)["out"]
    z = _before_activation(given, dtype)
    more = scaled_unit(dtype, z.roundings + 1.0) * z.size + z.roundings * ulp(0.0, accumulator(dtype))
    error, mode = z.error + (more if z.roundings else 0.0), mode_of(given)
    if mode is not None:
        value = elementwise.activation_forward(mode, z.value)
        with np.errstate(all="ignore"):
            beside = [elementwise.activation_forward(mode, z.value + shift) for shift in (error, -error)]
        error = carried(value, beside, error) + function_error(value, dtype)
    limit = given.blended(target, expected[0], error)
    if mode is None or mode.mode == "relu":
        limit = np.where(z.exact & given.exactly(target, expected[0], z.absolute, z.step), 0.0, limit)
    if not given["with_sums"]:
        return [limit]
    return [limit, _bound_sums(given["conv"], expected[0], expected[1], limit, dtype)]


def _bound_sums(conv: Any, y: Array, sums: Array, limit: Array, dtype: str) -> Array:
    """Of the sums of a result that errs by `limit`, and of its squares."""
    across = tuple(axis for axis in range(y.ndim) if axis != (y.ndim - 1 if conv.channels_last else 1))
    most, terms = np.abs(y) + limit, prod(y.shape[axis] for axis in across)
    sizes = np.stack([most.sum(axis=across), np.square(most).sum(axis=across)])
    errors = np.stack([limit.sum(axis=across), (limit * (2.0 * np.abs(y) + limit)).sum(axis=across)])
    exact = exact_sums(sizes, np.array([[grid(y)], [grid(y) ** 2]]), dtype) & (errors == 0.0)
    return np.where(exact, 0.0, errors + sum_bound(terms, sizes, dtype, np.abs(sums) + errors, accumulator(dtype)))


def _before_activation(given: Arguments, dtype: str) -> _Running:
    conv, x, w = given["conv"], wide(given["x"]), wide(given["w"])
    absolute = reference.conv_forward(conv, np.abs(x), np.abs(w))
    value, error = reference.conv_forward(conv, x, w), _products_error(given, prod(w.shape[1:]), absolute, dtype)
    z = _Running(value, np.abs(value), absolute, grid(x) * grid(w), error, 0, _keeps_factors(given, x, w))
    z.settle(dtype)
    if given["alpha1"] != 1.0:
        z.times(given["alpha1"])
        z.settle(dtype)
    for name in ("b", "scale", "shift"):
        if given[name] is not None:
            values = _by_channel(conv, wide(given[name]), x.ndim)
            if name == "scale":
                z.times(values)
            else:
                z.plus(values, grid(values))
            z.settle(dtype)
    if given["residual"] is not None:
        term = given["alpha2"] * wide(given["residual"])
        z.plus(term, float(lowest_bit(given["alpha2"])) * grid(given["residual"]), roundings=2)
        z.settle(dtype)
    return z


def _by_channel(conv: Any, values: Array, ndim: int) -> Array:
    return values if conv.channels_last else values.reshape(-1, *(1,) * (ndim - 2))


def mode_of(given: Arguments) -> ActivationDescriptor | None:
    """The activation, its parameters as the accumulator holds them; None where there is none."""
    mode = narrowed(given["activation"], given["x"].dtype.name)
    return None if mode.mode == "identity" else mode


def exact_reference(given: Arguments) -> dict[str, Any]:
    """The activation as the kernels have it."""
    return {"activation": mode_of(given)}


# -- gradients --------------------------------------------------------------------------------------------------------


def into_gradient(given: Arguments) -> dict[str, Destination]:
    """The one result of `conv_backward_data`, `conv_backward_filter` or `conv_backward_bias`."""
    dy = given["dy"]
    described = given.values.get("x_descriptor", given.values.get("w_descriptor"))
    shape = (_in_front(given["conv"], dy.shape)[1],) if described is None else described.shape
    return {"out": given.destination("out", shape, dy.dtype.name)}


def bound_gradient(given: Arguments, expected: list[Array]) -> list[Array]:
    """Sums of products, or of the elements of dy."""
    target, conv, dy = into_gradient(given)["out"], given["conv"], wide(given["dy"])
    if given.op == "conv_backward_data":
        w = wide(given["w"])
        return [_gathered(given, target, expected[0], (dy, w), given["x_descriptor"].shape, None)]
    x = wide(given["x"]) if given.op == "conv_backward_filter" else None
    return [_collected(given, target, expected[0], conv, dy, x)]


@dataclass(frozen=True)
class _Shaped:
    """Stands for a descriptor."""

    shape: tuple[int, ...]


def _gathered(
    given: Arguments, target: Destination, ideal: Array, factors: tuple[Array, Array], shape: Any, b: Array | None
) -> Array:
    """Bound of a gradient in data: of each filter of a group as many products as it has taps."""
    conv, (dy, w) = given["conv"], factors
    absolute = reference.conv_backward_data(conv, np.abs(dy), np.abs(w), x_descriptor=_Shaped(tuple(shape)))
    terms, step = w.shape[0] // conv.groups * prod(_in_front(conv, w.shape)[2:]), grid(dy) * grid(w)
    if b is not None:
        absolute, terms, step = absolute + np.abs(_by_channel(conv, b, dy.ndim)), terms + 1, min(step, grid(b))
    return _of_sum(given, target, ideal, terms, (absolute, step), factors)


def _collected(given: Arguments, target: Destination, ideal: Array, conv: Any, dy: Array, x: Array | None) -> Array:
    """Bound of a gradient in filters, or in the bias where there is no x: a term for each position of each image."""
    batch, _, *positions = _in_front(conv, dy.shape)
    if x is None:
        absolute, step = reference.conv_backward_bias(conv, np.abs(dy)), grid(dy)
    else:
        shaped, step = _Shaped(ideal.shape), grid(dy) * grid(x)
        absolute = reference.conv_backward_filter(conv, np.abs(dy), np.abs(x), w_descriptor=shaped)
    factors = () if x is None else (dy, x)
    return _of_sum(given, target, ideal, batch * prod(positions), (absolute, step), factors)


def _of_sum(
    given: Arguments,
    target: Destination,
    ideal: Array,
    terms: int,
    sizes: tuple[Array, float],
    factors: tuple[Array, ...],
) -> Array:
    """Bound of sums whose terms have these sizes and are multiples of a step; of products where there are factors."""
    absolute, step = sizes
    error, right = sum_error(terms, absolute, target.dtype), given.exactly(target, ideal, absolute, step)
    if factors:
        error = _products_error(given, terms, absolute, target.dtype)
        right = right & _keeps_factors(given, *factors)
    return np.where(right, 0.0, given.blended(target, ideal, error))


# -- transposed -------------------------------------------------------------------------------------------------------


def into_transposed(given: Arguments) -> dict[str, Destination]:
    """The image whose convolution has x's shape."""
    conv, x = given["conv"], given["x"]
    shape = reference.conv_transpose_forward(conv, x, given["w"], output_padding=given["output_padding"]).shape
    return {"out": given.destination("out", shape, x.dtype.name)}


def bound_transposed(given: Arguments, expected: list[Array]) -> list[Array]:
    """As a gradient in data, with a bias."""
    b = None if given["b"] is None else wide(given["b"])
    factors = wide(given["x"]), wide(given["w"])
    return [_gathered(given, into_transposed(given)["out"], expected[0], factors, expected[0].shape, b)]


def into_transposed_gradients(given: Arguments) -> dict[str, Destination]:
    """dx is never blended."""
    conv, dy, dtype = given["conv"], given["dy"], given["dy"].dtype.name
    places = {
        "dx": given.destination("dx", given["x"].shape, dtype, blends=False),
        "dw": given.destination("dw", given["w"].shape, dtype),
        "db": given.destination("db", (_in_front(conv, dy.shape)[1],), dtype),
    }
    return {name: place for name, place in places.items() if name in given["needs"]}


def bound_transposed_gradients(given: Arguments, expected: list[Array]) -> list[Array]:
    """A convolution, a gradient in filters whose image is dy, and sums of dy."""
    conv, dy, x, w = given["conv"], wide(given["dy"]), wide(given["x"]), wide(given["w"])
    limits = []
    for (name, target), ideal in zip(into_transposed_gradients(given).items(), expected, strict=True):
        if name == "dx":
            absolute = reference.conv_forward(conv, np.abs(dy), np.abs(w))
            error = _products_error(given, prod(w.shape[1:]), absolute, target.dtype)
            right = given.exactly(target, ideal, absolute, grid(dy) * grid(w)) & _keeps_factors(given, dy, w)
            limits.append(np.where(right, 0.0, rounded(ideal, target.dtype, error)))
        else:
            limits.append(_collected(given, target, ideal, conv, *((x, dy) if name == "dw" else (dy, None))))
    return limits
