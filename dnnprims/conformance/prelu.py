"""Cases of parametric ReLU."""

from __future__ import annotations

import numpy as np

from ..reference import prelu as reference
from .bounds import accumulator_error, rounded, sum_bound
from .cases import (
    Array,
    Call,
    CaseFamily,
    Destination,
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


def _slopes(problem: Problem, rng: Generator, shape: tuple[int, ...]) -> Array:
    kind = problem.word("slope", "channels")
    extent = {"scalar": (), "one": (1,)}.get(kind) if kind != "channels" else (shape[problem.integer("axis", 1)],)
    return as_dtype(0.25 + 0.5 * rng.standard_normal(extent), problem.dtype)


def make_forward(problem: Problem, rng: Generator) -> Call:
    """One product: half an ULP of the accumulator."""
    shape = problem.extents()
    x, slope = sample(problem, rng, shape), _slopes(problem, rng, shape)
    target = destination(problem, rng, shape, in_place="x")

    def bound(expected: list[Array]) -> list[Array]:
        (y,) = expected
        result = wide(x) * _spread(problem, slope, shape)
        error = np.where(wide(x) > 0, 0.0, accumulator_error(result, problem.dtype, 0.5))
        return [blended(problem, target, y, error)]

    arguments = {"x": x, "slope": slope, "axis": problem.integer("axis", 1), **problem.scaling()}
    return Call(arguments, bound, {"out": target})


def make_backward(problem: Problem, rng: Generator) -> Call:
    """dx is one product; dslope a sum of products over everything that shares a slope."""
    shape = problem.extents()
    dy, x, slope = sample(problem, rng, shape), sample(problem, rng, shape), _slopes(problem, rng, shape)
    needs = problem.names("needs", "dx,dslope")

    def bound(expected: list[Array]) -> list[Array]:
        results = dict(zip((name for name in ("dx", "dslope") if name in needs), expected, strict=True))
        bounds = []
        if "dx" in needs:
            product = accumulator_error(results["dx"], problem.dtype, 0.5)
            bounds.append(rounded(results["dx"], problem.dtype, np.where(wide(x) > 0, 0.0, product)))
        if "dslope" in needs:
            terms = np.where(wide(x) > 0, 0.0, np.abs(wide(dy) * wide(x)))
            absolute = _per_slope(problem, terms, slope)
            count = x.size // max(slope.size, 1)
            bounds.append(sum_bound(count, absolute, problem.dtype, results["dslope"]))
        return bounds

    targets = {
        "dx": Destination(shape, problem.dtype, in_place=problem.word("over", "dy")),
        "dslope": Destination(slope.shape, problem.dtype),
    }
    arguments = {"dy": dy, "x": x, "slope": slope, "axis": problem.integer("axis", 1), "needs": needs}
    return Call(arguments, bound, {name: targets[name] for name in ("dx", "dslope") if name in needs})


def _spread(problem: Problem, slope: Array, shape: tuple[int, ...]) -> Array:
    if slope.size == 1:
        return wide(slope).reshape(())
    axis = problem.integer("axis", 1) % len(shape)
    return wide(slope).reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _per_slope(problem: Problem, terms: Array, slope: Array) -> Array:
    if slope.size == 1:
        return np.reshape(terms.sum(), slope.shape)
    axis = problem.integer("axis", 1) % terms.ndim
    return np.asarray(terms.sum(axis=tuple(i for i in range(terms.ndim) if i != axis)))


def draw(rng: Generator) -> str:
    """A random problem."""
    shape = draw_shape(rng, (1, 4))
    slope = pick(rng, "channels", "channels", "scalar", "one")
    words = f"shape={show(shape)} slope={slope} axis={int(rng.integers(len(shape)))}"
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
    "prelu_backward shape=8x24 data=special ends=0",
)

FAMILY = CaseFamily("prelu", reference, {"prelu_forward": make_forward, "prelu_backward": make_backward}, CORNERS, draw)
