"""Gated linear units over the last axis, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dnnprims as dp
from dnnprims.conformance.cases import Problem

from ..arrays import Arrays
from ..case import Case, Part, ends
from . import Family, rows_of

SAMPLE_ROWS = 4


def lines(shapes: Mapping[str, Any], dtypes: Sequence[str]) -> Iterator[str]:
    """`halves` are [width of y, bytes of x]; `shape` is that of y, as in the conformance cases."""
    for dtype in dtypes:
        for width, nbytes in shapes["halves"]:
            for gate in shapes["gates"]:
                for op in ("glu_forward", "glu_backward"):
                    yield f"{op} gate={gate} shape={rows_of(nbytes, 2 * width, dtype)}x{width} dtype={dtype}"


def make_forward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Reads x, writes half as much."""
    rows, width = problem.extents()
    x, y = arrays.normal((rows, 2 * width), problem.dtype, tag="x"), arrays.result((rows, width), problem.dtype)
    return Case(
        problem,
        {"x": x},
        {"gate": problem.word("gate")},
        {"out": y},
        [Part({"x": at, "out": at}) for at in _pieces(rows)],
        f"glu_forward gate={problem.word('gate')} shape={min(rows, 64)}x{min(width, 256)} into=out",
        nbytes=x.nbytes + y.nbytes,
        flops=x.size,
    )


def make_backward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Reads x and dy, writes dx."""
    rows, width = problem.extents()
    x, dy = (arrays.normal((rows, n), problem.dtype, tag=tag) for n, tag in ((2 * width, "x"), (width, "dy")))
    dx = arrays.result(x.shape, problem.dtype, tag="dx")
    return Case(
        problem,
        {"dy": dy, "x": x},
        {"gate": problem.word("gate")},
        {"out": dx},
        [Part({"dy": at, "x": at, "out": at}) for at in _pieces(rows)],
        f"glu_backward gate={problem.word('gate')} shape={min(rows, 64)}x{min(width, 256)} into=out",
        nbytes=2 * x.nbytes + dy.nbytes,
        flops=2 * x.size,
    )


def _pieces(rows: int) -> list[Any]:
    return [lambda a, at=at: a[at] for at in ends(rows, SAMPLE_ROWS)]


FAMILY = Family("glu", lines, {"glu_forward": make_forward, "glu_backward": make_backward})
