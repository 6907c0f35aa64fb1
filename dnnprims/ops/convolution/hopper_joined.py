"""Pixels side by side as one pixel of more channels, on Hopper: where windows step over whole groups of them.

Along rows that are walked at a stride of s, s pixels of C channels lie in memory as one of s C does, and filters of a
multiple of s taps as filters of s times fewer taps and more channels. Where C is less than the 64 channels of a stage,
of which the tensor cores would multiply the others for nothing, that halves the work for a stride of 2. Pixels at the
end of a row that make up no group are seen by no tap; their gradient is zero.
"""

from __future__ import annotations

from dataclasses import replace

from ...descriptors import dense_strides
from ...runtime.launch import NULL
from . import hopper
from .geometry import Geometry
from .hopper import HOPPER
from .hopper_filter import HOPPER_FILTER
from .hopper_split import HOPPER_SPLIT
from .product import Algorithm, Product

# NVIDIA H200, 2026-11-28, bfloat16, 32-32 channels at 79x341 by 5x10 taps of stride 2, microseconds joined / as it is
# with boxes of 128 filters, and cuDNN's; forward, data, filter: batch 32 93 / 271, 123, 137 / 306, 148, 127 / 238, 195;
# batch 8 37 / 88, 47, 43 / 83, 48, 42 / 69, 63; batch 4 20 / 42, 28, 27 / 49, 33, 28 / 40, 46. Forward of batch 2
# 17 / 49, 22; of batch 1, in splits, 14 / 29, 16.
# By ncu, float16, forward of 32: 709 MB of stages from the L2 in 89 us, its sectors 52 % busy, tensor cores 48 % (half
# of what they multiply are filters that there are not).
#: Channels of a stage.
_BLOCK = 64


def _joined(inner: Algorithm) -> Algorithm:
    """The algorithm over joined pixels."""

    def cannot(product: Product) -> str | None:
        return _reason(product) or inner.cannot(joined(product))

    def slower(product: Product) -> str | None:
        g = product.g
        channels, stride = g.in_channels, g.conv.strides(g.axes)[-1]
        if -(-channels * stride // _BLOCK) >= -(-channels // _BLOCK) * stride:
            return f"{channels} channels fill blocks of {_BLOCK} as well"
        return inner.slower(joined(product))

    return Algorithm(f"{inner.name}_joined", cannot, slower, lambda product: inner.work(joined(product)))


def _reason(product: Product) -> str | None:
    """Why pixels cannot be joined."""
    reason = hopper.image_reason(product)
    if reason:
        return reason
    g, conv = product.g, product.g.conv
    stride, taps, (left, _) = conv.strides(g.axes)[-1], g.taps[-1], conv.paddings(g.axes)[-1]
    if stride == 1 or taps % stride or left % stride:
        return f"{taps} taps and a padding of {left} are no multiples of a stride above 1"
    if conv.dilations(g.axes)[-1] > 1 or conv.mode != "cross_correlation":
        return "dilated or flipped filters"
    if g.image[-1] % stride and _right(g):
        return "the last pixels of a row are no whole group"
    return "a bias over the joined channels" if product.direction == "data" and product.then.b is not NULL else None


def _right(g: Geometry) -> int:
    """Joined pixels that the last window reaches past those of a row."""
    stride, (left, _) = g.conv.strides(g.axes)[-1], g.conv.paddings(g.axes)[-1]
    return g.output[-1] - 1 + (g.taps[-1] - left) // stride - g.image[-1] // stride


def joined(product: Product) -> Product:
    """The same product with joined pixels, if `_reason` has nothing against it."""
    g, conv, axes = product.g, product.g.conv, product.g.axes
    stride, left = conv.strides(axes)[-1], conv.paddings(axes)[-1][0]
    channels, width = g.in_channels * stride, g.image[-1] // stride
    padding = (*conv.paddings(axes)[:-1], (left // stride, _right(g)))
    whole = g._replace(
        conv=replace(conv, stride=(*conv.strides(axes)[:-1], 1), padding=padding),
        in_channels=channels,
        image=(*g.image[:-1], width),
        taps=(*g.taps[:-1], g.taps[-1] // stride),
        gap=g.image[-1] % stride * g.in_channels,
    )
    x, w = dense_strides(whole.x_shape), dense_strides((g.out_channels, *whole.taps, channels))
    return product._replace(g=whole, x=product.x._replace(strides=x), w=product.w._replace(strides=w))


HOPPER_JOINED, HOPPER_SPLIT_JOINED, HOPPER_FILTER_JOINED = map(_joined, (HOPPER, HOPPER_SPLIT, HOPPER_FILTER))
