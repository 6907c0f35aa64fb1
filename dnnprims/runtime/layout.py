"""Axes of strided tensors, rewritten with as few as possible, for kernels that walk them (``kernels/strided.cuh``)."""

from __future__ import annotations

from collections.abc import Sequence

#: Axes that a kernel's parameter struct has room for, after merging.
MAX_AXES = 8

Axes = tuple[tuple[int, ...], ...]


def merge_axes(shape: Sequence[int], *strides: Sequence[int]) -> Axes:
    """Drop axes of extent 1 and join neighbours that every tensor walks as one.

    Returns the extents, then the steps of each tensor; the row-major order of the elements stays.
    """
    merged: list[list[int]] = []
    for extent, *steps in zip(shape, *strides, strict=True):
        if extent == 1:
            continue
        if merged and all(outer == inner * extent for outer, inner in zip(merged[-1][1:], steps, strict=True)):
            merged[-1] = [merged[-1][0] * extent, *steps]
        else:
            merged.append([extent, *steps])
    if not merged:
        return tuple(() for _ in range(1 + len(strides)))
    return tuple(tuple(column) for column in zip(*merged, strict=True))


def sort_axes(shape: Sequence[int], first: Sequence[int], *strides: Sequence[int]) -> Axes:
    """Order the axes by the steps of the first tensor, widest first: the order of its memory, for elementwise work."""
    order = sorted(range(len(shape)), key=lambda axis: -abs(first[axis]))
    return tuple(tuple(column[axis] for axis in order) for column in (shape, first, *strides))


def pad_axes(values: Sequence[int], fill: int) -> tuple[int, ...]:
    """Fill up to `MAX_AXES` in front, where a kernel skips axes of extent 1."""
    return (fill,) * (MAX_AXES - len(values)) + tuple(values)


def broadcast_strides(shape: Sequence[int], strides: Sequence[int], target: Sequence[int]) -> tuple[int, ...]:
    """Steps of a tensor of `shape` seen as one of the shape `target`: 0 along axes that it lacks or has only once."""
    missing = len(target) - len(shape)
    own = (0 if extent == 1 else step for extent, step in zip(shape, strides, strict=True))
    return (0,) * missing + tuple(own)


def axis_scalars(*names: str) -> tuple[tuple[str, str], ...]:
    """Fields of a parameter struct for arrays of `MAX_AXES` 64-bit integers."""
    return tuple((f"{name}{axis}", "i64") for name in names for axis in range(MAX_AXES))
