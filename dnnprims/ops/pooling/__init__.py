"""Pooling: the largest or the mean of what lies under a window that moves over an image, and the gradient.

The shapes are in `geometry`, the launches in `kernels`.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from ... import checks
from ...descriptors import PoolingDescriptor, TensorDescriptor
from ...reference import pooling as reference
from ...runtime.launch import FLAG, NULL, PlanSpec, Profile, Result, choose
from .geometry import Geometry, examine
from .kernels import (
    FAMILY,
    Launch,
    lines_step,
    packed_step,
    plain_step,
    rows_step,
    variants,
    whole_packed_step,
    whole_planes_step,
)

if TYPE_CHECKING:
    from ...handle import Handle

__all__ = [
    "FAMILY",
    "plan_pooling_backward",
    "plan_pooling_forward",
    "pooling_backward",
    "pooling_forward",
    "pooling_output_descriptor",
]


def pooling_forward(
    handle: Handle,
    pooling: PoolingDescriptor,
    x: Any,
    *,
    with_indices: bool = False,
    out: Any = None,
    indices: Any = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Pooling: ``out = alpha * y + beta * out``, y[o] the largest or the mean of the window of position o.

    Parameters
    ----------
    handle : Handle
        Where to run.
    pooling : PoolingDescriptor
        Mode, window, stride, padding and layout.
    x : array
        ``(n, c, ...)`` or, channels last, ``(n, ..., c)``, with one to three spatial axes; float32, float64, float16 or
        bfloat16. Strided views are taken of all arrays.
    with_indices : bool
        Also give, for mode ``max``, which tap of its window attains each maximum. Training needs it, inference not.
    out : array, optional
        Destination of y, of x's dtype.
    indices : array, optional
        Destination of the indices, of y's shape, which implies `with_indices`: uint8 for windows of at most 256
        positions, else int32.
    alpha, beta : float
        Blend of y; with beta 0 the old `out` is never read.

    Returns
    -------
    array, or (y, indices) : tuple of array
        The tuple where indices were asked for.

    Raises
    ------
    BadParamError
        A shape, dtype, layout or option is not one of those above, a window is larger than the image with its padding,
        indices are asked of a mean, or a destination overlaps another argument.

    Notes
    -----
    An index counts the positions of the window row by row, those in the padding too: (r, s) of a window of 3 x 3 is
    3 r + s. The first maximum wins; a NaN is larger than every number, and the first NaN wins. Padding never wins: a
    padding is less than the window, so that each window has a part in the image. A maximum is moved, and rounds in a
    blend alone; a mean is a sum in float32 (float64 for float64), row by row, times the reciprocal of the count.
    Positions behind the last whole window are left out (floor); more padding behind takes them in. For the backward
    pass keep the indices, or of a mean nothing.
    """
    with_indices = checks.require_switch("pooling_forward", "with_indices", with_indices)
    options, operands = (pooling, with_indices, alpha, beta), (x, out, indices)
    if checks.on_numpy(handle, "pooling_forward"):
        with handle.checked(plan_pooling_forward, options, operands) as (x, out, indices):
            return reference.pooling_forward(
                pooling, x, with_indices=with_indices, out=out, indices=indices, alpha=alpha, beta=beta
            )
    return handle.run(plan_pooling_forward, options, operands)


