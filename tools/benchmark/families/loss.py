"""Losses forward, backward and both at once: cross-entropy over rows of several lengths, the others over a vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import dnnprims as dp
from dnnprims.conformance.cases import Problem

from ..arrays import Arrays
from ..case import Case, Part, ends, show
from . import Family, rows_of

SAMPLE = 4
CHECKED = 65536
OPS = ("loss_forward", "loss_backward", "loss_forward_backward")
LABELLED = ("cross_entropy", "nll")


def lines(shapes: Mapping[str, Any], dtypes: Sequence[str]) -> Iterator[str]:
    """`rows` are [rows, classes]; `lengths` fill `row_bytes`; `kinds` run over `bytes` of prediction."""
    for dtype in dtypes:
        rows = [tuple(shape) for shape in shapes.get("rows", ())]
        rows += [(rows_of(shapes["row_bytes"], n, dtype), n) for n in shapes.get("lengths", ())]
        for kind in shapes.get("row_kinds", ("cross_entropy",)):
            for shape in rows:
                yield from (f"{op} kind={kind} shape={show(shape)} dtype={dtype}" for op in OPS)
        for kind in shapes.get("kinds", ()):
            width = shapes.get("width", 4096)
            count = rows_of(shapes["bytes"], width, dtype)
            yield from (f"{op} kind={kind} shape={count}x{width} dtype={dtype}" for op in OPS)


def make_forward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """The prediction is read once, a target of its shape, too."""
    operands, options = _operands(problem, arrays), _options(problem)
    return Case(
        problem,
        operands,
        options,
        {"out": arrays.result((), "float32", tag="loss")},
        [_value(handle, problem, operands)],
        f"loss_forward {_small(problem)}",
        nbytes=_read(operands),
        flops=5 * operands["prediction"].size,
    )


def make_backward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """The same reads, and the gradient is written."""
    operands, options = _operands(problem, arrays), _options(problem)
    gradient = arrays.result(problem.extents(), problem.dtype)
    return Case(
        problem,
        operands,
        options,
        {"out": gradient},
        _gradients(problem, "out"),
        f"loss_backward {_small(problem)}",
        nbytes=_read(operands) + gradient.nbytes,
        flops=6 * gradient.size,
    )


def make_both(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """One pass: the prediction is read once and the gradient written once."""
    operands, options = _operands(problem, arrays), _options(problem)
    value, gradient = arrays.result((), "float32", tag="loss"), arrays.result(problem.extents(), problem.dtype)
    return Case(
        problem,
        operands,
        options,
        {"out": value, "dprediction": gradient},
        [_value(handle, problem, operands), *_gradients(problem, "dprediction")],
        f"loss_forward_backward {_small(problem)}",
        nbytes=_read(operands) + gradient.nbytes,
        flops=8 * gradient.size,
    )


def _operands(problem: Problem, arrays: Arrays) -> dict[str, Any]:
    shape, dtype, kind = problem.extents(), problem.dtype, problem.word("kind")
    if kind in LABELLED:
        prediction = arrays.normal(shape, dtype, scale=2.0, tag="x")
        return {"prediction": prediction, "target": arrays.integers(shape[0], shape[1], "int64", tag="labels")}
    makers: Mapping[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "bce": (
            lambda: arrays.uniform(shape, dtype, 0.02, 0.98, tag="x"),
            lambda: _probabilities(arrays, shape, dtype),
        ),
        "bce_with_logits": (
            lambda: arrays.normal(shape, dtype, scale=2.0, tag="x"),
            lambda: _probabilities(arrays, shape, dtype),
        ),
        "kl_div": (
            lambda: arrays.uniform(shape, dtype, -8.0, -0.5, tag="x"),
            lambda: _probabilities(arrays, shape, dtype),
        ),
        "hinge": (
            lambda: arrays.normal(shape, dtype, scale=2.0, tag="x"),
            lambda: arrays.signs(shape, dtype, tag="target"),
        ),
    }
    plain = (
        lambda: arrays.normal(shape, dtype, scale=2.0, tag="x"),
        lambda: arrays.normal(shape, dtype, tag="target"),
    )
    prediction_of, target_of = makers.get(kind, plain)
    return {"prediction": prediction_of(), "target": target_of()}


def _probabilities(arrays: Arrays, shape: tuple[int, ...], dtype: str) -> Any:
    return arrays.uniform(shape, dtype, 0.02, 0.98, tag="target")


def _options(problem: Problem, reduction: str = "mean_elements") -> dict[str, Any]:
    return {"loss": dp.LossDescriptor(problem.word("kind"), reduction=reduction)}


def _read(operands: Mapping[str, Any]) -> int:
    return int(sum(a.nbytes for a in operands.values()))


def _count(problem: Problem) -> int:
    """Losses that the mean is over."""
    rows, width = problem.extents()
    return rows if problem.word("kind") in (*LABELLED, "cosine") else rows * width


def _gradients(problem: Problem, name: str) -> list[Part]:
    """A few rows: the gradient of their sum, over the number of all losses."""
    return [
        Part(
            {"prediction": at, "target": at, name: at},
            _options(problem, "sum"),
            1.0 / _count(problem),
        )
        for at in _pieces(problem)
    ]


def _value(handle: dp.Handle, problem: Problem, operands: Mapping[str, Any]) -> Part:
    """The loss is the mean, in float64, of the losses that the library gives unreduced."""

    @cache
    def expect() -> dict[str, Any]:
        losses = dp.loss_forward(handle, **_options(problem, "none"), **operands)
        return {"out": float(losses.sum(dtype="float64")) / _count(problem)}

    return Part({"out": lambda a: a}, expect=expect)


def _pieces(problem: Problem) -> list[Any]:
    return [lambda a, at=at: a[at] for at in ends(problem.extents()[0], SAMPLE)]


def _small(problem: Problem) -> str:
    rows, width = problem.extents()
    kind, labels = problem.word("kind"), ""
    if kind in LABELLED:
        labels = "labels=int64 "
    small = show((min(rows, max(1, CHECKED // width)), width))
    return f"kind={kind} reduction=mean_elements {labels}shape={small} into=out"


FAMILY = Family(
    "loss",
    lines,
    {"loss_forward": make_forward, "loss_backward": make_backward, "loss_forward_backward": make_both},
)
