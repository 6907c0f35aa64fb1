"""Norm, clipping and scaling of lists of gradients: few large tensors, and many small ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import dnnprims as dp
from dnnprims.conformance.cases import Problem

from ..arrays import Arrays
from ..case import Case, Part
from . import Family
from .optimizer import MANY

SAMPLE = 512
#: A factor that leaves something of the gradients after all repeats.
SCALE = 0.9990234375
OPS = ("global_norm", "clip_by_global_norm", "scale_and_check_finite")


def lines(shapes: Mapping[str, Any], dtypes: Sequence[str]) -> Iterator[str]:
    """`lists` are [number of tensors, elements of each]."""
    for dtype in dtypes:
        for count, size in shapes["lists"]:
            for op in OPS:
                yield f"{op} list={count}x{size} dtype={dtype}"


def make_norm(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """One read; the norm is summed by the backend itself, in float64."""
    tensors = _list(problem, arrays)
    part = Part({"out": lambda a: a}, expect=cache(lambda: {"out": _norm(tensors)}))
    made = _case(problem, tensors, {}, part)
    made.results, made.nbytes = {"out": arrays.result((), "float32")}, sum(a.nbytes for a in tensors)
    return made


def make_clip(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """One read and one write, by a norm that is given: one of its own would be small enough from the second call on."""
    tensors, norm = _list(problem, arrays), handle.asarray(1.0 / SCALE).astype("float32")
    made = _case(problem, tensors, {"max_norm": 1.0, "epsilon": 0.0}, Part({"arrays": _few, "norm": lambda a: a}))
    made.operands["norm"], made.updates = norm, ("arrays",)
    return made


def make_scale(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """One read and one write."""
    made = _case(problem, _list(problem, arrays), {"scale": SCALE}, Part({"arrays": _few}))
    made.operands["found_inf"], made.updates = arrays.zeros((), "int32"), ("arrays",)
    return made


def _case(problem: Problem, tensors: list[Any], options: dict[str, Any], part: Part) -> Case:
    count, size = problem.extents("list")
    return Case(
        problem,
        {"arrays": tensors},
        options,
        {},
        [part],
        f"{problem.op} shapes={','.join([str(min(size, 10_000))] * min(count, 3))}",
        nbytes=2 * sum(a.nbytes for a in tensors),
        flops=count * size,
        terms=count * size,
        captured=count > MANY,
    )


def _list(problem: Problem, arrays: Arrays) -> list[Any]:
    count, size = problem.extents("list")
    return [arrays.copy(arrays.normal(size, problem.dtype, tag=f"g{i % 4}")) for i in range(count)]


def _norm(tensors: list[Any]) -> float:
    return float(sum(float((a.astype("float32") ** 2).sum(dtype="float64")) for a in tensors)) ** 0.5


def _few(tensors: list[Any]) -> list[Any]:
    """The beginnings of the first tensor and of the last."""
    return [a[:SAMPLE] for a in (tensors[0], tensors[-1])]


FAMILY = Family("gradient", lines, dict(zip(OPS, (make_norm, make_clip, make_scale), strict=True)))
