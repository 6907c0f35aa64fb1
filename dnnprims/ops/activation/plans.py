"""Plans of the activations: what is refused, which variant is taken, and its launch."""

from __future__ import annotations

import numpy as np

from ... import checks
from ...descriptors import ActivationDescriptor, TensorDescriptor, as_activation
from ...dtypes import DType
from ...reference import activation as reference
from ...runtime.launch import (
    Kernel,
    KernelStep,
    PlanSpec,
    Profile,
    Result,
    blocks_for,
    choose,
    share_launch,
    unaligned,
)
from ...runtime.layout import MAX_AXES, merge_axes, pad_axes, sort_axes
from .kernels import BACKWARD, BACKWARD_STRIDED, FORWARD, FORWARD_STRIDED, functor_name, group_name, packs_of

Activation = str | ActivationDescriptor | None

#: Threads of a block of the strided kernels, an element each.
STRIDED_BLOCK = 256


def plan_activation_forward(
    profile: Profile,
    activation: Activation,
    alpha: float,
    beta: float,
    x: TensorDescriptor,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `activation_forward`."""
    op = "activation_forward"
    mode = as_activation(activation, op)
    checks.require_float(op, "x", x)
    _require_parameters(op, mode, x.dtype)
    checks.require_out(op, out, x.shape, x.dtype, rule="x.shape", contiguous=False)
    checks.require_blend(op, alpha, beta, out)
    y = out or TensorDescriptor(x.shape, x.dtype)
    functor = functor_name(mode.mode, x.dtype)
    variant, refused, steps = _elementwise(
        profile, op, (FORWARD, FORWARD_STRIDED), mode, functor, float(alpha), float(beta), (1, 0), {"out": y, "x": x}
    )
    return PlanSpec(
        op,
        variant,
        steps,
        results=(Result(1, x.shape, x.dtype),),
        returns=(1,),
        writes=(1,),
        in_place=((1, 0),),
        refused=refused,
    )


def plan_activation_backward(
    profile: Profile,
    activation: Activation,
    alpha: float,
    beta: float,
    dy: TensorDescriptor,
    x: TensorDescriptor | None,
    y: TensorDescriptor | None,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `activation_backward`."""
    op = "activation_backward"
    mode = as_activation(activation, op)
    checks.require_float(op, "dy", dy)
    _require_parameters(op, mode, dy.dtype)
    checks.require_same_dtype(op, dy=dy, x=x, y=y)
    for name, given in (("x", x), ("y", y)):
        if given is not None:
            checks.require_shape(op, name, given, dy.shape, "dy.shape")
    checks.require_out(op, out, dy.shape, dy.dtype, rule="dy.shape", contiguous=False)
    checks.require_blend(op, alpha, beta, out)
    at, saved = _require_saved(op, mode, dy, x, y)
    functor = functor_name(mode.mode, dy.dtype, from_output=at == 2)
    dx = out or TensorDescriptor(dy.shape, dy.dtype)
    variant, refused, steps = _elementwise(
        profile, op, (BACKWARD, BACKWARD_STRIDED), mode, functor, float(alpha), float(beta), (3, 0, at),
        {"out": dx, "dy": dy, "saved": saved},
    )  # fmt: skip
    return PlanSpec(
        op,
        variant,
        steps,
        results=(Result(3, dy.shape, dy.dtype),),
        returns=(3,),
        writes=(3,),
        in_place=((3, 0), (3, 1), (3, 2)),
        refused=refused,
    )


def _require_saved(
    op: str,
    mode: ActivationDescriptor,
    dy: TensorDescriptor,
    x: TensorDescriptor | None,
    y: TensorDescriptor | None,
) -> tuple[int, TensorDescriptor]:
    """Operand that the derivative is taken from, and its descriptor; dy itself where it needs none."""
    needs = reference.backward_needs(mode)
    if not needs:
        return 0, dy
    if x is None and y is not None and "y" in needs:
        return 2, y
    wanted = "x" if "y" not in needs else "x or y"
    rule = f"the forward pass's {wanted}, from which {mode.mode} is differentiated"
    return 1, checks.require_present(op, "x", x, rule)


def _require_parameters(op: str, mode: ActivationDescriptor, dtype: DType) -> None:
    """Each parameter is a number of the accumulator too: neither infinite there nor 0 without being 0."""
    scalar = dtype.acc.numpy.type
    for name, value in mode.parameters:
        with np.errstate(all="ignore"):
            held = scalar(value)
        if not np.isfinite(held) or (held == 0) != (value == 0):
            rule = f"within the range of {dtype.acc.name}, which {dtype.name} is computed in"
            checks.require_range(op, f"activation.{name}", value, lambda _: False, rule)


def _elementwise(
    profile: Profile,
    op: str,
    kernels: tuple[Kernel, Kernel],
    mode: ActivationDescriptor,
    functor: str,
    alpha: float,
    beta: float,
    pointers: tuple[int, ...],
    tensors: dict[str, TensorDescriptor],
) -> tuple[str, tuple[tuple[str, str], ...], tuple[KernelStep, ...]]:
    """Variant, refused variants and launch; `tensors` are the destination and the inputs in the order of `pointers`."""
    out = tensors["out"]
    dtype, contents = out.dtype, tuple(tensors.values())
    extents, *steps = merge_axes(*sort_axes(out.shape, *(x.strides for x in contents)))
    param, gapped = next(((name, x) for name, x in tensors.items() if not x.contiguous), ("out", out))
    checks.require_few_axes(op, param, gapped, len(extents), MAX_AXES)
    dense = len(extents) <= 1 and all(step in ((), (1,)) for step in steps)
    apart = None if dense else "the operands are not one run of memory in the same order"
    choice, refused = choose([("packed", apart or unaligned(**tensors)), ("plain", apart), ("strided", None)])
    variant = str(choice)
    first, second, *_ = *(value for _, value in mode.parameters), 0.0, 0.0
    scalars: tuple[float | int, ...] = (alpha, beta, first, second, out.size)
    template: tuple[str, ...] = (dtype.cuda, functor)
    kernel = kernels[0]
    if variant == "strided":
        kernel, grid, threads = kernels[1], blocks_for(out.size, STRIDED_BLOCK), STRIDED_BLOCK
        scalars += (*pad_axes(extents, 1), *(value for step in steps for value in pad_axes(step, 0)))
    else:
        packs = packs_of(op, mode.mode, dtype)
        template += (str(dtype.lanes), str(packs))
        scalars += (int(variant == "packed"),)
        grid, threads = share_launch(profile, out.size, dtype.lanes, packs)
    step = KernelStep(kernel, dtype, template, group_name(op, mode.mode), grid, threads, pointers, scalars)
    return variant, refused, (step,) if out.size else ()
