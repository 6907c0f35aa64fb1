"""The shapes of a convolution: what goes with what, and the numbers that kernels take of it."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from ... import checks
from ...descriptors import ConvolutionDescriptor, TensorDescriptor, spatial
from ...descriptors.spatial import filled_axes as _spatial

Numbers = tuple[int, ...]


class Geometry(NamedTuple):
    """A convolution of images of `image` by filters of `taps`, `axes` spatial axes each.

    With a `gap` that many elements, which are no pixels, follow each row of the input (`hopper_joined`).
    """

    conv: ConvolutionDescriptor
    batch: int
    in_channels: int
    out_channels: int
    image: Numbers
    taps: Numbers
    output: Numbers
    gap: int = 0

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.image)

    @property
    def x_shape(self) -> Numbers:
        """Shape of the input."""
        return join(self.conv, self.batch, self.in_channels, self.image)

    @property
    def y_shape(self) -> Numbers:
        """Shape of the output."""
        return join(self.conv, self.batch, self.out_channels, self.output)

    @property
    def filter_size(self) -> int:
        """Elements of all filters."""
        return self.out_channels * (self.in_channels // self.conv.groups) * prod(self.taps)

    def scalars(self) -> Numbers:
        """The fields of the kernels' `Problem`, but for the steps."""
        conv, axes = self.conv, self.axes
        groups = conv.groups
        before = tuple(pad for pad, _ in conv.paddings(axes))
        return (
            *(self.batch, groups, self.in_channels // groups, self.out_channels // groups),
            *_spatial(self.image, 1), *_spatial(self.output, 1), *_spatial(self.taps, 1),
            *_spatial(conv.strides(axes), 1), *_spatial(conv.dilations(axes), 1), *_spatial(before, 0),
        )  # fmt: skip


def examine(
    op: str, conv: ConvolutionDescriptor, x: TensorDescriptor, w: TensorDescriptor, x_name: str = "x", w_name: str = "w"
) -> Geometry:
    """Check that filters and images go together; `x_name` and `w_name` are what the caller calls them."""
    checks.require_convolution(op, conv)
    checks.require_float(op, x_name, x)
    axes = checks.require_spatial_axes(op, x_name, x, conv)
    checks.require_rank(op, w_name, w, axes + 2, f"{axes + 2} axes, as {x_name} has")
    checks.require_same_dtype(op, **{x_name: x, w_name: w})
    (batch, channels, image), (filters, _, taps) = split(conv, x.shape), split(conv, w.shape)
    at = channel_axis(conv, axes)
    checks.require_multiple(op, f"{x_name}.shape[{at}]", channels, conv.groups, "groups")
    checks.require_multiple(op, f"{w_name}.shape[0]", filters, conv.groups, "groups")
    rule = f"filters of {x_name}.shape[{at}] / groups channels"
    checks.require_shape(op, w_name, w, join(conv, filters, channels // conv.groups, taps), rule)
    checks.require_taps(op, w_name, w, taps)
    return Geometry(conv, batch, channels, filters, image, taps, _output(op, conv, image, taps, w_name))


def _output(op: str, conv: ConvolutionDescriptor, image: Numbers, taps: Numbers, w_name: str) -> Numbers:
    axes = len(image)
    along = zip(image, taps, conv.paddings(axes), conv.strides(axes), conv.dilations(axes), strict=True)
    extents = []
    for axis, (extent, count, padding, stride, dilation) in enumerate(along):
        window, padded = (count - 1) * dilation + 1, extent + sum(padding)
        checks.require_window(op, w_name, axis, window, padded)
        extents.append((padded - window) // stride + 1)
    return tuple(extents)


def examine_transposed(
    op: str, conv: ConvolutionDescriptor, x: TensorDescriptor, w: TensorDescriptor, output_padding: Numbers | int
) -> Geometry:
    """Check what a transposed convolution takes: x is what the convolution of its result would give."""
    checks.require_convolution(op, conv)
    checks.require_float(op, "x", x)
    axes = checks.require_spatial_axes(op, "x", x, conv)
    checks.require_rank(op, "w", w, axes + 2, f"{axes + 2} axes, as x has")
    checks.require_same_dtype(op, x=x, w=w)
    (batch, _, positions), (filters, depth, taps) = split(conv, x.shape), split(conv, w.shape)
    checks.require_multiple(op, "w.shape[0]", filters, conv.groups, "groups")
    checks.require_shape(op, "x", x, join(conv, batch, filters, positions), "w.shape[0] channels")
    checks.require_taps(op, "w", w, taps)
    checks.require_elements(op, "x", x, prod(positions), "at least one position along each spatial axis")
    more = checks.require_reverse(op, output_padding, conv.strides(axes))
    along = zip(positions, taps, more, conv.paddings(axes), conv.strides(axes), conv.dilations(axes), strict=True)
    image = []
    for axis, (extent, count, added, padding, stride, dilation) in enumerate(along):
        whole = (extent - 1) * stride + (count - 1) * dilation + 1 + added
        checks.require_cropping(op, axis, sum(padding), whole)
        image.append(whole - sum(padding))
    return Geometry(conv, batch, depth * conv.groups, filters, tuple(image), taps, positions)


def channel_axis(conv: ConvolutionDescriptor, axes: int) -> int:
    """Which axis of an image holds the channels."""
    return spatial.channel_axis(conv.channels_last, axes)


def split(conv: ConvolutionDescriptor, shape: Numbers) -> tuple[int, int, Numbers]:
    """First axis, channels, spatial axes of a shape or of steps."""
    return spatial.split_axes(conv.channels_last, shape)


def join(conv: ConvolutionDescriptor, outer: int, channels: int, positions: Numbers) -> Numbers:
    """The shape that `split` takes apart."""
    return spatial.join_axes(conv.channels_last, outer, channels, positions)


def steps(conv: ConvolutionDescriptor, strides: Numbers) -> Numbers:
    """The fields of the kernels' `Steps`."""
    outer, channel, along = split(conv, strides)
    return (outer, channel, *_spatial(along, 0))


def filter_steps(conv: ConvolutionDescriptor, taps: Numbers, strides: Numbers) -> tuple[int, Numbers]:
    """Offset of the first tap and steps: a flipped filter is walked from its last tap backwards."""
    if conv.mode == "cross_correlation":
        return 0, steps(conv, strides)
    outer, channel, along = split(conv, strides)
    first = sum((count - 1) * step for count, step in zip(taps, along, strict=True))
    return first, (outer, channel, *_spatial(tuple(-step for step in along), 0))


class Seen(NamedTuple):
    """Along one axis: elements stride * m + rest see outputs m + lead - j through taps stride * j + rest + offset.

    `reach` is how many outputs they see at most.
    """

    lead: int
    offset: int
    reach: int


def seen_outputs(g: Geometry) -> tuple[Seen, ...]:
    """Along each axis, of filters that are not dilated."""
    found = []
    along = zip(g.taps, g.conv.strides(g.axes), g.conv.paddings(g.axes), strict=True)
    for taps, stride, (pad, _) in along:
        lead = -(-pad // stride)
        offset = pad - stride * lead
        found.append(Seen(lead, offset, (taps - 1 - offset) // stride + 1))
    return tuple(found)
