"""Parametric ReLU with a learned slope, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from .. import checks
from ..descriptors import TensorDescriptor
from ..dtypes import DType
from ..reference import prelu as reference
from ..runtime.launch import (
    NULL,
    Family,
    Kernel,
    KernelStep,
    PlanSpec,
    Pointer,
    Profile,
    Result,
    Scratch,
    Struct,
    blocks_for,
    choose,
    unaligned,
)

if TYPE_CHECKING:
    from ..handle import Handle

_LAYOUT = (("size", "i64"), ("channels", "i64"), ("inner", "i64"))
_SPLIT = (("outer", "i64"), ("channels", "i64"), ("inner", "i64"), ("per_part", "i64"))
_BACKWARD = Struct("PreluBackwardParams", ("partial", "dx", "dy", "x", "slope"), _SPLIT)
_FORWARD_KERNEL = Kernel(
    "prelu",
    "prelu_forward",
    Struct("PreluForwardParams", ("y", "x", "slope"), (("alpha", "A"), ("beta", "A"), *_LAYOUT)),
)
_DATA_KERNEL = Kernel(
    "prelu", "prelu_backward_data", Struct("PreluBackwardDataParams", ("dx", "dy", "x", "slope"), _LAYOUT)
)
_ROWS_KERNEL = Kernel("prelu", "prelu_backward_rows", _BACKWARD)
_COLUMNS_KERNEL = Kernel("prelu", "prelu_backward_columns", _BACKWARD)
_FOLD_KERNEL = Kernel(
    "prelu",
    "prelu_fold",
    Struct("PreluFoldParams", ("dslope", "partial"), (("parts", "i64"), ("channels", "i64"), ("inner", "i64"))),
)

#: From this inner extent on a warp finds enough neighbours within one channel.
_LONG_INNER = 64
#: Items that a block of a dslope kernel should at least have, so that its partial sum is worth a line of scratch.
_LEAST_ITEMS, _LEAST_ROWS = 1024, 64
_MOST_PARTS = 65535


def prelu_forward(
    handle: Handle, x: Any, slope: Any, *, axis: int = 1, out: Any = None, alpha: float = 1.0, beta: float = 0.0
) -> Any:
    """Parametric ReLU: ``y = x`` where ``x > 0``, else ``slope * x``; ``out = alpha * y + beta * out``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    x : array
        Contiguous, any shape; float32, float64, float16 or bfloat16.
    slope : array
        Of x's dtype: one slope for all, of shape ``()`` or ``(1,)``, or one per channel, of shape ``(x.shape[axis],)``.
    axis : int
        The channel axis of x; of no meaning where one slope serves all.
    out : array, optional
        Destination, of x's shape and dtype. May be x itself.
    alpha, beta : float
        With beta 0 the old `out` is never read.

    Returns
    -------
    array
        `out`, or a new array of x's shape and dtype.

    Raises
    ------
    BadParamError
        A shape, dtype, layout or option is not one of those above, or `out` overlaps an input in part.

    Notes
    -----
    For the backward pass keep x and slope. NaN is handed on. A slope of 0 gives 0 at -inf.

    References
    ----------
    He et al., "Delving deep into rectifiers", ICCV 2015.
    """
    axis = checks.plain_axis("prelu_forward", axis)
    options, operands = (axis, alpha, beta), (x, slope, out)
    if checks.on_numpy(handle, "prelu_forward"):
        with handle.checked(plan_prelu_forward, options, operands) as (x, slope, out):
            return reference.prelu_forward(x, slope, axis=axis, out=out, alpha=alpha, beta=beta)
    return handle.run(plan_prelu_forward, options, operands)


def prelu_backward(
    handle: Handle,
    dy: Any,
    x: Any,
    slope: Any,
    *,
    axis: int = 1,
    needs: Sequence[str] = ("dx", "dslope"),
    dx: Any = None,
    dslope: Any = None,
) -> tuple[Any, Any]:
    """Gradients of `prelu_forward`: ``dx = dy`` where x > 0, else ``slope * dy``; ``dslope = sum dy * x`` over x <= 0.

    Parameters
    ----------
    handle : Handle
        Where to run.
    dy, x : array
        Upstream gradient and the input of the forward pass: contiguous, of one shape and dtype.
    slope : array
        As in `prelu_forward`.
    axis : int
        The channel axis of x.
    needs : sequence of str
        Which gradients to compute: ``"dx"``, ``"dslope"`` or both; both share one pass over memory.
    dx, dslope : array, optional
        Destinations, of the shapes and dtypes of x and slope. dx may be dy or x itself.

    Returns
    -------
    (dx, dslope) : tuple
        None in place of a gradient that is not in `needs`.

    Raises
    ------
    BadParamError
        A shape, dtype, layout or option is not one of those above, or destinations overlap what they must not.

    Notes
    -----
    The kink belongs to the slope's side: at x = 0 the derivative is `slope`. A NaN in x is handed on to dx and dslope.
    dslope is summed in float32 (float64 for float64) in an order fixed by shape and device, so the bits repeat, and
    overflows where a partial sum does; it is rounded to slope's dtype once. An empty x gives dslope = 0.
    """
    wanted = checks.require_names("prelu_backward", "needs", needs)
    axis = checks.plain_axis("prelu_backward", axis)
    options, operands = (axis, wanted), (dy, x, slope, dx, dslope)
    if checks.on_numpy(handle, "prelu_backward"):
        with handle.checked(plan_prelu_backward, options, operands) as (dy, x, slope, dx, dslope):
            return reference.prelu_backward(dy, x, slope, axis=axis, needs=wanted, dx=dx, dslope=dslope)
    made = handle.run(plan_prelu_backward, options, operands)
    if len(wanted) == 2:
        return made  # type: ignore[no-any-return]
    return (made, None) if wanted == ("dx",) else (None, made)


def plan_prelu_forward(
    profile: Profile,
    axis: int,
    alpha: float,
    beta: float,
    x: TensorDescriptor,
    slope: TensorDescriptor,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `prelu_forward`."""
    op = "prelu_forward"
    layout = _require_layout(op, axis, x, slope)
    checks.require_out(op, out, x.shape, x.dtype, rule="x.shape")
    checks.require_blend(op, alpha, beta, out)
    variant, refused = choose([("packed", unaligned(x=x, out=out)), ("plain", None)])
    vec = x.dtype.lanes if variant == "packed" else 1
    scalars = (float(alpha), float(beta), x.size, *layout[1:])
    step = _elementwise(_FORWARD_KERNEL, x, vec, (2, 0, 1), scalars, "forward")
    return PlanSpec(
        op,
        str(variant),
        (step,) if x.size else (),
        results=(Result(2, x.shape, x.dtype),),
        returns=(2,),
        writes=(2,),
        in_place=((2, 0),),
        refused=refused,
    )


