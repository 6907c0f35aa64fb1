"""Pieces of a convolution that are convolutions of their own, at both ends of everything; and sums over all of it.

Some rows and columns of a result depend on some of the image, with another padding: the part of it that still lies
outside. A gradient in filters sums over everything; where that is too much for the host, a few of its elements are
summed in float64 by the backend's own array functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from typing import Any

import numpy as np

import dnnprims as dp
from dnnprims.conformance.cases import Problem
from dnnprims.conformance.convolution.operands import read_shapes

from ..case import Part

#: Rows and columns of a piece, its channels, and the channels of a piece of the gradient in filters.
EXTENT, CHANNELS, FEW = 3, 16, 4
#: Products for one element of a filter's gradient, times its taps, up to which the reference sums them.
MOST_SUMMED = 1 << 20

Pads = tuple[int, int]


@dataclass(frozen=True)
class Axis:
    """One spatial axis."""

    image: int
    output: int
    taps: int
    before: int
    after: int
    stride: int
    dilation: int

    @property
    def reach(self) -> int:
        """From the first tap to the last."""
        return (self.taps - 1) * self.dilation

    def touched(self) -> int:
        """Positions that some tap sees."""
        first = np.arange(self.output)[:, None] * self.stride - self.before
        seen = np.unique(first + np.arange(self.taps) * self.dilation)
        return int(((seen >= 0) & (seen < self.image)).sum())

    def outputs(self) -> list[slice]:
        """The first outputs and the last."""
        return [slice(0, min(EXTENT, self.output)), slice(max(0, self.output - EXTENT), self.output)]

    def room(self) -> Pads:
        """The padding that the taps of all outputs see."""
        return self.before, max(0, (self.output - 1) * self.stride + self.reach + 1 - self.image - self.before)

    def windows(self) -> list[slice]:
        """What each tap sees of the padded image."""
        length = (self.output - 1) * self.stride + 1
        return [slice(r * self.dilation, r * self.dilation + length, self.stride) for r in range(self.taps)]

    def seen_by(self, outputs: slice) -> tuple[slice, Pads]:
        """The image that some outputs depend on, and the padding that they see."""
        first = outputs.start * self.stride - self.before
        end = (outputs.stop - 1) * self.stride - self.before + self.reach + 1
        return slice(max(0, first), min(self.image, end)), (max(0, -first), max(0, end - self.image))

    def positions(self) -> list[slice]:
        """The first positions of the image and the last, from where a filter begins."""
        count = EXTENT * self.stride
        last = max(0, self.image - count)
        last -= (last + self.before) % self.stride
        return [slice(0, min(count, self.image)), slice(max(0, last), self.image)]

    def seeing(self, positions: slice) -> tuple[slice, Pads]:
        """The outputs that depend on some of the image, and the padding with which they are the convolution of it."""
        start, stop = positions.start + self.before, positions.stop + self.before
        # Not past where the piece begins, even if what lies there sees padding alone.
        low = max(0, min(-((self.reach - start) // self.stride), start // self.stride))
        high = min(self.output, (stop - 1) // self.stride + 1)
        end = (high - 1) * self.stride + self.reach + 1
        return slice(low, high), (start - low * self.stride, max(0, end - stop))


@dataclass(frozen=True)
class Layer:
    """A convolution of two spatial axes: shapes in its layout, and the numbers that costs are made of."""

    conv: dp.ConvolutionDescriptor
    dtype: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    y: tuple[int, ...]
    channels: int
    axes: tuple[Axis, ...]

    @classmethod
    def of(cls, problem: Problem) -> Layer:
        """Read the settings of a line."""
        conv, x, w, y = read_shapes(problem)
        at = slice(1, -1) if conv.channels_last else slice(2, None)
        along = zip(x[at], y[at], w[at], conv.paddings(2), conv.strides(2), conv.dilations(2), strict=True)
        axes = tuple(Axis(i, o, r, *pads, stride, dilation) for i, o, r, pads, stride, dilation in along)
        return cls(conv, problem.dtype, x, w, y, problem.extents()[1], axes)

    @property
    def filters(self) -> int:
        """Output channels."""
        return self.w[0]

    @property
    def depthwise(self) -> bool:
        """Whether each channel has one filter of its own."""
        return self.conv.groups == self.channels == self.filters > 1

    @property
    def taps(self) -> int:
        """Products of an output."""
        return prod(self.w[1:])

    @property
    def positions(self) -> int:
        """Products of an element of a filter's gradient."""
        return self.x[0] * prod(axis.output for axis in self.axes)

    @property
    def flops(self) -> int:
        """Of each direction."""
        return 2 * prod(self.y) * self.taps

    @property
    def touched(self) -> int:
        """Elements of the image that some tap sees."""
        return self.x[0] * self.channels * prod(axis.touched() for axis in self.axes)

    @property
    def elements(self) -> int:
        """Elements that must be moved."""
        return self.touched + prod(self.w) + prod(self.y)

    def index(self, image: slice, spatial: tuple[slice, ...], channels: slice) -> tuple[slice, ...]:
        """Of an array of images, or of filters, in the layout."""
        return (image, *spatial, channels) if self.conv.channels_last else (image, channels, *spatial)

    def blocks(self, count: int, most: int) -> list[slice]:
        """The first channels and the last; all of them where they are in groups."""
        if self.conv.groups > 1 and not self.depthwise:
            return [slice(0, count)] * 2
        return [slice(0, min(count, most)), slice(max(0, count - most), count)]

    def within(self, pads: tuple[Pads, ...], channels: int) -> dp.ConvolutionDescriptor:
        """The descriptor of a piece."""
        return replace(self.conv, padding=pads, groups=channels if self.depthwise else self.conv.groups)

    @property
    def filter_extents(self) -> tuple[slice, ...]:
        """All taps."""
        return tuple(slice(0, axis.taps) for axis in self.axes)

    @property
    def summed_on_host(self) -> bool:
        """Whether a sum over everything is short enough for the reference."""
        return self.positions * prod(axis.taps for axis in self.axes) <= MOST_SUMMED or (
            self.conv.groups > 1 and not self.depthwise
        )

    def images(self) -> list[slice]:
        """The first image and the last."""
        return [slice(0, 1), slice(self.x[0] - 1, self.x[0])]


