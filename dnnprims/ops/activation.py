"""Elementwise activations and their gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import checks
from ..descriptors import ACTIVATION_MODES, ActivationDescriptor, TensorDescriptor, as_activation
from ..dtypes import DType
from ..reference import activation as reference
from ..runtime.launch import (
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
from ..runtime.layout import MAX_AXES, axis_scalars, merge_axes, pad_axes, sort_axes

if TYPE_CHECKING:
    from ..handle import Handle

Activation = str | ActivationDescriptor | None

_SCALARS = (("alpha", "A"), ("beta", "A"), ("c0", "A"), ("c1", "A"), ("size", "i64"))
_FORWARD = Kernel("activation", "activation_forward", Struct("ActivationForwardParams", ("y", "x"), _SCALARS))
_BACKWARD = Kernel(
    "activation", "activation_backward", Struct("ActivationBackwardParams", ("dx", "dy", "saved"), _SCALARS)
)
_FORWARD_STRIDED = Kernel(
    "activation",
    "activation_forward_strided",
    Struct(
        "ActivationForwardStridedParams",
        ("y", "x"),
        (*_SCALARS, *axis_scalars("extent", "y_step", "x_step")),
    ),
)
_BACKWARD_STRIDED = Kernel(
    "activation",
    "activation_backward_strided",
    Struct(
        "ActivationBackwardStridedParams",
        ("dx", "dy", "saved"),
        (*_SCALARS, *axis_scalars("extent", "dx_step", "dy_step", "saved_step")),
    ),
)


def activation_forward(
    handle: Handle, activation: Activation, x: Any, *, out: Any = None, alpha: float = 1.0, beta: float = 0.0
) -> Any:
    """Activation of each element: ``out = alpha * f(x) + beta * out``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    activation : str or ActivationDescriptor
        What f is: a mode of the table below with its parameters, or its name for the defaults.
    x : array
        float32, float64, float16 or bfloat16; any shape and strides.
    out : array, optional
        Destination, of x's shape and dtype, any strides. May be x itself.
    alpha, beta : float
        Blend with the old `out`; with beta 0 it is never read.

    Returns
    -------
    array
        `out`, or a new contiguous array of x's shape and dtype.

    Raises
    ------
    BadParamError
        There is no such activation, a parameter does not fit x's accumulator, a shape or dtype does not match, or the
        strides need more than 8 axes.

    Notes
    -----
    ============  =======================================================================  ==============  ========
    mode          f(x)                                                                     f' at kinks     backward
    ============  =======================================================================  ==============  ========
    identity      x                                                                                        nothing
    relu          max(x, 0)                                                                0 at 0          y or x
    clipped_relu  min(max(x, 0), ceiling)                                                  0 at both       y or x
    leaky_relu    x for x > 0, else slope x                                                slope at 0      y or x
    threshold     x for x > threshold, else value                                          0               y or x
    elu           x for x > 0, else alpha (e^x - 1)                                        alpha at 0      y or x
    celu          x for x > 0, else alpha (e^(x / alpha) - 1)                              1               y or x
    selu          1.0507 elu(x) with alpha 1.67326                                         1.7581 at 0     y or x
    sigmoid       1 / (1 + e^-x)                                                                           y or x
    log_sigmoid   -log(1 + e^-x)                                                                           y or x
    tanh          tanh x                                                                                   y or x
    softplus      log(1 + e^(beta x)) / beta; x where beta x > threshold                                   x
    softsign      x / (1 + |x|)                                                                            y or x
    tanhshrink    x - tanh x                                                                               x
    softshrink    x - lambd sign(x) for |x| > lambd, else 0                                0 at both       y or x
    hardshrink    x for |x| > lambd, else 0                                                0 at both       y or x
    gelu          x Phi(x), Phi the normal distribution                                                    x
    gelu_tanh     x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2                                        x
    swish         x sigmoid(beta x)                                                                        x
    mish          x tanh(log(1 + e^x))                                                                     x
    hard_sigmoid  min(max(slope x + offset, 0), 1)                                         0 at both       y or x
    hard_tanh     min(max(x, low), high)                                                   0 at both       y or x
    hard_swish    x min(max(x + 3, 0), 6) / 6                                              0 at -3, 1 at 3  x
    squared_relu  max(x, 0)^2                                                                              x
    abs           abs(x)                                                                   0 at 0          x
    square        x^2                                                                                      x
    sqrt          sqrt(x)                                                                                  y or x
    exp           e^x                                                                                      y or x
    log           log x                                                                                    x
    ============  =======================================================================  ==============  ========

    Right over the whole finite range, tails included: float32 and float64 to 2 ULP, 16-bit types to 0.51 ULP. At
    infinities the limits are given; NaN is handed on. Parameters are taken in float32 (float64 for float64).

    References
    ----------
    Clevert et al., "Fast and accurate deep network learning by exponential linear units", 2016; Klambauer et al.,
    "Self-normalizing neural networks", 2017; Hendrycks and Gimpel, "Gaussian error linear units", 2016; Ramachandran
    et al., "Searching for activation functions", 2017; Misra, "Mish", 2019; Howard et al., "Searching for MobileNetV3",
    2019.
    """
    options, operands = (activation, alpha, beta), (x, out)
    if handle.backend == "numpy":
        with handle.checked(plan_activation_forward, options, operands) as (x, out):
            mode = as_activation(activation, "activation_forward")
            return reference.activation_forward(mode, x, out=out, alpha=alpha, beta=beta)
    return handle.run(plan_activation_forward, options, operands)


def activation_backward(
    handle: Handle,
    activation: Activation,
    dy: Any,
    *,
    x: Any = None,
    y: Any = None,
    out: Any = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Gradient of `activation_forward`: ``out = alpha * dy * f'(x) + beta * out``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    activation : str or ActivationDescriptor
        As in the forward pass.
    dy : array
        Upstream gradient: float32, float64, float16 or bfloat16; any shape and strides.
    x, y : array, optional
        Input and (unblended) output of the forward pass, of dy's shape and dtype, any strides: one of those that
        `backward_needs` names. x is used where both are given.
    out : array, optional
        Destination, of dy's shape and dtype, any strides. May be dy, x or y itself.
    alpha, beta : float
        Blend with the old `out`; with beta 0 it is never read.

    Returns
    -------
    array
        `out`, or a new contiguous array of dy's shape and dtype.

    Raises
    ------
    BadParamError
        There is no such activation, what it is differentiated from is missing, a shape or dtype does not match, or the
        strides need more than 8 axes.

    Notes
    -----
    At a kink the derivative is that of the piece that contains it (table of `activation_forward`). Where f is constant
    the gradient is 0 even if dy is infinite or NaN. NaN in x or y is handed on. The derivative of x is right to 4 ULP
    in float32 and float64 and to 1 ULP in 16-bit types, where it changes sign (gelu, gelu_tanh, swish, mish) to that
    many ULP of 2^-10; from y it is the derivative at y as stored, and a y that equals a bound of f as stored counts as
    beyond it.
    """
    options, operands = (activation, alpha, beta), (dy, x, y, out)
    if handle.backend == "numpy":
        with handle.checked(plan_activation_backward, options, operands) as (dy, x, y, out):
            mode = as_activation(activation, "activation_backward")
            return reference.activation_backward(mode, dy, x=x, y=y, out=out, alpha=alpha, beta=beta)
    return handle.run(plan_activation_backward, options, operands)


