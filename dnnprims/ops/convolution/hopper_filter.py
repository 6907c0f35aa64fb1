"""The gradient in the filters on Hopper: when it can be, which tile it is done in, and its two launches."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from ...dtypes import DType
from ...runtime.launch import NULL, Family, Kernel, KernelStep, Pointer, Scratch, Struct
from ...runtime.tensor_map import TensorMap
from .geometry import Geometry, Numbers
from .hopper import image_reason, library_reason
from .hopper_phases import forward_phase
from .product import Algorithm, Product, Work

_NUMBERS = (
    *("positions", "width", "stride_h", "stride_w", "top", "left", "dilation_h", "dilation_w", "taps_h", "taps_w"),
    *("flipped", "matrix", "channel_blocks", "pieces", "channels", "filters", "row_channels"),
    *("row_tiles", "tiles", "whole", "splits", "clustered", "pixel_blocks"),
)
_FAMILY = "convolution_hopper_filter"
_FILTER = Kernel(
    _FAMILY,
    "conv_hopper_filter",
    Struct(
        "ConvHopperFilterParams",
        ("dw", "dy", "x", "partials"),
        (
            *(("alpha", "A"), ("beta", "A")),
            *((name, "i64") for name in ("padded_rows", "padded_columns", "first_column", "row_size")),
            *((name, "i32") for name in _NUMBERS),
        ),
    ),
)
_FOLDED = (
    *((name, "i64") for name in ("slots", "padded_rows", "padded_columns", "first_column", "row_size")),
    *((name, "i32") for name in ("channels", "filters", "channel_blocks", "pieces")),
    *((name, "i32") for name in ("whole", "tile_rows", "tile_columns", "row_tiles")),
)
_FOLD = Kernel(
    _FAMILY,
    "conv_hopper_fold",
    Struct(
        "ConvHopperFoldParams",
        ("dw", "partials"),
        (("alpha", "A"), ("beta", "A"), *_FOLDED),
    ),
)

_THREADS, _BLOCK, _FOLD_THREADS, _FOLD_VEC = 384, 64, 256, 4
#: Channels of a 16-byte access.
_LANES = 8


class FilterTile(NamedTuple):
    """How much a block does at once, as the template `FilterTiling` of the kernel.

    Attributes
    ----------
    depth : int
        Columns of a tile: channels in of all taps.
    stages : int
        Stages that fit.
    """

    depth: int
    stages: int

    @property
    def shared_bytes(self) -> int:
        """Stages, barriers, and what aligning them may take."""
        return self.stages * ((_ROWS + self.depth) * 128 + 16) + 1024


#: Rows of a tile: channels out.
_ROWS = 128
#: Rows x columns of a tile.
FILTER_TILES = {
    "128x192": FilterTile(192, 5),
    "128x256": FilterTile(256, 4),
    "128x128": FilterTile(128, 7),
    "128x64": FilterTile(64, 9),
}
# Which tile. NVIDIA H200, 2026-11-28, bfloat16, batch 256, microseconds of 128x192 / 128x256 / 128x128, fold and all:
#   3x3   128@28 86.8 / 96.7 / 86.8   256@14 89.1 / 88.2 / 94.7
#   1x1   64-256@56 131 / 148 / 138 (cuBLASLt 127)   256-1024@14 61 / 49 / 51 (44)   2048-512@7 48 / 49 / 46 (44)
# Tiles of 64x384 were at no shape of more than one tap ahead of these. Whole / clusters / slots, in the best tile:
#   batch 32  256@14 36 / 21 / 23   512@7 23 / - / 26     batch 8  256@14 10.5 / 8.9 / 11.3   512@7 8.6 / - / 13.6
#   batch 1   128@56 of stride 2 6.5 / 5.4 / 6.7   256@28 of stride 2 5.4 / 6.8 / 9.3
#: Share of the tensor cores' rate that the products of a tile reach.
_SHARES = {"128x192": 1.0, "128x256": 0.98, "128x128": 0.97, "128x64": 0.65}
#: Products of 64 x 64 x 64 in a cycle, and cycles until the first stage is there.
_CYCLES, _BEGIN = 32, 3000
#: Cycles of a second launch, and bytes in a cycle: of slots, that go by; of the cluster, that a block reads; of sums,
#: that it writes.
_SECOND, _SLOT_BYTES, _CLUSTER_BYTES, _WRITTEN_BYTES = 4000, 3000.0, 16.0, 24.0
#: Blocks of a cluster -> clusters that run at one time on an H200, of so many multiprocessors, one block on each
#: (cuOccupancyMaxActiveClusters: 66, 39, 30, 22, 17, 15, 15). One more waits for the others: 256@14 of batch 8 took
#: 17.5 microseconds in 24 clusters of 5, 8.9 in 36 of 3.
_H200 = 132
_CLUSTERS = {2: 62, 3: 37, 4: 28, 5: 21, 6: 16, 7: 14, 8: 14}
#: Threads that share the slots of an element, and slots that one of them takes before another is called.
_SHARING, _SLOTS_EACH = (1, 2, 4, 8, 16, 32), 5


def cannot(product: Product) -> str | None:
    """Why the product is not for these kernels, or None."""
    reason = image_reason(product)
    if reason:
        return reason
    return None if product.g.batch * prod(product.g.output) else "no pixels to sum over"


class Slots(NamedTuple):
    """The workspace: for each split of the pixels so many sums, of the columns from the first on."""

    number: int
    padded_rows: int
    padded_columns: int
    first_column: int = 0

    @property
    def nbytes(self) -> int:
        """Of float."""
        return 4 * self.number * self.padded_rows * self.padded_columns


_NO_SLOTS = Slots(0, 0, 0)


class Layout(NamedTuple):
    """How a product is dealt out.

    Attributes
    ----------
    name : str
        Of the tile.
    row_tiles, column_tiles, pixel_blocks : int
        Tiles along channels out and along the columns, and blocks of pixels.
    whole : int
        Tiles that one block sums by itself, over all pixels, before the others are split.
    splits : int
        Of the pixels of the other tiles.
    clustered : bool
        Whether the blocks of a tile's splits are a cluster, which adds up their sums; else a second launch does.
    """

    name: str
    row_tiles: int
    column_tiles: int
    pixel_blocks: int
    whole: int
    splits: int = 1
    clustered: bool = False

    @property
    def tile(self) -> FilterTile:
        return FILTER_TILES[self.name]

    @property
    def tiles(self) -> int:
        return self.row_tiles * self.column_tiles

    @property
    def shares(self) -> int:
        """Whole tiles and splits of others."""
        return self.whole + (self.tiles - self.whole) * self.splits

    @property
    def slots(self) -> Slots:
        """Of the columns that are not whole."""
        if self.whole == self.tiles or self.clustered:
            return _NO_SLOTS
        first, depth = self.whole // self.row_tiles * self.tile.depth, self.tile.depth
        return Slots(self.splits, self.row_tiles * _ROWS, self.column_tiles * depth - first, first)

    def cycles(self, multiprocessors: int) -> float:
        """An estimate."""
        sums = _ROWS * self.tile.depth
        each = sums / _CYCLES / _SHARES[self.name]
        rounds, rest = -(-self.whole // multiprocessors), (self.tiles - self.whole) * self.splits
        turns = rounds * self.pixel_blocks + -(-rest // multiprocessors) * -(-self.pixel_blocks // self.splits)
        found = _BEGIN + turns * each + rounds * 2 * sums / _WRITTEN_BYTES
        if self.clustered:
            return found + 4 * sums / _CLUSTER_BYTES
        if self.slots.number:
            found += 4 * sums / _WRITTEN_BYTES + _SECOND + self.slots.nbytes / _SLOT_BYTES
        return found


def layouts(product: Product, name: str) -> list[Layout]:
    """All ways to deal out a product in a tile of this name, within the workspace."""
    g, most = product.g, product.profile.sm_count
    rows, columns = -(-g.out_channels // _ROWS), -(-_pieces(product) * _BLOCK // FILTER_TILES[name].depth)
    tiles, blocks = rows * columns, -(-g.batch * prod(g.output) // _BLOCK)
    found = [Layout(name, rows, columns, blocks, tiles)]
    whole = tiles // most * most
    splits = min(most // (tiles - whole), blocks) if whole < tiles else 1
    found += [Layout(name, rows, columns, blocks, whole, n) for n in _halves(splits) if n > 1]
    clusters = [n for n, fit in _CLUSTERS.items() if n <= blocks and tiles * _H200 <= fit * most]
    found += [Layout(name, rows, columns, blocks, 0, n, True) for n in clusters]
    return [at for at in found if product.workspace_reason(at.slots.nbytes) is None]


def _halves(most: int) -> list[int]:
    """So many, half as many, and so on."""
    return [most >> i for i in range(most.bit_length())]


def row_channels(g: Geometry) -> int:
    """Channels in that a tile of rows sees: all, or those of its groups where no tile holds a part of one."""
    groups, k = g.conv.groups, g.out_channels
    if groups == 1 or k <= _ROWS or _ROWS % (k // groups):
        return g.in_channels
    channels = g.in_channels // groups * (_ROWS // (k // groups))
    return g.in_channels if channels % _LANES else channels


def _blocks(product: Product) -> int:
    """Blocks of channels in of a tap."""
    return -(-row_channels(product.g) // _BLOCK)


def _pieces(product: Product) -> int:
    """Of 64 columns."""
    return prod(product.g.taps) * _blocks(product)


def layout_for(product: Product) -> Layout:
    """The one that is estimated to be done first."""
    found = [at for name in FILTER_TILES for at in layouts(product, name)]
    return min(found, key=lambda at: at.cycles(product.profile.sm_count))


def work(product: Product) -> Work:
    """Sums of tiles, and of shares of the pixels of some, which a second launch adds up where no cluster does."""
    at, partials = layout_for(product), Scratch(len(product.taken))
    if not at.slots.number:
        return Work((_sum_step(product, at, NULL),))
    fold = fold_step(product, at.slots, partials, (at.whole, _ROWS, at.tile.depth, at.row_tiles))
    return Work((_sum_step(product, at, partials), fold), (at.slots.nbytes,))


def _sum_step(product: Product, at: Layout, partials: Pointer) -> KernelStep:
    g, dtype, phase = product.g, product.dtype, forward_phase(product.g)
    kind, size, channels = dtype.name, dtype.itemsize, row_channels(g)
    numbers = (
        *(float(product.alpha), float(product.beta), *at.slots[1:], prod(g.taps) * channels, *phase.numbers[:10]),
        *(int(g.conv.mode != "cross_correlation"), int(phase.is_matrix)),
        *(_blocks(product), _pieces(product), channels, g.out_channels, channels if channels < g.in_channels else 0),
        *(at.row_tiles, at.tiles, at.whole, at.splits, int(at.clustered), at.pixel_blocks),
    )
    maps = (
        TensorMap(1, kind, size, g.batch * prod(g.output), g.out_channels, _BLOCK, _BLOCK),
        phase.input_map(2, dtype, g.in_channels, _BLOCK),
    )
    blocks = at.shares if at.clustered else min(at.shares, product.profile.sm_count)
    return KernelStep(
        _FILTER, dtype, (dtype.cuda, str(at.tile.depth), str(at.tile.stages)), "filter", (blocks, 1, 1), _THREADS,
        (product.w.at, product.y.at, product.x.at, partials), numbers,
        shared_bytes=at.tile.shared_bytes, maps=maps, joint_maps=True, cluster=at.splits if at.clustered else 1,
    )  # fmt: skip


def fold_step(product: Product, slots: Slots, partials: Scratch, whole: Numbers = (0, 1, 1, 1)) -> KernelStep:
    """The sum of the slots, whose columns are blocks of 64 channels of each tap; `whole` tells of tiles done before."""
    g, dtype = product.g, product.dtype
    sharing = next((count for count in _SHARING if slots.number <= _SLOTS_EACH * count), _SHARING[-1])
    channels = row_channels(g)
    sizes = prod(g.taps) * channels, channels, g.out_channels, _blocks(product), _pieces(product)
    numbers = (*slots, *sizes, *whole)
    blocks = -(-g.out_channels * slots.padded_columns // (_FOLD_THREADS // sharing * _FOLD_VEC))
    return KernelStep(
        _FOLD, dtype, (dtype.cuda, str(sharing)), "fold", (blocks, 1, 1), _FOLD_THREADS,
        (product.w.at, partials), (float(product.alpha), float(product.beta), *numbers),
    )  # fmt: skip


def _instances(dtype: DType) -> dict[str, list[str]]:
    t = dtype.cuda
    tiles = [f"{t}, {a.depth}, {a.stages}" for a in FILTER_TILES.values()]
    filters = {"filter": [f"conv_hopper_filter<{each}>" for each in tiles]} if dtype.itemsize == 2 else {}
    return {**filters, "fold": [f"conv_hopper_fold<{t}, {count}>" for count in _SHARING]} if dtype.itemsize < 8 else {}


CONV_HOPPER_FILTER_FAMILY = Family(_FAMILY, (_FILTER, _FOLD), _instances, only="sm_90a")

#: Takes the 16-bit types.
HOPPER_FILTER = Algorithm("hopper", cannot, library_reason, work)
