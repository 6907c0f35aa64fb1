"""Gated linear units and their gradient."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from .. import checks
from ..descriptors import TensorDescriptor
from ..dtypes import DType
from ..reference import glu as reference
from ..runtime.launch import (
    Family,
    Kernel,
    KernelStep,
    PlanSpec,
    Pointer,
    Profile,
    Result,
    Struct,
    blocks_for,
    choose,
    unaligned,
)

if TYPE_CHECKING:
    from ..handle import Handle

_SCALARS = (("alpha", "A"), ("beta", "A"), ("size", "i64"), ("half", "i64"))
_FORWARD_KERNEL = Kernel("glu", "glu_forward", Struct("GluForwardParams", ("y", "x"), _SCALARS))
_BACKWARD_KERNEL = Kernel("glu", "glu_backward", Struct("GluBackwardParams", ("dx", "dy", "x"), _SCALARS))

#: Gate -> its functor in ``kernels/activation.cuh``.
_GATES = {
    "sigmoid": "Sigmoid",
    "gelu": "Gelu",
    "gelu_tanh": "GeluTanh",
    "swish": "Swish",
    "relu": "Relu",
    "identity": "Identity",
}


def glu_forward(
    handle: Handle,
    x: Any,
    *,
    gate: str = "sigmoid",
    axis: int = -1,
    out: Any = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Gated linear unit: ``y = a * g(b)``, a the first and b the second half of x; ``out = alpha * y + beta * out``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    x : array
        Contiguous; the extent of `axis` is even; float32, float64, float16 or bfloat16.
    gate : {"sigmoid", "gelu", "gelu_tanh", "swish", "relu", "identity"}
        The function g of the second half: GLU, GEGLU (by erf or by tanh), SwiGLU, ReGLU, bilinear.
    axis : int
        The axis that is halved.
    out : array, optional
        Destination: x's dtype, x's shape with half the extent on `axis`.
    alpha, beta : float
        With beta 0 the old `out` is never read.

    Returns
    -------
    array
        `out`, or a new array.

    Raises
    ------
    BadParamError
        The extent is odd, the gate unknown, another shape, dtype, layout or option is not one of those above, or `out`
        overlaps x.

    Notes
    -----
    The second half gates, as in PyTorch; where the first half gates, exchange the halves of the weights before it. For
    the backward pass keep x. NaN is handed on; 0 * inf is NaN, as in the product.

    References
    ----------
    Dauphin et al., "Language modeling with gated convolutional networks", 2017; Shazeer, "GLU variants improve
    transformer", 2020.
    """
    axis = checks.plain_axis("glu_forward", axis)
    options, operands = (gate, axis, alpha, beta), (x, out)
    if checks.on_numpy(handle, "glu_forward"):
        with handle.checked(plan_glu_forward, options, operands) as (x, out):
            return reference.glu_forward(x, gate=gate, axis=axis, out=out, alpha=alpha, beta=beta)
    return handle.run(plan_glu_forward, options, operands)


