"""A convolution or its data gradient as convolutions that the copy engine of Hopper can gather the pixels of.

The data gradient at the pixels of one residue (h mod stride, w mod stride) is a convolution of dy of stride 1 with
every stride-th tap, backwards: a phase. A convolution is one phase.
"""

from __future__ import annotations

from itertools import product
from math import gcd
from typing import NamedTuple

from ...dtypes import DType
from ...runtime.tensor_map import SWIZZLED_ROW, AnyMap, TensorMap, WindowMap
from .geometry import Geometry, Numbers

#: Numbers of the kernel's `Phase`.
PHASE_FIELDS = (
    *("positions", "width", "stride_h", "stride_w", "top", "left", "dilation_h", "dilation_w", "taps_h", "taps_w"),
    *("first_tap", "tap_row", "tap_column", "pixel_tiles", "end"),
)


class Along(NamedTuple):
    """One spatial axis of a phase.

    Attributes
    ----------
    extent, positions : int
        Of the input; of the result.
    lower, upper : int
        Where the first tap lies for the first position; how far past the last pixel it may for the last.
    stride, dilation : int
        From position to position, from tap to tap.
    taps : tuple of int
        Numbers of the filter's taps in the order of the walk, evenly spaced.
    start, spread : int
        First pixel of the result that is a position, and the distance to the next.
    """

    extent: int
    positions: int
    lower: int
    upper: int
    stride: int
    dilation: int
    taps: Numbers
    start: int = 0
    spread: int = 1

    @property
    def tap_count(self) -> int:
        """Number of taps."""
        return len(self.taps)

    @property
    def tap_step(self) -> int:
        """From a tap's number to the next one's."""
        return self.taps[1] - self.taps[0] if len(self.taps) > 1 else 0

    @property
    def is_copy(self) -> bool:
        """Whether position k sees pixel k and no other."""
        return self.tap_count == self.stride == self.spread == 1 and self.lower == 0 and self.positions == self.extent


