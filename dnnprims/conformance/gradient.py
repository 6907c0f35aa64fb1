"""Cases of global norm, clipping and loss scaling."""

from __future__ import annotations

import numpy as np

from ..reference import gradient as reference
from .bounds import blended, exact, norm_error, rounded, scaled_unit
from .cases import (
    Array,
    Call,
    CaseFamily,
    Destination,
    Generator,
    Problem,
    draw_shapes,
    pick,
    sample_list,
    show_list,
    wide,
)


def _norm_dtype(arrays: list[Array]) -> str:
    return "float64" if any(a.dtype == np.float64 for a in arrays) else "float32"


def _norm_bound(problem: Problem, arrays: list[Array], norm: Array) -> Array:
    count = sum(a.size for a in arrays)
    kept = _norm_dtype(arrays)
    return rounded(norm, kept, norm_error(max(count, 1), norm, kept))


def make_norm(problem: Problem, rng: Generator) -> Call:
    """The root of a sum of squares."""
    arrays = sample_list(problem, rng)
    return Call(
        {"arrays": arrays},
        lambda expected: [_norm_bound(problem, arrays, expected[0])],
        {"out": Destination((), _norm_dtype(arrays))},
    )


def make_clip(problem: Problem, rng: Generator) -> Call:
    """The coefficient inherits the norm's error, and each element rounds once more."""
    arrays = sample_list(problem, rng)

    def bound(expected: list[Array]) -> list[Array]:
        norm, *clipped = expected
        limit = _norm_bound(problem, arrays, norm)
        relative = limit / np.maximum(norm, np.finfo(np.float64).tiny) + scaled_unit(_norm_dtype(arrays), 4.0)
        return [limit, *(_stored(a, c, relative) for a, c in zip(arrays, clipped, strict=True))]

    return Call({"arrays": arrays, "max_norm": problem.number("max_norm", 1.0)}, bound, updates=("arrays",))


def _stored(before: Array, after: Array, relative: Array) -> Array:
    if np.array_equal(wide(before), after, equal_nan=True):
        return exact(after)
    kind = before.dtype.name
    return rounded(after, kind, (relative + scaled_unit(kind, 2.0)) * np.abs(after))


def make_scale(problem: Problem, rng: Generator) -> Call:
    """One product; the flag exactly."""
    arrays, scale = sample_list(problem, rng), problem.number("scale", 0.125)

    def bound(expected: list[Array]) -> list[Array]:
        flag, *scaled = expected
        return [exact(flag), *(blended(s, a.dtype.name, alpha=scale) for a, s in zip(arrays, scaled, strict=True))]

    return Call({"arrays": arrays, "scale": scale}, bound, updates=("arrays",))


def draw(rng: Generator) -> str:
    """A random list of shapes."""
    words = f"shapes={show_list(draw_shapes(rng))} place={pick(rng, 'plain', 'offset')} mixed={int(rng.integers(2))}"
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
    "clip_by_global_norm shapes=33,40 mixed=1 place=offset max_norm=2.0",
    "scale_and_check_finite shapes=3x5,0,1001,7",
    "scale_and_check_finite shapes=33,40 data=special scale=1.0",
    "scale_and_check_finite shapes=33,40 mixed=1 place=offset scale=-3.0",
)

FAMILY = CaseFamily(
    "gradient",
    reference,
    {"global_norm": make_norm, "clip_by_global_norm": make_clip, "scale_and_check_finite": make_scale},
    CORNERS,
    draw,
)
