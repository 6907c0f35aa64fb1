"""The gradients of a convolution in its data, its filters and its bias: front ends and plans."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from ... import checks
from ...descriptors import ConvolutionDescriptor, TensorDescriptor
from ...reference import convolution as reference
from ...runtime.launch import PlanSpec, Profile, Result
from .algorithms import work_of
from .bias import sums_of_channels
from .geometry import Numbers, channel_axis, examine
from .product import Epilogue, Product, operand

if TYPE_CHECKING:
    from ...handle import Handle


def conv_backward_data(
    handle: Handle,
    conv: ConvolutionDescriptor,
    dy: Any,
    w: Any,
    *,
    x_descriptor: TensorDescriptor,
    out: Any = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Gradient of a convolution in its input: ``out = alpha * dx + beta * out``.

    Parameters
    ----------
    handle : Handle
        Where to run.
    conv : ConvolutionDescriptor
        As in the forward pass.
    dy : array
        Gradient of ``conv(x, w)``, of its shape; float32, float64, float16 or bfloat16. Strided views are taken of all
        arrays, which have dy's dtype.
    w : array
        Filters.
    x_descriptor : TensorDescriptor
        Of the input of the forward pass, which a stride does not tell; its strides do not matter.
    out : array, optional
        Destination, of x_descriptor's shape.
    alpha, beta : float
        With beta 0 the old `out` is never read.

    Returns
    -------
    array
        dx: `out`, or a new array.

    Raises
    ------
    BadParamError
        A shape, dtype, layout or option is not one of those above, or `out` overlaps another argument.

    Notes
    -----
    Each element is one sum, gathered, in an order fixed by the shapes; nothing is scattered. Sums are in float32
    (float64 for float64), rounded once; where the handle allows TF32, factors of float32 may be rounded to it. What no
    tap sees has the gradient 0. To the variants of Hopper
    (``hopper...``) padding, and of narrow groups their neighbours up to 64 channels, is zeros that are multiplied, so
    that an infinite number beside it makes a NaN.
    """
    options, operands = (conv, x_descriptor, alpha, beta), (dy, w, out)
    if checks.on_numpy(handle, "conv_backward_data"):
        with handle.checked(plan_conv_backward_data, options, operands) as (dy, w, out):
            return reference.conv_backward_data(conv, dy, w, x_descriptor=x_descriptor, out=out, alpha=alpha, beta=beta)
    return handle.run(plan_conv_backward_data, options, operands)


