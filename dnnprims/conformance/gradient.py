"""Cases of global norm, clipping and loss scaling."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reference import gradient as reference
from ..reference.tensor_lists import as_list
from .bounds import (
    blended,
    exact,
    exact_roots,
    exact_sums,
    exact_where,
    grid,
    lowest_bit,
    norm_error,
    rounded,
    scaled_unit,
)
from .calls import Arguments, Array, Destination, Generator, Primitive, wide
from .cases import CaseFamily, Problem
from .drawing import draw_shapes, pick, sample_list, show_list


def _norm_dtype(arrays: list[Array]) -> str:
    return "float64" if any(a.dtype == np.float64 for a in arrays) else "float32"


def _norm_limit(arrays: list[Array], norm: Array) -> Array:
    """The root of a sum of squares; where that is exact, the root's rounding is left, and nothing of a whole root."""
    kept, wides = _norm_dtype(arrays), [wide(a) for a in arrays]
    squares = sum((np.square(a).sum() for a in wides), np.zeros(()))
    if bool(exact_sums(squares, grid(*wides) ** 2, kept)):
        return exact_where(exact_roots(norm, squares, kept), rounded(norm, kept))
    return rounded(norm, kept, norm_error(max(sum(a.size for a in arrays), 1), norm, kept))


def _draw_norm(problem: Problem, rng: Generator) -> dict[str, Any]:
    return {"arrays": sample_list(problem, rng)}


def _into_norm(given: Arguments) -> dict[str, Destination]:
    return {"out": Destination((), _norm_dtype(as_list(given["arrays"])))}


def _bound_norm(given: Arguments, expected: list[Array]) -> list[Array]:
    return [_norm_limit(as_list(given["arrays"]), expected[0])]


def _draw_clip(problem: Problem, rng: Generator) -> dict[str, Any]:
    options = {name: problem.number(name) for name in ("epsilon",) if problem.word(name)}
    return {"arrays": sample_list(problem, rng), "max_norm": problem.number("max_norm", 1.0), **options}


def _bound_clip(given: Arguments, expected: list[Array]) -> list[Array]:
    """The coefficient inherits the error of a norm that is not given, and each element rounds once more."""
    arrays, (norm, *clipped) = as_list(given["arrays"]), expected
    limit = _norm_limit(arrays, norm) if given["norm"] is None else exact(norm)
    relative = limit / np.maximum(norm, np.finfo(np.float64).tiny) + scaled_unit(_norm_dtype(arrays), 4.0)
    return [limit, *(_stored(a, c, relative) for a, c in zip(arrays, clipped, strict=True))]


def _stored(before: Array, after: Array, relative: Array) -> Array:
    if np.array_equal(wide(before), after, equal_nan=True):
        return exact(after)
    kind = before.dtype.name
    return rounded(after, kind, (relative + scaled_unit(kind, 2.0)) * np.abs(after))


def _draw_scale(problem: Problem, rng: Generator) -> dict[str, Any]:
    return {"arrays": sample_list(problem, rng), "scale": problem.number("scale", 0.125)}


def _into_flag(given: Arguments) -> dict[str, Destination]:
    """A flag that is given keeps what it held where nothing is found."""
    flag = given["found_inf"]
    return {} if flag is None else {"found_inf": Destination((), "int32", flag)}


def _bound_scale(given: Arguments, expected: list[Array]) -> list[Array]:
    """One product; the flag exactly."""
    arrays, scale, (flag, *scaled) = as_list(given["arrays"]), float(given["scale"]), expected
    limits = [exact(flag)]
    for a, s in zip(arrays, scaled, strict=True):
        target = Destination(a.shape, a.dtype.name)
        right = given.exactly(target, s, wide(a), lowest_bit(a), alpha=scale)
        limits.append(exact_where(right, blended(s, target.dtype, alpha=scale)))
    return limits


def draw(rng: Generator) -> str:
    """A random list of shapes."""
    words = f"shapes={show_list(draw_shapes(rng))} place={pick(rng, 'plain', 'offset')} mixed={int(rng.integers(2))}"
    words += f" data={pick(rng, 'normal', 'integers')}"
    op = pick(rng, "global_norm", "clip_by_global_norm", "scale_and_check_finite")
    if op == "global_norm":
        return f"{op} {words} into={pick(rng, 'new', 'out')}"
    return f"{op} {words} " + (f"max_norm={pick(rng, '0.01', '1e6')}" if op == "clip_by_global_norm" else "scale=-0.5")


CORNERS = (
    "global_norm shapes=0 into=out",
    "global_norm shapes=1",
    "global_norm shapes=3x5,0,1001,7 into=out",
    "global_norm shapes=20001 place=offset",
    "global_norm shapes=64,64 mixed=1 into=out",
    "global_norm shapes=300 data=wide only=float32,bfloat16",
    "clip_by_global_norm shapes=3x5,0,1001,7 max_norm=0.5",
    "clip_by_global_norm shapes=33,40 max_norm=1000.0",  # nothing to clip
    "clip_by_global_norm shapes=33,40 max_norm=2.0 epsilon=0.5",
    "clip_by_global_norm shapes=33,40 mixed=1 place=offset max_norm=2.0",
    "global_norm shapes=3x5,1001,7 data=integers",
    "global_norm shapes=16x64 data=equal",  # a whole root
    "scale_and_check_finite shapes=3x5,0,1001,7",
    "scale_and_check_finite shapes=3x5,1001 data=integers mixed=1 scale=-0.5",
    "scale_and_check_finite shapes=33,40 data=special scale=1.0",
    "scale_and_check_finite shapes=33,40 mixed=1 place=offset scale=-3.0",
)

FAMILY = CaseFamily(
    "gradient",
    reference,
    {
        "global_norm": Primitive(_draw_norm, _bound_norm, _into_norm),
        "clip_by_global_norm": Primitive(_draw_clip, _bound_clip, updates=("arrays",)),
        "scale_and_check_finite": Primitive(_draw_scale, _bound_scale, _into_flag, updates=("arrays",)),
    },
    CORNERS,
    draw,
)