def plan_prelu_backward(
    profile: Profile,
    axis: int,
    needs: tuple[str, ...],
    dy: TensorDescriptor,
    x: TensorDescriptor,
    slope: TensorDescriptor,
    dx: TensorDescriptor | None,
    dslope: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `prelu_backward`."""
    op = "prelu_backward"
    checks.require_needs(op, needs, ("dx", "dslope"), dx=dx, dslope=dslope)
    layout = _require_layout(op, axis, x, slope)
    checks.require_shape(op, "dy", dy, x.shape, "x.shape")
    checks.require_same_dtype(op, x=x, dy=dy)
    checks.require_contiguous(op, dy=dy)
    checks.require_out(op, dx, x.shape, x.dtype, param="dx", rule="x.shape")
    checks.require_out(op, dslope, slope.shape, slope.dtype, param="dslope", rule="slope.shape")
    made = tuple(
        result
        for name, result in (("dx", Result(3, x.shape, x.dtype)), ("dslope", Result(4, slope.shape, slope.dtype)))
        if name in needs
    )
    written = tuple(result.operand for result in made)
    spec = PlanSpec(op, "", (), results=made, returns=written, writes=written, in_place=((3, 0), (3, 1)))
    if "dslope" in needs:
        return _with_slope_gradient(spec, profile, layout, "dx" in needs, dy, x, dx)
    variant, refused = choose([("packed", unaligned(dy=dy, x=x, dx=dx)), ("plain", None)])
    vec = x.dtype.lanes if variant == "packed" else 1
    step = _elementwise(_DATA_KERNEL, x, vec, (3, 0, 1, 2), (x.size, *layout[1:]), "backward")
    return replace(spec, variant=str(variant), steps=(step,) if x.size else (), refused=refused)


def _with_slope_gradient(
    spec: PlanSpec,
    profile: Profile,
    layout: tuple[int, int, int],
    with_dx: bool,
    dy: TensorDescriptor,
    x: TensorDescriptor,
    dx: TensorDescriptor | None,
) -> PlanSpec:
    """Add the two launches of dslope, the first of which also writes dx."""
    outer, channels, inner = layout
    columns, lanes, reason = channels * inner, x.dtype.lanes, unaligned(dy=dy, x=x, dx=dx)
    by_columns = channels > 1 and inner < _LONG_INNER
    if reason is None and (columns if by_columns else inner) % lanes:
        reason = f"{'channels * inner' if by_columns else 'inner'} is no multiple of {lanes}"
    vec = lanes if reason is None else 1
    if by_columns:
        kernel, tiles, items, least, extent = _COLUMNS_KERNEL, -(-columns // (32 * vec)), outer, _LEAST_ROWS, columns
    else:
        kernel, tiles, items, least, extent = _ROWS_KERNEL, channels, outer * inner // vec, _LEAST_ITEMS, channels
    parts, per_part = _split(items, least, tiles, profile.sm_count)
    pointers: tuple[Pointer, ...] = (Scratch(0), 3 if with_dx else NULL, 0, 1, 2)
    scalars = (outer, channels, inner, per_part)
    first = KernelStep(kernel, x.dtype, (x.dtype.cuda, str(vec)), "backward", (tiles, parts, 1), 256, pointers, scalars)
    fold = KernelStep(
        _FOLD_KERNEL, x.dtype, (x.dtype.cuda,), "backward", (channels, 1, 1), 256, (4, Scratch(0)),
        (parts, channels, extent // max(channels, 1)),
    )  # fmt: skip
    steps = () if channels == 0 else (first, fold) if x.size else (replace(fold, scalars=(0, channels, 1)),)
    name = "columns" if by_columns else "rows"
    other = "one channel is summed by rows" if channels <= 1 else f"inner = {inner} >= {_LONG_INNER}"
    variant, refused = choose((("packed_" + name, reason), (name, None)))
    return replace(
        spec,
        variant=str(variant),
        steps=steps,
        scratch=(max(parts * extent, 1) * x.dtype.acc.itemsize,),
        refused=refused if by_columns else (("columns", other), *refused),
    )


def _split(items: int, least: int, tiles: int, sm_count: int) -> tuple[int, int]:
    """(parts, items per part): enough blocks to fill the device, each with `least` items where there are so many."""
    wanted = max(1, min(-(-items // least), 8 * sm_count // max(tiles, 1), _MOST_PARTS))
    per_part = max(1, -(-items // wanted))
    return max(1, -(-items // per_part)), per_part


def _require_layout(op: str, axis: int, x: TensorDescriptor, slope: TensorDescriptor) -> tuple[int, int, int]:
    """Check x and slope; return x's extents as (outer, channels, inner)."""
    checks.require_float(op, "x", x)
    checks.require_same_dtype(op, x=x, slope=slope)
    checks.require_contiguous(op, x=x, slope=slope)
    if slope.shape in ((), (1,)):
        return 1, 1, x.size
    at = checks.require_axis(op, axis, x.ndim)
    checks.require_shape(op, "slope", slope, (x.shape[at],), f"(x.shape[{at}],), or one slope of shape () or (1,)")
    return prod(x.shape[:at]), x.shape[at], prod(x.shape[at + 1 :])


def _elementwise(
    kernel: Kernel,
    x: TensorDescriptor,
    vec: int,
    pointers: tuple[Pointer, ...],
    scalars: tuple[float | int, ...],
    group: str,
) -> KernelStep:
    return KernelStep(
        kernel, x.dtype, (x.dtype.cuda, str(vec)), group, blocks_for(x.size, 256 * vec), 256, pointers, scalars
    )


def _instances(dtype: DType) -> dict[str, list[str]]:
    t, widths = dtype.cuda, (1, dtype.lanes)
    split = ("prelu_backward_data", "prelu_backward_rows", "prelu_backward_columns")
    return {
        "forward": [f"prelu_forward<{t}, {vec}>" for vec in widths],
        "backward": [f"{entry}<{t}, {vec}>" for entry in split for vec in widths] + [f"prelu_fold<{t}>"],
    }


FAMILY = Family("prelu", (_FORWARD_KERNEL, _DATA_KERNEL, _ROWS_KERNEL, _COLUMNS_KERNEL, _FOLD_KERNEL), _instances)
