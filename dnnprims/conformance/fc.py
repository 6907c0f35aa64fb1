"""Cases of fully connected layers: exact integer products of every shape, then random ones under the bound of sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..descriptors import ActivationDescriptor
from ..reference import activation as elementwise
from ..reference import fc as reference
from .bounds import (
    ACTIVATION_SLOPE,
    DERIVATIVE_ULP,
    early_rounding,
    exact,
    function_error,
    library_gelu_error,
    product_error,
    rounded,
    slope_size,
    sum_error,
    tf32_error,
)
from .cases import (
    Array,
    Call,
    CaseFamily,
    Destination,
    Generator,
    Problem,
    as_dtype,
    blended,
    destination,
    draw_placing,
    pick,
    sample,
    wide,
)

#: Activations of the cases: those with a fused way, and some that follow the product.
_ACTIVATIONS = ("relu", "gelu_tanh", "gelu", "sigmoid", "tanh", "swish")


def _activation(problem: Problem) -> ActivationDescriptor | None:
    word = problem.word("activation")
    return ActivationDescriptor(word) if word else None


def _sizes(problem: Problem) -> tuple[tuple[int, ...], int, int]:
    """Leading axes, inputs, outputs."""
    return problem.extents("rows", "1"), problem.integer("k", 1), problem.integer("n", 1)


def _rows(a: Array) -> Array:
    return a.reshape(int(np.prod(a.shape[:-1])), a.shape[-1])


def _is_exact(problem: Problem) -> bool:
    """Integers from -2 to 2: each partial sum is one too, below 2^8 for up to 63 terms, which every type holds."""
    linear = problem.word("activation", "relu") == "relu"
    return problem.word("data") == "integers" and linear and not problem.scaling()


def make_forward(problem: Problem, rng: Generator) -> Call:
    """A sum of k products and a bias; z is rounded before an activation, or the blend of a biased product, follows."""
    rows, k, n = _sizes(problem)
    x, w = sample(problem, rng, (*rows, k)), sample(problem, rng, (n, k))
    b = sample(problem, rng, (n,)) if problem.integer("bias", 1) else None
    target, mode = destination(problem, rng, (*rows, n)), _activation(problem)
    aux = as_dtype(np.full((*rows, n), np.nan), problem.dtype) if problem.integer("aux") else None

    def bound(expected: list[Array]) -> list[Array]:
        if _is_exact(problem):
            return [exact(result) for result in expected]
        bias = 0.0 if b is None else wide(b)
        z = wide(x) @ wide(w).T + bias
        z_error = _product_error(problem, k + 1, np.abs(wide(x)) @ np.abs(wide(w)).T + np.abs(bias))
        if b is not None or problem.beta:
            z_error = z_error + early_rounding(z - bias, problem.dtype)
        error = z_error
        if mode is not None or (b is not None and problem.scaling()):
            error = rounded(z, problem.dtype, z_error)
        if mode is not None:
            value = elementwise.activation_forward(mode, z)
            error = ACTIVATION_SLOPE * error + function_error(value, problem.dtype)
            if mode.mode == "gelu_tanh":
                error = error + library_gelu_error(z, problem.dtype)
        bounds = [blended(problem, target, expected[0], error)]
        return bounds if aux is None else [*bounds, rounded(expected[1], problem.dtype, z_error)]

    arguments: dict[str, Any] = {"x": x, "w": w, "b": b, "activation": mode, **problem.scaling()}
    if aux is not None:
        arguments["aux"] = aux
    return Call(arguments, bound, {"out": target}, updates=("aux",) if aux is not None else ())


def make_backward_data(problem: Problem, rng: Generator) -> Call:
    """A sum of n products."""
    rows, k, n = _sizes(problem)
    dy, w = sample(problem, rng, (*rows, n)), sample(problem, rng, (n, k))
    return _product(problem, rng, {"dy": dy, "w": w}, n, np.abs(wide(dy)) @ np.abs(wide(w)), (*rows, k))


def make_backward_weights(problem: Problem, rng: Generator) -> Call:
    """A sum of a product for each row."""
    rows, k, n = _sizes(problem)
    dy, x = sample(problem, rng, (*rows, n)), sample(problem, rng, (*rows, k))
    absolute = np.abs(_rows(wide(dy))).T @ np.abs(_rows(wide(x)))
    return _product(problem, rng, {"dy": dy, "x": x}, int(np.prod(rows)), absolute, (n, k))


def make_backward_bias(problem: Problem, rng: Generator) -> Call:
    """A sum of a term for each row."""
    rows, _, n = _sizes(problem)
    dy = sample(problem, rng, (*rows, n))
    return _product(problem, rng, {"dy": dy}, int(np.prod(rows)), np.abs(_rows(wide(dy))).sum(axis=0), (n,))


def _product(
    problem: Problem, rng: Generator, operands: dict[str, Array], terms: int, absolute: Array, shape: tuple[int, ...]
) -> Call:
    target = destination(problem, rng, shape)

    def bound(expected: list[Array]) -> list[Array]:
        if _is_exact(problem):
            return [exact(expected[0])]
        error = _product_error(problem, terms, absolute)
        if problem.op != "fc_backward_bias":
            error = error + _early(problem, target, expected[0])
        return [blended(problem, target, expected[0], error)]

    return Call({**operands, **problem.scaling()}, bound, {"out": target})


def _product_error(problem: Problem, terms: int, absolute: Array) -> Array:
    """Error of sums of products; ``math=tf32`` says that the handle may round float32 factors first."""
    error = sum_error(terms, absolute, problem.dtype)
    tf32 = problem.word("math") == "tf32" and problem.dtype == "float32"
    return error + tf32_error(absolute) if tf32 else error


def _early(problem: Problem, target: Destination, expected: Array) -> Array:
    """Error of storing a product before the old value is added to it."""
    if not problem.beta or target.old is None:
        return np.zeros(())
    return early_rounding(expected - problem.beta * wide(target.old), problem.dtype)


def make_backward(problem: Problem, rng: Generator) -> Call:
    """dz errs by the derivative and one rounding; dx and dw carry that on, db is summed from the unrounded dz."""
    rows, k, n = _sizes(problem)
    dy, x, w = (sample(problem, rng, shape) for shape in ((*rows, n), (*rows, k), (n, k)))
    mode, needs = _activation(problem), problem.names("needs", "dx,dw,db")
    kept = _kept(problem, mode, sample(problem, rng, (*rows, n), scale=2.0))
    shapes = {"dx": (*rows, k), "dw": (n, k), "db": (n,)}
    targets = {name: destination(problem, rng, shapes[name]) for name in shapes if name in needs}
    if "dx" in needs:  # which is never blended
        targets["dx"] = Destination(shapes["dx"], problem.dtype)

    def bound(expected: list[Array]) -> list[Array]:
        if _is_exact(problem):
            return [exact(result) for result in expected]
        dz, error = _before_activation(problem, mode, dy, kept)
        rounding = np.zeros(dz.shape) if mode is None else rounded(dz, problem.dtype, error)
        errors = {
            "dx": _through(problem, dz, rounding, np.abs(wide(w))),
            "dw": _through(problem, _rows(dz).T, _rows(rounding).T, np.abs(_rows(wide(x)))),
            "db": _through(problem, _rows(dz).T, _rows(error).T, np.ones((_rows(dz).shape[0], 1)))[:, 0],
        }
        given = list(zip(targets.items(), expected, strict=True))
        for (name, target), ideal in given:
            if name == "dw":
                errors[name] = errors[name] + _early(problem, target, ideal)
        return [
            rounded(ideal, problem.dtype, errors[name])
            if name == "dx"
            else blended(problem, target, ideal, errors[name])
            for (name, target), ideal in given
        ]

    arguments = {"dy": dy, "x": x, "w": w, "activation": mode, **kept, "needs": needs, **problem.scaling()}
    return Call(arguments, bound, targets)


def _through(problem: Problem, dz: Array, dz_error: Array, other: Array) -> Array:
    """Error of a product with dz: that of its sums, and what it carries on."""
    return np.asarray(_product_error(problem, dz.shape[-1], np.abs(dz) @ other) + dz_error @ other)


def _kept(problem: Problem, mode: ActivationDescriptor | None, z: Array) -> dict[str, Array]:
    """What the backward pass wants of the forward pass."""
    if mode is None:
        return {}
    if reference.backward_needs(mode) == ("aux",):
        return {"aux": z}
    return {"y": as_dtype(elementwise.activation_forward(mode, wide(z)), problem.dtype)}


def _before_activation(
    problem: Problem, mode: ActivationDescriptor | None, dy: Array, kept: dict[str, Array]
) -> tuple[Array, Array]:
    """dz and its error."""
    if mode is None:
        return wide(dy), np.zeros(dy.shape)
    saved: dict[str, Any] = {"x" if name == "aux" else name: wide(a) for name, a in kept.items()}
    slope = elementwise.activation_backward(mode, np.ones(dy.shape), **saved)
    argument = saved.get("x")
    size = slope if argument is None else slope_size(slope, argument, problem.dtype)
    error = function_error(size, problem.dtype, DERIVATIVE_ULP, argument)
    return wide(dy) * slope, product_error([(wide(dy), 0.0), (slope, error)], problem.dtype)


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


FAMILY = CaseFamily(
    "fc",
    reference,
    {
        "fc_forward": make_forward,
        "fc_backward_data": make_backward_data,
        "fc_backward_weights": make_backward_weights,
        "fc_backward_bias": make_backward_bias,
        "fc_backward": make_backward,
    },
    _corners(),
    draw,
)