ALL = (slice(None), slice(None))


def _take(index: Any) -> Callable[[Any], Any]:
    return lambda a: a[index]


def forward_parts(layer: Layer, epilogue: list[str]) -> list[Part]:
    """The corners of the first image and of the last, by the first filters and by the last."""
    found = []
    for end, image in enumerate(layer.images()):
        filters = layer.blocks(layer.filters, CHANNELS)[end]
        at = tuple(axis.outputs()[end] for axis in layer.axes)
        seen, pads = zip(*(axis.seen_by(o) for axis, o in zip(layer.axes, at, strict=True)), strict=True)
        result = _take(layer.index(image, at, filters))
        take = {
            "x": _take(layer.index(image, seen, filters if layer.depthwise else slice(None))),
            "w": _take(filters),
            "out": result,
            **{name: _take(filters) if name == "b" else result for name in epilogue},
        }
        found.append(Part(take, {"conv": layer.within(pads, filters.stop - filters.start)}))
    return found


def data_parts(layer: Layer) -> list[Part]:
    """The corners of the first image's gradient and of the last's, for the first channels and for the last."""
    found = []
    for end, image in enumerate(layer.images()):
        channels = layer.blocks(layer.channels, CHANNELS)[end]
        at = tuple(axis.positions()[end] for axis in layer.axes)
        seeing, pads = zip(*(axis.seeing(i) for axis, i in zip(layer.axes, at, strict=True)), strict=True)
        take = {
            "dy": _take(layer.index(image, seeing, channels if layer.depthwise else slice(None))),
            "w": _take(channels if layer.depthwise else layer.index(slice(None), ALL, channels)),
            "out": _take(layer.index(image, at, channels)),
        }
        shape = tuple(i.stop - i.start for i in layer.index(image, at, channels))
        options = {
            "conv": layer.within(pads, channels.stop - channels.start),
            "x_descriptor": dp.TensorDescriptor(shape, layer.dtype),
        }
        found.append(Part(take, options))
    return found