class Phase(NamedTuple):
    """One convolution of a batch of images by taps of filters that are `width` taps wide.

    Attributes
    ----------
    source_gap, result_gap : int
        Elements between rows of the input, and of the result, that are no pixels.
    in_gap : bool
        Whether the result is what lies there.
    """

    batch: int
    width: int
    rows: Along
    columns: Along
    source_gap: int = 0
    result_gap: int = 0
    in_gap: bool = False

    @property
    def pixels(self) -> int:
        """Of the result."""
        return self.batch * self.rows.positions * self.columns.positions

    @property
    def taps(self) -> int:
        """That are walked."""
        return self.rows.tap_count * self.columns.tap_count

    @property
    def is_matrix(self) -> bool:
        """Whether the input is taken as it is."""
        return self.rows.is_copy and self.columns.is_copy and not self.source_gap

    @property
    def is_dense(self) -> bool:
        """Whether the result has no other pixels."""
        return self.rows.spread == self.columns.spread == 1 and not self.result_gap

    @property
    def numbers(self) -> Numbers:
        """`PHASE_FIELDS`, but for the tiles."""
        rows, columns = self.rows, self.columns
        first = rows.taps[0] * self.width + columns.taps[0] if self.taps else 0
        return (
            *(rows.positions * columns.positions, columns.positions, rows.stride, columns.stride),
            *(-rows.lower, -columns.lower, rows.dilation, columns.dilation, rows.tap_count, columns.tap_count),
            *(first, rows.tap_step * self.width, columns.tap_step),
        )

    def input_map(self, pointer: int, dtype: DType, channels: int, pixels: int) -> AnyMap:
        """So many pixels of the input as one tap sees them."""
        kind, size, (rows, columns) = factor_kind(dtype), dtype.itemsize, (self.rows, self.columns)
        if self.is_matrix:
            return TensorMap(pointer, kind, size, self.pixels, channels, pixels, SWIZZLED_ROW // size)
        row = channels * columns.extent + self.source_gap
        return WindowMap(
            pointer, kind, size, (channels, columns.extent, rows.extent, self.batch),
            (channels, row, row * rows.extent), (columns.lower, rows.lower), (columns.upper, rows.upper),
            (columns.stride, rows.stride), pixels,
        )  # fmt: skip

    def output_map(self, pointer: int, dtype: DType, channels: int, image: Numbers, pixels: int) -> WindowMap:
        """So many positions in an image of the result."""
        rows, columns = self.rows, self.columns
        row = channels * image[-1] + self.result_gap
        whole = row * (image[0] if len(image) > 1 else 1)
        there = self.result_gap if self.in_gap else channels
        return WindowMap(
            pointer, dtype.name, dtype.itemsize, (there, columns.positions, rows.positions, self.batch),
            (channels * columns.spread, row * rows.spread, whole), (0, 0), (0, 0), (1, 1),
            pixels, row * rows.start + channels * columns.start,
        )  # fmt: skip


def factor_kind(dtype: DType) -> str:
    """What the copy engine calls the type of what is multiplied."""
    return "tf32" if dtype.name == "float32" else dtype.name


def forward_phase(g: Geometry) -> Phase:
    """The convolution itself."""
    axes = [
        Along(i, o, -pads[0], pads[1] - (count - 1) * dilation, stride, dilation, _numbered(g, range(count), count))
        for i, o, count, pads, stride, dilation in _axes(g)
    ]
    rows, columns = axes
    return Phase(g.batch, g.taps[-1], rows, columns, source_gap=g.gap)


def data_phases(g: Geometry) -> tuple[Phase, ...]:
    """Those of the data gradient, of most taps first; what lies between rows no tap sees."""
    axes = [
        [_residue(g, a, *axis) for a in range(min(axis[4], axis[0]))]  # axis: see `_axes`
        for axis in _axes(g)
    ]
    phases = [
        Phase(g.batch, g.taps[-1], rows, columns, result_gap=g.gap) for rows, columns in product(axes[0], axes[1])
    ]
    if g.gap:
        unseen = Along(g.output[-1], 1, 0, 0, 1, 1, (), g.image[-1])
        phases += [Phase(g.batch, g.taps[-1], rows, unseen, result_gap=g.gap, in_gap=True) for rows in axes[0]]
    return tuple(sorted(phases, key=lambda phase: -phase.taps))


def _axes(g: Geometry) -> list[tuple[int, int, int, tuple[int, int], int, int]]:
    """Image, output, taps, padding, stride and dilation along h and w; images of one axis have one row."""
    n = g.axes
    axes = zip(g.image, g.output, g.taps, g.conv.paddings(n), g.conv.strides(n), g.conv.dilations(n), strict=True)
    return [(1, 1, 1, (0, 0), 1, 1)] * (2 - n) + list(axes)


def _numbered(g: Geometry, taps: range | list[int], count: int) -> Numbers:
    """Numbers of taps in memory: a flipped filter is walked backwards."""
    return tuple(taps if g.conv.mode == "cross_correlation" else (count - 1 - r for r in taps))


def _residue(
    g: Geometry, a: int, image: int, output: int, count: int, padding: tuple[int, int], stride: int, dilation: int
) -> Along:
    """Pixels a, a + stride, ...: tap r of position i is seen from output (a + padding - r dilation) / stride + i."""
    positions, before = -(-(image - a) // stride), padding[0]
    taps = [r for r in reversed(range(count)) if (a + before - r * dilation) % stride == 0]
    if not taps:
        return Along(output, positions, 0, 0, 1, 1, (), a, stride)
    lower = (a + before - taps[0] * dilation) // stride
    upper, step = positions - output + lower, dilation // gcd(stride, dilation)
    return Along(output, positions, lower, upper, 1, step, _numbered(g, taps, count), a, stride)
