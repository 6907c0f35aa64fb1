"""Norm of all gradients, clipping by it, and scaling with a look for infinities, over lists of arrays in one launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import checks
from ..descriptors import TensorDescriptor
from ..dtypes import BY_NAME, DType
from ..reference import gradient as reference
from ..runtime.launch import (
    NULL,
    TABLE,
    Constant,
    Family,
    FillStep,
    Kernel,
    KernelStep,
    Live,
    PlanSpec,
    Pointer,
    Profile,
    Result,
    Scratch,
    Struct,
)
from ..runtime.tensor_lists import BLOCK, ChunkGroup, Tensors, as_list, chunk_groups, chunk_size, split_scalar

if TYPE_CHECKING:
    from ..handle import Handle

_REAL = (BY_NAME["float32"], BY_NAME["float64"])
_INT32 = BY_NAME["int32"]

_PARTIALS = Kernel(
    "gradient",
    "norm_partials",
    Struct(
        "NormPartialsParams",
        ("partials", "table", "rows"),
        (("first_partial", "i64"), ("shares", "i64"), *((name, "i32") for name in ("arrays", "elements", "share"))),
    ),
)
_FOLD = Kernel("gradient", "norm_fold", Struct("NormFoldParams", ("norm", "partials"), (("count", "i64"),)))
_SCALE = Kernel(
    "gradient",
    "scale_arrays",
    Struct(
        "ScaleArraysParams",
        ("flag", "table", "rows", "scalar_address"),
        (
            *((name, "f64") for name in ("scale", "max_norm", "epsilon")),
            *((name, "i32") for name in ("scalar_wide", "clip", "arrays", "elements", "share")),
        ),
    ),
)

#: Packs of a thread in flight when scaling and in the norm, and blocks for each multiprocessor that take the shares of
#: the norm in turn.
_SCALE_PACKS, _NORM_PACKS, _NORM_BLOCKS = 2, 4, 8


def global_norm(handle: Handle, arrays: Any, *, out: Any = None) -> Any:
    """Root of the sum of the squares of all elements of all arrays.

    Parameters
    ----------
    handle : Handle
        Where to run.
    arrays : array or list of arrays
        Contiguous, of any shapes and floating types, also mixed.
    out : array, optional
        Scalar, shape (), float64 if one of the arrays is float64, else float32.

    Returns
    -------
    array
        The norm, a scalar on the device. 0 for no arrays.

    Raises
    ------
    BadParamError
        An argument is not one of the above.

    Notes
    -----
    Squares and sums are kept in float64, in an order fixed by the shapes: no float32, float16 or bfloat16 overflows or
    vanishes, and the same bits come back each time. The norm of float64 arrays is infinite from about 1.3e154 on. A NaN
    makes it NaN, an infinity infinite. Nothing waits for the device.
    """
    options, operands = (), (as_list(arrays), out)
    if checks.on_numpy(handle, "global_norm"):
        with handle.checked(plan_global_norm, options, operands) as (arrays, out):
            return reference.global_norm(arrays, out=out)
    return handle.run(plan_global_norm, options, operands)


def clip_by_global_norm(
    handle: Handle, arrays: Any, max_norm: float, *, norm: Any = None, epsilon: float = 1e-6
) -> Any:
    """Multiply all arrays, in place, by ``min(1, max_norm / (norm + epsilon))``, norm being their `global_norm`.

    Parameters
    ----------
    handle : Handle
        Where to run.
    arrays : array or list of arrays
        As in `global_norm`; overwritten.
    max_norm : float
        > 0.
    norm : array, optional
        A norm already there, a float32 or float64 scalar on the device, such as one summed over several machines.
    epsilon : float
        >= 0; keeps the quotient finite.

    Returns
    -------
    array
        The norm before clipping, a scalar on the device: `norm` itself where given.

    Raises
    ------
    BadParamError
        An argument is not one of the above, or two arrays share memory.

    Notes
    -----
    The coefficient is formed on the device, from the norm as rounded to its dtype; the host waits for nothing, so the
    call can be captured in a graph. Each element is rounded once; with a norm small enough nothing is written.
    A NaN norm makes every element NaN. An infinite norm gives the coefficient 0: finite elements become 0, infinite
    ones NaN; `scale_and_check_finite` tells such steps from good ones.

    References
    ----------
    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.
    """
    op = "clip_by_global_norm"
    max_norm = checks.require_range(op, "max_norm", max_norm, lambda v: v > 0.0, "> 0")
    epsilon = checks.require_range(op, "epsilon", epsilon, lambda v: v >= 0.0, ">= 0")
    operands = (as_list(arrays), norm)
    if checks.on_numpy(handle, op):
        with handle.checked(plan_clip_by_global_norm, (), operands) as (arrays, norm):
            return reference.clip_by_global_norm(arrays, max_norm, norm=norm, epsilon=epsilon)
    return handle.run(plan_clip_by_global_norm, (), operands, (max_norm, epsilon))


def scale_and_check_finite(handle: Handle, arrays: Any, scale: Any, *, found_inf: Any = None) -> Any:
    """Multiply all arrays by `scale`, in place, and tell whether an element is infinite or NaN.

    Parameters
    ----------
    handle : Handle
        Where to run.
    arrays : array or list of arrays
        As in `global_norm`; overwritten.
    scale : float or array
        A finite number, or a float32 or float64 scalar on the device, such as 1 / loss scale.
    found_inf : array, optional
        int32 scalar. It is set to 1 when an element stored is not finite and else left alone, so that one flag can
        gather several calls; clear it with `set_tensor` first.

    Returns
    -------
    array
        `found_inf`; where left out a new one, 0 or 1. `sgd_update`, `adam_update` and `adamw_update` take it, to skip
        the step without a wait of the host.

    Raises
    ------
    BadParamError
        An argument is not one of the above, or two arrays share memory.

    Notes
    -----
    What counts is the product as stored: a finite gradient that overflows when scaled is found too. One pass over
    memory, each element rounded once.

    References
    ----------
    Micikevicius et al., "Mixed precision training", ICLR 2018.
    """
    op = "scale_and_check_finite"
    number, scalar = split_scalar(scale)
    number = checks.require_finite(op, "scale", number)
    operands = (as_list(arrays), scalar, found_inf)
    if checks.on_numpy(handle, op):
        with handle.checked(plan_scale_and_check_finite, (), operands) as (arrays, scalar, found_inf):
            return reference.scale_and_check_finite(arrays, number if scalar is None else scalar, found_inf=found_inf)
    return handle.run(plan_scale_and_check_finite, (), operands, (number,))


def plan_global_norm(profile: Profile, arrays: Tensors, out: TensorDescriptor | None) -> PlanSpec:
    """Plan of `global_norm`."""
    op = "global_norm"
    checks.require_tensors(op, "arrays", arrays)
    dtype = _norm_dtype(arrays)
    checks.require_out(op, out, (), dtype, rule="a scalar")
    size = chunk_size(arrays, profile.sm_count)
    groups = chunk_groups(arrays, size)
    return PlanSpec(
        op,
        "chunks",
        _norm_steps(profile, groups, size, dtype, len(arrays)),
        results=(Result(len(arrays), (), dtype),),
        returns=(len(arrays),),
        writes=(len(arrays),),
        scratch=_partials(profile, groups, size),
        constants=tuple(group.rows for group in groups),
    )


def plan_clip_by_global_norm(profile: Profile, arrays: Tensors, norm: TensorDescriptor | None) -> PlanSpec:
    """Plan of `clip_by_global_norm`."""
    op, at = "clip_by_global_norm", len(arrays or ())
    checks.require_tensors(op, "arrays", arrays)
    checks.require_scalar(op, "norm", norm, _REAL)
    dtype = norm.dtype if norm is not None else _norm_dtype(arrays)
    size = chunk_size(arrays, profile.sm_count)
    groups = chunk_groups(arrays, size)
    scalars = (0.0, Live(0), Live(1), int(dtype.name == "float64"), 1, 0)
    steps = tuple(_scale_step(group, k, NULL, at, scalars, size) for k, group in enumerate(groups))
    return PlanSpec(
        op,
        "norm_given" if norm is not None else "chunks",
        steps if norm is not None else (*_norm_steps(profile, groups, size, dtype, at), *steps),
        results=(Result(at, (), dtype),),
        returns=(at,),
        writes=tuple(range(at)) if norm is not None else tuple(range(at + 1)),
        scratch=() if norm is not None else _partials(profile, groups, size),
        constants=tuple(group.rows for group in groups),
    )


def plan_scale_and_check_finite(
    profile: Profile, arrays: Tensors, scale: TensorDescriptor | None, found_inf: TensorDescriptor | None
) -> PlanSpec:
    """Plan of `scale_and_check_finite`."""
    op = "scale_and_check_finite"
    checks.require_tensors(op, "arrays", arrays)
    checks.require_scalar(op, "scale", scale, _REAL)
    checks.require_scalar(op, "found_inf", found_inf, (_INT32,))
    at = len(arrays)
    size = chunk_size(arrays, profile.sm_count)
    groups = chunk_groups(arrays, size)
    wide = int(scale is not None and scale.dtype.name == "float64")
    scalars = (Live(0), 0.0, 0.0, wide, 0, 0)
    scalar = NULL if scale is None else at
    clear = (FillStep(at + 1, _INT32.itemsize),) if found_inf is None else ()
    return PlanSpec(
        op,
        "chunks",
        (*clear, *(_scale_step(group, k, at + 1, scalar, scalars, size) for k, group in enumerate(groups))),
        results=(Result(at + 1, (), _INT32),),
        returns=(at + 1,),
        writes=(*range(at), at + 1),
        constants=tuple(group.rows for group in groups),
    )


def _norm_dtype(arrays: Tensors) -> DType:
    return BY_NAME["float64" if any(x.dtype.name == "float64" for x in arrays) else "float32"]


def _partials(profile: Profile, groups: list[ChunkGroup], size: int) -> tuple[int, ...]:
    """Bytes of scratch for the partial sums of all groups."""
    return (8 * sum(_norm_grid(profile, group, size)[2] for group in groups),) if groups else ()


def _norm_grid(profile: Profile, group: ChunkGroup, size: int) -> tuple[int, int, int]:
    """Elements of a share, shares, and the blocks that take them in turn."""
    share = min(size, BLOCK * group.dtype.lanes * _NORM_PACKS)
    shares = group.chunks * (size // share)
    return share, shares, min(shares, profile.sm_count * _NORM_BLOCKS)


def _norm_steps(
    profile: Profile, groups: list[ChunkGroup], size: int, dtype: DType, norm: int
) -> tuple[KernelStep | FillStep, ...]:
    """Partial sums of each group side by side in the scratch, then the fold over all of them."""
    if not groups:
        return (FillStep(norm, dtype.itemsize),)
    steps, done = [], 0
    for k, group in enumerate(groups):
        share, shares, blocks = _norm_grid(profile, group, size)
        pointers: tuple[Pointer, ...] = (Scratch(0), TABLE, Constant(k))
        steps.append(_step(_PARTIALS, group.dtype, "norm", blocks, pointers, (done, shares, 0, size, share)))
        done += blocks
    # The unit of the gradients themselves, where it has the right accumulator: one compilation less.
    unit = groups[0].dtype if groups[0].dtype.acc is dtype else dtype
    return (*steps, _step(_FOLD, unit, "norm", 1, (norm, Scratch(0)), (done,)))


def _scale_step(
    group: ChunkGroup, k: int, flag: Pointer, scalar: Pointer, scalars: tuple[float | int | Live, ...], size: int
) -> KernelStep:
    share = min(size, BLOCK * group.dtype.lanes * _SCALE_PACKS)
    blocks, sizes = group.chunks * (size // share), (size, share)
    return _step(_SCALE, group.dtype, "scale", blocks, (flag, TABLE, Constant(k), scalar), (*scalars, *sizes))


def _step(
    kernel: Kernel,
    dtype: DType,
    group: str,
    blocks: int,
    pointers: tuple[Pointer, ...],
    scalars: tuple[float | int | Live, ...],
) -> KernelStep:
    return KernelStep(kernel, dtype, (dtype.cuda,), group, (blocks, 1, 1), BLOCK, pointers, scalars)


def _instances(dtype: DType) -> dict[str, list[str]]:
    t = dtype.cuda
    return {"norm": [f"norm_partials<{t}>", f"norm_fold<{t}>"], "scale": [f"scale_arrays<{t}>"]}


FAMILY = Family("gradient", (_PARTIALS, _FOLD, _SCALE), _instances)
