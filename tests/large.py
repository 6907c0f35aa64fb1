"""Arrays around the number of elements at which indices would wrap, and what must hold of calls on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import dnnprims as dp

Call = Callable[..., Any]


class Scale:
    """A handle, its arrays, and the number of elements at which indices would wrap."""

    def __init__(self, backend: str, wrap: int) -> None:
        self.handle, self.wrap = dp.create_handle(backend), wrap
        self.size = wrap + 4_099
        self.cols = 1024 if backend == "cuda" else 64
        self.rows = wrap // self.cols + 5
        if backend == "cuda":
            import cupy

            self.xp: Any = cupy
        else:
            self.xp = np

    def ramp(self, *shape: int, dtype: Any = np.float16) -> Any:
        """Small numbers whose pattern has no period that a power of two divides, made in parts."""
        x = self.xp.empty(int(np.prod(shape)), dtype)
        for start in range(0, x.size, 1 << 28):
            stop = min(x.size, start + (1 << 28))
            x[start:stop] = (self.xp.arange(start, stop, dtype=np.int64) % 1009 - 504).astype(dtype) / 64
        return x.reshape(shape)

    def places(self, size: int) -> dict[int, int]:
        """Where `sparse` is not zero: in the first place, in one behind the wrap, and in the last but two."""
        return {0: 3, min(self.wrap + 77, size - 9): 1, size - 3: 2}

    def sparse(self, *shape: int) -> Any:
        """Zeros but for 3, 1 and 2."""
        x = self.xp.zeros(int(np.prod(shape)), np.float16)
        for place, value in self.places(x.size).items():
            x[place] = value
        return x.reshape(shape)

    def integers(self, *shape: int) -> Any:
        """From -2 to 2, so that products of few of them are exact."""
        return self.xp.asarray(np.random.default_rng(0).integers(-2, 3, shape).astype(np.float16))

    def small(self, values: Any, dtype: Any = np.float16) -> Any:
        """An array of a few values."""
        return self.xp.asarray(np.asarray(values, dtype))

    def host(self, a: Any) -> np.ndarray:
        """On the host, in float64, where integers may not be."""
        values = np.asarray(self.handle.to_numpy(a))
        return values.astype(np.float64) if values.dtype.kind != "i" else values

    def agrees(self, call: Call, *arrays: Any, units: int = 0, axis: int = 0) -> None:
        """`call` on parts of the arrays gives the same parts of its results.

        A part is a run of units along the axis, of which each array has as many elements as go into it.
        """
        units = units or arrays[0].shape[axis]
        length = min(2_048, units // 3)
        starts = (0, max(0, units * self.wrap // (self.size + 1) - length // 2), units - length)

        def part(a: Any, start: int) -> Any:
            factor, rest = divmod(a.shape[axis], units)
            assert rest == 0
            return a[(slice(None),) * axis + (slice(factor * start, factor * (start + length)),)]

        parts = [[part(a, start).copy() for a in arrays] for start in starts]
        whole = self.results(call, *arrays)
        for start, few in zip(starts, parts, strict=True):
            for one, other in zip(whole, self.results(call, *few), strict=True):
                np.testing.assert_array_equal(self.host(part(one, start)), self.host(other))

    def results(self, call: Call, *arrays: Any) -> tuple[Any, ...]:
        """What a call gives back, as a tuple, without what it was not asked for."""
        result = call(*arrays)
        return tuple(a for a in (result if isinstance(result, tuple | list) else (result,)) if a is not None)
