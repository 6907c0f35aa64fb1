"""Cases of softmax and log-softmax: each way of going through a row, its edges, masked and poisoned rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import softmax as reference
from .bounds import exact_sums, exact_where, grid, log_softmax_error, lowest_bit, scaled_unit, softmax_error, sum_error
from .calls import Arguments, Array, Destination, Generator, Primitive, as_dtype, wide
from .cases import CaseFamily, Problem
from .drawing import EXACT_DATA, draw_placing, draw_shape, old_out, pick, sample, show


def _axis(problem: Problem) -> int | tuple[int, ...] | str:
    word = problem.word("axis", "-1")
    if word in ("instance", "channel"):
        return word
    axes = tuple(int(one) for one in word.split(","))
    return axes if len(axes) > 1 else axes[0]


def _options(problem: Problem) -> dict[str, Any]:
    return {"axis": _axis(problem), "algorithm": problem.word("algorithm", "accurate"), **problem.scaling()}


def _draw_forward(problem: Problem, rng: Generator) -> dict[str, Any]:
    x = sample(problem, rng, problem.extents(), scale=problem.number("spread", 3.0))
    return {"x": x, **_options(problem), **old_out(problem, rng, x.shape)}


def _row(given: Arguments, x: Array) -> tuple[tuple[int, ...], int]:
    """The axes that are taken as one row, and its length."""
    axis = given["axis"]
    if isinstance(axis, str):
        axes = tuple(range(1, x.ndim)) if axis == "instance" else (1,)
    else:
        axes = tuple(one % x.ndim for one in (axis if isinstance(axis, tuple | list) else (axis,)))
    return axes, int(np.prod([x.shape[one] for one in axes]))


def _into_input(given: Arguments) -> dict[str, Destination]:
    x = given["x"]
    return {"out": given.destination("out", x.shape, x.dtype.name, in_place="x")}


def _bound_forward(given: Arguments, expected: list[Array]) -> list[Array]:
    """Relative errors for the probabilities, absolute ones for their logarithms."""
    x, dtype, algorithm = wide(given["x"]), given["x"].dtype.name, given["algorithm"]
    axes, n = _row(given, x)
    shifted = x - x.max(axis=axes, keepdims=True, initial=-np.inf)
    powers, distance = np.exp(shifted), np.abs(x if algorithm == "fast" else shifted)
    derive = log_softmax_error if algorithm == "log" else softmax_error
    plain = reference.softmax_forward(x, axis=given["axis"], algorithm=algorithm)
    error = derive(plain, n, powers, distance, dtype, axes)
    # Equal elements, 2^k of them: every power is 1, their sum 2^k, and its reciprocal a power of two.
    level = (distance == 0).all(axis=axes, keepdims=True) & (np.frexp(n)[0] == 0.5) & (algorithm != "log")
    target = _into_input(given)["out"]
    right = given.exactly(target, expected[0], plain, np.where(level, lowest_bit(plain), 0.0))
    return [exact_where(right, given.blended(target, expected[0], error))]


def _draw_backward(problem: Problem, rng: Generator) -> dict[str, Any]:
    options, dy = _options(problem), sample(problem, rng, problem.extents())
    x = sample(problem, rng, dy.shape, scale=problem.number("spread", 3.0))
    y = reference.softmax_forward(wide(x), axis=options["axis"], algorithm=options["algorithm"])
    if problem.word("data") in EXACT_DATA:  # no probabilities, but numbers of few digits
        y = np.abs(sample(problem, rng, dy.shape, dtype="float64")) / 4.0
    return {"dy": dy, "y": as_dtype(y, problem.dtype), **options, **old_out(problem, rng, dy.shape)}


def _into_gradient(given: Arguments) -> dict[str, Destination]:
    y = given["y"]
    return {"out": given.destination("out", y.shape, y.dtype.name, in_place="dy")}


def _bound_backward(given: Arguments, expected: list[Array]) -> list[Array]:
    """A sum over the row, a difference and a product."""
    dy, y, dtype, log = wide(given["dy"]), wide(given["y"]), given["y"].dtype.name, given["algorithm"] == "log"
    axes, n = _row(given, y)
    factor, terms = (np.exp(y), np.abs(dy)) if log else (np.abs(y), np.abs(dy * y))
    total = terms.sum(axis=axes, keepdims=True)
    sizes = np.abs(dy) + factor * total if log else factor * (np.abs(dy) + total)
    error = factor * sum_error(n, total, dtype) + scaled_unit(dtype, 4.0, functions=float(log)) * sizes
    target, step = _into_gradient(given)["out"], min(1.0, grid(y)) * grid(dy)
    sums = np.where(log, 0.0, exact_sums(np.abs(dy) + total, step, dtype))  # the sum, and the difference with dy
    right = given.exactly(target, expected[0], y * (np.abs(dy) + total), np.where(sums, step * lowest_bit(y), 0.0))
    return [exact_where(right, given.blended(target, expected[0], error))]


def draw(rng: Generator) -> str:
    """A random problem."""
    shape = draw_shape(rng, (1, 4))
    named = ("channel", "instance") if len(shape) > 1 else ()
    axis = pick(rng, "-1", "-1", str(int(rng.integers(len(shape)))), *named)
    words = f"shape={show(shape)} axis={axis} algorithm={pick(rng, 'accurate', 'fast', 'log')}"
    if rng.random() < 0.5:
        return f"softmax_forward {words} spread={pick(rng, '1.0', '8.0')} {draw_placing(rng)}"
    words += f" data={pick(rng, 'normal', 'integers')}"
    return f"softmax_backward {words} over={pick(rng, 'dy', 'y')} {draw_placing(rng)}"


#: Row lengths at the edges of the ways through a row: parts of a warp, a warp, a block, and one pack more or less.
_LENGTHS = (1, 2, 31, 32, 33, 64, 129, 255, 256, 257, 1024, 1032, 4099)

CORNERS = (
    "softmax_forward shape=0x5 into=out",
    "softmax_forward shape=5x0",
    *(f"softmax_forward shape=3x{n} into=out" for n in _LENGTHS),
    *(f"softmax_forward shape=3x{n} algorithm=log" for n in (7, 256, 1025)),
    "softmax_forward shape=3x257 algorithm=fast into=in_place",
    "softmax_forward shape=2x17000",  # longer than any row in registers
    "softmax_forward shape=3x64 place=offset into=out",
    "softmax_forward shape=3x64 alpha=0.5 beta=-1.25 into=out",
    "softmax_forward shape=4x12x33 axis=1 into=out",  # other rows between the elements of one
    "softmax_forward shape=4x300x8 axis=1 algorithm=log place=offset",
    "softmax_forward shape=3x600x16 axis=1 into=out",  # tiles of neighbouring rows, the last of them narrower
    "softmax_forward shape=1x1100x16 axis=1 into=out",  # of 16 bits, too, with more than registers hold
    "softmax_forward shape=9x70x72 axis=1 algorithm=log alpha=0.5 beta=1.0 into=out",
    "softmax_forward shape=3x5x4x4 axis=channel",
    "softmax_forward shape=3x5x4x4 axis=instance into=in_place",
    "softmax_forward shape=3x5x4x4 axis=1,2",
    "softmax_forward shape=4x100 spread=1000.0",  # one winner; the others vanish
    "softmax_forward shape=4x100 spread=1000.0 algorithm=log only=float32,float64",
    "softmax_forward shape=16x12 data=special",
    "softmax_forward shape=16x12 data=special algorithm=log",
    *(f"softmax_forward shape=3x{n} data=equal" for n in (1, 2, 64, 1024)),
    "softmax_forward shape=2x64x5 axis=1 data=equal algorithm=fast alpha=0.5 beta=1.0 into=out",
    "softmax_backward shape=5x64 data=integers",
    "softmax_backward shape=4x33x5 axis=1 data=integers alpha=0.5 beta=1.0 into=out",
    "softmax_backward shape=0x5 into=out",
    *(f"softmax_backward shape=3x{n} into=out" for n in _LENGTHS),
    *(f"softmax_backward shape=3x{n} algorithm=log" for n in (7, 256, 1025)),
    "softmax_backward shape=3x257 into=in_place over=y",
    "softmax_backward shape=2x17000",
    "softmax_backward shape=1x9001",
    "softmax_forward shape=1x32000 into=out",  # of 32 bits, longer than two rows of a multiprocessor may be
    "softmax_forward shape=1x33000 into=out",  # held by shared memory and registers, of 32 bits and of 16
    "softmax_forward shape=1x66000 algorithm=log",
    "softmax_forward shape=1x117003 into=out",  # longer than a block's shared memory holds
    "softmax_backward shape=1x117000",
    "softmax_backward shape=3x64 place=offset into=out",
    "softmax_backward shape=3x64 alpha=0.5 beta=-1.25 into=out",
    "softmax_backward shape=4x12x33 axis=1 into=in_place",
    "softmax_backward shape=4x300x8 axis=1 algorithm=log",
    "softmax_backward shape=1x600x56 axis=1 into=in_place",  # a multiprocessor has room for one such tile
    "softmax_backward shape=1x1100x16 axis=1 into=out",
    "softmax_backward shape=9x70x72 axis=1 algorithm=log alpha=0.5 beta=1.0 into=out",
)

FAMILY = CaseFamily(
    "softmax",
    reference,
    {
        "softmax_forward": Primitive(_draw_forward, _bound_forward, _into_input),
        "softmax_backward": Primitive(_draw_backward, _bound_backward, _into_gradient),
    },
    CORNERS,
    draw,
)
