"""Parametric ReLU with a slope per channel, forward and backward: both gradients from one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import dnnprims as dp
from dnnprims.conformance.cases import Problem

from ..arrays import Arrays
from ..case import Case, Part, ends, show
from . import Family


def lines(shapes: Mapping[str, Any], dtypes: Sequence[str]) -> Iterator[str]:
    """`shapes` have their channels on axis 1."""
    for dtype in dtypes:
        for shape in shapes["shapes"]:
            for op in ("prelu_forward", "prelu_backward"):
                yield f"{op} shape={show(shape)} dtype={dtype}"


def make_forward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """One read and one write."""
    x, slope = _inputs(problem, arrays)
    y = arrays.result(x.shape, problem.dtype)
    return Case(
        problem,
        {"x": x, "slope": slope},
        {},
        {"out": y},
        [Part({"x": at, "slope": _whole, "out": at}) for at in _pieces(x)],
        f"prelu_forward shape={_small(x)} into=out",
        nbytes=2 * x.nbytes,
        flops=x.size,
    )


def make_backward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Two reads and one write; the gradient of the slopes is summed by the backend itself, in float64."""
    x, slope = _inputs(problem, arrays)
    dy = arrays.normal(x.shape, problem.dtype, tag="dy")
    summed = Part({"dslope": _whole}, expect=cache(lambda: {"dslope": arrays.host(_slope_gradient(dy, x))}))
    return Case(
        problem,
        {"dy": dy, "x": x, "slope": slope},
        {},
        {"dx": arrays.result(x.shape, problem.dtype, tag="dx"), "dslope": arrays.result(slope.shape, problem.dtype)},
        [summed, *(Part({"dy": at, "x": at, "slope": _whole, "dx": at}) for at in _pieces(x))],
        f"prelu_backward shape={_small(x)} into=out",
        nbytes=3 * x.nbytes,
        flops=3 * x.size,
        terms=x.size // slope.size,
    )


def _inputs(problem: Problem, arrays: Arrays) -> tuple[Any, Any]:
    shape = problem.extents()
    return arrays.normal(shape, problem.dtype, tag="x"), arrays.uniform(shape[1], problem.dtype, 0.1, 0.4, tag="slope")


def _slope_gradient(dy: Any, x: Any) -> Any:
    terms = dy.astype("float32") * x.astype("float32")
    terms[x > 0] = 0
    return terms.sum(axis=tuple(i for i in range(x.ndim) if i != 1), dtype="float64")


def _small(x: Any) -> str:
    return show([min(extent, 16) for extent in x.shape])


def _whole(a: Any) -> Any:
    return a


def _pieces(x: Any) -> list[Any]:
    """The first and the last image."""
    return [lambda a, at=at: a[at] for at in ends(x.shape[0], 1)]


FAMILY = Family("prelu", lines, {"prelu_forward": make_forward, "prelu_backward": make_backward})
