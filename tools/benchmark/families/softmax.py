"""Softmax and log-softmax, forward and backward: rows of several lengths, and other axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dnnprims as dp
from dnnprims.conformance.cases import Problem

from ..arrays import Arrays
from ..case import Case, Part, ends, show
from . import Family, rows_of

SAMPLE = 4
#: Elements of the small problem that a case is checked by.
CHECKED = 65536


def lines(shapes: Mapping[str, Any], dtypes: Sequence[str]) -> Iterator[str]:
    """`rows` are [rows, length]; `lengths` fill a number of bytes; `axes` are [shape, axis]."""
    for dtype in dtypes:
        rows = [(tuple(shape), -1) for shape in shapes.get("rows", ())]
        for length in shapes.get("lengths", ()):
            rows.append(((rows_of(shapes["bytes"], length, dtype), length), -1))
        for shape, axis in [*rows, *shapes.get("axes", ())]:
            for algorithm in shapes.get("algorithms", ("accurate", "log")):
                words = f"algorithm={algorithm} shape={show(shape)} axis={axis} dtype={dtype}"
                yield f"softmax_forward {words}"
                yield f"softmax_backward {words}"


def make_forward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """One read and one write; a maximum, a difference, an exponential, a sum and a product for each element."""
    x = arrays.normal(problem.extents(), problem.dtype, scale=3.0, tag="x")
    return Case(
        problem,
        {"x": x},
        _options(problem),
        {"out": arrays.result(x.shape, problem.dtype)},
        [Part({"x": at, "out": at}) for at in _pieces(problem)],
        f"softmax_forward {_small(problem)}",
        nbytes=2 * x.nbytes,
        flops=5 * x.size,
    )


def make_backward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Two reads and one write; a product, a sum, a difference and a product for each element."""
    shape, options = problem.extents(), _options(problem)
    x, dy = arrays.normal(shape, problem.dtype, scale=3.0, tag="x"), arrays.normal(shape, problem.dtype, tag="dy")
    y = dp.softmax_forward(handle, x, **options, out=arrays.result(shape, problem.dtype, tag="y"))
    return Case(
        problem,
        {"dy": dy, "y": y},
        options,
        {"out": arrays.result(shape, problem.dtype)},
        [Part({"dy": at, "y": at, "out": at}) for at in _pieces(problem)],
        f"softmax_backward {_small(problem)}",
        nbytes=3 * x.nbytes,
        flops=4 * x.size,
        extra={"x": x},
    )


def _options(problem: Problem) -> dict[str, Any]:
    return {"axis": problem.integer("axis", -1), "algorithm": problem.word("algorithm", "accurate")}


def _pieces(problem: Problem) -> list[Any]:
    """Whole rows: a few places of an axis that they do not run along."""
    shape = problem.extents()
    along = problem.integer("axis", -1) % len(shape)
    free = next((i for i in range(len(shape)) if i != along), None)
    if free is None:
        return [lambda a: a]
    places = ends(shape[free], SAMPLE)
    return [lambda a, at=at: a[(slice(None),) * free + (at,)] for at in places]


def _small(problem: Problem) -> str:
    """The same rows, but fewer."""
    shape, axis = list(problem.extents()), problem.integer("axis", -1)
    along = axis % len(shape)
    room = max(1, CHECKED // shape[along])
    for i in range(len(shape)):
        if i != along:
            shape[i] = min(shape[i], room)
            room = max(1, room // shape[i])
    algorithm = problem.word("algorithm", "accurate")
    return f"algorithm={algorithm} shape={show(shape)} axis={axis} into=out"


FAMILY = Family("softmax", lines, {"softmax_forward": make_forward, "softmax_backward": make_backward})