def pooling_backward(
    handle: Handle,
    pooling: PoolingDescriptor,
    dy: Any,
    *,
    x_descriptor: TensorDescriptor,
    indices: Any = None,
    out: Any = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Gradient of `pooling_forward`: ``out = alpha * dx + beta * out``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    pooling : PoolingDescriptor
        As in the forward pass.
    dy : array
        Upstream gradient, of y's shape; float32, float64, float16 or bfloat16. Strided views are taken of all
        arrays.
    x_descriptor : TensorDescriptor
        Of the input of the forward pass, which a stride does not tell; its strides do not matter.
    indices : array, optional
        What `pooling_forward` gave back for mode ``max``; a mean takes none.
    out : array, optional
        Destination of dx, of x_descriptor's shape and dy's dtype.
    alpha, beta : float
        With beta 0 the old `out` is never read.

    Returns
    -------
    array
        `out`, or a new array.

    Raises
    ------
    BadParamError
        A shape, dtype, layout or option is not one of those above, indices are missing or not taken, or `out` overlaps
        an input; on the NumPy backend also an index out of range.

    Notes
    -----
    Each element of dx gathers from the windows that it lies in, in their order, in float32 (float64 for float64): the
    same bits each time, however much windows overlap. What no window has chosen, or no window has, gets 0.

    An index on the device that is no position of the window, or one in the padding, hands its gradient to no element;
    `handle.check()` reports the former.
    """
    options, operands = (pooling, x_descriptor, alpha, beta), (dy, indices, out)
    if checks.on_numpy(handle, "pooling_backward"):
        with handle.checked(plan_pooling_backward, options, operands) as (dy, indices, out):
            if indices is not None:
                checks.require_taps_named("pooling_backward", indices, pooling.taps(dy.ndim - 2))
            return reference.pooling_backward(
                pooling, dy, x_descriptor=x_descriptor, indices=indices, out=out, alpha=alpha, beta=beta
            )
    return handle.run(plan_pooling_backward, options, operands)


def pooling_output_descriptor(pooling: PoolingDescriptor, x: TensorDescriptor) -> TensorDescriptor:
    """Describe what `pooling_forward` makes of such an image; needs no device.

    Parameters
    ----------
    pooling : PoolingDescriptor
        How the window moves.
    x : TensorDescriptor
        Of the image.

    Returns
    -------
    TensorDescriptor
        Along each spatial axis ``1 + (image + padding - window) / stride``, rounded down.

    Raises
    ------
    BadParamError
        They do not go together.
    """
    op = "pooling_output_descriptor"
    checks.require_description(op, "x", x)
    return TensorDescriptor(examine(op, pooling, x).y_shape, x.dtype)


def plan_pooling_forward(
    profile: Profile,
    pooling: PoolingDescriptor,
    with_indices: bool,
    alpha: float,
    beta: float,
    x: TensorDescriptor,
    out: TensorDescriptor | None,
    indices: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `pooling_forward`."""
    op, rule = "pooling_forward", "the shape of the pooling"
    g = examine(op, pooling, x)
    wanted = checks.require_switch(op, "with_indices", with_indices) or indices is not None
    checks.require_indexed(op, pooling, wanted)
    checks.require_out(op, out, g.y_shape, x.dtype, rule=rule, contiguous=False)
    checks.require_out(op, indices, g.y_shape, g.index_dtype, param="indices", rule=rule, contiguous=False)
    checks.require_blend(op, alpha, beta, out)
    launch = Launch("forward", x.dtype, x, out, indices, (1, 2 if wanted else NULL, 0), alpha, beta)
    results = (Result(1, g.y_shape, x.dtype), *((Result(2, g.y_shape, g.index_dtype),) if wanted else ()))
    return _plan(op, profile, g, launch, g.y_shape, results)


def plan_pooling_backward(
    profile: Profile,
    pooling: PoolingDescriptor,
    x_descriptor: TensorDescriptor,
    alpha: float,
    beta: float,
    dy: TensorDescriptor,
    indices: TensorDescriptor | None,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `pooling_backward`."""
    op, rule = "pooling_backward", "the shape of the pooling of x_descriptor"
    checks.require_description(op, "x_descriptor", x_descriptor)
    g = examine(op, pooling, x_descriptor, "x_descriptor")
    checks.require_same_dtype(op, x_descriptor=x_descriptor, dy=dy)
    checks.require_shape(op, "dy", dy, g.y_shape, rule)
    if g.is_max:
        given = checks.require_present(op, "indices", indices, "what pooling_forward gave back, with_indices=True")
        checks.require_shape(op, "indices", given, g.y_shape, rule)
        checks.require_dtype(op, "indices", given, (g.index_dtype,))
    else:
        checks.require_absent(op, "indices", indices, f"None for the mode {pooling.mode}")
    checks.require_out(op, out, g.x_shape, dy.dtype, rule="x_descriptor.shape", contiguous=False)
    checks.require_blend(op, alpha, beta, out)
    pointers = (2, FLAG, 0, 1 if g.is_max else NULL)
    launch = Launch("backward", dy.dtype, out, dy, indices, pointers, alpha, beta)
    return _plan(op, profile, g, launch, g.x_shape, (Result(2, g.x_shape, dy.dtype),))


_STEPS = {
    "whole_packed": whole_packed_step,
    "whole_planes": whole_planes_step,
    "packed_channels": packed_step,
    "packed_lines": lines_step,
    "staged_rows": rows_step,
    "plain": plain_step,
}


def _plan(
    op: str, profile: Profile, g: Geometry, launch: Launch, shape: tuple[int, ...], results: tuple[Result, ...]
) -> PlanSpec:
    variant, refused = choose(variants(g, launch))
    step = _STEPS[str(variant)](profile, g, launch)
    made = tuple(result.operand for result in results)
    return PlanSpec(
        op,
        str(variant),
        (step,) if prod(shape) else (),
        results=results,
        returns=made,
        writes=made,
        refused=refused,
    )
