"""Cases of the small tensor operations: set, scale, add with broadcasting, cast."""

from __future__ import annotations

import numpy as np

from ..reference import tensor as reference
from .bounds import blended, exact, rounded
from .cases import (
    DTYPES,
    Array,
    Call,
    CaseFamily,
    Destination,
    Generator,
    Problem,
    draw_placing,
    draw_shape,
    pick,
    sample,
    show,
    wide,
)

_INTEGERS = ("int32", "int64", "uint8")


def make_set(problem: Problem, rng: Generator) -> Call:
    """One rounding."""
    y = sample(problem, rng, problem.extents())
    return Call(
        {"y": y, "value": problem.number("value", 0.3)},
        lambda expected: [rounded(y, problem.dtype) for y in expected],
        updates=("y",),
    )


def make_scale(problem: Problem, rng: Generator) -> Call:
    """One product, in place."""
    y = sample(problem, rng, problem.extents())
    alpha = problem.number("alpha", 0.75)
    return Call(
        {"y": y, "alpha": alpha},
        lambda expected: [blended(y, problem.dtype, alpha=alpha) for y in expected],
        updates=("y",),
    )


def make_add(problem: Problem, rng: Generator) -> Call:
    """Two products and their sum; `addend` is the shape of what is added."""
    c = sample(problem, rng, problem.extents())
    a = sample(problem, rng, problem.extents("addend", problem.word("shape")))
    alpha, beta = problem.number("alpha", 1.0), problem.number("beta", 1.0)
    return Call(
        {"a": a, "c": c, "alpha": alpha, "beta": beta},
        lambda expected: [blended(y, problem.dtype, alpha=alpha, beta=beta, old=wide(c)) for y in expected],
        updates=("c",),
    )


def make_cast(problem: Problem, rng: Generator) -> Call:
    """One rounding to a floating type; integers exactly. `source` is the other type where the dtype is the target."""
    source, target = problem.word("source", problem.dtype), problem.word("target", problem.dtype)
    shape, scale = problem.extents(), problem.number("spread", 1.0)
    if source in _INTEGERS:
        limits = np.iinfo(source)
        x = rng.integers(limits.min, limits.max, shape, dtype=source, endpoint=True)
    else:
        x = sample(problem, rng, shape, dtype=source, scale=scale)

    def bound(expected: list[Array]) -> list[Array]:
        return [exact(expected[0]) if target in _INTEGERS else rounded(expected[0], target)]

    swapped = {} if target in _INTEGERS else {"dtype": "float64"}
    return Call({"x": x, "dtype": target}, bound, {"out": Destination(shape, target)}, reference=swapped)


def draw(rng: Generator) -> str:
    """A random problem."""
    shape = draw_shape(rng, (0, 4))
    words, op = f"shape={show(shape)}", pick(rng, "set_tensor", "scale_tensor", "add_tensor", "cast")
    place = f"place={pick(rng, 'plain', 'offset', 'strided')}"
    if op == "set_tensor":
        return f"{op} {words} value={pick(rng, '0.3', '-7.0', 'inf', 'nan', '1e-40')} {place}"
    if op == "scale_tensor":
        return f"{op} {words} alpha={pick(rng, '0.75', '-3.0', '0.0')} {place}"
    if op == "add_tensor":
        addend = [1 if rng.random() < 0.3 else extent for extent in shape][int(rng.integers(len(shape) + 1)) :]
        factors = f"alpha={pick(rng, '1.0', '-0.5')} beta={pick(rng, '1.0', '0.0', '2.0')}"
        return f"{op} {words} addend={show(addend)} {factors} {place}"
    other = pick(rng, *DTYPES, *_INTEGERS)
    way = pick(rng, "source", "target")
    placing = draw_placing(rng, in_place=False, blend=False).replace("place=plain", place)
    return f"{op} {words} {way}={other} spread={pick(rng, '1.0', '300.0')} {placing}"


CORNERS = (
    "set_tensor shape=0x3",
    "set_tensor shape=scalar value=-2.5",
    "set_tensor shape=1001 value=nan",
    "set_tensor shape=7x33 place=strided",
    "scale_tensor shape=0",
    "scale_tensor shape=1001 place=offset",
    "scale_tensor shape=7x33 place=strided",
    "scale_tensor shape=40x8 data=special",
    "add_tensor shape=0x3 addend=3",
    "add_tensor shape=17x32 addend=32",  # a bias
    "add_tensor shape=17x33 addend=17x1 alpha=-0.5 beta=2.0",
    "add_tensor shape=3x5x7x8 addend=5x1x1",
    "add_tensor shape=33x5 place=strided",
    "add_tensor shape=33x8 addend=scalar place=offset beta=0.0",
    "cast shape=0x3 target=float16",
    *(f"cast shape=513 target={name} into=out" for name in (*DTYPES, *_INTEGERS)),
    *(f"cast shape=513 source={name} into=out" for name in _INTEGERS),
    *(f"cast shape=513 target={name} data=special place=offset into=out" for name in (*DTYPES, *_INTEGERS)),
    "cast shape=7x33 target=float32 place=strided",
    "cast shape=257 target=float16 data=wide",
)

FAMILY = CaseFamily(
    "tensor",
    reference,
    {"set_tensor": make_set, "scale_tensor": make_scale, "add_tensor": make_add, "cast": make_cast},
    CORNERS,
    draw,
)
