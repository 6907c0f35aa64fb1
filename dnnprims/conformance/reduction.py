"""Cases of reductions: each operation, over each kind of axis, of dense and of strided elements."""

from __future__ import annotations

import numpy as np

from ..reference import reduction as reference
from .bounds import exact, growth, norm_error, scaled_unit, sum_error
from .cases import (
    Array,
    Call,
    CaseFamily,
    Destination,
    Generator,
    Problem,
    blended,
    destination,
    draw_placing,
    draw_shape,
    pick,
    sample,
    show,
    wide,
)

_SELECTIONS = ("max", "min", "amax")
_INDICES = ("argmax", "argmin")
_OPERATIONS = ("sum", "mean", "product", *_SELECTIONS, "norm1", "norm2", *_INDICES)


def _axis(problem: Problem) -> int | tuple[int, ...] | None:
    word = problem.word("axis", "all")
    if word == "all":
        return None
    axes = tuple(int(one) for one in word.split(","))
    return axes if len(axes) > 1 else axes[0]


def make_reduction(problem: Problem, rng: Generator) -> Call:
    """Sums by the bound of sums, products by their number of roundings, selections exactly."""
    shape, axis, operation = problem.extents(), _axis(problem), problem.word("operation", "sum")
    given = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes, keepdims = tuple(one % len(shape) for one in given), problem.integer("keepdims") == 1
    left = tuple(1 if i in axes else extent for i, extent in enumerate(shape) if keepdims or i not in axes)
    x = sample(problem, rng, shape)
    count = int(np.prod([shape[one] for one in axes]))
    target = destination(problem, rng, left)
    if operation in _INDICES:
        target = Destination(left, "int64")

    def bound(expected: list[Array]) -> list[Array]:
        if operation in _INDICES:
            return [exact(expected[0])]
        plain = reference.reduce_tensor(wide(x), operation, axis=axis, keepdims=keepdims)
        absolute = np.abs(wide(x)).sum(axis=axes, keepdims=keepdims)
        error = _error(operation, plain, count, absolute, problem.dtype)
        if operation in _SELECTIONS and not problem.scaling():
            return [exact(expected[0])]
        return [blended(problem, target, expected[0], error)]

    arguments = {"x": x, "operation": operation, "axis": axis, "keepdims": keepdims, **problem.scaling()}
    return Call(arguments, bound, {"out": target})


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
    return f"reduce_tensor {words} {placing}"


CORNERS = (
    "reduce_tensor operation=sum shape=0x5 axis=0 into=out",
    "reduce_tensor operation=product shape=3x0 axis=1 into=out",
    "reduce_tensor operation=norm2 shape=0 into=out",
    "reduce_tensor operation=max shape=5x0 axis=0",
    *(f"reduce_tensor operation={name} shape=1 into=out" for name in _OPERATIONS),
    *(f"reduce_tensor operation={name} shape=9x70 axis=1 into=out" for name in _OPERATIONS),  # a warp a row
    *(f"reduce_tensor operation={name} shape=70x9 axis=0 data=halves into=out" for name in _OPERATIONS),  # columns
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

FAMILY = CaseFamily("reduction", reference, {"reduce_tensor": make_reduction}, CORNERS, draw)
