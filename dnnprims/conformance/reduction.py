"""Cases of reductions: each operation, over each kind of axis, of dense and of strided elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import reduction as reference
from .bounds import exact, growth, norm_error, scaled_unit, sum_error
from .cases import Arguments, Array, CaseFamily, Destination, Generator, Primitive, Problem, wide
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
    selects = operation in _SELECTIONS and given.alpha == 1.0 and given.beta == 0.0
    if operation in _INDICES or selects:
        return [exact(expected[0])]
    plain = reference.reduce_tensor(x, operation, axis=axes, keepdims=keepdims)
    absolute = np.abs(x).sum(axis=axes, keepdims=keepdims)
    count = int(np.prod([x.shape[one] for one in axes]))
    error = _error(operation, plain, count, absolute, given["x"].dtype.name)
    return [given.blended(_into_kept(given)["out"], expected[0], error)]


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

FAMILY = CaseFamily("reduction", reference, {"reduce_tensor": Primitive(_draw, _bound, _into_kept)}, CORNERS, draw)