def glu_backward(
    handle: Handle,
    dy: Any,
    x: Any,
    *,
    gate: str = "sigmoid",
    axis: int = -1,
    out: Any = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Gradient of `glu_forward`: ``da = dy * g(b)``, ``db = dy * a * g'(b)``, in the places of a and b.

    Parameters
    ----------
    handle : Handle
        Where to run.
    dy : array
        Upstream gradient, contiguous, of y's shape and x's dtype.
    x : array
        The input of the forward pass, contiguous.
    gate, axis
        As in `glu_forward`.
    out : array, optional
        Destination of dx, of x's shape and dtype. May be x itself.
    alpha, beta : float
        ``out = alpha * dx + beta * out``; with beta 0 the old `out` is never read.

    Returns
    -------
    array
        `out`, or a new array of x's shape and dtype.

    Raises
    ------
    BadParamError
        A shape, dtype, layout or option is not one of those above, or `out` overlaps dy or a part of x.

    Notes
    -----
    relu'(0) = 0. The gate is evaluated again from x; nothing but x is saved.
    """
    axis = checks.plain_axis("glu_backward", axis)
    options, operands = (gate, axis, alpha, beta), (dy, x, out)
    if checks.on_numpy(handle, "glu_backward"):
        with handle.checked(plan_glu_backward, options, operands) as (dy, x, out):
            return reference.glu_backward(dy, x, gate=gate, axis=axis, out=out, alpha=alpha, beta=beta)
    return handle.run(plan_glu_backward, options, operands)


def plan_glu_forward(
    profile: Profile,
    gate: str,
    axis: int,
    alpha: float,
    beta: float,
    x: TensorDescriptor,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `glu_forward`."""
    op = "glu_forward"
    shape, half = _require_halves(op, gate, axis, x)
    checks.require_out(op, out, shape, x.dtype, rule="x.shape with half the extent on the axis")
    checks.require_blend(op, alpha, beta, out)
    step, variant, refused = _step(
        _FORWARD_KERNEL, gate, half, prod(shape), alpha, beta, x.dtype, (1, 0), unaligned(x=x, out=out)
    )
    return PlanSpec(
        op,
        variant,
        (step,) if x.size else (),
        results=(Result(1, shape, x.dtype),),
        returns=(1,),
        writes=(1,),
        refused=refused,
    )


def plan_glu_backward(
    profile: Profile,
    gate: str,
    axis: int,
    alpha: float,
    beta: float,
    dy: TensorDescriptor,
    x: TensorDescriptor,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `glu_backward`."""
    op = "glu_backward"
    shape, half = _require_halves(op, gate, axis, x)
    checks.require_shape(op, "dy", dy, shape, "x.shape with half the extent on the axis")
    checks.require_same_dtype(op, x=x, dy=dy)
    checks.require_contiguous(op, dy=dy)
    checks.require_out(op, out, x.shape, x.dtype, rule="x.shape")
    checks.require_blend(op, alpha, beta, out)
    step, variant, refused = _step(
        _BACKWARD_KERNEL, gate, half, dy.size, alpha, beta, x.dtype, (2, 0, 1), unaligned(dy=dy, x=x, out=out)
    )
    return PlanSpec(
        op,
        variant,
        (step,) if x.size else (),
        results=(Result(2, x.shape, x.dtype),),
        returns=(2,),
        writes=(2,),
        in_place=((2, 1),),
        refused=refused,
    )


def _require_halves(op: str, gate: str, axis: int, x: TensorDescriptor) -> tuple[tuple[int, ...], int]:
    """Check gate, axis and x; return the shape of y and the elements of one half that lie side by side."""
    checks.require_float(op, "x", x)
    checks.require_contiguous(op, x=x)
    checks.require_choice(op, "gate", gate, tuple(_GATES))
    at = checks.require_axis(op, axis, x.ndim)
    checks.require_multiple(op, f"x.shape[{at}]", x.shape[at], 2, "two halves")
    shape = (*x.shape[:at], x.shape[at] // 2, *x.shape[at + 1 :])
    return shape, prod(shape[at:])


def _step(
    kernel: Kernel,
    gate: str,
    half: int,
    size: int,
    alpha: float,
    beta: float,
    dtype: DType,
    pointers: tuple[Pointer, ...],
    reason: str | None,
) -> tuple[KernelStep, str, tuple[tuple[str, str], ...]]:
    """The launch, its variant, and those refused before it."""
    ragged = f"the {half} elements of a half are no multiple of {dtype.lanes}" if half % dtype.lanes else None
    variant, refused = choose([("packed", reason or ragged), ("plain", None)])
    vec = dtype.lanes if variant == "packed" else 1
    template = (dtype.cuda, f"{_GATES[gate]}<{dtype.cuda}>", str(vec))
    scalars = (float(alpha), float(beta), size, half)
    step = KernelStep(kernel, dtype, template, gate, blocks_for(size, 256 * vec), 256, pointers, scalars)
    return step, str(variant), refused


def _instances(dtype: DType) -> dict[str, list[str]]:
    """One group for each gate, forward and backward together."""
    t = dtype.cuda
    return {
        gate: [
            f"{entry}<{t}, {name}<{t}>, {vec}>" for entry in ("glu_forward", "glu_backward") for vec in (1, dtype.lanes)
        ]
        for gate, name in _GATES.items()
    }


FAMILY = Family("glu", (_FORWARD_KERNEL, _BACKWARD_KERNEL), _instances)
