"""Tiles of the implicit products of convolutions, how operands lie, and what is too large."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ...dtypes import DType
from ...runtime.launch import Kernel
from ...runtime.limits import MOST_ACROSS
from .geometry import Numbers, join, steps
from .product import Operand, Product

#: Offsets have 32 bits in the kernels, with room for padding; positions likewise.
_MOST_ELEMENTS, _MOST_EXTENT = 2**30, 2**28
#: Multiprocessors that splits are for, and the share of them that one more round of blocks must keep busy beside. Sums
#: of splits are added up in order, so these numbers decide on bits: they do not depend on the GPU at hand.
_MULTIPROCESSORS, _GAIN, _MOST_ROUNDS = 132, 0.05, 4


class Tile(NamedTuple):
    """Results of a block along both axes, its threads, the terms of a slice, and dynamic shared memory.

    `resident` is how many blocks a multiprocessor of Hopper holds. Where it was measured, `rate` is the products and
    sums in 10^12 a second with all of them busy, and `together` how many of a multiprocessor begin and end together:
    those with few warps leave it idle when they are alone.
    """

    rows: int
    columns: int
    threads: int
    depth: int
    resident: int
    shared_bytes: int = 0
    rate: float = 0.0
    together: int = 1

    @property
    def places(self) -> int:
        """Blocks that run at a time."""
        return _MULTIPROCESSORS * self.resident

    def needed(self, rows: int, columns: int) -> int:
        """Tiles that cover so many results."""
        return -(-rows // self.rows) * -(-columns // self.columns)

    def computed(self, rows: int, columns: int) -> int:
        """Results that these tiles have."""
        return self.needed(rows, columns) * self.rows * self.columns

    def cost(self, rows: int, columns: int, others: int) -> float:
        """What so many of such results take, for each term."""
        quantum = _MULTIPROCESSORS * self.together
        return -(-self.needed(rows, columns) * others // quantum) * quantum * self.rows * self.columns / self.rate

    def splits(self, blocks: int, most: int) -> int:
        """How many blocks had best share the sums of each of so many, for the last round of them to be full."""
        enough = max(1, _MOST_ROUNDS * self.places // blocks)

        def worth(splits: int) -> float:
            rounds = -(-blocks * splits // self.places)
            return blocks * splits / self.places / rounds - _GAIN * rounds

        return max(range(1, max(1, min(most, enough)) + 1), key=worth)


class Way(NamedTuple):
    """One of the implicit algorithms: its kernels, tiles of each from the largest, and elements of a pack.

    `strict` is whether operands have to lie in packs, `joined` whether taps and channels are one axis.
    """

    name: str
    gather: Kernel
    filter: Kernel
    tiles: Callable[[DType, str], tuple[Tile, ...]]
    pack: Callable[[DType], int]
    strict: bool
    joined: bool = False

    def template(self, dtype: DType, tile: Tile) -> tuple[str, ...]:
        """Of its kernels; what is joined has one tile."""
        return (dtype.cuda,) if self.joined else (dtype.cuda, str(tile.rows), str(tile.columns))

    def tile_for(self, dtype: DType, group: str, rows: int, columns: int, others: int) -> Tile:
        """By what was measured, else the larger one where there are enough and their edges stick out little further."""
        large, *rest = self.tiles(dtype, group)
        if large.rate:
            return min((large, *rest), key=lambda tile: tile.cost(rows, columns, others))
        few = large.needed(rows, columns) * others < large.places
        if not rest or not (few or large.computed(rows, columns) > 1.1 * rest[0].computed(rows, columns)):
            return large
        return rest[0]


class View(NamedTuple):
    """An operand as the kernels walk it: steps of images or filters, of channels, and of three spatial axes."""

    outer: int
    channel: int
    spatial: Numbers

    @classmethod
    def of(cls, product: Product, strides: Numbers) -> View:
        """From strides in the layout of the convolution."""
        outer, channel, *spatial = steps(product.g.conv, strides)
        return cls(outer, channel, tuple(spatial))

    def packed(self, dtype: DType, pack: int, alignment: int, channels: int) -> int:
        """1 where so many channels lie together on a boundary, wherever the other steps lead."""
        return packed(dtype, pack, alignment, channels, self.channel, self.outer, *self.spatial)


def packed(dtype: DType, pack: int, alignment: int, channels: int, along: int, *others: int) -> int:
    """1 where channels with step `along` lie in packs, wherever the other steps lead."""
    wide = min(16, pack * dtype.itemsize)
    return int(along == 1 and alignment >= wide and not any(n % pack for n in (channels, *others)))


def too_large(product: Product) -> str | None:
    """Why offsets of 32 bits do not do, or None."""
    g = product.g
    operands: list[tuple[Operand, Numbers]] = [(product.x, g.x_shape), (product.y, g.y_shape)]
    operands.append((product.w, join(g.conv, g.out_channels, g.in_channels // g.conv.groups, g.taps)))
    if product.then.residual:
        operands.append((product.then.residual, g.y_shape))
    for operand, shape in operands:
        reach = sum(n * max(abs(step), 1) for n, step in zip(shape, operand.strides, strict=True))
        if reach >= _MOST_ELEMENTS:
            return f"an operand reaches over {reach} elements, offsets have 32 bits"
    paddings, dilations, strides = g.conv.paddings(g.axes), g.conv.dilations(g.axes), g.conv.strides(g.axes)
    numbers = zip(g.image, g.taps, paddings, dilations, strides, strict=True)
    most = max(i + sum(pads) + r * dilation + stride for i, r, pads, dilation, stride in numbers)
    if most >= _MOST_EXTENT or g.conv.groups > MOST_ACROSS:
        return f"extents of {most} with padding and dilation, and {g.conv.groups} groups"
    return None
