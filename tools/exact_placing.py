"""Arrays of conformance cases in allocations of their very size, for tools that watch the ends of allocations.

The runner's own `place` puts guard bands around an array and compares them; to a sanitizer they would be part of it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dnnprims.conformance.placing import Placed


class Exactly(Placed):
    """An array without guards; there may be nothing at all to look at."""

    def damage(self, after: np.ndarray, written: bool) -> str:
        return super().damage(after, written) if after.size else ""


def exact_place(handle: Any, values: np.ndarray, how: str = "plain") -> Placed:
    """The runner's `place` without guards: what lies before or behind the array lies outside of its allocation."""
    step = 2 if how == "strided" and values.ndim else 1
    start = 1 if how == "offset" else 0
    host = np.zeros(start + max(values.size * step - (step - 1), 0), values.dtype)
    steps = [step * math.prod(values.shape[axis + 1 :]) for axis in range(values.ndim)]

    def window(a: Any) -> Any:
        if isinstance(a, np.ndarray):
            from numpy.lib.stride_tricks import as_strided
        else:
            from cupy.lib.stride_tricks import as_strided
        return as_strided(a[start:], values.shape, [s * a.itemsize for s in steps])

    window(host)[...] = values
    base = handle.asarray(host)
    return Exactly(window(base), base, host, window(np.arange(host.size)))
