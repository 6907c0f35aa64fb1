"""Cases of the small tensor operations: set, scale, add with broadcasting, cast."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import tensor as reference
from .bounds import blended, exact, exact_where, lowest_bit, representable, rounded
from .calls import DTYPES, Arguments, Array, Destination, Generator, Primitive, wide
from .cases import CaseFamily, Problem
from .drawing import draw_placing, draw_shape, pick, sample, show

_INTEGERS = ("int32", "int64", "uint8")


def _draw_set(problem: Problem, rng: Generator) -> dict[str, Any]:
    return {"y": sample(problem, rng, problem.extents()), "value": problem.number("value", 0.3)}


def _bound_set(given: Arguments, expected: list[Array]) -> list[Array]:
    """One rounding; integers exactly."""
    value = np.asarray(float(given["value"]))
    return [_converted(value, y, given["y"].dtype.name) for y in expected]


def _draw_scale(problem: Problem, rng: Generator) -> dict[str, Any]:
    return {"y": sample(problem, rng, problem.extents()), "alpha": problem.number("alpha", 0.75)}


def _bound_scale(given: Arguments, expected: list[Array]) -> list[Array]:
    """One product, in place."""
    y, target = given["y"], Destination(given["y"].shape, given["y"].dtype.name)
    right = given.exactly(target, expected[0], wide(y), lowest_bit(y))
    limit = exact_where(right, blended(expected[0], target.dtype, alpha=given.alpha))
    return [limit] * len(expected)


def _draw_add(problem: Problem, rng: Generator) -> dict[str, Any]:
    c = sample(problem, rng, problem.extents())
    a = sample(problem, rng, problem.extents("addend", problem.word("shape")))
    return {"a": a, "c": c, "alpha": problem.number("alpha", 1.0), "beta": problem.number("beta", 1.0)}


def _bound_add(given: Arguments, expected: list[Array]) -> list[Array]:
    """Two products and their sum."""
    a, c = wide(given["a"]), given["c"]
    target = Destination(c.shape, c.dtype.name, c if given.beta else None)
    right = given.exactly(target, expected[0], a, lowest_bit(a))
    return [exact_where(right, given.blended(target, expected[0]))] * len(expected)


def _draw_cast(problem: Problem, rng: Generator) -> dict[str, Any]:
    """`source` is the other type where the dtype is the target, `target` where it is the source."""
    source, shape = problem.word("source", problem.dtype), problem.extents()
    if source in _INTEGERS:
        limits = np.iinfo(source)
        x = rng.integers(limits.min, limits.max, shape, dtype=source, endpoint=True)
    else:
        x = sample(problem, rng, shape, dtype=source, scale=problem.number("spread", 1.0))
    return {"x": x, "dtype": problem.word("target", problem.dtype)}


def _target(given: Arguments) -> str:
    """Name of the type that `cast` converts to."""
    dtype = given["dtype"]
    return dtype if isinstance(dtype, str) else str(getattr(dtype, "name", np.dtype(dtype).name))


def _into_target(given: Arguments) -> dict[str, Destination]:
    return {"out": Destination(given["x"].shape, _target(given))}


def _bound_cast(given: Arguments, expected: list[Array]) -> list[Array]:
    """One rounding to a floating type; integers exactly."""
    return [_converted(given["x"], expected[0], _target(given))]


def _converted(source: Array, expected: Array, dtype: str) -> Array:
    """Exact where the type has the number: int64 goes beyond what float64, the reference's, can tell apart."""
    if dtype in _INTEGERS:
        return exact(expected)
    kept = representable(expected, dtype) & ((source.dtype.kind == "f") | (np.abs(wide(source)) < 2.0**53))
    return exact_where(kept, rounded(expected, dtype))


def _unrounded(given: Arguments) -> dict[str, Any]:
    return {} if _target(given) in _INTEGERS else {"dtype": "float64"}


def draw(rng: Generator) -> str:
    """A random problem."""
    shape = draw_shape(rng, (0, 4))
    words, op = f"shape={show(shape)}", pick(rng, "set_tensor", "scale_tensor", "add_tensor", "cast")
    place = f"place={pick(rng, 'plain', 'offset', 'strided')}"
    if op == "set_tensor":
        return f"{op} {words} value={pick(rng, '0.3', '-7.0', 'inf', 'nan', '1e-40')} {place}"
    if op == "scale_tensor":
        return f"{op} {words} {pick(rng, 'alpha=0.75', 'alpha=-3.0 data=integers', 'alpha=0.0')} {place}"
    words += f" data={pick(rng, 'normal', 'integers')}"
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
    "set_tensor shape=7x33 value=-2.5 data=integers",
    "scale_tensor shape=0",
    "scale_tensor shape=1001 place=offset",
    "scale_tensor shape=7x33 place=strided",
    "scale_tensor shape=40x8 data=special",
    "scale_tensor shape=7x33 data=integers alpha=-0.5",
    "add_tensor shape=17x33 addend=17x1 data=lopsided alpha=0.5 beta=2.0",
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
    *(f"cast shape=7x33 target={name} data=integers" for name in (*DTYPES, "int32", "int64")),
    "cast shape=7x33 target=float32 place=strided",
    "cast shape=257 target=float16 data=wide",
)

FAMILY = CaseFamily(
    "tensor",
    reference,
    {
        "set_tensor": Primitive(_draw_set, _bound_set, updates=("y",)),
        "scale_tensor": Primitive(_draw_scale, _bound_scale, updates=("y",)),
        "add_tensor": Primitive(_draw_add, _bound_add, updates=("c",)),
        "cast": Primitive(_draw_cast, _bound_cast, _into_target, reference=_unrounded),
    },
    CORNERS,
    draw,
)
