"""Cases of fully connected layers: exact integer products of every shape, then random ones under the bound of sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..descriptors import ActivationDescriptor
from ..reference import activation as elementwise
from ..reference import fc as reference
from .activation import narrowed
from .bounds import (
    ACTIVATION_SLOPE,
    DERIVATIVE_ULP,
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
from .cases import Arguments, Array, CaseFamily, Destination, Generator, Primitive, Problem, as_dtype, wide
from .drawing import draw_placing, old_out, pick, sample

#: Activations of the cases: those with a fused way, and some that follow the product.
_ACTIVATIONS = ("relu", "gelu_tanh", "gelu", "sigmoid", "tanh", "swish")

#: Primitive that is one product -> its operands, and what has the shape of its result.
_PRODUCTS = {
    "fc_backward_data": (("dy", "w"), "x"),
    "fc_backward_weights": (("dy", "x"), "w"),
    "fc_backward_bias": (("dy",), "b"),
}


def _activation(problem: Problem) -> ActivationDescriptor | None:
    word = problem.word("activation")
    return ActivationDescriptor(word) if word else None


def _sizes(problem: Problem) -> tuple[tuple[int, ...], int, int]:
    """Leading axes, inputs, outputs."""
    return problem.extents("rows", "1"), problem.integer("k", 1), problem.integer("n", 1)


def _rows(a: Array) -> Array:
    return a.reshape(int(np.prod(a.shape[:-1])), a.shape[-1])


def _draw_forward(problem: Problem, rng: Generator) -> dict[str, Any]:
    rows, k, n = _sizes(problem)
    x, w = sample(problem, rng, (*rows, k)), sample(problem, rng, (n, k))
    b = sample(problem, rng, (n,)) if problem.integer("bias", 1) else None
    arguments: dict[str, Any] = {"x": x, "w": w, "b": b, "activation": _activation(problem), **problem.scaling()}
    arguments |= old_out(problem, rng, (*rows, n))
    if problem.integer("aux"):
        arguments["aux"] = as_dtype(np.full((*rows, n), np.nan), problem.dtype)
    return arguments


def _into_rows(given: Arguments) -> dict[str, Destination]:
    x, w = given["x"], given["w"]
    return {"out": given.destination("out", (*x.shape[:-1], w.shape[0]), x.dtype.name)}


def _bound_forward(given: Arguments, expected: list[Array]) -> list[Array]:
    """A sum of k products and a bias; z is rounded before an activation, or the blend of a biased product, follows."""
    x, w, dtype, target = wide(given["x"]), wide(given["w"]), given["x"].dtype.name, _into_rows(given)["out"]
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
        error = ACTIVATION_SLOPE * error + function_error(value, dtype)
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


def _draw_product(problem: Problem, rng: Generator) -> dict[str, Any]:
    rows, k, n = _sizes(problem)
    shapes = {"dy": (*rows, n), "w": (n, k), "x": (*rows, k)}
    names, result = _PRODUCTS[problem.op]
    operands = {name: sample(problem, rng, shapes[name]) for name in names}
    return {**operands, **problem.scaling(), **old_out(problem, rng, shapes.get(result, (n,)))}


def _into_product(given: Arguments) -> dict[str, Destination]:
    dy = given["dy"]
    if given.op == "fc_backward_data":
        shape = (*dy.shape[:-1], given["w"].shape[1])
    else:
        shape = dy.shape[-1:] if given.op == "fc_backward_bias" else (dy.shape[-1], given["x"].shape[-1])
    return {"out": given.destination("out", shape, dy.dtype.name)}


def _bound_product(given: Arguments, expected: list[Array]) -> list[Array]:
    """A sum of n products, or of a product or term for each row."""
    dy, target = wide(given["dy"]), _into_product(given)["out"]
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


def _draw_backward(problem: Problem, rng: Generator) -> dict[str, Any]:
    rows, k, n = _sizes(problem)
    shapes = {"dy": (*rows, n), "x": (*rows, k), "w": (n, k)}
    operands: dict[str, Any] = {name: sample(problem, rng, shape) for name, shape in shapes.items()}
    mode, needs = _activation(problem), problem.names("needs", "dx,dw,db")
    z = sample(problem, rng, (*rows, n), scale=2.0)
    if mode is not None and reference.backward_needs(mode) == ("aux",):
        operands["aux"] = z
    elif mode is not None:
        operands["y"] = as_dtype(elementwise.activation_forward(mode, wide(z)), problem.dtype)
    for name, shape in (("dw", (n, k)), ("db", (n,))):
        operands |= old_out(problem, rng, shape, name=name) if name in needs else {}
    return {**operands, "activation": mode, "needs": needs, **problem.scaling()}


def _into_gradients(given: Arguments) -> dict[str, Destination]:
    """dx is never blended."""
    x, w, dtype = given["x"], given["w"], given["dy"].dtype.name
    places = {
        "dx": given.destination("dx", x.shape, dtype, blends=False),
        "dw": given.destination("dw", w.shape, dtype),
        "db": given.destination("db", w.shape[:1], dtype),
    }
    return {name: place for name, place in places.items() if name in given["needs"]}


def _bound_backward(given: Arguments, expected: list[Array]) -> list[Array]:
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
    for (name, target), ideal in zip(_into_gradients(given).items(), expected, strict=True):
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


def _exact_reference(given: Arguments) -> dict[str, Any]:
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


def draw(rng: Generator) -> str:
    """A random problem of moderate size."""
    rows, k, n = (int(np.exp(rng.uniform(0.0, np.log(70.0)))) for _ in range(3))
    words = f"rows={pick(rng, str(rows), f'2x{rows}')} k={k} n={n} data={pick(rng, 'normal', 'integers')}"
    op = pick(rng, "fc_forward", "fc_forward", *FAMILY.makers)
    activation = pick(rng, "", *(f"activation={mode}" for mode in _ACTIVATIONS))
    if op == "fc_forward":
        return f"{op} {words} {activation} bias={int(rng.integers(2))} {draw_placing(rng, in_place=False)}"
    if op == "fc_backward":
        beta = pick(rng, "", "beta=1.0")
        needs = pick(rng, "dx,dw,db", "dx,dw,db", "dw,db", "dx")
        place = draw_placing(rng, in_place=False, blend=False)
        return f"{op} {words} {activation} needs={needs} {beta if 'dw' in needs else ''} {place}"
    return f"{op} {words} {draw_placing(rng, in_place=False)}"


def _corners() -> tuple[str, ...]:
    lines = [
        "fc_forward rows=0 k=3 n=4",
        "fc_forward rows=3 k=0 n=4 into=out",  # act(b)
        "fc_forward rows=3 k=4 n=0",
        "fc_forward rows=1 k=1 n=1 into=out",
        "fc_forward rows=33 k=17 n=65 data=integers into=out",
        "fc_forward rows=64 k=32 n=64 data=integers activation=relu into=out",
        "fc_forward rows=2x3x5 k=8 n=16 data=integers bias=0",
        "fc_forward rows=33 k=40 n=31 place=offset data=integers into=out",
        "fc_forward rows=16 k=300 n=24 into=out",
        "fc_forward rows=16 k=24 n=40 alpha=0.5 beta=-1.25 into=out",
        "fc_forward rows=16 k=24 n=40 activation=swish alpha=0.5 beta=-1.25 into=out",
        "fc_forward rows=9 k=24 n=40 activation=gelu aux=1 into=out",
        "fc_backward_data rows=0 k=3 n=4",
        "fc_backward_data rows=3 k=4 n=0 into=out",
        "fc_backward_data rows=33 k=65 n=17 data=integers into=out",
        "fc_backward_data rows=9 k=24 n=200 alpha=0.5 beta=2.0 into=out",
        "fc_backward_weights rows=0 k=3 n=4 into=out",
        "fc_backward_weights rows=33 k=17 n=65 data=integers place=offset into=out",
        "fc_backward_weights rows=300 k=24 n=9 beta=1.0 into=out",
        "fc_backward_bias rows=0 n=4 into=out",
        "fc_backward_bias rows=60 n=33 data=integers into=out",
        "fc_backward_bias rows=700 n=40 beta=1.0 into=out",
        "fc_backward rows=0 k=3 n=4 into=out",
        "fc_backward rows=33 k=17 n=40 data=integers activation=relu into=out",
        "fc_backward rows=33 k=17 n=40 data=integers needs=db",
        "fc_backward rows=2x5 k=9 n=17 activation=gelu place=offset into=out",
        "fc_backward rows=40 k=16 n=24 activation=tanh beta=1.0 into=out",
    ]
    for mode in _ACTIVATIONS:
        lines += [f"fc_forward rows=20 k=30 n=24 activation={mode}", f"fc_backward rows=20 k=30 n=24 activation={mode}"]
    return tuple(lines)


_PRODUCT = Primitive(_draw_product, _bound_product, _into_product)

FAMILY = CaseFamily(
    "fc",
    reference,
    {
        "fc_forward": Primitive(_draw_forward, _bound_forward, _into_rows, ("aux",), _exact_reference),
        "fc_backward_data": _PRODUCT,
        "fc_backward_weights": _PRODUCT,
        "fc_backward_bias": _PRODUCT,
        "fc_backward": Primitive(_draw_backward, _bound_backward, _into_gradients, reference=_exact_reference),
    },
    _corners(),
    draw,
)
