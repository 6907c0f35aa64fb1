"""Maxout: the largest of each group of neighbours along an axis, and its gradient."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from .. import checks
from ..descriptors import TensorDescriptor
from ..dtypes import BY_NAME, DType
from ..reference import maxout as reference
from ..runtime.launch import (
    FLAG,
    Family,
    Kernel,
    KernelStep,
    PlanSpec,
    Profile,
    Result,
    Struct,
    blocks_for,
    choose,
    unaligned,
)

if TYPE_CHECKING:
    from ..handle import Handle

_SIZES = (("size", "i64"), ("inner", "i64"), ("pool", "i64"))
_FORWARD = Struct("MaxoutForwardParams", ("y", "which", "x"), _SIZES)
_UNITS_KERNEL = Kernel("maxout", "maxout_forward_units", _FORWARD)
_STRIDED_KERNEL = Kernel("maxout", "maxout_forward_strided", _FORWARD)
_BACKWARD = Struct("MaxoutBackwardParams", ("dx", "flag", "dy", "which"), (("alpha", "A"), ("beta", "A"), *_SIZES))
_BACKWARD_UNITS_KERNEL = Kernel("maxout", "maxout_backward_units", _BACKWARD)
_BACKWARD_KERNEL = Kernel("maxout", "maxout_backward", _BACKWARD)

#: Pool sizes with a kernel that keeps whole groups in registers.
_REGISTER_POOLS = (2, 3, 4, 8)
#: Pool sizes that divide a pack or that packs divide; packs that a thread then writes, as in the kernel: two, where one
#: and four measured 1 to 5 per cent slower on an NVIDIA H200 (2026-11-28, a prototype).
_PACKED_POOLS, _BACKWARD_PACKS = (2, 4, 8), 2
#: Largest pool whose indices fit in uint8.
_MOST_UINT8 = 256

#: Largest pool whose indices fit in int32.
_MOST_INT32 = 2**31


def maxout_forward(
    handle: Handle, x: Any, pool_size: int, *, axis: int = -1, out: Any = None, which: Any = None
) -> tuple[Any, Any]:
    """Maxout: ``y[u] = max_k x[u * pool_size + k]`` along an axis, and ``which[u]``, the k that attains it.

    Parameters
    ----------
    handle : Handle
        Where to run.
    x : array
        Contiguous; float32, float64, float16 or bfloat16. The extent of `axis` is units * pool_size; the entries of a
        unit are neighbours, as in an array of shape (..., units, pool_size, ...).
    pool_size : int
        Entries of each unit, at least 1.
    axis : int
        The axis that holds units and their entries.
    out : array, optional
        Destination of y: x's dtype, x's shape with units on `axis`.
    which : array, optional
        Destination of the indices: y's shape; uint8 for a pool_size of at most 256, else int32.

    Returns
    -------
    (y, which) : tuple of array

    Raises
    ------
    BadParamError
        The extent is no multiple of pool_size, another shape, dtype, layout or option is not one of those above, or a
        destination overlaps another array.

    Notes
    -----
    The first maximum wins; a NaN is larger than every number, and the first NaN wins. Values are moved, not computed:
    nothing rounds. For the backward pass keep `which`; x is not needed.

    References
    ----------
    Goodfellow et al., "Maxout networks", ICML 2013.
    """
    axis = checks.plain_axis("maxout_forward", axis)
    pool_size = checks.require_integer("maxout_forward", "pool_size", pool_size, 1, _MOST_INT32)
    options, operands = (pool_size, axis), (x, out, which)
    if checks.on_numpy(handle, "maxout_forward"):
        with handle.checked(plan_maxout_forward, options, operands) as (x, out, which):
            return reference.maxout_forward(x, pool_size, axis=axis, out=out, which=which)
    return handle.run(plan_maxout_forward, options, operands)  # type: ignore[no-any-return]


def maxout_backward(
    handle: Handle,
    dy: Any,
    which: Any,
    pool_size: int,
    *,
    axis: int = -1,
    out: Any = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Gradient of `maxout_forward`: ``dx[u * pool_size + k] = dy[u]`` where ``k = which[u]``, else 0.

    Parameters
    ----------
    handle : Handle
        Where to run.
    dy : array
        Upstream gradient, contiguous, of y's shape; float32, float64, float16 or bfloat16.
    which : array
        What `maxout_forward` gave back.
    pool_size : int
        Entries of each unit.
    axis : int
        The axis that holds the units.
    out : array, optional
        Destination of dx: dy's dtype, dy's shape with units * pool_size on `axis`.
    alpha, beta : float
        ``out = alpha * dx + beta * out``; with beta 0 the old `out` is never read.

    Returns
    -------
    array
        `out`, or a new array.

    Raises
    ------
    BadParamError
        A shape, dtype, layout or option is not one of those above, or `out` overlaps an input; on the NumPy backend
        also an index out of range.

    Notes
    -----
    An index on the device that is not in [0, pool_size) has the gradient 0; `handle.check()` reports it.
    """
    axis = checks.plain_axis("maxout_backward", axis)
    pool_size = checks.require_integer("maxout_backward", "pool_size", pool_size, 1, _MOST_INT32)
    options, operands = (pool_size, axis, alpha, beta), (dy, which, out)
    if checks.on_numpy(handle, "maxout_backward"):
        with handle.checked(plan_maxout_backward, options, operands) as (dy, which, out):
            checks.require_which("maxout_backward", which, pool_size)
            return reference.maxout_backward(dy, which, pool_size, axis=axis, out=out, alpha=alpha, beta=beta)
    return handle.run(plan_maxout_backward, options, operands)


