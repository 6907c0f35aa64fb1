"""Cases of gated linear units."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import glu as reference
from .bounds import DERIVATIVE_ULP, exact_where, function_error, lowest_bit, product_error, slope_size
from .calls import Arguments, Array, Destination, Generator, Primitive, wide
from .cases import CaseFamily, Problem
from .drawing import draw_placing, draw_shape, old_out, pick, sample, show

#: Gates whose value and slope involve no elementary function.
_PLAIN_GATES = ("relu", "identity")


def _draw_forward(problem: Problem, rng: Generator) -> dict[str, Any]:
    shape = problem.extents()
    x = sample(problem, rng, _doubled(shape, problem.integer("axis", -1)), scale=2.0)
    return {"x": x, **_options(problem), **old_out(problem, rng, shape)}


def _into_half(given: Arguments) -> dict[str, Destination]:
    x = given["x"]
    axis = given["axis"] % x.ndim
    return {"out": given.destination("out", (*x.shape[:axis], x.shape[axis] // 2, *x.shape[axis + 1 :]), x.dtype.name)}


def _bound_forward(given: Arguments, expected: list[Array]) -> list[Array]:
    """A gate, right to its function's bound, times a number."""
    target, (value, gate, _) = _into_half(given)["out"], _parts(given)
    error = product_error([(value, 0.0), gate], given["x"].dtype.name)
    right = given.exactly(target, expected[0], value * gate[0], _finest(given, value, gate[0]))
    return [exact_where(right, given.blended(target, expected[0], error))]


def _draw_backward(problem: Problem, rng: Generator) -> dict[str, Any]:
    shape = problem.extents()
    dy, x = sample(problem, rng, shape), sample(problem, rng, _doubled(shape, problem.integer("axis", -1)), scale=2.0)
    return {"dy": dy, "x": x, **_options(problem), **old_out(problem, rng, x.shape)}


def _into_input(given: Arguments) -> dict[str, Destination]:
    x = given["x"]
    return {"out": given.destination("out", x.shape, x.dtype.name, in_place="x")}


def _bound_backward(given: Arguments, expected: list[Array]) -> list[Array]:
    """dy times a gate, and dy times a number times a slope."""
    dy, dtype, target, axis = wide(given["dy"]), given["x"].dtype.name, _into_input(given)["out"], given["axis"]
    value, gate, slope = _parts(given)
    errors = [product_error([(dy, 0.0), gate], dtype), product_error([(dy, 0.0), (value, 0.0), slope], dtype)]
    products = np.concatenate([dy * gate[0], dy * value * slope[0]], axis=axis)
    finest = np.concatenate([_finest(given, dy, gate[0]), _finest(given, dy, value, slope[0])], axis=axis)
    right = given.exactly(target, expected[0], products, finest)
    return [exact_where(right, given.blended(target, expected[0], np.concatenate(errors, axis=axis)))]


def _finest(given: Arguments, *factors: Array) -> Array:
    """Grid of products with a gate that is a number; 0 where it is a function."""
    if given["gate"] not in _PLAIN_GATES:
        return np.zeros(factors[0].shape)
    return np.asarray(np.prod([lowest_bit(factor) for factor in factors], axis=0))


def _parts(given: Arguments) -> tuple[Array, tuple[Array, Any], tuple[Array, Any]]:
    """The first half; the gate and its slope, each with its error."""
    name, dtype = given["gate"], given["x"].dtype.name
    value, gating = np.split(wide(given["x"]), 2, axis=given["axis"])
    gate, slope = reference.GATES[name](gating)
    if name in _PLAIN_GATES:
        return value, (gate, 0.0), (slope, 0.0)
    measured = slope if name == "sigmoid" else slope_size(slope, gating, dtype)
    return (
        value,
        (gate, function_error(gate, dtype, argument=gating)),
        (slope, function_error(measured, dtype, DERIVATIVE_ULP, gating)),
    )


def _options(problem: Problem) -> dict[str, Any]:
    return {"gate": problem.word("gate", "sigmoid"), "axis": problem.integer("axis", -1), **problem.scaling()}


def _doubled(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])


def draw(rng: Generator) -> str:
    """A random problem; `shape` is that of y."""
    shape = draw_shape(rng, (1, 3), most=1000)
    axis = pick(rng, "-1", str(int(rng.integers(len(shape)))))
    words = f"shape={show(shape)} axis={axis} gate={pick(rng, *reference.GATES)} data={pick(rng, 'normal', 'lopsided')}"
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
    "glu_forward shape=5x33 gate=identity data=integers alpha=0.5 beta=1.0 into=out",
    "glu_forward shape=5x64 gate=relu data=lopsided",
    "glu_backward shape=5x33 gate=identity data=integers alpha=0.5 beta=1.0 into=out",
    "glu_backward shape=5x64 gate=relu data=lopsided",
    "glu_backward shape=4x0",
    "glu_backward shape=1 into=out",
    *(f"glu_backward shape=5x64 gate={gate} into=out" for gate in reference.GATES),
    "glu_backward shape=5x33 gate=swish into=in_place",
    "glu_backward shape=5x64 place=offset gate=gelu into=out",
    "glu_backward shape=3x4x6 axis=0 gate=gelu_tanh alpha=0.5 beta=-1.25 into=out",
    "glu_backward shape=16x32 gate=relu data=special ends=0",
)

FAMILY = CaseFamily(
    "glu",
    reference,
    {
        "glu_forward": Primitive(_draw_forward, _bound_forward, _into_half),
        "glu_backward": Primitive(_draw_backward, _bound_backward, _into_input),
    },
    CORNERS,
    draw,
)
