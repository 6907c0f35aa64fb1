"""Cases of maxout. It moves data, so that nothing but a blend may err."""

from __future__ import annotations

from typing import Any

from ..reference import maxout as reference
from .bounds import exact, exact_where, lowest_bit
from .calls import Arguments, Array, Destination, Generator, Primitive, wide
from .cases import CaseFamily, Problem
from .drawing import draw_placing, draw_shape, old_out, pick, sample, show


def _index_dtype(pool: int) -> str:
    return "uint8" if pool <= 256 else "int32"


def _options(problem: Problem) -> tuple[int, int]:
    return problem.integer("pool", 2), problem.integer("axis", -1)


def _draw_forward(problem: Problem, rng: Generator) -> dict[str, Any]:
    """`shape` is that of y; small integers make ties, of which the first must win."""
    pool, axis = _options(problem)
    return {"x": sample(problem, rng, _scaled(problem.extents(), axis, pool)), "pool_size": pool, "axis": axis}


def _into_maxima(given: Arguments) -> dict[str, Destination]:
    x, pool = given["x"], given["pool_size"]
    axis = given["axis"] % x.ndim
    units = (*x.shape[:axis], x.shape[axis] // pool, *x.shape[axis + 1 :])
    return {"out": Destination(units, x.dtype.name), "which": Destination(units, _index_dtype(pool))}


def _bound_forward(given: Arguments, expected: list[Array]) -> list[Array]:
    """Values and indices are moved."""
    return [exact(result) for result in expected]


def _draw_backward(problem: Problem, rng: Generator) -> dict[str, Any]:
    """`shape` is that of dy."""
    (pool, axis), units = _options(problem), problem.extents()
    dy, which = sample(problem, rng, units), rng.integers(0, pool, units).astype(_index_dtype(pool))
    old = old_out(problem, rng, _scaled(units, axis, pool))
    return {"dy": dy, "which": which, "pool_size": pool, "axis": axis, **problem.scaling(), **old}


def _into_groups(given: Arguments) -> dict[str, Destination]:
    dy = given["dy"]
    return {"out": given.destination("out", _scaled(dy.shape, given["axis"], given["pool_size"]), dy.dtype.name)}


def _bound_backward(given: Arguments, expected: list[Array]) -> list[Array]:
    """Gradients are moved, and blended where that is asked for."""
    target, dy = _into_groups(given)["out"], wide(given["dy"])
    moved = reference.maxout_backward(dy, given["which"], given["pool_size"], axis=given["axis"])
    right = given.exactly(target, expected[0], moved, lowest_bit(moved))
    return [exact_where(right, given.blended(target, expected[0]))]


def _scaled(units: tuple[int, ...], axis: int, pool: int) -> tuple[int, ...]:
    axis %= len(units)
    return (*units[:axis], units[axis] * pool, *units[axis + 1 :])


def draw(rng: Generator) -> str:
    """A random problem."""
    shape, pool = draw_shape(rng, (1, 3), most=800), int(rng.choice([1, 2, 2, 3, 3, 4, 5, 8, 9]))
    axis = pick(rng, "-1", str(int(rng.integers(len(shape)))))
    words = f"shape={show(shape)} pool={pool} axis={axis}"
    if rng.random() < 0.5:
        data = pick(rng, "normal", "integers", "special")
        return f"maxout_forward {words} data={data} {draw_placing(rng, in_place=False, blend=False)}"
    words += pick(rng, "", " data=integers beta=1.0 into=out")
    return f"maxout_backward {words} {draw_placing(rng, in_place=False)}"


CORNERS = (
    "maxout_forward shape=0x3",
    "maxout_forward shape=1 pool=1 into=out",
    "maxout_forward shape=1 pool=3",
    "maxout_forward shape=33x7 pool=2 into=out",  # groups in registers, and a tail of groups
    "maxout_forward shape=16x16 pool=3 data=integers into=out",
    "maxout_forward shape=16x16 pool=4 data=special",
    "maxout_forward shape=31x9 pool=8 data=integers",
    "maxout_forward shape=33x7 pool=2 place=offset into=out",
    "maxout_forward shape=33x7 pool=5 data=integers",  # a pool without a kernel of its own
    "maxout_forward shape=3x4x16 pool=2 axis=1 into=out",  # neighbours behind the axis, in packs
    "maxout_forward shape=3x4x7 pool=3 axis=1 data=special",
    "maxout_forward shape=5x2 pool=256",  # the last index that uint8 holds
    "maxout_forward shape=5x2 pool=257 into=out",  # and the first that it does not
    "maxout_backward shape=0x3",
    "maxout_backward shape=1 pool=1 into=out",
    "maxout_backward shape=33x7 pool=2 into=out",
    "maxout_backward shape=33x7 pool=3 place=offset into=out",
    "maxout_backward shape=3x4x7 pool=3 axis=1",
    "maxout_backward shape=3x4x16 pool=2 axis=0 alpha=0.5 beta=2.0 into=out",
    "maxout_backward shape=5x2 pool=257 alpha=-1.25",
    "maxout_backward shape=3x4x16 pool=3 axis=1 data=integers alpha=0.5 beta=1.0 into=out",
    "maxout_backward shape=16x16 pool=4 data=special",
    "maxout_backward shape=31x9 pool=4 alpha=0.5 beta=1.0 data=integers into=out",
    "maxout_backward shape=31x9 pool=4 into=out",  # groups in registers, and a tail
    "maxout_backward shape=31x9 pool=8 into=out",  # units longer than a pack
    "maxout_backward shape=33x7 pool=3 into=out",
)

FAMILY = CaseFamily(
    "maxout",
    reference,
    {
        "maxout_forward": Primitive(_draw_forward, _bound_forward, _into_maxima),
        "maxout_backward": Primitive(_draw_backward, _bound_backward, _into_groups),
    },
    CORNERS,
    draw,
)
