"""Convolutions of few channels in TF32 on Hopper, as the first layer of a network has them: a row of taps as channels.

With channels padded to four, the pixels that a window sees of one row are `4 S` numbers side by side. So R x S taps of
C channels are R x 1 taps of 4 S channels over a copy of the image, whose positions overlap for the copy engine.
A gradient in the data comes as 4 S channels of each position, which are added up; one in the filters loses its padding.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import NamedTuple

from ...descriptors import ConvolutionDescriptor, dense_strides
from ...dtypes import DType
from ...runtime.launch import NULL, Family, Kernel, KernelStep, Pointer, Scratch, Struct, blocks_for
from ...runtime.limits import MOST_BLOCKS
from ...runtime.tensor_map import WindowMap
from . import hopper_turned
from .geometry import Geometry, Numbers, split
from .hopper import HOPPER, phases_of
from .product import WIDEST_ACCESS, Algorithm, Epilogue, Operand, Product, Work, always_pays

_NAMES = (
    *("pixels", "height", "width", "channels"),
    *("image_step", "row_step", "pixel_step", "channel_step"),
    *("extent", "left", "taps", "stride"),
)
_STRUCT = Struct("RowsParams", ("to", "from"), (("alpha", "A"), ("beta", "A"), *((name, "i64") for name in _NAMES)))
_WIDEN, _NARROW = (Kernel("convolution_rows", name, _STRUCT) for name in ("rows_widen", "rows_narrow"))
#: Channels of a pixel that is widened; threads of a block.
_WIDE, _BLOCK = 4, 256


class _Row(NamedTuple):
    """Rows of an image or of filters: how many images, rows of each, pixels of each, channels, and their steps."""

    at: Pointer
    images: int
    height: int
    width: int
    channels: int
    steps: Numbers  # image, row, pixel, channel

    @classmethod
    def of(cls, product: Product, at: Operand, images: int, extents: Numbers) -> _Row:
        outer, channel, spatial = split(product.g.conv, at.strides)
        height, width = extents
        return cls(at.at, images, height, width, product.g.in_channels, (outer, *spatial, channel))


def _step(
    product: Product, kernel: Kernel, row: _Row, wide: Pointer, width: int,
    source: Numbers, factors: tuple[float, float] = (1.0, 0.0),
) -> KernelStep:  # fmt: skip
    """One thread for each of `width` pixels of the rows; `source` are extent, left, taps, stride."""
    dtype, pixels = product.dtype, row.images * row.height * width
    pointers = (wide, row.at) if kernel is _WIDEN else (row.at, wide)
    numbers = (*factors, pixels, row.height, width, row.channels, *row.steps, *source)
    name = kernel.entry.partition("_")[2]
    return KernelStep(kernel, dtype, (dtype.cuda,), name, blocks_for(pixels, _BLOCK), _BLOCK, pointers, numbers)


def _widened(product: Product, row: _Row, wide: Pointer, width: int, left: int) -> KernelStep:
    """So many pixels of each row, from `left` before the first on."""
    return _step(product, _WIDEN, row, wide, width, (row.width, left, 1, 1))


def _image(product: Product) -> _Row:
    return _Row.of(product, product.x, product.g.batch, product.g.image)


def _filters(product: Product) -> _Row:
    return _Row.of(product, product.w, product.g.out_channels, product.g.taps)


class _Wide(NamedTuple):
    """The problem with rows of taps as channels, pixels of a widened row, and the pixels before the first window."""

    g: Geometry
    width: int
    left: int
    stride: int

    @classmethod
    def of(cls, g: Geometry) -> _Wide:
        conv, (r, s), outputs = g.conv, g.taps, g.output
        (down, (left, _)), (stride_h, stride_w) = conv.paddings(2), conv.strides(2)
        inner = ConvolutionDescriptor((down, (0, 0)), (stride_h, 1), (conv.dilations(2)[0], 1), 1, conv.mode, "NHWC")
        wide = Geometry(
            inner, g.batch, _WIDE * s, g.out_channels, (g.image[0], outputs[1]), (r, 1), (outputs[0], outputs[1])
        )
        return cls(wide, -(-((outputs[1] - 1) * stride_w + s) // stride_w) * stride_w, left, stride_w)

    @property
    def pixel_bytes(self) -> int:
        """Of an image whose positions do not overlap."""
        return 4 * prod(self.g.x_shape)

    @property
    def row_bytes(self) -> int:
        """Of a widened image."""
        return 4 * _WIDE * self.g.batch * self.g.image[0] * self.width

    @property
    def overlapping(self) -> Numbers:
        """Steps of a widened image, positions and their rows of taps."""
        row = _WIDE * self.width
        return (row * self.g.image[0], row, _WIDE * self.stride, 1)


def _inner(product: Product, x: Pointer, w: Pointer, taken: Numbers) -> Product:
    """The product in wide channels, x without gaps."""
    wide = _Wide.of(product.g)
    filters = (wide.g.out_channels, *wide.g.taps, wide.g.in_channels)
    return product._replace(
        g=wide.g,
        x=Operand(x, dense_strides(wide.g.x_shape), WIDEST_ACCESS),
        w=Operand(w, dense_strides(filters), WIDEST_ACCESS),
        then=product.then if product.direction == "forward" else Epilogue.none(),
        alpha=product.alpha if product.direction == "forward" else 1.0,
        beta=product.beta if product.direction == "forward" else 0.0,
        taken=(*product.taken, *taken),
    )


def _algorithm(product: Product) -> Algorithm:
    return hopper_turned.HOPPER_TURNED if product.direction == "filter" else HOPPER


def _cannot(product: Product) -> str | None:
    g, conv = product.g, product.g.conv
    if product.dtype.name != "float32" or product.profile.math != "tf32":
        return "for float32 in TF32"
    if not conv.channels_last or g.axes != 2 or conv.groups != 1 or conv.mode != "cross_correlation":
        return "for NHWC images of two axes, one group and filters that are not flipped"
    if not 0 < g.in_channels <= _WIDE or conv.dilations(2)[1] != 1:
        return f"{g.in_channels} channels, {_WIDE} at most, or taps apart along rows"
    if g.taps[1] == 1:
        return "rows of one tap"
    if product.direction == "data" and product.then.b is not NULL:
        return "a bias of a data gradient"
    inner = _inner(product, NULL, NULL, ())
    if phases_of(inner)[0].is_matrix:
        return "one row of taps"
    most = max(_Wide.of(g).row_bytes // 16, prod(g.x_shape) // g.in_channels)
    if -(-most // _BLOCK) > MOST_BLOCKS[0]:
        return f"{most} pixels"
    return _algorithm(product).cannot(inner) or product.workspace_reason(sum(_work(product).scratch))


def _work(product: Product) -> Work:
    return {"forward": _forward, "data": _data, "filter": _filter}[product.direction](product)


def _filter_bytes(wide: _Wide) -> int:
    return 4 * wide.g.filter_size


def _places(product: Product) -> tuple[Scratch, Scratch]:
    return Scratch(len(product.taken)), Scratch(len(product.taken) + 1)


def _forward(product: Product) -> Work:
    wide, (x, w) = _Wide.of(product.g), _places(product)
    taken = (wide.row_bytes, _filter_bytes(wide))
    (step,) = HOPPER.work(_inner(product, x, w, taken)).steps
    copies = (
        _widened(product, _image(product), x, wide.width, wide.left),
        _widened(product, _filters(product), w, product.g.taps[1], 0),
    )
    return Work((*copies, _overlapping(step, wide)), taken)


def _overlapping(step: object, wide: _Wide) -> KernelStep:
    """With the images as they lie."""
    assert isinstance(step, KernelStep)
    windows, *others = step.maps
    assert isinstance(windows, WindowMap)
    outer, row, pixel, _ = wide.overlapping
    return replace(step, maps=(replace(windows, steps=(pixel, row, outer)), *others))


def _data(product: Product) -> Work:
    wide, (x, w) = _Wide.of(product.g), _places(product)
    taken, g = (wide.pixel_bytes, _filter_bytes(wide)), product.g
    done = HOPPER.work(_inner(product, x, w, taken))
    narrowed = _step(
        product, _NARROW, _image(product), x, g.image[1], (g.output[1], wide.left, g.taps[1], wide.stride),
        (float(product.alpha), float(product.beta)),
    )  # fmt: skip
    copy = _widened(product, _filters(product), w, g.taps[1], 0)
    return Work((copy, *done.steps, narrowed), (*taken, *done.scratch))


def _filter(product: Product) -> Work:
    wide, (x, w) = _Wide.of(product.g), _places(product)
    taken, taps = (wide.row_bytes, _filter_bytes(wide)), product.g.taps[1]
    done = hopper_turned.work(_inner(product, x, w, taken), wide.overlapping[:3])
    narrowed = _step(
        product, _NARROW, _filters(product), w, taps, (1, 0, taps, 1), (float(product.alpha), float(product.beta))
    )
    copy = _widened(product, _image(product), x, wide.width, wide.left)
    return Work((copy, *done.steps, narrowed), (*taken, *done.scratch))


def _instances(dtype: DType) -> dict[str, list[str]]:
    if dtype.name != "float32":
        return {}
    return {kernel.entry.partition("_")[2]: [f"{kernel.entry}<{dtype.cuda}>"] for kernel in (_WIDEN, _NARROW)}


CONV_ROWS_FAMILY = Family("convolution_rows", (_WIDEN, _NARROW), _instances, only="sm_90a")

#: Takes few channels in TF32.
HOPPER_ROWS = Algorithm("hopper_rows", _cannot, always_pays, _work)
