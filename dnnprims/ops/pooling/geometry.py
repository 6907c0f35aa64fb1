"""The shapes of a pooling: what goes with what, and the numbers that kernels take of it."""

from __future__ import annotations

from typing import NamedTuple

from ... import checks
from ...descriptors import PoolingDescriptor, TensorDescriptor
from ...descriptors.spatial import Numbers, filled_axes, join_axes, split_axes
from ...dtypes import BY_NAME, DType

#: Most taps of a window whose numbers fit uint8.
_MOST_UINT8 = 256


class Geometry(NamedTuple):
    """A pooling of images of `image`, with `channels` of them."""

    pooling: PoolingDescriptor
    batch: int
    channels: int
    image: Numbers
    output: Numbers

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.image)

    @property
    def is_max(self) -> bool:
        """Whether the largest is taken, not a mean."""
        return self.pooling.mode == "max"

    @property
    def is_padded(self) -> bool:
        """Whether a mean counts the padding."""
        return self.pooling.mode == "average_include_padding"

    @property
    def taps(self) -> int:
        """Positions of a window."""
        return self.pooling.taps(self.axes)

    @property
    def index_dtype(self) -> DType:
        """Type of the indices."""
        return BY_NAME["uint8" if self.taps <= _MOST_UINT8 else "int32"]

    @property
    def x_shape(self) -> Numbers:
        """Shape of the input."""
        return join_axes(self.pooling.channels_last, self.batch, self.channels, self.image)

    @property
    def y_shape(self) -> Numbers:
        """Shape of the output."""
        return join_axes(self.pooling.channels_last, self.batch, self.channels, self.output)

    def befores(self) -> Numbers:
        """The padding in front along each axis."""
        return tuple(before for before, _ in self.pooling.paddings(self.axes))

    def steps(self, strides: Numbers) -> Numbers:
        """The fields of the kernels' `Steps`."""
        outer, channel, along = split_axes(self.pooling.channels_last, strides)
        return (outer, channel, *filled_axes(along, 0))

    def scalars(self) -> Numbers:
        """The fields of the kernels' `PoolingProblem` that come before its steps."""
        pooling, axes = self.pooling, self.axes
        several = (self.image, self.output, pooling.windows(axes), pooling.strides(axes))
        filled = (number for values in several for number in filled_axes(values, 1))
        return (self.channels, *filled, *filled_axes(self.befores(), 0))


def examine(op: str, pooling: PoolingDescriptor, x: TensorDescriptor, name: str = "x") -> Geometry:
    """Check that windows and images go together; `name` is what the caller calls the images."""
    checks.require_pooling(op, pooling)
    checks.require_float(op, name, x)
    axes = checks.require_spatial_axes(op, name, x, pooling, "pooling")
    batch, channels, image = split_axes(pooling.channels_last, x.shape)
    along = zip(image, pooling.windows(axes), pooling.strides(axes), pooling.paddings(axes), strict=True)
    output = []
    for axis, (extent, window, stride, padding) in enumerate(along):
        padded = extent + sum(padding)
        checks.require_pool(op, name, axis, window, extent, padded)
        output.append((padded - window) // stride + 1)
    return Geometry(pooling, batch, channels, image, tuple(output))
