"""Kernels beside the products of a fully connected layer: the activation, and the pass for dz and db."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from ...descriptors import ACTIVATION_MODES, ActivationDescriptor, TensorDescriptor
from ...dtypes import DType
from ...errors import BadParamError
from ...reference import fc as reference
from ...runtime.launch import (
    NULL,
    Family,
    Kernel,
    KernelStep,
    Pointer,
    Profile,
    Scratch,
    Struct,
    blocks_for,
    share_launch,
    unaligned,
)

_BLEND, _CONSTANTS = (("alpha", "A"), ("beta", "A")), (("c0", "A"), ("c1", "A"))
_FORWARD = Kernel(
    "fc",
    "fc_activation_forward",
    Struct("FcActivationParams", ("y", "z"), (*_BLEND, *_CONSTANTS, ("count", "i64"), ("packs", "i32"))),
)
_GRADIENT = Kernel(
    "fc",
    "fc_gradient",
    Struct(
        "FcGradientParams",
        ("dz", "db", "partial", "dy", "saved"),
        (*_BLEND, *_CONSTANTS, ("rows", "i64"), ("columns", "i64"), ("rows_per_chunk", "i64")),
    ),
)
_TRANSPOSE = Kernel(
    "fc",
    "fc_transpose",
    Struct("FcTransposeParams", ("y", "x"), (("rows", "i64"), ("columns", "i64"), ("stride", "i64"))),
)
_FOLD = Kernel(
    "fc",
    "fc_fold",
    Struct(
        "FcFoldParams",
        ("db", "rest", "partial"),
        (*_BLEND, ("chunks", "i64"), ("columns", "i64"), ("first_of_rest", "i64")),
    ),
)

#: Columns of a strip in packs; rows that one pass of a block takes; up to how many rows one block per strip is faster
#: than two launches; the fewest rows worth a chunk; how many blocks fill any GPU. Fixed, so that the order of summation
#: depends on the shape alone.
_LANES, _ROWS_AT_ONCE, _FEW_ROWS, _FEWEST_ROWS, _ENOUGH_BLOCKS = 32, 32, 64, 32, 1024
#: The same where 16-bit types are summed and nothing else: six blocks reside on a multiprocessor, and on an NVIDIA H200
#: 1,024 were 1.29 times what resides at once (2026-11-28, ncu: 0.136 ms for 65,536 x 4,096, 0.82 of the memory's peak;
#: the columns of reduce_tensor, that were as slow, went from 0.154 to 0.124 ms when they fitted).
_BLOCKS_OF_SUMS = 768
#: Rows and columns of a tile of `fc_transpose`.
_SIDE = 64


@dataclass(frozen=True)
class GradientPass:
    """What `fc_gradient` is asked for; dz, db and saved may be NULL."""

    mode: ActivationDescriptor
    dtype: DType
    rows: int
    columns: int
    vec: int
    dz: Pointer
    db: Pointer
    dy: Pointer
    saved: Pointer
    alpha: float
    beta: float


def gradient_steps(
    profile: Profile, wanted: GradientPass, taken: tuple[int, ...]
) -> tuple[tuple[KernelStep, ...], tuple[int, ...], str | None]:
    """Return the steps, the scratch that they add to `taken`, and why the rows are not split into chunks."""
    rows, columns, dtype = wanted.rows, wanted.columns, wanted.dtype
    sums = wanted.db is not NULL
    if columns == 0 or (rows == 0 and not sums):
        return (), (), "nothing to do"
    blocks = _BLOCKS_OF_SUMS if wanted.dz is NULL and dtype.itemsize == 2 else _ENOUGH_BLOCKS
    per_chunk = _rows_per_chunk(dtype, rows, columns, blocks)
    chunks = max(1, -(-rows // per_chunk))
    partial_bytes = chunks * columns * dtype.acc.itemsize
    whole = _whole_reason(profile, rows, partial_bytes + sum(taken)) if sums else None
    if whole:
        chunks, per_chunk = 1, max(rows, 1)
    if whole or not sums:
        return (_gradient(wanted, NULL, chunks, per_chunk),), (), whole
    partial = Scratch(len(taken))
    fold = fold_step(dtype, (wanted.db, NULL), partial, chunks, (columns, 0), wanted.alpha, wanted.beta)
    return (_gradient(wanted, partial, chunks, per_chunk), fold), (partial_bytes,), None


def _gradient(wanted: GradientPass, partial: Pointer, chunks: int, per_chunk: int) -> KernelStep:
    dtype, columns = wanted.dtype, wanted.columns
    return KernelStep(
        _GRADIENT, dtype, (dtype.cuda, _derivative(wanted.mode, dtype), str(wanted.vec)),
        _backward_group(wanted.mode.mode, wanted.vec), (-(-columns // (_LANES * wanted.vec)), chunks, 1), 256,
        (wanted.dz, wanted.db, partial, wanted.dy, wanted.saved),
        (wanted.alpha, wanted.beta, *constants(wanted.mode), wanted.rows, columns, per_chunk),
    )  # fmt: skip


def fold_step(
    dtype: DType, to: tuple[Pointer, Pointer], partial: Pointer, chunks: int, columns: tuple[int, int], *blend: float
) -> KernelStep:
    """The sums of so many chunks, each of so many columns for one array and for another."""
    total = sum(columns)
    scalars = (*blend, chunks, total, columns[0])
    return KernelStep(_FOLD, dtype, (dtype.cuda,), "fold", blocks_for(total, _LANES), 256, (*to, partial), scalars)


def _rows_per_chunk(dtype: DType, rows: int, columns: int, blocks: int) -> int:
    """Rows of a block: enough blocks for any GPU, and enough rows that a partial sum is worth its place."""
    strips = -(-columns // (_LANES * dtype.lanes))
    chunks = max(1, min(-(-rows // _FEWEST_ROWS), -(-blocks // strips)))
    return max(1, -(-rows // (chunks * _ROWS_AT_ONCE))) * _ROWS_AT_ONCE


def _whole_reason(profile: Profile, rows: int, nbytes: int) -> str | None:
    if rows <= _FEW_ROWS:
        return f"{rows} rows, up to {_FEW_ROWS} are not worth a second launch"
    if 0 <= profile.workspace_limit < nbytes:
        return f"{nbytes} bytes of workspace, the limit is {profile.workspace_limit}"
    return None


def activation_step(
    profile: Profile,
    mode: ActivationDescriptor,
    dtype: DType,
    count: int,
    z: Pointer,
    unfit: str | None,
    alpha: float,
    beta: float,
) -> KernelStep:
    """The pass from z to out; `unfit` is why it takes one element at a time."""
    return KernelStep(
        _FORWARD, dtype, (dtype.cuda, functor(mode, dtype), str(dtype.lanes)), f"forward of {mode.mode}",
        *share_launch(profile, count, dtype.lanes), (3, z),
        (float(alpha), float(beta), *constants(mode), count, int(unfit is None)),
    )  # fmt: skip


def transpose_step(dtype: DType, rows: int, columns: int, x: Pointer, y: Pointer, stride: int) -> KernelStep:
    """The copy of x (rows, columns) to y (columns, stride)."""
    tiles = -(-rows // _SIDE) * -(-columns // _SIDE)
    scalars = (rows, columns, stride)
    return KernelStep(_TRANSPOSE, dtype, (dtype.cuda,), "transpose", blocks_for(tiles, 1), 256, (y, x), scalars)


def lanes(dtype: DType, columns: int, **tensors: TensorDescriptor | None) -> int:
    """Elements of one access: 16 bytes where every row starts on such a boundary."""
    return 1 if columns % dtype.lanes or unaligned(**tensors) else dtype.lanes


def _backward_group(mode: str, vec: int) -> str:
    """What is compiled together: a layer needs one of the two widths, most often packs."""
    return f"backward of {mode}" + (" by elements" if vec == 1 else "")


def functor(mode: ActivationDescriptor, dtype: DType) -> str:
    """The activation as a type of ``activation.cuh``."""
    return "".join(word.capitalize() for word in mode.mode.split("_")) + f"<{dtype.cuda}>"


def constants(mode: ActivationDescriptor) -> tuple[float, float]:
    """The activation's parameters as the functor's members c0 and c1."""
    first, second, *_ = *(value for _, value in mode.parameters), 0.0, 0.0
    return first, second


def _derivative(mode: ActivationDescriptor, dtype: DType) -> str:
    """The functor whose `backward` takes what `fc_backward_needs` names."""
    plain = functor(mode, dtype)
    return f"FromOutput<{plain}>" if reference.backward_needs(mode) == ("y",) else plain


def _derivatives(mode: str, dtype: DType) -> set[str]:
    """All that `_derivative` can give for a mode: for some, the sign of a parameter decides."""
    found = {_derivative(ActivationDescriptor(mode), dtype)}
    for name in ACTIVATION_MODES[mode]:
        with suppress(BadParamError):
            found.add(_derivative(ActivationDescriptor(mode, **{name: -1.0}), dtype))
    return found


def _instances(dtype: DType) -> dict[str, list[str]]:
    t, most = dtype.cuda, dtype.lanes
    groups = {}
    for mode in ACTIVATION_MODES:
        plain = functor(ActivationDescriptor(mode), dtype)
        groups[f"forward of {mode}"] = [f"fc_activation_forward<{t}, {plain}, {most}>"]
        for vec in (1, most):
            acts = sorted(_derivatives(mode, dtype))
            groups[_backward_group(mode, vec)] = [f"fc_gradient<{t}, {act}, {vec}>" for act in acts]
    copies = {"transpose": [f"fc_transpose<{t}>"]} if dtype.name == "float32" else {}
    return {**groups, "fold": [f"fc_fold<{t}>"], **copies}


FC_FAMILY = Family("fc", (_FORWARD, _GRADIENT, _FOLD, _TRANSPOSE), _instances)
