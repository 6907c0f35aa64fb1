"""Which numbers are put in: every one of a 16-bit type, every one of float32, or a sample in strata."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dnnprims.dtypes import BY_NAME
from dnnprims.reference.rounding import Array, round_to

from .questions import Question

#: Bits of the significand that are stored, and of the exponent.
_FIELDS = {"float32": (23, 8), "float64": (52, 11)}
_UNSIGNED = {"float32": np.uint32, "float64": np.uint64}

#: Where functions turn, saturate, leave the normal numbers or the finite ones, in any of the types, and where kernels
#: pass from one form to another. Each is taken with both signs.
PLACES = (
    *(0.0, 0.3, 0.35, 0.4, 0.5, 0.65, 0.7, 0.75, 0.7517916, 0.7524614, 0.9, 1.0, 1.0507, 1.1924, 1.2, 1.2785, 1.5),
    *(1.7580993, 2.0, 2.2785, 2.5, 3.0, 3.5, 4.0, 5.0, 5.5, 6.0, 8.0, 8.3, 9.0, 10.0, 12.0, 13.0, 14.2, 15.0, 17.3),
    *(16.6355, 18.4, 19.06, 20.0, 21.5, 24.0, 27.2, 30.0, 36.7, 37.5, 38.5, 39.0, 40.0, 43.7, 44.4, 51.6, 52.0),
    *(80.0, 87.33655, 88.722839, 89.4, 92.0, 103.2789, 103.972, 107.5, 120.0, 149.0, 174.0, 200.0, 255.0, 256.0),
    *(354.9, 372.6, 709.7827, 710.5, 744.44, 745.1332, 1024.0, 1416.0, 65504.0, 65520.0, 1e6, 33554432.0, 1e19, 1e20),
)  # fmt: skip
#: How many numbers on either side of a place belong to the sample.
BESIDE = {"float32": 64, "float64": 3}


def typed(bits: Any, dtype: str) -> Any:
    """Numbers of a type from their bit patterns, in the memory of either module."""
    return bits.view(BY_NAME[dtype].numpy)


def all16(dtype: str) -> Array:
    """Every number of a 16-bit type."""
    return np.asarray(typed(np.arange(1 << 16, dtype=np.uint16), dtype))


def all32(module: Any, chunk: int, step: int = 1) -> Iterator[Any]:
    """Every number of float32, or every `step`-th, in chunks of an array module."""
    for first in range(0, 1 << 32, chunk * step):
        beyond = min(first + chunk * step, 1 << 32)
        steps = module.arange(-(-(beyond - first) // step), dtype=module.uint32)
        yield typed(steps * module.uint32(step) + module.uint32(first), "float32")


def sample(question: Question, count: int, seed: int = 0) -> Array:
    """About `count` numbers: neighbourhoods, then half over all exponents evenly and half over those about 1."""
    stored, width = _FIELDS[question.dtype]
    near = _neighbourhoods(question)
    rng = np.random.default_rng([seed, stored])
    bias, top = (1 << (width - 1)) - 1, (1 << width) - 1
    wanted = max(count - near.size, 0)
    anywhere = _strata(np.arange(top), wanted // 2, width)
    about_one = _strata(np.arange(bias - 14, bias + 10), wanted - wanted // 2, width)
    mantissas = rng.integers(0, 1 << stored, wanted, dtype=np.uint64)
    bits = (np.concatenate([anywhere, about_one]) << np.uint64(stored)) | mantissas
    return np.concatenate([near, typed(bits.astype(_UNSIGNED[question.dtype]), question.dtype)])


def _strata(exponents: Array, count: int, width: int) -> Array:
    """Signs and exponents in turn, so that each pair has its share."""
    return np.resize(np.concatenate([exponents, exponents | (1 << width)]), count).astype(np.uint64)


def _neighbourhoods(question: Question) -> Array:
    """Numbers about each place and kink, least and largest ones, infinities and NaN."""
    kind = BY_NAME[question.dtype].numpy
    unsigned, beside = _UNSIGNED[question.dtype], BESIDE[question.dtype]
    limits = np.finfo(kind)
    edges = (limits.smallest_subnormal, limits.smallest_normal, limits.max)
    places = np.concatenate([[*PLACES, *question.kinks()], [float(edge) for edge in edges]])
    near = round_to(np.concatenate([places, -places]), kind)
    around = near.view(unsigned)[:, None] + np.arange(-beside, beside + 1).astype(unsigned)
    found = typed(np.unique(around), question.dtype)
    return np.concatenate([found, round_to([np.inf, -np.inf, np.nan], kind)])


def within_range(question: Question, x: Any, wide: Any, m: Any) -> tuple[Any, Any]:
    """The arguments that the question is asked of, as they are stored and in float64."""
    low, high = question.range
    if low == -np.inf and high == np.inf:
        return x, wide
    kept = m.isnan(wide) | ((wide >= low) & (wide <= high))
    return x[kept], wide[kept]


def wide_on_device(module: Any, x: Any) -> Any:
    """float64 of a float32 array of CuPy, whose own conversion takes subnormal numbers for 0."""
    bits = x.view(module.uint32)
    magnitude = bits & module.uint32(0x7FFFFFFF)
    small = magnitude.astype(module.float64) * 2.0**-149
    signed = module.where(bits >> module.uint32(31) != 0, -small, small)
    return module.where(magnitude < module.uint32(0x00800000), signed, x.astype(module.float64))
