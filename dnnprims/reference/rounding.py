"""Into float64 and out of it: the one rounding at the end of every reference.

A reference widens its inputs, computes in float64 and hands the result to `finish`, which blends and rounds once.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def widen(x: Any) -> Array:
    """The same values as float64, exactly; NaN and infinities stay."""
    with np.errstate(all="ignore"):
        return np.asarray(x).astype(np.float64)


def round_to(result: Any, dtype: Any) -> Array:
    """Round float64 values to `dtype`, once, to nearest even.

    bfloat16 goes through float32 rounded to odd, because the plain cast rounds twice: 1 + 2^-8 + 2^-40 first becomes
    the tie 1 + 2^-8 and then 1. An odd last bit never is a tie of the shorter format, so the second rounding is right
    (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd",
    2008); it needs two bits more than the target at every exponent, and float32 has sixteen.
    """
    wide = np.asarray(result, dtype=np.float64)
    with np.errstate(all="ignore"):
        if np.dtype(dtype) == _BFLOAT16:
            return _to_odd_float32(wide).astype(_BFLOAT16)
        return wide.astype(dtype)


def finish(result: Any, dtype: Any, *, out: Array | None = None, alpha: float = 1.0, beta: float = 0.0) -> Array:
    """Return alpha * result + beta * out in `dtype`, blended in float64, rounded once, written to `out` where given.

    With beta 0 the old `out` is never read; with alpha 1 the result passes as it is.
    """
    wide = np.asarray(result, dtype=np.float64)
    with np.errstate(all="ignore"):
        if alpha != 1.0:
            wide = alpha * wide
        if beta != 0.0:
            if out is None:
                raise ValueError("beta other than 0 needs out")
            wide = wide + beta * widen(out)
    if out is None:
        return round_to(wide, dtype)
    out[...] = round_to(wide, out.dtype)
    return out


def _to_odd_float32(wide: Array) -> Array:
    """Round to float32; where inexact, to the neighbour whose last bit is set."""
    near = np.array(wide, dtype=np.float32)
    bits = near.view(np.int32)
    back = near.astype(np.float64)
    even_and_inexact = (back != wide) & (bits & 1 == 0) & ~np.isnan(wide)
    bits += even_and_inexact * np.where(np.abs(back) < np.abs(wide), 1, -1).astype(np.int32)
    return near
