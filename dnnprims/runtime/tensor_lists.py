"""Lists of tensors in one launch: where each list begins among the operands, and how the tensors are cut into chunks.

The other half is ``kernels/tensor_lists.cuh``: one block takes one row of the table made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ..descriptors import TensorDescriptor
from ..dtypes import DType
from .launch import NULL, TABLE, Constant, Kernel, KernelStep, Live, PlanSpec, Pointer, Profile

#: Elements of a chunk, a power of two: as few as still fill the device with small tensors, as many as keep the table
#: short.
LEAST_CHUNK, MOST_CHUNK = 1024, 65536
#: Threads of a block. A step gives each one pack of every array, so that blocks that run together stream neighbouring
#: memory. NVIDIA H200, 2026-11-28, a prototype: with 1,024, 4,096, 16,384, 65,536 elements to a block, SGD
#: with momentum reached 1.01, 1.00, 0.96, 0.93 of a copy in float32 and 1.00, 0.98, 0.95, 0.93 in bfloat16, AdamW 1.01,
#: 0.98, 0.95, 0.94 and 0.97, 0.97, 0.93, 0.90.
BLOCK = 256
#: Chunks per multiprocessor that are aimed at: eight blocks reside there, and the last ones should not be missed.
CHUNKS_PER_MULTIPROCESSOR = 16

Tensors = tuple[TensorDescriptor, ...]


@dataclass(frozen=True)
class ChunkGroup:
    """The chunks of all tensors of one dtype.

    Attributes
    ----------
    dtype : DType
        Of the tensors.
    rows : bytes
        int32 (blocks, 4): position in the list, number of the chunk in its tensor, elements, whether packs are allowed.
    chunks : int
        Number of rows.
    """

    dtype: DType
    rows: bytes
    chunks: int


def as_list(tensors: Any) -> list[Any] | None:
    """Accept one array for a list of one."""
    if tensors is None:
        return None
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


def split_scalar(value: Any, absent: float = 0.0) -> tuple[Any, Any]:
    """Return (number of the host, None), or (`absent`, array) for a scalar that is on the device."""
    on_host = type(value) is float or value is None or isinstance(value, Real | np.generic | str)
    return (value, None) if on_host else (absent, value)


def first_operands(*operands: TensorDescriptor | Tensors | None) -> tuple[int, ...]:
    """Return the number of each operand, of its first tensor for a list, and -1 for one that was left out."""
    firsts, at = [], 0
    for operand in operands:
        firsts.append(-1 if operand is None else at)
        at += len(operand) if isinstance(operand, tuple) else 1
    return tuple(firsts)


def chunk_size(tensors: Sequence[TensorDescriptor], sm_count: int) -> int:
    """Return the elements of a chunk: a power of two that cuts the tensors into enough chunks to fill the device."""
    wanted = sum(x.size for x in tensors) // (sm_count * CHUNKS_PER_MULTIPROCESSOR)
    return int(min(max(1 << max(wanted.bit_length() - 1, 0), LEAST_CHUNK), MOST_CHUNK))


def chunk_groups(tensors: Tensors, size: int, *others: Tensors | None) -> list[ChunkGroup]:
    """Cut tensors into chunks of `size` elements, apart for each dtype.

    `others` are lists of the same shapes: packs are allowed where the tensors of all lists are aligned.
    """
    lists = [tensors, *(other for other in others if other is not None)]
    packs = [all(x.vectorizable for x in position) for position in zip(*lists, strict=True)]
    groups = []
    for dtype in dict.fromkeys(x.dtype for x in tensors if x.size):
        positions = np.array([i for i, x in enumerate(tensors) if x.dtype is dtype and x.size])
        rows = _chunk_rows(positions, np.array([tensors[i].size for i in positions]), size)
        rows[:, 3] = np.array(packs)[rows[:, 0]]
        groups.append(ChunkGroup(dtype, rows.tobytes(), len(rows)))
    return groups


def _chunk_rows(positions: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any], chunk: int) -> np.ndarray[Any, Any]:
    counts = -(-sizes // chunk)
    ends = np.cumsum(counts)
    rows = np.empty((int(ends[-1]), 4), np.int32)
    rows[:, 0] = np.repeat(positions, counts)
    rows[:, 1] = np.arange(len(rows)) - np.repeat(ends - counts, counts)
    rows[:, 2] = chunk
    rows[ends - 1, 2] = sizes - (counts - 1) * chunk
    return rows


def wide(scalar: TensorDescriptor | None) -> int:
    """1 where a scalar on the device has 64 bits."""
    return int(scalar is not None and scalar.dtype.itemsize == 8)


def update_plan(
    profile: Profile,
    op: str,
    kernel: Kernel,
    lists: tuple[Tensors | None, ...],
    scalars: tuple[TensorDescriptor | None, ...],
    live: int,
    flags: tuple[int, ...],
    packs: int,
) -> PlanSpec:
    """Plan of a step on weights, gradients, any states, and masters (`lists`, in this order), in one launch per dtype.

    The operands of the call are `lists` and then `scalars`, the last of which is the flag that skips the step.
    The kernel's struct: table, rows and the addresses of `scalars`; then `live` values of the call, the width of each
    scalar but the flag, the first operand of each list, the elements of a chunk and of a block, and `flags`. A thread
    has at most `packs` packs of each array.
    """
    weights = lists[0] or ()
    firsts = first_operands(*lists, *scalars)
    addresses: tuple[Pointer, ...] = tuple(NULL if at < 0 else at for at in firsts[len(lists) :])
    size = chunk_size(weights, profile.sm_count)
    groups = chunk_groups(weights, size, *lists[1:])
    steps = []
    for k, group in enumerate(groups):
        share = min(size, packs * BLOCK * group.dtype.acc.lanes)
        values: tuple[int | Live, ...] = (
            *map(Live, range(live)),
            *map(wide, scalars[:-1]),
            *firsts[: len(lists)],
            size,
            share,
            *flags,
        )
        pointers = (TABLE, Constant(k), *addresses)
        template, grid = (group.dtype.cuda,), (group.chunks * (size // share), 1, 1)
        steps.append(KernelStep(kernel, group.dtype, template, "all", grid, BLOCK, pointers, values))
    written = [
        first + i
        for place, first in enumerate(firsts[: len(lists)])
        for i in range(len(lists[place] or ()))
        if place != 1
    ]
    constants = tuple(group.rows for group in groups)
    return PlanSpec(op, "chunks", tuple(steps), writes=tuple(written), constants=constants)