def filter_parts(layer: Layer, dy: Any, x: Any, host: Callable[[Any], Any]) -> list[Part]:
    """Few channels of the first filters and of the last; `host` copies an array to the host."""
    found = []
    for end in (0, 1):
        filters = layer.blocks(layer.filters, FEW)[end]
        channels = filters if layer.depthwise else layer.blocks(layer.channels, FEW)[end]
        result = layer.index(filters, ALL, slice(None) if layer.depthwise else channels)
        at = {"dy": layer.index(slice(None), ALL, filters), "x": layer.index(slice(None), ALL, channels)}
        if layer.summed_on_host:
            pads = tuple((axis.before, axis.after) for axis in layer.axes)
            count, depth = filters.stop - filters.start, channels.stop - channels.start
            conv = layer.within(pads, count)
            described = layer.index(slice(0, count), layer.filter_extents, slice(0, depth // conv.groups))
            w = dp.TensorDescriptor(tuple(one.stop for one in described), layer.dtype)
            take = {"out": _take(result), **{name: _take(index) for name, index in at.items()}}
            found.append(Part(take, {"conv": conv, "w_descriptor": w}))
        else:
            expect = partial(_filter_sums, layer, dy[at["dy"]], x[at["x"]], host)
            found.append(Part({"out": _take(result)}, expect=cache(expect)))
    return found


def bias_parts(layer: Layer, dy: Any, host: Callable[[Any], Any]) -> list[Part]:
    """Sums of the first channels and of the last."""
    found = []
    for filters in layer.blocks(layer.filters, FEW):
        at = layer.index(slice(None), ALL, filters)
        if layer.summed_on_host:
            found.append(Part({"dy": _take(at), "out": _take(filters)}))
        else:
            found.append(Part({"out": _take(filters)}, expect=cache(partial(_bias_sums, layer, dy[at], host))))
    return found


def _filter_sums(layer: Layer, dy: Any, x: Any, host: Callable[[Any], Any]) -> dict[str, Any]:
    """For each tap, the products of a gradient with what the tap sees, summed over images and positions in float64.

    NumPy's functions are also those of CuPy's arrays.
    """
    gradient, image = (_channels_last(layer, a.astype("float64")) for a in (dy, x))
    rows, cols = layer.axes
    padded = np.pad(image, ((0, 0), *(axis.room() for axis in layer.axes), (0, 0)))
    taps = [[_products(layer, gradient, padded[:, r, c]) for c in cols.windows()] for r in rows.windows()]
    # (r, s, k, c)
    sums = host(np.stack([np.stack(row) for row in taps]))
    return {"out": np.moveaxis(sums, 2, 0) if layer.conv.channels_last else np.transpose(sums, (2, 3, 0, 1))}


def _products(layer: Layer, gradient: Any, seen: Any) -> Any:
    """(k, c), c being 1 where each channel has its own filter."""
    if layer.depthwise:
        return (gradient * seen).sum(axis=(0, 1, 2))[:, None]
    flat = [a.reshape(a.shape[0], -1, a.shape[-1]) for a in (gradient, seen)]
    return np.matmul(flat[0].transpose(0, 2, 1), flat[1]).sum(axis=0)


def _bias_sums(layer: Layer, dy: Any, host: Callable[[Any], Any]) -> dict[str, Any]:
    return {"out": host(_channels_last(layer, dy.astype("float64")).sum(axis=(0, 1, 2)))}


def _channels_last(layer: Layer, a: Any) -> Any:
    return a if layer.conv.channels_last else np.moveaxis(a, 1, -1)
