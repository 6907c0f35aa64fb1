"""Arrays of a case in a backend's memory, between guard bands, and what is left of them after the call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .calls import Array

#: Elements before and behind every array; a multiple of 16 bytes for each type.
GUARD = 64


@dataclass(frozen=True)
class Placed:
    """An array, the larger one that it lies in, and a copy of that as it was before the call."""

    view: Any
    base: Any
    before: Array
    owned: Array

    def damage(self, after: Array, written: bool) -> str:
        """What changed that must not have: nothing at all where the array is only read, the guards else."""
        changed = _raw(after) != _raw(self.before)
        changed = changed.any(axis=1)
        if written:
            changed[self.owned.ravel()] = False
        if not changed.any():
            return ""
        where = int(np.flatnonzero(changed)[0]) - int(self.owned.min(initial=GUARD))
        return f"changed {int(changed.sum())} elements that it must not, the first at {where}"


def place(handle: Any, values: Array, how: str = "plain") -> Placed:
    """Copy an array into the backend's memory, the way that the setting ``place`` says."""
    step = 2 if how == "strided" and values.ndim else 1
    start = GUARD + (how == "offset")
    host = np.empty(start + step * values.size + GUARD, values.dtype)
    host.view(np.uint8)[:] = 0xFF  # NaN in each floating type
    owned = _window(np.arange(len(host)), values.shape, start, step)
    _window(host, values.shape, start, step)[...] = values
    base = handle.asarray(host)
    return Placed(_window(base, values.shape, start, step), base, host.copy(), owned)


def poison(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array of bytes 0xFF, which is NaN in each floating type."""
    values = np.empty(shape, dtype)
    flat = values.reshape(-1).view(np.uint8)
    flat[:] = 0xFF
    return values


def _window(base: Any, shape: tuple[int, ...], start: int, step: int) -> Any:
    size = int(np.prod(shape, dtype=np.int64))
    if step == 1:
        return base[start : start + size].reshape(shape)
    return base[start : start + step * size].reshape(*shape[:-1], step * shape[-1])[..., ::step]


def _raw(values: Array) -> Array:
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
