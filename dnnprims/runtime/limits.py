"""What no launch may exceed: the blocks of a grid, and the numbers that the fields of a parameter struct hold."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from .launch import FillStep, KernelStep, Live, PlanSpec

#: Blocks of a grid in x, y and z, of every GPU there is.
MOST_BLOCKS = (2**31 - 1, 65_535, 65_535)
#: Those of them along y and z.
MOST_ACROSS = MOST_BLOCKS[1]

#: Largest number that rounds to a finite float32.
FLOAT32_MAX = (2.0 - 2.0**-24) * 2.0**127

_INTEGERS = {
    "i32": range(-(2**31), 2**31),
    "u32": range(2**32),
    "i64": range(-(2**63), 2**63),
    "u64": range(2**64),
}


def unrepresentable(spec: PlanSpec) -> tuple[str, float] | None:
    """Return name and value of a number that the type it is passed in cannot hold, or None."""
    for name, kind, value in _numbers(spec):
        if kind in _INTEGERS:
            if value not in _INTEGERS[kind]:
                return name, value
        elif kind in ("float32", "f32") and isfinite(value) and abs(value) > FLOAT32_MAX:
            return name, float(value)
    return None


def _numbers(spec: PlanSpec) -> Iterator[tuple[str, str, float]]:
    """Name, type and value of each number that a plan passes on."""
    for step in spec.steps:
        if isinstance(step, KernelStep):
            for (name, kind), value in zip(step.kernel.struct.scalars, step.scalars, strict=True):
                if not isinstance(value, Live):
                    yield name, step.dtype.accumulator if kind == "A" else kind, value
        elif not isinstance(step, FillStep):
            for name, value in (("alpha", step.alpha), ("beta", step.beta)):
                if not isinstance(value, Live):
                    yield name, step.dtype.accumulator, value


def oversized_grid(spec: PlanSpec) -> tuple[int, int, int] | None:
    """Return a grid that has more blocks than can be launched, or None."""
    for step in spec.steps:
        if isinstance(step, KernelStep) and any(n > most for n, most in zip(step.grid, MOST_BLOCKS, strict=True)):
            return step.grid
    return None
