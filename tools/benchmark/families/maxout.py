"""Maxout over neighbours, forward with the indices and backward from them."""

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
    """`shape` is that of y, as in the conformance cases."""
    for dtype in dtypes:
        for units, pool, nbytes in shapes["units_pool_bytes"]:
            shape = f"{rows_of(nbytes, units * pool, dtype)}x{units}"
            for op in ("maxout_forward", "maxout_backward"):
                yield f"{op} shape={shape} pool={pool} dtype={dtype}"


def make_forward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Reads x, writes y and a byte for each unit."""
    (rows, units), pool = problem.extents(), problem.integer("pool")
    x = arrays.normal((rows, units * pool), problem.dtype, tag="x")
    y, which = arrays.result((rows, units), problem.dtype), arrays.result((rows, units), "uint8", tag="which")
    return Case(
        problem,
        {"x": x},
        {"pool_size": pool},
        {"out": y, "which": which},
        [Part({"x": at, "out": at, "which": at}) for at in _pieces(rows)],
        f"maxout_forward shape={min(rows, 64)}x{min(units, 256)} pool={pool} into=out",
        nbytes=x.nbytes + y.nbytes + which.nbytes,
        flops=x.size,
    )


def make_backward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Reads dy and the indices, writes dx."""
    (rows, units), pool = problem.extents(), problem.integer("pool")
    dy = arrays.normal((rows, units), problem.dtype, tag="dy")
    which = arrays.integers((rows, units), pool, "uint8", tag="chosen")
    dx = arrays.result((rows, units * pool), problem.dtype, tag="dx")
    return Case(
        problem,
        {"dy": dy, "which": which},
        {"pool_size": pool},
        {"out": dx},
        [Part({"dy": at, "which": at, "out": at}) for at in _pieces(rows)],
        f"maxout_backward shape={min(rows, 64)}x{min(units, 256)} pool={pool} into=out",
        nbytes=dx.nbytes + dy.nbytes + which.nbytes,
        flops=dx.size,
    )


def _pieces(rows: int) -> list[Any]:
    return [lambda a, at=at: a[at] for at in ends(rows, SAMPLE_ROWS)]


FAMILY = Family("maxout", lines, {"maxout_forward": make_forward, "maxout_backward": make_backward})
