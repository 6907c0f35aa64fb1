"""What convolutions ask for beyond shapes: a descriptor, axes that go with it, a filter that fits the image."""

from __future__ import annotations

from typing import Any

from ..descriptors import ConvolutionDescriptor, PoolingDescriptor, TensorDescriptor
from ..errors import BadParamError
from .options import require_integer


def require_convolution(op: str, conv: object) -> ConvolutionDescriptor:
    """`conv` is a ConvolutionDescriptor."""
    if isinstance(conv, ConvolutionDescriptor):
        return conv
    rule = "a ConvolutionDescriptor"
    raise BadParamError(op, "is no convolution", param="conv", got=f"{type(conv).__name__} {conv!r:.60}", expected=rule)


def require_description(op: str, param: str, value: Any) -> TensorDescriptor:
    """`value` is a TensorDescriptor."""
    if isinstance(value, TensorDescriptor):
        return value
    rule, hint = "a TensorDescriptor", "TensorDescriptor.from_array(a) describes an array"
    got = f"{type(value).__name__} {value!r:.60}"
    raise BadParamError(op, "is no description", param=param, got=got, expected=rule, hint=hint)


def require_spatial_axes(
    op: str, param: str, x: TensorDescriptor, conv: ConvolutionDescriptor | PoolingDescriptor, name: str = "conv"
) -> int:
    """`x` has one to three spatial axes, as many as the descriptor is for; their number is returned."""
    axes = x.ndim - 2
    if not 1 <= axes <= 3 or conv.axes not in (None, axes):
        rule = "3 to 5 axes, 1 to 3 of them spatial" if conv.axes is None else f"{conv.axes + 2} axes, as {name} is for"
        raise BadParamError(op, "has the wrong rank", param=param, got=f"{x.ndim} axes, shape {x.shape}", expected=rule)
    return axes


def require_taps(op: str, param: str, w: TensorDescriptor, taps: tuple[int, ...]) -> None:
    """The filter has at least one tap along each spatial axis."""
    if 0 in taps:
        raise BadParamError(
            op, "has no taps", param=param, got=f"shape {w.shape}", expected="at least 1 along each spatial axis"
        )


def require_window(op: str, param: str, axis: int, window: int, padded: int) -> None:
    """The filter, spread by its dilation, is no larger than the image with its padding."""
    if window > padded:
        raise BadParamError(
            op,
            "is larger than the padded image",
            param=param,
            got=f"(taps - 1) * dilation + 1 = {window} along spatial axis {axis}",
            expected=f"at most {padded}, the extent of the image with its padding",
        )


def require_each_axis(op: str, param: str, value: Any) -> int | tuple[int, ...]:
    """`value` is an integer of at least 0, or a tuple with one for each axis."""
    if isinstance(value, tuple | list):
        return tuple(require_integer(op, param, one, 0) for one in value)
    return require_integer(op, param, value, 0)


def require_reverse(op: str, output_padding: int | tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """The output padding tells apart images that one stride makes alike, and no others; there is one for each axis."""
    axes = len(strides)
    given = output_padding if isinstance(output_padding, tuple) else (output_padding,) * axes
    if len(given) != axes or any(more >= stride for more, stride in zip(given, strides, strict=True)):
        rule = f"an integer, or one for each of {axes} axes, less than the strides {strides}"
        raise BadParamError(op, "is out of range", param="output_padding", got=output_padding, expected=rule)
    return given


def require_cropping(op: str, axis: int, padding: int, whole: int) -> None:
    """The padding, which a transposed convolution cuts off, is no more than there is."""
    if padding > whole:
        raise BadParamError(
            op,
            "cuts off more than there is",
            param="conv.padding",
            got=f"{padding} in all along spatial axis {axis}",
            expected=f"at most {whole}, the extent of the result before it",
        )
