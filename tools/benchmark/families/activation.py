"""Activations forward and backward over one long vector: every mode, from one element to far past the L2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dnnprims as dp
from dnnprims.conformance.cases import Problem
from dnnprims.descriptors.activation import ACTIVATION_MODES

from ..arrays import Arrays
from ..case import Case, Part, ends
from . import Family, itemsize

#: Modes that are not defined for negative numbers.
POSITIVE = ("sqrt", "log")
#: Modes whose backward pass needs no array but dy, and only copies it.
TRIVIAL = ("identity",)
SAMPLE = 4096
CHECKED = 65536


def lines(shapes: Mapping[str, Any], dtypes: Sequence[str]) -> Iterator[str]:
    """Each mode both ways: the large sizes first, in bytes, then the ladder, in elements."""
    modes = tuple(ACTIVATION_MODES) if shapes["modes"] == "all" else shapes["modes"]
    for dtype in dtypes:
        sizes = [nbytes // itemsize(dtype) for nbytes in shapes.get("bytes", ())]
        for count in [*sizes, *shapes.get("elements", ())]:
            for mode in modes:
                yield f"activation_forward mode={mode} shape={count} dtype={dtype}"
                if mode not in TRIVIAL:
                    yield f"activation_backward mode={mode} shape={count} dtype={dtype}"


def make_forward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """One read and one write."""
    x = _input(problem, arrays)
    return Case(
        problem,
        {"x": x},
        {"activation": _descriptor(problem)},
        {"out": arrays.result(x.shape, problem.dtype)},
        [Part({"x": at, "out": at}) for at in _pieces(x.size)],
        f"activation_forward mode={problem.word('mode')} shape={min(x.size, CHECKED)} into=out",
        nbytes=2 * x.nbytes,
        flops=x.size,
    )


def make_backward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """Two reads and one write: dy, and what the mode is cheapest differentiated from."""
    x, dy = _input(problem, arrays), arrays.normal(problem.extents(), problem.dtype, tag="dy")
    kept, *_ = dp.backward_needs(problem.word("mode"))
    saved = arrays.result(x.shape, problem.dtype, tag="y") if kept == "y" else x
    if kept == "y":
        dp.activation_forward(handle, problem.word("mode"), x, out=saved)
    return Case(
        problem,
        {"dy": dy, kept: saved},
        {"activation": _descriptor(problem)},
        {"out": arrays.result(x.shape, problem.dtype)},
        [Part({"dy": at, kept: at, "out": at}) for at in _pieces(x.size)],
        f"activation_backward mode={problem.word('mode')} given={kept} shape={min(x.size, CHECKED)} into=out",
        nbytes=3 * x.nbytes,
        flops=2 * x.size,
        extra={"x": x},
    )


def _input(problem: Problem, arrays: Arrays) -> Any:
    if problem.word("mode") in POSITIVE:
        return arrays.uniform(problem.extents(), problem.dtype, 0.01, 4.0, tag="x")
    return arrays.normal(problem.extents(), problem.dtype, scale=2.0, tag="x")


def _descriptor(problem: Problem) -> dp.ActivationDescriptor:
    return dp.ActivationDescriptor(problem.word("mode"))


def _pieces(count: int) -> list[Any]:
    return [lambda a, at=at: a[at] for at in ends(count, SAMPLE)]


FAMILY = Family("activation", lines, {"activation_forward": make_forward, "activation_backward": make_backward})