def plan_maxout_forward(
    profile: Profile,
    pool_size: int,
    axis: int,
    x: TensorDescriptor,
    out: TensorDescriptor | None,
    which: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `maxout_forward`."""
    op = "maxout_forward"
    checks.require_float(op, "x", x)
    checks.require_contiguous(op, x=x)
    at = checks.require_axis(op, axis, x.ndim)
    checks.require_multiple(op, f"x.shape[{at}]", x.shape[at], pool_size, "pool_size")
    shape = (*x.shape[:at], x.shape[at] // pool_size, *x.shape[at + 1 :])
    index, rule = _index_dtype(pool_size), "x.shape with units on the axis"
    checks.require_out(op, out, shape, x.dtype, rule=rule)
    checks.require_out(op, which, shape, index, param="which", rule=rule)
    inner, lanes = prod(x.shape[at + 1 :]), x.dtype.lanes
    reason = unaligned(x=x, out=out, which=which)
    units = "the axis is not the innermost" if inner != 1 else None
    if pool_size not in _REGISTER_POOLS:
        units = f"pool_size {pool_size} is none of {', '.join(map(str, _REGISTER_POOLS))}"
    ragged = f"the {inner} elements behind the axis are no multiple of {lanes}" if inner % lanes else None
    variant, refused = choose([("units_in_registers", units or reason), ("packed", ragged or reason), ("plain", None)])
    t, vec = x.dtype.cuda, 1 if variant == "plain" else lanes
    kernel, template = _STRIDED_KERNEL, (t, index.cuda, str(vec))
    if variant == "units_in_registers":
        kernel, template = _UNITS_KERNEL, (t, str(vec), str(pool_size))
    size = prod(shape)
    step = KernelStep(
        kernel, x.dtype, template, "forward", blocks_for(size, 256 * vec), 256, (1, 2, 0), (size, inner, pool_size)
    )
    return PlanSpec(
        op,
        str(variant),
        (step,) if size else (),
        results=(Result(1, shape, x.dtype), Result(2, shape, index)),
        returns=(1, 2),
        writes=(1, 2),
        refused=refused,
    )


def plan_maxout_backward(
    profile: Profile,
    pool_size: int,
    axis: int,
    alpha: float,
    beta: float,
    dy: TensorDescriptor,
    which: TensorDescriptor,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `maxout_backward`."""
    op = "maxout_backward"
    checks.require_float(op, "dy", dy)
    checks.require_contiguous(op, dy=dy, which=which)
    at = checks.require_axis(op, axis, dy.ndim)
    checks.require_shape(op, "which", which, dy.shape, "dy.shape")
    index = _index_dtype(pool_size)
    checks.require_dtype(op, "which", which, (index,))
    shape = (*dy.shape[:at], dy.shape[at] * pool_size, *dy.shape[at + 1 :])
    checks.require_out(op, out, shape, dy.dtype, rule="dy.shape with units * pool_size on the axis")
    checks.require_blend(op, alpha, beta, out)
    size, inner = prod(shape), prod(shape[at + 1 :])
    units = "the axis is not the innermost" if inner != 1 else unaligned(dy=dy, which=which, out=out)
    if pool_size not in _PACKED_POOLS:
        units = f"pool_size {pool_size} is none of {', '.join(map(str, _PACKED_POOLS))}"
    if (alpha, beta) != (1.0, 0.0):
        units = f"alpha {alpha} and beta {beta} blend"
    variant, refused = choose([("units_in_registers", units), ("packed", unaligned(out=out)), ("plain", None)])
    vec = 1 if variant == "plain" else dy.dtype.lanes
    kernel, template, per_thread = _BACKWARD_KERNEL, (dy.dtype.cuda, index.cuda, str(vec)), vec
    if variant == "units_in_registers":
        kernel, template = _BACKWARD_UNITS_KERNEL, (dy.dtype.cuda, str(vec), str(pool_size))
        per_thread = vec * _BACKWARD_PACKS
    scalars = (float(alpha), float(beta), size, inner, pool_size)
    grid = blocks_for(size, 256 * per_thread)
    step = KernelStep(kernel, dy.dtype, template, "backward", grid, 256, (2, FLAG, 0, 1), scalars)
    return PlanSpec(
        op,
        str(variant),
        (step,) if size else (),
        results=(Result(2, shape, dy.dtype),),
        returns=(2,),
        writes=(2,),
        refused=refused,
    )


def _index_dtype(pool_size: int) -> DType:
    return BY_NAME["uint8" if pool_size <= _MOST_UINT8 else "int32"]


def _instances(dtype: DType) -> dict[str, list[str]]:
    t, strided = dtype.cuda, [(index, vec) for index in ("u8", "int") for vec in (1, dtype.lanes)]
    units = [f"maxout_forward_units<{t}, {dtype.lanes}, {pool}>" for pool in _REGISTER_POOLS]
    return {
        "forward": units + [f"maxout_forward_strided<{t}, {index}, {vec}>" for index, vec in strided],
        "backward": [
            *(f"maxout_backward_units<{t}, {dtype.lanes}, {pool}>" for pool in _PACKED_POOLS),
            *(f"maxout_backward<{t}, {index}, {vec}>" for index, vec in strided),
        ],
    }


FAMILY = Family("maxout", (_UNITS_KERNEL, _STRIDED_KERNEL, _BACKWARD_UNITS_KERNEL, _BACKWARD_KERNEL), _instances)
