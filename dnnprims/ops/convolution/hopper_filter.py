"""The gradient in the filters on Hopper: when it can be, which tile it is done in, and its two launches."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from ...dtypes import DType
from ...runtime.launch import Family, Kernel, KernelStep, Scratch, Struct
from ...runtime.tensor_map import TensorMap
from .geometry import Numbers
from .hopper import image_reason, library_reason
from .hopper_phases import forward_phase
from .product import Algorithm, Product, Work

_NUMBERS = (
    *("positions", "width", "stride_h", "stride_w", "top", "left", "dilation_h", "dilation_w", "taps_h", "taps_w"),
    *("flipped", "matrix", "even", "channel_blocks", "pieces", "filters"),
    *("row_tiles", "tiles", "splits", "pixel_blocks"),
)
_FAMILY = "convolution_hopper_filter"
_FILTER = Kernel(
    _FAMILY,
    "conv_hopper_filter",
    Struct(
        "ConvHopperFilterParams",
        ("dy", "x", "partials"),
        (("padded_rows", "i64"), ("padded_columns", "i64"), *((name, "i32") for name in _NUMBERS)),
    ),
)
_FOLDED = (
    *("size", "row_size", "channels", "channel_blocks", "slots", "padded_rows", "padded_columns"),
    *("even", "tile_rows", "tile_columns", "row_tiles", "pixel_blocks", "units", "blocks"),
)
_FOLD = Kernel(
    _FAMILY,
    "conv_hopper_fold",
    Struct(
        "ConvHopperFoldParams",
        ("dw", "partials"),
        (("alpha", "A"), ("beta", "A"), *((name, "i64") for name in _FOLDED)),
    ),
)

_THREADS, _BLOCK, _FOLD_THREADS, _FOLD_VEC = 384, 64, 256, 4


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
}
# Which tile. NVIDIA H200, 2026-11-28, bfloat16, batch 256, microseconds of 128x192 / 128x256 / 128x128, fold and all:
#   3x3   128@28 86.8 / 96.7 / 86.8   256@14 89.1 / 88.2 / 94.7   512@7, even splits 104 / 101 / 119
#   1x1   64-256@56 131 / 148 / 138 (cuBLASLt 127)   256-1024@14 61 / 49 / 51 (44)   2048-512@7 48 / 49 / 46 (44)
# Tiles of 64x384 were at no shape of more than one tap ahead of these.
#: Share of the tensor cores' rate that the products of a tile reach.
_SHARES = {"128x192": 1.0, "128x256": 0.98, "128x128": 0.97}
#: Products of 64 x 64 x 64 in a cycle, cycles until the first stage is there, and bytes of slots that go by in a cycle.
_CYCLES, _BEGIN, _SLOT_BYTES = 32, 3000, 3000.0
#: Even splits: bytes of x and dy up to which they may be taken, and how much longer a block of pixels takes then.
_MOST_IN_L2, _UNALIGNED = 32 << 20, {"128x192": 1.12, "128x256": 1.04, "128x128": 1.25}
#: What the fold is told of splits that are not even.
_ALIGNED = (0, 1, 1, 1, 1, 1, 1)
#: Threads that share the slots of an element, and slots that one of them takes before another is called.
_SHARING, _SLOTS_EACH = (1, 2, 4, 8, 16, 32), 5


def cannot(product: Product) -> str | None:
    """Why the product is not for these kernels, or None."""
    reason = image_reason(product)
    if reason:
        return reason
    g = product.g
    if not g.batch * prod(g.output):
        return "no pixels to sum over"
    return product.workspace_reason(_layout(product, tile_for(product)).slots.nbytes)


class Slots(NamedTuple):
    """The workspace: for each split of the pixels so many sums."""

    number: int
    padded_rows: int
    padded_columns: int

    @property
    def nbytes(self) -> int:
        """Of float."""
        return 4 * self.number * self.padded_rows * self.padded_columns


class _Layout(NamedTuple):
    """Tiles along channels out and along the columns, blocks of pixels, how these are dealt out, and the workspace."""

    row_tiles: int
    column_tiles: int
    pixel_blocks: int
    even: bool
    blocks: int
    slots: Slots

    @property
    def tiles(self) -> int:
        return self.row_tiles * self.column_tiles

    @property
    def turns(self) -> int:
        """Blocks of pixels that the busiest multiprocessor has."""
        if self.even:
            return -(-self.tiles * self.pixel_blocks // self.blocks)
        return -(-self.tiles * self.slots.number // self.blocks) * -(-self.pixel_blocks // self.slots.number)


def _layouts(product: Product, name: str) -> list[_Layout]:
    """Where there are fewer tiles than multiprocessors the pixels are split, all tiles' alike; or evenly."""
    g, tile, most = product.g, FILTER_TILES[name], product.profile.sm_count
    rows = -(-g.out_channels // _ROWS)
    columns = -(-_pieces(product) * _BLOCK // tile.depth)
    pixel_blocks, tiles = -(-g.batch * prod(g.output) // _BLOCK), rows * columns
    splits = max(1, min(most // tiles, pixel_blocks))
    padded = rows * _ROWS, columns * tile.depth
    aligned = _Layout(rows, columns, pixel_blocks, False, min(most, tiles * splits), Slots(splits, *padded))
    blocks = min(most, tiles * pixel_blocks)
    even = _Layout(rows, columns, pixel_blocks, True, blocks, Slots(-(-blocks // tiles) + 1, *padded))
    return [aligned, even] if _operand_bytes(product) <= _MOST_IN_L2 else [aligned]


def _operand_bytes(product: Product) -> int:
    g = product.g
    return product.dtype.itemsize * (prod(g.x_shape) + prod(g.y_shape))


def _layout(product: Product, name: str) -> _Layout:
    return min(_layouts(product, name), key=lambda at: _cycles(name, at))


def _pieces(product: Product) -> int:
    """Of 64 columns."""
    return prod(product.g.taps) * -(-product.g.in_channels // _BLOCK)


def tile_for(product: Product) -> str:
    """The tile that is estimated to be done first."""
    return min(FILTER_TILES, key=lambda name: _cycles(name, _layout(product, name)))


def _cycles(name: str, at: _Layout) -> float:
    tile = FILTER_TILES[name]
    each = _ROWS * tile.depth / _CYCLES / _SHARES[name] * (_UNALIGNED[name] if at.even else 1.0)
    return at.turns * each + _BEGIN + at.slots.nbytes / _SLOT_BYTES


def work(product: Product) -> Work:
    """Sums of shares of the pixels into slots, and the sum of the slots."""
    return work_with(product, tile_for(product))


def work_with(product: Product, name: str) -> Work:
    """The work in a tile of this name."""
    at, partials = _layout(product, name), Scratch(len(product.taken))
    tile = FILTER_TILES[name]
    even = (1, _ROWS, tile.depth, at.row_tiles, at.pixel_blocks, at.tiles * at.pixel_blocks, at.blocks)
    steps = _sum_step(product, name, at, partials), fold_step(product, at.slots, partials, even if at.even else ())
    return Work(steps, (at.slots.nbytes,))


def _sum_step(product: Product, name: str, at: _Layout, partials: Scratch) -> KernelStep:
    g, tile, dtype, phase = product.g, FILTER_TILES[name], product.dtype, forward_phase(product.g)
    kind, size = dtype.name, dtype.itemsize
    numbers = (
        *(at.slots.padded_rows, at.slots.padded_columns, *phase.numbers[:10]),
        *(int(g.conv.mode != "cross_correlation"), int(phase.is_matrix), int(at.even)),
        *(-(-g.in_channels // _BLOCK), _pieces(product), g.out_channels),
        *(at.row_tiles, at.tiles, at.slots.number, at.pixel_blocks),
    )
    maps = (
        TensorMap(0, kind, size, g.batch * prod(g.output), g.out_channels, _BLOCK, _BLOCK),
        phase.input_map(1, dtype, g.in_channels, _BLOCK),
    )
    return KernelStep(
        _FILTER, dtype, (dtype.cuda, str(tile.depth), str(tile.stages)), "filter",
        (at.blocks, 1, 1), _THREADS,
        (product.y.at, product.x.at, partials), numbers,
        shared_bytes=tile.shared_bytes, maps=maps, joint_maps=True,
    )  # fmt: skip


def fold_step(product: Product, slots: Slots, partials: Scratch, even: Numbers = ()) -> KernelStep:
    """The sum of the slots, whose columns are blocks of 64 channels of each tap; `even` tells how many are filled."""
    g, dtype = product.g, product.dtype
    sharing = next((count for count in _SHARING if slots.number <= _SLOTS_EACH * count), _SHARING[-1])
    row = prod(g.taps) * g.in_channels
    numbers = (g.filter_size, row, g.in_channels, -(-g.in_channels // _BLOCK))
    each = _FOLD_THREADS // sharing * _FOLD_VEC
    return KernelStep(
        _FOLD, dtype, (dtype.cuda, str(sharing)), "fold", (-(-g.filter_size // each), 1, 1), _FOLD_THREADS,
        (product.w.at, partials), (float(product.alpha), float(product.beta), *numbers, *slots, *(even or _ALIGNED)),
    )  # fmt: skip


def _instances(dtype: DType) -> dict[str, list[str]]:
    if dtype.name not in ("float16", "bfloat16"):
        return {}
    t = dtype.cuda
    tiles = [f"{t}, {a.depth}, {a.stages}" for a in FILTER_TILES.values()]
    return {
        "filter": [f"conv_hopper_filter<{each}>" for each in tiles],
        "fold": [f"conv_hopper_fold<{t}, {count}>" for count in _SHARING],
    }


CONV_HOPPER_FILTER_FAMILY = Family(_FAMILY, (_FILTER, _FOLD), _instances, only="sm_90a")

#: Takes the 16-bit types.
HOPPER_FILTER = Algorithm("hopper", cannot, library_reason, work)
