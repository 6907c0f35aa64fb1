"""Cases of gated linear units."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import glu as reference
from .bounds import DERIVATIVE_ULP, function_error, product_error, slope_size
from .cases import (
    Array,
    Call,
    CaseFamily,
    Generator,
    Problem,
    blended,
    destination,
    draw_placing,
    draw_shape,
    pick,
    sample,
    show,
    wide,
)

#: Gates whose value and slope involve no elementary function.
_PLAIN_GATES = ("relu", "identity")


def make_forward(problem: Problem, rng: Generator) -> Call:
    """A gate, right to its function's bound, times a number."""
    axis, shape = problem.integer("axis", -1), problem.extents()
    x = sample(problem, rng, _doubled(shape, axis), scale=2.0)
    target = destination(problem, rng, shape)

    def bound(expected: list[Array]) -> list[Array]:
        value, gate, _ = _parts(problem, x)
        error = product_error([(value, 0.0), gate], problem.dtype)
        return [blended(problem, target, expected[0], error)]

    return Call({"x": x, **_options(problem)}, bound, {"out": target})


def make_backward(problem: Problem, rng: Generator) -> Call:
    """dy times a gate, and dy times a number times a slope."""
    axis, shape = problem.integer("axis", -1), problem.extents()
    dy, x = sample(problem, rng, shape), sample(problem, rng, _doubled(shape, axis), scale=2.0)
    target = destination(problem, rng, x.shape, in_place="x")

    def bound(expected: list[Array]) -> list[Array]:
        value, gate, slope = _parts(problem, x)
        value_error = product_error([(wide(dy), 0.0), gate], problem.dtype)
        gate_error = product_error([(wide(dy), 0.0), (value, 0.0), slope], problem.dtype)
        error = np.concatenate([value_error, gate_error], axis=axis)
        return [blended(problem, target, expected[0], error)]

    return Call({"dy": dy, "x": x, **_options(problem)}, bound, {"out": target})


def _parts(problem: Problem, x: Array) -> tuple[Array, tuple[Array, Any], tuple[Array, Any]]:
    """The first half; the gate and its slope, each with its error."""
    name = problem.word("gate", "sigmoid")
    value, gating = np.split(wide(x), 2, axis=problem.integer("axis", -1))
    gate, slope = reference.GATES[name](gating)
    if name in _PLAIN_GATES:
        return value, (gate, 0.0), (slope, 0.0)
    measured = slope if name == "sigmoid" else slope_size(slope, gating, problem.dtype)
    return (
        value,
        (gate, function_error(gate, problem.dtype, argument=gating)),
        (slope, function_error(measured, problem.dtype, DERIVATIVE_ULP, gating)),
    )


def _options(problem: Problem) -> dict[str, Any]:
    return {
        "gate": problem.word("gate", "sigmoid"),
        "axis": problem.integer("axis", -1),
        **problem.scaling(),
    }


def _doubled(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])


def draw(rng: Generator) -> str:
    """A random problem; `shape` is that of y."""
    shape = draw_shape(rng, (1, 3), most=1000)
    axis = pick(rng, "-1", str(int(rng.integers(len(shape)))))
    words = f"shape={show(shape)} axis={axis} gate={pick(rng, *reference.GATES)}"
    if rng.random() < 0.5:
        return f"glu_forward {words} {draw_placing(rng, in_place=False)}"
    return f"glu_backward {words} {draw_placing(rng)}"


CORNERS = (
    "glu_forward shape=0x4",
    "glu_forward shape=1 into=out",
    *(f"glu_forward shape=5x64 gate={gate} into=out" for gate in reference.GATES),
    "glu_forward shape=5x33 gate=swish",  # halves that no pack divides
    "glu_forward shape=5x64 place=offset gate=gelu into=out",
    "glu_forward shape=3x4x6 axis=1 gate=gelu_tanh alpha=0.5 beta=-1.25 into=out",
    "glu_forward shape=16x32 gate=swish data=special ends=0",
    "glu_forward shape=16x32 gate=sigmoid data=wide",
    "glu_backward shape=4x0",
    "glu_backward shape=1 into=out",
    *(f"glu_backward shape=5x64 gate={gate} into=out" for gate in reference.GATES),
    "glu_backward shape=5x33 gate=swish into=in_place",
    "glu_backward shape=5x64 place=offset gate=gelu into=out",
    "glu_backward shape=3x4x6 axis=0 gate=gelu_tanh alpha=0.5 beta=-1.25 into=out",
    "glu_backward shape=16x32 gate=relu data=special ends=0",
)

FAMILY = CaseFamily("glu", reference, {"glu_forward": make_forward, "glu_backward": make_backward}, CORNERS, draw)