def backward_needs(activation: Activation) -> tuple[str, ...]:
    """Name what `activation_backward` can be given: any one of the tensors named suffices, the cheaper to keep first.

    Parameters
    ----------
    activation : str or ActivationDescriptor
        As in the forward pass.

    Returns
    -------
    tuple of str
        ``("y", "x")``, ``("x",)``, or ``()`` for the identity, which needs neither.

    Raises
    ------
    BadParamError
        There is no such activation.

    Examples
    --------
    >>> backward_needs("relu"), backward_needs("gelu")
    (('y', 'x'), ('x',))
    """
    return reference.backward_needs(as_activation(activation, "backward_needs"))


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
    functor = _functor(mode.mode, x.dtype)
    variant, refused, steps = _elementwise(
        op, (_FORWARD, _FORWARD_STRIDED), mode, functor, float(alpha), float(beta), (1, 0), {"out": y, "x": x}
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
    functor = _functor(mode.mode, dy.dtype, from_output=at == 2)
    dx = out or TensorDescriptor(dy.shape, dy.dtype)
    variant, refused, steps = _elementwise(
        op, (_BACKWARD, _BACKWARD_STRIDED), mode, functor, float(alpha), float(beta), (3, 0, at),
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
    lanes = dtype.lanes if variant == "packed" else 1
    if variant == "strided":
        kernel = kernels[1]
        scalars += (*pad_axes(extents, 1), *(value for step in steps for value in pad_axes(step, 0)))
    else:
        kernel = kernels[0]
        plain = lanes > 1 and alpha == 1.0 and beta == 0.0
        template += ("false" if plain else "true", str(lanes))
    grid = blocks_for(out.size, 256 * lanes)
    step = KernelStep(kernel, dtype, template, mode.mode, grid, 256, pointers, scalars)
    return variant, refused, (step,) if out.size else ()


def _functor(mode: str, dtype: DType, from_output: bool = False) -> str:
    """The activation as a type of ``activation.cuh``."""
    name = "".join(word.capitalize() for word in mode.split("_")) + f"<{dtype.cuda}>"
    return f"FromOutput<{name}>" if from_output else name


def _instances(dtype: DType) -> dict[str, list[str]]:
    t, lanes = dtype.cuda, dtype.lanes
    groups = {}
    for mode in ACTIVATION_MODES:
        sources = [_functor(mode, dtype)]
        if "y" in reference.backward_needs(ActivationDescriptor(mode)):
            sources.append(_functor(mode, dtype, from_output=True))
        kernels = [("activation_forward", sources[0]), *(("activation_backward", source) for source in sources)]
        groups[mode] = [
            name
            for entry, functor in kernels
            for name in (
                f"{entry}<{t}, {functor}, false, {lanes}>",
                f"{entry}<{t}, {functor}, true, {lanes}>",
                f"{entry}<{t}, {functor}, true, 1>",
                f"{entry}_strided<{t}, {functor}>",
            )
        ]
    return groups


FAMILY = Family("activation", (_FORWARD, _BACKWARD, _FORWARD_STRIDED, _BACKWARD_STRIDED), _instances)