def conv_backward_filter(
    handle: Handle,
    conv: ConvolutionDescriptor,
    dy: Any,
    x: Any,
    *,
    w_descriptor: TensorDescriptor,
    out: Any = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Gradient of a convolution in its filters: ``out = alpha * dw + beta * out``, summed over images and positions.

    Parameters
    ----------
    handle : Handle
        Where to run.
    conv : ConvolutionDescriptor
        As in the forward pass.
    dy : array
        Gradient of ``conv(x, w)``, of its shape; float32, float64, float16 or bfloat16. Strided views are taken of all
        arrays, which have dy's dtype.
    x : array
        Input of the forward pass.
    w_descriptor : TensorDescriptor
        Of the filters, whose extents a stride does not tell; its strides do not matter.
    out : array, optional
        Destination, of w_descriptor's shape.
    alpha, beta : float
        beta 1 accumulates; with beta 0 the old `out` is never read.

    Returns
    -------
    array
        dw: `out`, or a new array.

    Raises
    ------
    BadParamError
        A shape, dtype, layout or option is not one of those above, or `out` overlaps another argument.
    NotSupportedError
        There are 2^31 filter elements or more.

    Notes
    -----
    Summed in float32 (float64 for float64) in an order fixed by the shapes, rounded once; the bits repeat. Where the
    handle allows TF32, factors of float32 may be rounded to it. An empty batch gives zeros. To the variants of Hopper
    (``hopper...``) padding is zeros that are multiplied, so that an infinite number beside it makes a NaN.
    """
    options, operands = (conv, w_descriptor, alpha, beta), (dy, x, out)
    if checks.on_numpy(handle, "conv_backward_filter"):
        with handle.checked(plan_conv_backward_filter, options, operands) as (dy, x, out):
            return reference.conv_backward_filter(
                conv, dy, x, w_descriptor=w_descriptor, out=out, alpha=alpha, beta=beta
            )
    return handle.run(plan_conv_backward_filter, options, operands)


def conv_backward_bias(
    handle: Handle,
    conv: ConvolutionDescriptor,
    dy: Any,
    *,
    out: Any = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Any:
    """Gradient of a convolution in its bias: ``out = alpha * sum dy + beta * out``, summed over images and positions.

    Parameters
    ----------
    handle : Handle
        Where to run.
    conv : ConvolutionDescriptor
        As in the forward pass; its layout tells the channels.
    dy : array
        Gradient of ``conv(x, w) + b``; float32, float64, float16 or bfloat16. Strided views are taken.
    out : array, optional
        Destination, ``(k,)``, of dy's dtype.
    alpha, beta : float
        beta 1 accumulates; with beta 0 the old `out` is never read.

    Returns
    -------
    array
        db: `out`, or a new array ``(k,)``.

    Raises
    ------
    BadParamError
        A shape, dtype, layout or option is not one of those above, or `out` overlaps dy.

    Notes
    -----
    Summed in float32 (float64 for float64) in an order fixed by the shapes, rounded once. An empty batch gives zeros.
    """
    options, operands = (conv, alpha, beta), (dy, out)
    if checks.on_numpy(handle, "conv_backward_bias"):
        with handle.checked(plan_conv_backward_bias, options, operands) as (dy, out):
            return reference.conv_backward_bias(conv, dy, out=out, alpha=alpha, beta=beta)
    return handle.run(plan_conv_backward_bias, options, operands)


def plan_conv_backward_data(
    profile: Profile,
    conv: ConvolutionDescriptor,
    x_descriptor: TensorDescriptor,
    alpha: float,
    beta: float,
    dy: TensorDescriptor,
    w: TensorDescriptor,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `conv_backward_data`."""
    op = "conv_backward_data"
    checks.require_description(op, "x_descriptor", x_descriptor)
    g = examine(op, conv, x_descriptor, w, x_name="x_descriptor")
    checks.require_shape(op, "dy", dy, g.y_shape, "the shape of the convolution of x_descriptor and w")
    checks.require_same_dtype(op, x_descriptor=x_descriptor, dy=dy)
    checks.require_out(op, out, g.x_shape, dy.dtype, rule="x_descriptor.shape", contiguous=False)
    checks.require_blend(op, alpha, beta, out)
    dx = operand(2, out, g.x_shape)
    product = Product(profile, "data", dy.dtype, g, dx, operand(1, w), operand(0, dy), Epilogue.none(), alpha, beta)
    return _plan_one(op, product, g.x_shape)


def plan_conv_backward_filter(
    profile: Profile,
    conv: ConvolutionDescriptor,
    w_descriptor: TensorDescriptor,
    alpha: float,
    beta: float,
    dy: TensorDescriptor,
    x: TensorDescriptor,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `conv_backward_filter`."""
    op = "conv_backward_filter"
    checks.require_description(op, "w_descriptor", w_descriptor)
    g = examine(op, conv, x, w_descriptor, w_name="w_descriptor")
    checks.require_shape(op, "dy", dy, g.y_shape, "the shape of the convolution of x and w_descriptor")
    checks.require_same_dtype(op, x=x, dy=dy)
    checks.require_out(op, out, w_descriptor.shape, dy.dtype, rule="w_descriptor.shape", contiguous=False)
    checks.require_blend(op, alpha, beta, out)
    dw = operand(2, out, w_descriptor.shape)
    product = Product(profile, "filter", dy.dtype, g, operand(1, x), dw, operand(0, dy), Epilogue.none(), alpha, beta)
    return _plan_one(op, product, w_descriptor.shape)


def plan_conv_backward_bias(
    profile: Profile,
    conv: ConvolutionDescriptor,
    alpha: float,
    beta: float,
    dy: TensorDescriptor,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `conv_backward_bias`."""
    op = "conv_backward_bias"
    checks.require_convolution(op, conv)
    checks.require_float(op, "dy", dy)
    axes = checks.require_spatial_axes(op, "dy", dy, conv)
    shape = (dy.shape[channel_axis(conv, axes)],)
    checks.require_out(op, out, shape, dy.dtype, rule="the channels of dy")
    checks.require_blend(op, alpha, beta, out)
    variant, work = sums_of_channels(profile, conv, dy, (0, 1), (alpha, beta))
    return PlanSpec(
        op,
        variant,
        work.steps if prod(shape) else (),
        results=(Result(1, shape, dy.dtype),),
        returns=(1,),
        writes=(1,),
        scratch=work.scratch if prod(shape) else (),
    )


def _plan_one(op: str, product: Product, shape: Numbers) -> PlanSpec:
    """One product, whose result of this shape is operand number 2."""
    variant, work, refused = work_of(product)
    return PlanSpec(
        op,
        variant,
        work.steps,
        results=(Result(2, shape, product.dtype),),
        returns=(2,),
        writes=(2,),
        scratch=work.scratch,
        refused=refused,
    )
