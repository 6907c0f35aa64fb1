"""Operands of fully connected layers, drawn."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...descriptors import ActivationDescriptor
from ...reference import activation as elementwise
from ...reference import fc as reference
from ..calls import Generator, as_dtype, wide
from ..cases import Problem
from ..drawing import old_out, sample

#: Primitive that is one product -> its operands, and what has the shape of its result.
_PRODUCTS = {
    "fc_backward_data": (("dy", "w"), "x"),
    "fc_backward_weights": (("dy", "x"), "w"),
    "fc_backward_bias": (("dy",), "b"),
}


def _activation(problem: Problem) -> ActivationDescriptor | None:
    word = problem.word("activation")
    return ActivationDescriptor(word) if word else None


def _sizes(problem: Problem) -> tuple[tuple[int, ...], int, int]:
    """Leading axes, inputs, outputs."""
    return problem.extents("rows", "1"), problem.integer("k", 1), problem.integer("n", 1)


def draw_forward(problem: Problem, rng: Generator) -> dict[str, Any]:
    rows, k, n = _sizes(problem)
    x, w = sample(problem, rng, (*rows, k)), sample(problem, rng, (n, k))
    b = sample(problem, rng, (n,)) if problem.integer("bias", 1) else None
    arguments: dict[str, Any] = {"x": x, "w": w, "b": b, "activation": _activation(problem), **problem.scaling()}
    arguments |= old_out(problem, rng, (*rows, n))
    if problem.integer("aux"):
        arguments["aux"] = as_dtype(np.full((*rows, n), np.nan), problem.dtype)
    return arguments


def draw_product(problem: Problem, rng: Generator) -> dict[str, Any]:
    rows, k, n = _sizes(problem)
    shapes = {"dy": (*rows, n), "w": (n, k), "x": (*rows, k)}
    names, result = _PRODUCTS[problem.op]
    operands = {name: sample(problem, rng, shapes[name]) for name in names}
    return {**operands, **problem.scaling(), **old_out(problem, rng, shapes.get(result, (n,)))}


def draw_backward(problem: Problem, rng: Generator) -> dict[str, Any]:
    rows, k, n = _sizes(problem)
    shapes = {"dy": (*rows, n), "x": (*rows, k), "w": (n, k)}
    operands: dict[str, Any] = {name: sample(problem, rng, shape) for name, shape in shapes.items()}
    mode, needs = _activation(problem), problem.names("needs", "dx,dw,db")
    z = sample(problem, rng, (*rows, n), scale=2.0)
    if mode is not None and reference.backward_needs(mode) == ("aux",):
        operands["aux"] = z
    elif mode is not None:
        operands["y"] = as_dtype(elementwise.activation_forward(mode, wide(z)), problem.dtype)
    for name, shape in (("dw", (n, k)), ("db", (n,))):
        operands |= old_out(problem, rng, shape, name=name) if name in needs else {}
    return {**operands, "activation": mode, "needs": needs, **problem.scaling()}
