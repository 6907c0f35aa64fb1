"""Cases of softmax and log-softmax: each way of going through a row, its edges, masked and poisoned rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import softmax as reference
from .bounds import log_softmax_error, scaled_unit, softmax_error, sum_error
from .cases import (
    Array,
    Call,
    CaseFamily,
    Generator,
    Problem,
    as_dtype,
    blended,
    destination,
    draw_placing,
    draw_shape,
    pick,
    sample,
    show,
    wide,
)


def _axis(problem: Problem) -> int | tuple[int, ...] | str:
    word = problem.word("axis", "-1")
    if word in ("instance", "channel"):
        return word
    axes = tuple(int(one) for one in word.split(","))
    return axes if len(axes) > 1 else axes[0]


def _axes(problem: Problem, ndim: int) -> tuple[int, ...]:
    axis = _axis(problem)
    if isinstance(axis, str):
        return tuple(range(1, ndim)) if axis == "instance" else (1,)
    return tuple(one % ndim for one in (axis if isinstance(axis, tuple) else (axis,)))


def _options(problem: Problem) -> dict[str, Any]:
    return {"axis": _axis(problem), "algorithm": problem.word("algorithm", "accurate"), **problem.scaling()}


def make_forward(problem: Problem, rng: Generator) -> Call:
    """Relative errors for the probabilities, absolute ones for their logarithms."""
    shape = problem.extents()
    x = sample(problem, rng, shape, scale=problem.number("spread", 3.0))
    target, axes = destination(problem, rng, shape, in_place="x"), _axes(problem, len(shape))
    algorithm = problem.word("algorithm", "accurate")

    def bound(expected: list[Array]) -> list[Array]:
        n = int(np.prod([shape[axis] for axis in axes]))
        top = wide(x).max(axis=axes, keepdims=True, initial=-np.inf)
        powers, distance = np.exp(wide(x) - top), np.abs(wide(x) if algorithm == "fast" else wide(x) - top)
        derive = log_softmax_error if algorithm == "log" else softmax_error
        plain = reference.softmax_forward(wide(x), axis=_axis(problem), algorithm=algorithm)
        error = derive(plain, n, powers, distance, problem.dtype, axes)
        return [blended(problem, target, expected[0], error)]

    return Call({"x": x, **_options(problem)}, bound, {"out": target})


def make_backward(problem: Problem, rng: Generator) -> Call:
    """A sum over the row, a difference and a product."""
    shape, algorithm = problem.extents(), problem.word("algorithm", "accurate")
    axes, dy = _axes(problem, len(shape)), sample(problem, rng, shape)
    x = sample(problem, rng, shape, scale=problem.number("spread", 3.0))
    y = as_dtype(reference.softmax_forward(wide(x), axis=_axis(problem), algorithm=algorithm), problem.dtype)
    target = destination(problem, rng, shape, in_place=problem.word("over", "dy"))

    def bound(expected: list[Array]) -> list[Array]:
        n = int(np.prod([shape[axis] for axis in axes]))
        factor = np.exp(wide(y)) if algorithm == "log" else np.abs(wide(y))
        terms = np.abs(wide(dy)) if algorithm == "log" else np.abs(wide(dy) * wide(y))
        total = terms.sum(axis=axes, keepdims=True)
        sizes = np.abs(wide(dy)) + factor * total if algorithm == "log" else factor * (np.abs(wide(dy)) + total)
        unit = scaled_unit(problem.dtype, 4.0, functions=float(algorithm == "log"))
        error = factor * sum_error(n, total, problem.dtype) + unit * sizes
        return [blended(problem, target, expected[0], error)]

    return Call({"dy": dy, "y": y, **_options(problem)}, bound, {"out": target})


def draw(rng: Generator) -> str:
    """A random problem."""
    shape = draw_shape(rng, (1, 4))
    named = ("channel", "instance") if len(shape) > 1 else ()
    axis = pick(rng, "-1", "-1", str(int(rng.integers(len(shape)))), *named)
    words = f"shape={show(shape)} axis={axis} algorithm={pick(rng, 'accurate', 'fast', 'log')}"
    if rng.random() < 0.5:
        return f"softmax_forward {words} spread={pick(rng, '1.0', '8.0')} {draw_placing(rng)}"
    return f"softmax_backward {words} over={pick(rng, 'dy', 'y')} {draw_placing(rng)}"


#: Row lengths at the edges of the ways through a row: parts of a warp, a warp, a block, and one pack more or less.
_LENGTHS = (1, 2, 31, 32, 33, 64, 129, 255, 256, 257, 1024, 1032, 4099)

CORNERS = (
    "softmax_forward shape=0x5 into=out",
    "softmax_forward shape=5x0",
    *(f"softmax_forward shape=3x{n} into=out" for n in _LENGTHS),
    *(f"softmax_forward shape=3x{n} algorithm=log" for n in (7, 256, 1025)),
    "softmax_forward shape=3x257 algorithm=fast into=in_place",
    "softmax_forward shape=2x17000 only=float32,bfloat16",  # longer than any row in registers
    "softmax_forward shape=3x64 place=offset into=out",
    "softmax_forward shape=3x64 alpha=0.5 beta=-1.25 into=out",
    "softmax_forward shape=4x12x33 axis=1 into=out",  # other rows between the elements of one
    "softmax_forward shape=4x300x8 axis=1 algorithm=log place=offset",
    "softmax_forward shape=3x5x4x4 axis=channel",
    "softmax_forward shape=3x5x4x4 axis=instance into=in_place",
    "softmax_forward shape=3x5x4x4 axis=1,2",
    "softmax_forward shape=4x100 spread=1000.0",  # one winner; the others vanish
    "softmax_forward shape=4x100 spread=1000.0 algorithm=log only=float32,float64",
    "softmax_forward shape=16x12 data=special",
    "softmax_forward shape=16x12 data=special algorithm=log",
    "softmax_backward shape=0x5 into=out",
    *(f"softmax_backward shape=3x{n} into=out" for n in _LENGTHS),
    *(f"softmax_backward shape=3x{n} algorithm=log" for n in (7, 256, 1025)),
    "softmax_backward shape=3x257 into=in_place over=y",
    "softmax_backward shape=2x17000 only=float32,bfloat16",
    "softmax_backward shape=3x64 place=offset into=out",
    "softmax_backward shape=3x64 alpha=0.5 beta=-1.25 into=out",
    "softmax_backward shape=4x12x33 axis=1 into=in_place",
    "softmax_backward shape=4x300x8 axis=1 algorithm=log",
)

FAMILY = CaseFamily(
    "softmax", reference, {"softmax_forward": make_forward, "softmax_backward": make_backward}, CORNERS, draw
)
