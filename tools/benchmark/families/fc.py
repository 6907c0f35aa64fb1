"""Fully connected layers: forward with bias and activation, and the whole backward.

``layer=8192x784x2048`` is batch, inputs and outputs. DeepBench's [m, n, k] are outputs, batch and inputs: its
column-major C[m, n] is a row-major y[batch, out].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dnnprims as dp
from dnnprims.conformance.cases import Problem

from ..arrays import Arrays
from ..case import Case, Part
from . import Family, itemsize

BLOCK_ROWS, BLOCK_COLS = 8, 32


def lines(shapes: Mapping[str, Any], dtypes: Sequence[str]) -> Iterator[str]:
    """Float32 comes strict and, where the set asks for it, as tf32; all the activations forward, one backward."""
    for dtype in dtypes:
        maths = shapes.get("math", ("ieee", "tf32")) if dtype == "float32" else ("ieee",)
        for math in maths:
            for rows, k, n in _layers(shapes):
                size = f"layer={rows}x{k}x{n} dtype={dtype} math={math}"
                yield from (f"fc_forward activation={mode} {size}" for mode in shapes["activations"])
                yield from (f"fc_backward activation={mode} {size}" for mode in shapes.get("backward", ()))


def _layers(shapes: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    layers = [tuple(layer) for layer in shapes.get("layers", ())]
    layers += [(n, k, m) for m, n, k, *_ in shapes.get("gemm_mnk", ())]
    return list(dict.fromkeys(layers))  # type: ignore[arg-type]


def make_forward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """A product with bias and activation."""
    m, k, n = _sizes(problem)
    operands = _layer(problem, arrays)
    first, last = (slice(0, BLOCK_ROWS), slice(0, BLOCK_COLS)), (_end(m, BLOCK_ROWS), _end(n, BLOCK_COLS))
    return Case(
        problem,
        operands,
        {"activation": _activation(problem)},
        {"out": arrays.result((m, n), problem.dtype)},
        [_block(*first), _block(*last)],
        _small(problem),
        nbytes=itemsize(problem.dtype) * (m * k + k * n + m * n + n),
        flops=2 * m * k * n,
        terms=k,
    )


def make_backward(problem: Problem, arrays: Arrays, handle: dp.Handle) -> Case:
    """The gradient of the activation, two products and the column sums."""
    m, k, n = _sizes(problem)
    layer, dy = _layer(problem, arrays), arrays.normal((m, n), problem.dtype, tag="dy")
    mode = _activation(problem)
    kept = _kept(problem, arrays, handle, layer, mode)
    results = {
        "dx": arrays.result((m, k), problem.dtype, tag="dx"),
        "dw": arrays.result((n, k), problem.dtype, tag="dw"),
        "db": arrays.result(n, problem.dtype, tag="db"),
    }
    saved = sum(a.nbytes for a in kept.values())
    return Case(
        problem,
        {"dy": dy, "x": layer["x"], "w": layer["w"], **kept},
        {"activation": mode},
        results,
        _backward_parts(m, k, n, list(kept)),
        _small(problem),
        nbytes=itemsize(problem.dtype) * (m * n + 2 * m * k + 2 * k * n + n) + saved,
        flops=4 * m * k * n,
        terms=max(m, n),
        extra={"b": layer["b"]},
    )


def _kept(
    problem: Problem, arrays: Arrays, handle: dp.Handle, layer: Mapping[str, Any], mode: dp.ActivationDescriptor
) -> dict[str, Any]:
    """What the forward pass leaves: its output, or the pre-activation."""
    m, _, n = _sizes(problem)
    y, needs = arrays.result((m, n), problem.dtype, tag="y"), dp.fc_backward_needs(mode)
    if needs == ("aux",):
        aux = arrays.result((m, n), problem.dtype, tag="aux")
        dp.fc_forward(handle, **layer, activation=mode, out=y, aux=aux)
        return {"aux": aux}
    dp.fc_forward(handle, **layer, activation=mode, out=y)
    return {"y": y} if needs else {}


def _backward_parts(m: int, k: int, n: int, kept: list[str]) -> list[Part]:
    """A block of dx from whole rows of dy, blocks of dw and db from whole columns."""
    rows, ins, outs = _end(m, BLOCK_ROWS), _end(k, BLOCK_COLS), _end(n, BLOCK_COLS)
    by_row = {name: lambda a: a[rows] for name in ("dy", *kept)}
    by_col = {name: lambda a: a[:, outs] for name in ("dy", *kept)}
    return [
        Part({**by_row, "x": lambda a: a[rows, ins], "w": lambda a: a[:, ins], "dx": lambda a: a[rows, ins]}),
        Part(
            {
                **by_col,
                "x": lambda a: a[:, ins],
                "w": lambda a: a[outs, ins],
                "dw": lambda a: a[outs, ins],
                "db": lambda a: a[outs],
            }
        ),
    ]


def _layer(problem: Problem, arrays: Arrays) -> dict[str, Any]:
    m, k, n = _sizes(problem)
    return {
        "x": arrays.normal((m, k), problem.dtype, tag="x"),
        "w": arrays.normal((n, k), problem.dtype, scale=k**-0.5, tag="w"),
        "b": arrays.normal(n, problem.dtype, tag="b"),
    }


def _sizes(problem: Problem) -> tuple[int, int, int]:
    m, k, n = problem.extents("layer")
    return m, k, n


def _activation(problem: Problem) -> dp.ActivationDescriptor:
    return dp.ActivationDescriptor(problem.word("activation", "identity"))


def _end(count: int, most: int) -> slice:
    return slice(max(0, count - most), count)


def _block(rows: slice, cols: slice) -> Part:
    """Some rows and columns of the result."""
    return Part(
        {
            "x": lambda a: a[rows],
            "w": lambda a: a[cols],
            "b": lambda a: a[cols],
            "out": lambda a: a[rows, cols],
        }
    )


def _small(problem: Problem) -> str:
    """A layer of few rows whose alignment is this one's, so that it goes the same way."""
    m, k, n = (min(size, most + size % 8) for size, most in zip(_sizes(problem), (64, 96, 72), strict=True))
    mode = problem.word("activation")
    return f"{problem.op} rows={m} k={k} n={n} activation={mode} math={problem.word('math', 'ieee')} into=out"


FAMILY = Family("fc", lines, {"fc_forward": make_forward, "fc_backward": make_backward})
