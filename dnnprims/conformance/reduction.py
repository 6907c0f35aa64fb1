"""Cases of reductions: each operation, over each kind of axis, of dense and of strided elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import reduction as reference
from .bounds import (
    exact,
    exact_products,
    exact_roots,
    exact_sums,
    exact_where,
    grid,
    growth,
    lowest_bit,
    norm_error,
    scaled_unit,
    sum_error,
)
from .calls import Arguments, Array, Destination, Generator, Primitive, wide
from .cases import CaseFamily, Problem
from .drawing import draw_placing, draw_shape, old_out, pick, sample, show

_SELECTIONS = ("max", "min", "amax")
_INDICES = ("argmax", "argmin")
_OPERATIONS = ("sum", "mean", "product", *_SELECTIONS, "norm1", "norm2", *_INDICES)


def _axis(problem: Problem) -> int | tuple[int, ...] | None:
    word = problem.word("axis", "all")
    if word == "all":
        return None
    axes = tuple(int(one) for one in word.split(","))
    return axes if len(axes) > 1 else axes[0]


def _draw(problem: Problem, rng: Generator) -> dict[str, Any]:
    x = sample(problem, rng, problem.extents())
    options: dict[str, Any] = {"axis": _axis(problem), "keepdims": problem.integer("keepdims") == 1}
    left = reference.reduce_tensor(wide(x), "norm1", **options).shape
    operation = problem.word("operation", "sum")
    return {"x": x, "operation": operation, **options, **problem.scaling(), **old_out(problem, rng, left)}


def _axes(given: Arguments) -> tuple[int, ...]:
    axis, ndim = given["axis"], given["x"].ndim
    axes = range(ndim) if axis is None else axis if isinstance(axis, tuple | list) else (axis,)
    return tuple(one % ndim for one in axes)


def _into_kept(given: Arguments) -> dict[str, Destination]:
    x, axes, keepdims = given["x"], _axes(given), given["keepdims"]
    left = tuple(1 if i in axes else extent for i, extent in enumerate(x.shape) if keepdims or i not in axes)
    if given["operation"] in _INDICES:
        return {"out": Destination(left, "int64")}
    return {"out": given.destination("out", left, x.dtype.name)}


def _bound(given: Arguments, expected: list[Array]) -> list[Array]:
    """Sums by the bound of sums, products by their number of roundings, selections exactly."""
    x, operation, axes, keepdims = wide(given["x"]), given["operation"], _axes(given), given["keepdims"]
    if operation in _INDICES:
        return [exact(expected[0])]
    plain = reference.reduce_tensor(x, operation, axis=axes, keepdims=keepdims)
    absolute = np.abs(x).sum(axis=axes, keepdims=keepdims)
    count = int(np.prod([x.shape[one] for one in axes]))
    error = _error(operation, plain, count, absolute, given["x"].dtype.name)
    target = _into_kept(given)["out"]
    sizes, step = _terms(operation, x, plain, axes, keepdims, given["x"].dtype.name)
    right = given.exactly(target, expected[0], sizes, step)
    return [exact_where(right, given.blended(target, expected[0], error))]


def _terms(
    operation: str, x: Array, result: Array, axes: tuple[int, ...], keepdims: bool, dtype: str
) -> tuple[Array, Array]:
    """(sizes, grid) of the terms of an exact result; grid 0 where it is none.

    A mean divides an exact sum by a power of two. A norm takes the root of an exact sum, which IEEE arithmetic rounds
    once: where the root is a number of few digits it is exact, too.
    """

    def total(terms: Array) -> Array:
        return np.asarray(terms.sum(axis=axes, keepdims=keepdims))

    count, nothing = int(np.prod([x.shape[one] for one in axes])), np.zeros(result.shape)
    if operation in ("sum", "norm1"):
        return total(np.abs(x)), nothing + grid(x)
    if operation == "mean" and count and np.frexp(count)[0] == 0.5:
        return total(np.abs(x)) / count, nothing + grid(x) / count
    if operation == "norm2":
        squares = total(x * x)
        whole = exact_sums(squares, grid(x) ** 2, dtype) & exact_roots(result, squares, dtype)
        return result, np.where(whole, lowest_bit(result), 0.0)
    if operation == "product":
        whole = exact_products(x, axes, dtype, keepdims=keepdims)
        return np.abs(result), np.where(whole, lowest_bit(result), 0.0)
    return result, lowest_bit(result) if operation in _SELECTIONS else nothing


def _error(operation: str, result: Array, count: int, absolute: Array, dtype: str) -> Array:
    """Error before the result is stored."""
    if operation in ("sum", "norm1"):
        return sum_error(count, absolute, dtype)
    if operation == "mean":
        return sum_error(count, absolute, dtype) / max(count, 1) + scaled_unit(dtype, 2.0) * np.abs(result)
    if operation == "product":
        return scaled_unit(dtype, growth(count)) * np.abs(result)
    return norm_error(count, result, dtype) if operation == "norm2" else exact(result)


def draw(rng: Generator) -> str:
    """A random problem over one axis, several, or all."""
    shape = tuple(max(extent, 1) for extent in draw_shape(rng, (1, 4)))
    axes = [i for i in range(len(shape)) if rng.random() < 0.5]
    operation = pick(rng, *_OPERATIONS)
    placing = draw_placing(rng, in_place=False, blend=operation not in _INDICES)
    placing = placing.replace("place=plain", pick(rng, "place=plain", "place=strided"))
    axis = ",".join(map(str, axes)) or "all"
    words = f"shape={show(shape)} axis={axis} operation={operation} keepdims={int(rng.integers(2))}"
    words += f" data={pick(rng, 'normal', 'integers', 'powers')}"
    return f"reduce_tensor {words} {placing}"


CORNERS = (
    "reduce_tensor operation=sum shape=0x5 axis=0 into=out",
    "reduce_tensor operation=product shape=3x0 axis=1 into=out",
    "reduce_tensor operation=norm2 shape=0 into=out",
    "reduce_tensor operation=max shape=5x0 axis=0",
    *(f"reduce_tensor operation={name} shape=1 into=out" for name in _OPERATIONS),
    *(f"reduce_tensor operation={name} shape=9x70 axis=1 into=out" for name in _OPERATIONS),  # a warp a row
    *(f"reduce_tensor operation={name} shape=70x9 axis=0 data=halves into=out" for name in _OPERATIONS),  # columns
    *(f"reduce_tensor operation={name} shape=70x16 axis=0 data=halves into=out" for name in _OPERATIONS),  # in packs
    "reduce_tensor operation=sum shape=3x50x16 axis=1 into=out",
    "reduce_tensor operation=argmin shape=3x50x16 axis=1 data=integers into=out",
    "reduce_tensor operation=norm1 shape=5000x16 axis=0 data=lopsided into=out",  # in packs, shared by several blocks
    *(f"reduce_tensor operation={name} shape=33x64 axis=1 data=lopsided" for name in ("sum", "mean", "norm1")),
    *(f"reduce_tensor operation={name} shape=64x33 axis=0 data=lopsided" for name in ("sum", "mean", "max")),
    "reduce_tensor operation=product shape=9x12 axis=1 data=powers",
    "reduce_tensor operation=norm2 shape=9x64 axis=1 data=equal",
    "reduce_tensor operation=sum shape=20001 data=lopsided",
    *(f"reduce_tensor operation={name} shape=5x40 axis=1 data=special" for name in (*_SELECTIONS, *_INDICES)),
    "reduce_tensor operation=sum shape=20001 into=out",  # several parts of one sum
    "reduce_tensor operation=norm2 shape=2x5000 axis=1 place=offset",
    "reduce_tensor operation=mean shape=3x4x5x6 axis=0,2 into=out",
    "reduce_tensor operation=argmax shape=3x4x5x6 axis=1,3 data=integers",
    "reduce_tensor operation=sum shape=6x35 axis=1 place=strided",
    "reduce_tensor operation=min shape=6x35 axis=0 place=strided keepdims=1",
    "reduce_tensor operation=sum shape=33x65 axis=1 data=integers alpha=0.5 beta=2.0 into=out",
    "reduce_tensor operation=norm2 shape=4x50 axis=1 data=wide only=float32,bfloat16",
)

FAMILY = CaseFamily("reduction", reference, {"reduce_tensor": Primitive(_draw, _bound, _into_kept)}, CORNERS, draw)
