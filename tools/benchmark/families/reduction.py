"""Sums over rows and columns, and the bias gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import dnnprims as dp
from dnnprims.conformance.cases import Problem

from ..arrays import Arrays
from ..case import Case, Part, ends, show
from . import Family

SAMPLE = 16


def lines(shapes: Mapping[str, Any], dtypes: Sequence[str]) -> Iterator[str]:
    """Each operation over rows (axis 1), columns (axis 0) and everything; the bias gradient of the same arrays."""
    for dtype in dtypes:
        for shape in shapes["shapes"]:
            yield f"fc_backward_bias shape={show(shape)} dtype={dtype}"
            for operation in shapes["operations"]:
                for axis in shapes["axes"]:
                    yield f"reduce_tensor operation={operation} shape={show(shape)} axis={axis} dtype={dtype}"


def make_bias(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Sums of columns."""
    rows, n = problem.extents()
    dy = arrays.normal((rows, n), problem.dtype, tag="x")
    out = arrays.result(n, problem.dtype)
    parts = [Part({"dy": lambda a, at=at: a[:, at], "out": lambda a, at=at: a[at]}) for at in ends(n, SAMPLE)]
    check = f"fc_backward_bias rows={min(rows, 512)} n={min(n, 512)} into=out"
    nbytes = dy.nbytes + out.nbytes
    return Case(problem, {"dy": dy}, {}, {"out": out}, parts, check, nbytes=nbytes, flops=dy.size, terms=rows)


def make_reduction(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """One read; the results are few."""
    shape, word = problem.extents(), problem.word("axis")
    axis = None if word == "all" else int(word)
    x = arrays.normal(shape, problem.dtype, tag="x")
    left = [extent for i, extent in enumerate(shape) if axis is not None and i != axis]
    out = arrays.result(left, problem.dtype)
    operation = problem.word("operation")
    small = show([min(extent, 512) for extent in shape])
    return Case(
        problem,
        {"x": x},
        {"operation": operation, "axis": axis},
        {"out": out},
        _parts(x, operation, axis),
        f"reduce_tensor operation={operation} shape={small} axis={word} into=out",
        nbytes=x.nbytes + out.nbytes,
        flops=x.size,
        terms=x.size // max(out.size, 1),
    )


def _parts(x: Any, operation: str, axis: int | None) -> list[Part]:
    """Whole rows or columns; everything is summed by the backend itself, in float64."""
    if axis is None:
        return [Part({"out": lambda a: a}, expect=cache(lambda: {"out": _whole(x, operation)}))]
    free = 1 - axis
    return [
        Part({"x": lambda a, at=at: a[(slice(None),) * free + (at,)], "out": lambda a, at=at: a[at]})
        for at in ends(x.shape[free], SAMPLE)
    ]


def _whole(x: Any, operation: str) -> Any:
    if operation == "max":
        return float(x.max())
    total = x.astype("float32").sum(dtype="float64")
    return float(total / x.size if operation == "mean" else total)


FAMILY = Family("reduction", lines, {"fc_backward_bias": make_bias, "reduce_tensor": make_reduction})
