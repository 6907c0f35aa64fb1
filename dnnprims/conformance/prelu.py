"""Cases of parametric ReLU."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import prelu as reference
from .bounds import accumulator_error, exact_where, grid, lowest_bit, rounded, sum_bound
from .calls import Arguments, Array, Destination, Generator, Primitive, as_dtype, wide
from .cases import CaseFamily, Problem
from .drawing import EXACT_DATA, draw_placing, draw_shape, old_out, pick, sample, show


def _draw_slopes(problem: Problem, rng: Generator, shape: tuple[int, ...]) -> Array:
    kind = problem.word("slope", "channels")
    extent = (shape[problem.integer("axis", 1)],) if kind == "channels" else () if kind == "scalar" else (1,)
    if problem.word("data") in EXACT_DATA:
        return sample(problem, rng, extent)
    return as_dtype(0.25 + 0.5 * rng.standard_normal(extent), problem.dtype)


def _draw_forward(problem: Problem, rng: Generator) -> dict[str, Any]:
    shape = problem.extents()
    operands = {"x": sample(problem, rng, shape), "slope": _draw_slopes(problem, rng, shape)}
    return {**operands, "axis": problem.integer("axis", 1), **problem.scaling(), **old_out(problem, rng, shape)}


def _into_input(given: Arguments) -> dict[str, Destination]:
    x = given["x"]
    return {"out": given.destination("out", x.shape, x.dtype.name, in_place="x")}


def _bound_forward(given: Arguments, expected: list[Array]) -> list[Array]:
    """One product: half an ULP of the accumulator."""
    x, slope = wide(given["x"]), _spread(given)
    product = accumulator_error(x * slope, given["x"].dtype.name, 0.5)
    target, value = _into_input(given)["out"], np.where(x > 0, x, x * slope)
    right = given.exactly(target, expected[0], value, lowest_bit(x) * np.where(x > 0, 1.0, lowest_bit(slope)))
    return [exact_where(right, given.blended(target, expected[0], np.where(x > 0, 0.0, product)))]


def _draw_backward(problem: Problem, rng: Generator) -> dict[str, Any]:
    shape = problem.extents()
    operands = {name: sample(problem, rng, shape) for name in ("dy", "x")}
    options = {"axis": problem.integer("axis", 1), "needs": problem.names("needs", "dx,dslope")}
    return {**operands, "slope": _draw_slopes(problem, rng, shape), **options}


def _into_gradients(given: Arguments) -> dict[str, Destination]:
    x, slope = given["x"], given["slope"]
    places = {
        "dx": given.destination("dx", x.shape, x.dtype.name, in_place="dy"),
        "dslope": given.destination("dslope", slope.shape, slope.dtype.name),
    }
    return {name: place for name, place in places.items() if name in given["needs"]}


def _bound_backward(given: Arguments, expected: list[Array]) -> list[Array]:
    """dx is one product; dslope a sum of products over everything that shares a slope."""
    x, dtype, size = wide(given["x"]), given["x"].dtype.name, given["slope"].size
    limits = []
    dy = wide(given["dy"])
    for (name, place), result in zip(_into_gradients(given).items(), expected, strict=True):
        if name == "dx":
            product = accumulator_error(result, dtype, 0.5)
            finest = lowest_bit(dy) * np.where(x > 0, 1.0, lowest_bit(_spread(given)))
            right = given.exactly(place, result, result, finest)
            limits.append(exact_where(right, rounded(result, dtype, np.where(x > 0, 0.0, product))))
        else:
            absolute = _per_slope(given, np.where(x > 0, 0.0, np.abs(dy * x)))
            right = given.exactly(place, result, absolute, grid(dy) * grid(x))
            limits.append(exact_where(right, sum_bound(x.size // max(size, 1), absolute, dtype, result)))
    return limits


def _spread(given: Arguments) -> Array:
    slope, ndim = wide(given["slope"]), given["x"].ndim
    if slope.size == 1:
        return slope.reshape(())
    return slope.reshape([-1 if i == given["axis"] % ndim else 1 for i in range(ndim)])


def _per_slope(given: Arguments, terms: Array) -> Array:
    if given["slope"].size == 1:
        return np.reshape(terms.sum(), given["slope"].shape)
    axis = given["axis"] % terms.ndim
    return np.asarray(terms.sum(axis=tuple(i for i in range(terms.ndim) if i != axis)))


def draw(rng: Generator) -> str:
    """A random problem."""
    shape = draw_shape(rng, (1, 4))
    slope = pick(rng, "channels", "channels", "scalar", "one")
    axis = int(rng.integers(len(shape)))
    several = slope != "channels" or np.prod(shape) >= 4 * shape[axis]  # so that few slopes see nothing but x > 0
    data = pick(rng, "normal", "integers") if several else "normal"
    words = f"shape={show(shape)} data={data} slope={slope} axis={axis}"
    if rng.random() < 0.5:
        return f"prelu_forward {words} {draw_placing(rng)}"
    needs = pick(rng, "dx,dslope", "dx,dslope", "dx", "dslope")
    return f"prelu_backward {words} needs={needs} over={pick(rng, 'dy', 'x')} {draw_placing(rng, blend=False)}"


CORNERS = (
    "prelu_forward shape=0x3 into=out",
    "prelu_forward shape=1x1",
    "prelu_forward shape=scalar slope=scalar",
    "prelu_forward shape=7x33x5 into=in_place",  # channels change within a pack, and there is a tail
    "prelu_forward shape=7x33x5 place=offset into=out",
    "prelu_forward shape=64x40",  # channels last
    "prelu_forward shape=2x3x16x16 axis=1 alpha=0.5 beta=-1.25 into=out",
    "prelu_forward shape=1001 slope=one alpha=2.0 into=out",
    "prelu_forward shape=8x24 data=special",
    "prelu_forward shape=4x300 slope=scalar data=wide",
    "prelu_forward shape=7x33x5 data=integers alpha=0.5 beta=1.0 into=out",
    "prelu_forward shape=64x40 data=powers",
    "prelu_backward shape=0x3 into=out",
    "prelu_backward shape=3x0",
    "prelu_backward shape=1x1 into=out",
    "prelu_backward shape=scalar slope=scalar",
    "prelu_backward shape=300x40 into=out",  # columns, in packs
    "prelu_backward shape=300x37 into=in_place",  # columns, one by one
    "prelu_backward shape=70x6x8",  # columns over a short inner extent
    "prelu_backward shape=5x3x9x16 into=in_place over=x",  # rows, in packs
    "prelu_backward shape=5x3x101 place=offset into=out",  # rows, one by one
    "prelu_backward shape=9001 slope=one into=out",  # several parts of one sum
    "prelu_backward shape=33x65 needs=dx into=in_place",
    "prelu_backward shape=33x65 needs=dslope",
    "prelu_backward shape=64x64 data=integers needs=dslope",
    "prelu_backward shape=33x12x5 data=integers into=out",
    "prelu_backward shape=300x40 data=lopsided",
    "prelu_backward shape=8x24 data=special ends=0",
)

FAMILY = CaseFamily(
    "prelu",
    reference,
    {
        "prelu_forward": Primitive(_draw_forward, _bound_forward, _into_input),
        "prelu_backward": Primitive(_draw_backward, _bound_backward, _into_gradients),
    },
    CORNERS,
    draw,
)
