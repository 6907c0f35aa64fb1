"""Softmax and log-softmax along any axis, forward and backward. The kernels are in `kernels`."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from ... import checks
from ...descriptors import TensorDescriptor
from ...reference import softmax as reference
from ...runtime.launch import PlanSpec, Profile, Result, unaligned
from .kernels import ALGORITHMS, FAMILY, launch_of

if TYPE_CHECKING:
    from ...handle import Handle

__all__ = [
    "ALGORITHMS",
    "FAMILY",
    "plan_softmax_backward",
    "plan_softmax_forward",
    "softmax_backward",
    "softmax_forward",
]

#: An axis, neighbouring axes taken as one, or cuDNN's names for two such choices.
Axis = int | tuple[int, ...] | str


def softmax_forward(
    handle: Handle,
    x: Any,
    *,
    axis: Axis = -1,
    algorithm: str = "accurate",
    out: Any = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Softmax: ``y = exp(x) / sum(exp(x))`` along `axis`; ``out = alpha * y + beta * out``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    x : array
        Contiguous, at least one axis, any shape; float32, float64, float16 or bfloat16.
    axis : int, tuple of int, "instance" or "channel"
        The axis, or neighbouring axes taken as one. ``"instance"`` is all but axis 0, ``"channel"`` is axis 1.
    algorithm : {"accurate", "fast", "log"}
        ``accurate`` subtracts the row's maximum first; ``fast`` need not, and wants the sum of exponentials to stay
        within the accumulator's range (x within about -87 and 88, float64: 708); ``log`` gives log(y).
    out : array, optional
        Destination, of x's shape and dtype, contiguous. May be x itself.
    alpha, beta : float
        With beta 0 the old `out` is never read.

    Returns
    -------
    array
        `out`, or a new array of x's shape and dtype.

    Raises
    ------
    BadParamError
        A dtype, layout, axis or option is not one of those above, or `out` overlaps x in part.

    Notes
    -----
    For the backward pass keep y. A row with a NaN or +inf, and a row of -inf alone (masked throughout), is NaN; other
    rows are not touched by it. -inf elsewhere gives exactly 0 (-inf for log). With `fast`, a sum out of range makes
    its row NaN; the NumPy backend computes in float64 and subtracts the maximum, so that it stays in range. Sums are
    kept in float32 (float64 for float64), in an order that depends on the row's length, step and alignment alone: the
    same bits each time and for each batch size.

    References
    ----------
    Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
    """
    axis = checks.plain_axis("softmax_forward", axis)
    options, operands = (axis, algorithm, alpha, beta), (x, out)
    if checks.on_numpy(handle, "softmax_forward"):
        with handle.checked(plan_softmax_forward, options, operands) as (x, out):
            return reference.softmax_forward(x, axis=axis, algorithm=algorithm, out=out, alpha=alpha, beta=beta)
    return handle.run(plan_softmax_forward, options, operands)


def softmax_backward(
    handle: Handle,
    dy: Any,
    y: Any,
    *,
    axis: Axis = -1,
    algorithm: str = "accurate",
    out: Any = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Gradient of `softmax_forward`: ``dx = y * (dy - sum(dy * y))``, for log ``dx = dy - exp(y) * sum(dy)``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    dy, y : array
        Upstream gradient and the result of the forward pass (for ``log``, the logarithms): contiguous, of one shape and
        dtype.
    axis, algorithm
        As in the forward pass; ``accurate`` and ``fast`` are the same here.
    out : array, optional
        Destination, of y's shape and dtype, contiguous. May be dy or y itself.
    alpha, beta : float
        ``out = alpha * dx + beta * out``; with beta 0 the old `out` is never read.

    Returns
    -------
    array
        `out`, or a new array of y's shape and dtype.

    Raises
    ------
    BadParamError
        A shape, dtype, layout, axis or option is not one of those above, or `out` overlaps an input in part.

    Notes
    -----
    A NaN or infinity in dy or y makes what the formula says of its row, and of no other. Determinism as in the
    forward pass.
    """
    axis = checks.plain_axis("softmax_backward", axis)
    options, operands = (axis, algorithm, alpha, beta), (dy, y, out)
    if checks.on_numpy(handle, "softmax_backward"):
        with handle.checked(plan_softmax_backward, options, operands) as (dy, y, out):
            return reference.softmax_backward(dy, y, axis=axis, algorithm=algorithm, out=out, alpha=alpha, beta=beta)
    return handle.run(plan_softmax_backward, options, operands)


def plan_softmax_forward(
    profile: Profile,
    axis: Axis,
    algorithm: str,
    alpha: float,
    beta: float,
    x: TensorDescriptor,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `softmax_forward`."""
    op = "softmax_forward"
    checks.require_float(op, "x", x)
    checks.require_contiguous(op, x=x)
    view = _require_options(op, axis, algorithm, alpha, beta, x, out)
    variant, step, refused = launch_of(
        profile, "forward", view, x.dtype, unaligned(x=x, out=out), (1, 0), alpha, beta, algorithm
    )
    return PlanSpec(
        op,
        variant,
        (step,) if x.size else (),
        results=(Result(1, x.shape, x.dtype),),
        returns=(1,),
        writes=(1,),
        in_place=((1, 0),),
        refused=refused,
    )


def plan_softmax_backward(
    profile: Profile,
    axis: Axis,
    algorithm: str,
    alpha: float,
    beta: float,
    dy: TensorDescriptor,
    y: TensorDescriptor,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `softmax_backward`."""
    op = "softmax_backward"
    checks.require_float(op, "y", y)
    checks.require_shape(op, "dy", dy, y.shape, "y.shape")
    checks.require_same_dtype(op, y=y, dy=dy)
    checks.require_contiguous(op, dy=dy, y=y)
    view = _require_options(op, axis, algorithm, alpha, beta, y, out, "y.shape")
    alignment = unaligned(dy=dy, y=y, out=out)
    variant, step, refused = launch_of(profile, "backward", view, y.dtype, alignment, (2, 0, 1), alpha, beta, algorithm)
    return PlanSpec(
        op,
        variant,
        (step,) if y.size else (),
        results=(Result(2, y.shape, y.dtype),),
        returns=(2,),
        writes=(2,),
        in_place=((2, 0), (2, 1)),
        refused=refused,
    )


def _require_options(
    op: str,
    axis: Axis,
    algorithm: str,
    alpha: float,
    beta: float,
    x: TensorDescriptor,
    out: TensorDescriptor | None,
    rule: str = "x.shape",
) -> tuple[int, int, int]:
    """Check what both directions share; return the extents as (outer, cols, inner)."""
    first, last = _require_axes(op, axis, x.ndim)
    checks.require_choice(op, "algorithm", algorithm, ALGORITHMS)
    checks.require_out(op, out, x.shape, x.dtype, rule=rule)
    checks.require_blend(op, alpha, beta, out)
    return prod(x.shape[:first]), prod(x.shape[first : last + 1]), prod(x.shape[last + 1 :])


def _require_axes(op: str, axis: Axis, ndim: int) -> tuple[int, int]:
    """First and last of the axes meant."""
    if isinstance(axis, str):
        checks.require_choice(op, "axis", axis, ("instance", "channel"))
        first = checks.require_axis(op, 1, ndim)
        return (first, ndim - 1) if axis == "instance" else (first, first)
    return checks.require_neighbours(op, axis, ndim)
