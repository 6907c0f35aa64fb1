"""Floating formats: spacing, unit roundoff, range, and what each primitive accumulates in."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Format -> (bits of the significand, smallest normal exponent).
FORMATS = {
    "float32": (24, -126),
    "float64": (53, -1022),
    "float16": (11, -14),
    "bfloat16": (8, -126),
    "tf32": (11, -126),
}


def accumulator(dtype: str) -> str:
    """Name of the type that a primitive computes in."""
    return "float64" if dtype == "float64" else "float32"


def unit_roundoff(dtype: str) -> float:
    """Largest relative error of one rounding to a type."""
    return float(2.0 ** -FORMATS[dtype][0])


def largest_finite(dtype: str) -> float:
    """Largest finite number of a type."""
    digits, lowest = FORMATS[dtype]
    return (2.0 - 2.0 ** (1 - digits)) * 2.0 ** (1 - lowest)


def ulp(value: Any, dtype: str) -> Array:
    """Spacing of a type at |value|: 2^(e - p + 1), the exponent e not below the smallest normal one."""
    digits, lowest = FORMATS[dtype]
    _, exponent = np.frexp(np.where(np.isfinite(value), value, 0.0))
    exponent = np.where(np.asarray(value) == 0, lowest, np.maximum(exponent - 1, lowest))
    return np.asarray(np.ldexp(1.0, exponent - digits + 1))


def both_sides(dtype: str) -> float:
    """2 for float64, where the reference errs as much as the primitive, else 1."""
    return 2.0 if dtype == "float64" else 1.0
