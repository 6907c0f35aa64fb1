"""Pooling in NumPy: the largest or the mean of what lies under a window, and the gradient.

Both directions are a loop over the taps of the window: what one tap sees of the image is a strided part of it.
Positions outside of the image are in no part, so that padding takes part in nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from .rounding import Array, finish, widen

Index = tuple[Any, ...]


def pooling_forward(
    pooling: Any,
    x: Any,
    *,
    with_indices: bool = False,
    out: Array | None = None,
    indices: Array | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Array | tuple[Array, Array]:
    """y[o] = max or mean of x[o * stride - before + r] over the taps r, and the tap that attains the maximum.

    The first maximum wins, row by row; the first NaN, where there is one.
    """
    image = _to_front(pooling, widen(x))
    extents = image.shape[2:]
    shape = (*image.shape[:2], *output_extents(pooling, extents))
    if pooling.mode != "max":
        y = _sums(pooling, image, shape) / counts(pooling, extents)
        return finish(_from_front(pooling, y), x.dtype, out=out, alpha=alpha, beta=beta)
    y, chosen = _largest(pooling, image, shape)
    result = finish(_from_front(pooling, y), x.dtype, out=out, alpha=alpha, beta=beta)
    if not with_indices and indices is None:
        return result
    kind = np.uint8 if pooling.taps(len(extents)) <= 256 else np.int32
    found = _from_front(pooling, chosen).astype(kind)
    if indices is None:
        return result, np.ascontiguousarray(found)
    indices[...] = found
    return result, indices


def pooling_backward(
    pooling: Any,
    dy: Any,
    *,
    x_descriptor: Any,
    indices: Any = None,
    out: Array | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Array:
    """dx gets dy of each window in which it is the chosen tap, or of each window that it is in its share of dy."""
    dx = np.zeros(_shape_in_front(pooling, x_descriptor.shape))
    gradient = _to_front(pooling, widen(dy))
    extents = dx.shape[2:]
    chosen = None if pooling.mode != "max" else _to_front(pooling, np.asarray(indices))
    with np.errstate(all="ignore"):
        gradient = gradient if chosen is not None else gradient / counts(pooling, extents)
        for number, at, seen in _taps(pooling, extents):
            dx[seen] += gradient[at] if chosen is None else np.where(chosen[at] == number, gradient[at], 0.0)
    return finish(_from_front(pooling, dx), dy.dtype, out=out, alpha=alpha, beta=beta)


def output_extents(pooling: Any, image: Sequence[int]) -> tuple[int, ...]:
    """1 + (image + padding - window) / stride along each axis, rounded down."""
    axes = len(image)
    along = zip(image, pooling.windows(axes), pooling.strides(axes), pooling.paddings(axes), strict=True)
    return tuple(1 + (i + sum(pads) - window) // stride for i, window, stride, pads in along)


def counts(pooling: Any, image: Sequence[int]) -> Array:
    """What the mean of each window divides by."""
    axes, total = len(image), np.ones(())
    along = zip(image, output_extents(pooling, image), pooling.windows(axes), pooling.strides(axes), strict=True)
    for (extent, output, window, stride), (before, _) in zip(along, pooling.paddings(axes), strict=True):
        starts = np.arange(output) * stride - before
        seen = np.minimum(starts + window, extent) - np.maximum(starts, 0)
        one = seen if pooling.mode == "average_exclude_padding" else np.full(output, window)
        total = np.multiply.outer(total, one.astype(np.float64))
    return total


def _largest(pooling: Any, image: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    best, chosen = np.full(shape, -np.inf), np.full(shape, -1, np.int64)
    for number, at, seen in _taps(pooling, image.shape[2:]):
        here, so_far = image[seen], best[at]
        with np.errstate(invalid="ignore"):
            better = (here > so_far) | (np.isnan(here) & ~np.isnan(so_far)) | (chosen[at] < 0)
        best[at], chosen[at] = np.where(better, here, so_far), np.where(better, number, chosen[at])
    return best, chosen


def _sums(pooling: Any, image: Array, shape: tuple[int, ...]) -> Array:
    y = np.zeros(shape)
    with np.errstate(all="ignore"):
        for _, at, seen in _taps(pooling, image.shape[2:]):
            y[at] += image[seen]
    return y


def _taps(pooling: Any, image: Sequence[int]) -> Iterator[tuple[int, Index, Index]]:
    """Number of each tap, the outputs that it has a part in and the positions that it sees for these."""
    axes, windows = len(image), pooling.windows(len(image))
    facts = list(zip(image, output_extents(pooling, image), pooling.strides(axes), pooling.paddings(axes), strict=True))
    for number, tap in enumerate(product(*map(range, windows))):
        at, seen = [], []
        for r, (extent, output, stride, (before, _)) in zip(tap, facts, strict=True):
            first = r - before  # where the tap lies for output 0
            low = max(0, -(first // stride))
            high = max(low, min(output, (extent - 1 - first) // stride + 1))
            at.append(slice(low, high))
            seen.append(slice(low * stride + first, max(0, (high - 1) * stride + first + 1), stride))
        if all(one.start < one.stop for one in at):
            yield number, (..., *at), (..., *seen)


def _to_front(pooling: Any, a: Array) -> Array:
    return np.moveaxis(a, -1, 1) if pooling.channels_last else a


def _from_front(pooling: Any, a: Array) -> Array:
    return np.moveaxis(a, 1, -1) if pooling.channels_last else a


def _shape_in_front(pooling: Any, shape: Sequence[int]) -> tuple[int, ...]:
    outer, *rest = shape
    return (outer, rest[-1], *rest[:-1]) if pooling.channels_last else tuple(shape)
