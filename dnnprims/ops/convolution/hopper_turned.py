"""The gradient in the filters in TF32 on Hopper: when it can be, which tile it is done in, and its three launches."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import NamedTuple

from ...dtypes import DType
from ...runtime.launch import Family, Kernel, KernelStep, Pointer, Scratch, Struct
from ...runtime.tensor_map import SWIZZLED_ROW, BoxMap, WindowMap
from .geometry import Numbers
from .hopper import image_reason, library_reason
from .hopper_filter import Slots, fold_step
from .hopper_phases import forward_phase
from .product import WIDEST_ACCESS, Algorithm, Operand, Product, Work
from .relaid import Positioned, copy_step

_NUMBERS = (
    *("positions", "width", "stride_h", "stride_w", "top", "left", "dilation_h", "dilation_w", "taps_h", "taps_w"),
    *("flipped", "matrix", "channels", "channel_blocks", "pieces", "filters"),
    *("row_tiles", "tiles", "pixel_blocks", "splits"),
)
_SUMS = Kernel(
    "convolution_hopper_turned",
    "conv_hopper_turned",
    Struct(
        "ConvTurnedParams",
        ("dy", "x", "partials"),
        (("padded_rows", "i64"), ("padded_columns", "i64"), *((name, "i32") for name in _NUMBERS)),
    ),
)
#: Threads; pixels of a stage; channels of a piece; bytes of 64 channels or of 32 pixels of dy's lines.
_THREADS, _PIXELS, _PIECE, _LANES = 384, 32, 64, 4


class Tile(NamedTuple):
    """Pieces of 64 channels in of each of two consumers, channels out, and stages that fit."""

    pieces: int
    columns: int
    stages: int

    @property
    def shared_bytes(self) -> int:
        """Stages, barriers, and what aligning them may take."""
        return self.stages * ((2 * self.pieces * _PIECE + self.columns) * SWIZZLED_ROW + 16) + 1024


#: Channels in x channels out of a tile.
TILES = {
    "256x128": Tile(2, 128, 4),
    "128x256": Tile(1, 256, 4),
    "256x64": Tile(2, 64, 5),
}
#: Share of the tensor cores' rate that the products of a tile reach; products of 64 x 64 x 32 in a cycle.
_SHARES, _CYCLES = {"256x128": 0.7, "128x256": 0.75, "256x64": 0.5}, 32


def cannot(product: Product) -> str | None:
    """Why the product is not for these kernels, or None."""
    if product.dtype.name != "float32" or product.profile.math != "tf32":
        return "for float32 in TF32"
    reason = image_reason(product, tf32=True)
    if reason:
        return reason
    if not product.g.batch * prod(product.g.output):
        return "no pixels to sum over"
    return product.workspace_reason(sum(work(product).scratch))


class _Layout(NamedTuple):
    """Tiles along channels out, of all, blocks of pixels, and how many share these."""

    row_tiles: int
    tiles: int
    pixel_blocks: int
    splits: int


def _pieces(product: Product) -> int:
    return prod(product.g.taps) * -(-product.g.in_channels // _PIECE)


def _pixels(product: Product) -> int:
    return product.g.batch * prod(product.g.output)


def _layout(product: Product, name: str) -> _Layout:
    tile, most = TILES[name], product.profile.sm_count
    rows = -(-product.g.out_channels // tile.columns)
    tiles, blocks = rows * -(-_pieces(product) // (2 * tile.pieces)), -(-_pixels(product) // _PIXELS)
    return _Layout(rows, tiles, blocks, max(1, min(most // tiles, blocks)))


def _cycles(product: Product, name: str) -> float:
    tile, at = TILES[name], _layout(product, name)
    turns = -(-at.tiles * at.splits // product.profile.sm_count) * -(-at.pixel_blocks // at.splits)
    return turns * 2 * tile.pieces * _PIECE * tile.columns / _CYCLES / _SHARES[name]


def tile_for(product: Product) -> str:
    """The tile that is estimated to be done first."""
    return min(TILES, key=lambda name: _cycles(product, name))


def work(product: Product, steps: Numbers = ()) -> Work:
    """A copy of dy, sums of shares of the pixels into slots, and the sum of the slots; x may have steps (n, h, w)."""
    name = tile_for(product)
    tile, at = TILES[name], _layout(product, name)
    pieces = 2 * tile.pieces
    slots = Slots(at.splits, at.row_tiles * tile.columns, -(-_pieces(product) // pieces) * pieces * _PIECE)
    partials, dy = (Scratch(len(product.taken) + k) for k in range(2))
    copy = _turned(product, dy)
    sums = _sum_step(product, tile, at, slots, (product.x.at, dy, partials), steps)
    return Work((copy, sums, fold_step(product, slots, partials)), (slots.nbytes, _turned_bytes(product)))


def _pitch(product: Product) -> int:
    """Elements from a line of dy to the next."""
    return -(-_pixels(product) // _LANES) * _LANES


def _turned_bytes(product: Product) -> int:
    return product.g.out_channels * _pitch(product) * product.dtype.itemsize


def _turned(product: Product, to: Pointer) -> KernelStep:
    """A line of pixels for each channel out."""
    k, pixels, pitch = product.g.out_channels, _pixels(product), _pitch(product)
    own = Positioned(product.y, 1, k, pixels, (pixels * k, 1, k))
    home = Positioned(Operand(to, (), WIDEST_ACCESS), 1, k, pixels, (pitch * k, pitch, 1))
    return copy_step(product.dtype, own, home)


def _sum_step(
    product: Product, tile: Tile, at: _Layout, slots: Slots, places: tuple[Pointer, Pointer, Pointer], steps: Numbers
) -> KernelStep:
    g, dtype, phase = product.g, product.dtype, forward_phase(product.g)
    x, dy, partials = places
    numbers = (
        *(slots.padded_rows, slots.padded_columns, *phase.numbers[:10]),
        *(int(g.conv.mode != "cross_correlation"), int(phase.is_matrix)),
        *(g.in_channels, -(-g.in_channels // _PIECE), _pieces(product), g.out_channels, *at),
    )
    lines = BoxMap(0, "tf32", 4, (_pixels(product), g.out_channels), (_pitch(product),), (_PIXELS, tile.columns))
    windows = phase.input_map(1, dtype, g.in_channels, _PIXELS)
    if steps:
        assert isinstance(windows, WindowMap)
        image, row, pixel = steps
        windows = replace(windows, steps=(pixel, row, image))
    return KernelStep(
        _SUMS, dtype, (dtype.cuda, *map(str, tile)), "filter",
        (min(at.tiles * at.splits, product.profile.sm_count), 1, 1), _THREADS, (dy, x, partials), numbers,
        shared_bytes=tile.shared_bytes, maps=(lines, windows), joint_maps=True,
    )  # fmt: skip


def _instances(dtype: DType) -> dict[str, list[str]]:
    if dtype.name != "float32":
        return {}
    return {"filter": [f"conv_hopper_turned<{', '.join((dtype.cuda, *map(str, tile)))}>" for tile in TILES.values()]}


CONV_HOPPER_TURNED_FAMILY = Family("convolution_hopper_turned", (_SUMS,), _instances, only="sm_90a")

#: Takes TF32.
HOPPER_TURNED = Algorithm("hopper_turned", cannot, library_reason, work)
