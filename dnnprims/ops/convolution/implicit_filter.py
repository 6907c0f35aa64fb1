"""The filter gradient as an implicit product over positions: who shares them, and its steps."""

from __future__ import annotations

from math import prod

from ...descriptors import dense_strides
from ...runtime.launch import NULL, KernelStep, Pointer, Scratch
from ...runtime.limits import MOST_ACROSS
from .geometry import filter_steps, join
from .implicit_fold import fold_step
from .implicit_tiles import Tile, View, Way, packed
from .product import WIDEST_ACCESS, Product, Work

#: Positions that a split has at least, and sums that are stored at once.
FEWEST_POSITIONS, _FOUR = 256, 4


def _shares(way: Way, product: Product) -> tuple[Tile, int, int]:
    """The tile, how many blocks share the positions, and how many each has."""
    _, groups, columns, lines, *_ = product.g.scalars()
    positions = product.g.batch * prod(product.g.output)
    taps = prod(product.g.taps)
    columns, others = (columns * taps, groups) if way.joined else (columns, groups * taps)
    most = max(1, positions // FEWEST_POSITIONS)
    tile = way.tile_for(product.dtype, "filter", lines, columns, others * most)
    blocks = max(1, tile.needed(lines, columns) * others)
    wanted = tile.splits(blocks, min(most, MOST_ACROSS))
    each = max(1, -(-positions // wanted))
    each = -(-each // tile.depth) * tile.depth
    return tile, max(1, -(-positions // each)), each


def filter_reason(way: Way, product: Product) -> str | None:
    """Why it cannot be done, or None."""
    _, splits, _ = _shares(way, product)
    nbytes = _partial_bytes(way, product, splits)
    reason = _packs_reason(way, product) if way.strict else None
    return reason or (product.workspace_reason(nbytes) if nbytes else None)


def _packs_reason(way: Way, product: Product) -> str | None:
    _, _, columns, lines, *_ = product.g.scalars()
    pack, dtype = way.pack(product.dtype), product.dtype
    for name, operand, channels in (("x", product.x, columns), ("dy", product.y, lines)):
        if not View.of(product, operand.strides).packed(dtype, pack, operand.alignment, channels):
            return f"{channels} channels of a group of {name} do not lie in packs of {pack}"
    return None


def _partial_bytes(way: Way, product: Product, splits: int) -> int:
    """Scratch for sums that a fold is to add, and bring in order where taps and channels are joined."""
    return splits * product.g.filter_size * product.dtype.acc.itemsize if splits > 1 or way.joined else 0


def filter_work(way: Way, product: Product) -> Work:
    """The product, and the fold where positions are shared."""
    shares = _shares(way, product)
    splits = shares[1]
    nbytes = _partial_bytes(way, product, splits)
    if not nbytes:
        return Work((_step(way, product, NULL, shares),))
    at = Scratch(len(product.taken))
    return Work((_step(way, product, at, shares), fold_step(product, splits, at)), (nbytes,))


def step_by_images(way: Way, product: Product, partial: Pointer) -> KernelStep:
    """The product with a split for each image."""
    tile, _, _ = _shares(way, product)
    return _step(way, product, partial, (tile, product.g.batch, prod(product.g.output)))


def _step(way: Way, product: Product, partial: Pointer, shares: tuple[Tile, int, int]) -> KernelStep:
    g, dtype = product.g, product.dtype
    tile, splits, each = shares
    batch, groups, columns, lines, *extents = g.scalars()
    image, output, taps, stride, dilation, padding = (tuple(extents[at : at + 3]) for at in range(0, 18, 3))
    x, y = View.of(product, product.x.strides), View.of(product, product.y.strides)
    first, (outer, channel, *spatial) = filter_steps(g.conv, g.taps, product.w.strides)
    taps_way = tuple(spatial)
    if partial != NULL:
        dense = dense_strides(join(g.conv, g.out_channels, columns, g.taps))
        first, (outer, channel, taps_way) = 0, View.of(product, dense)
    axes = [
        number[axis]
        for axis in range(3)
        for number in (output, image, taps, stride, dilation, padding, y.spatial, x.spatial, taps_way)
    ]
    pack = way.pack(dtype)
    y_packed = y.packed(dtype, pack, product.y.alignment, lines)
    x_packed = x.packed(dtype, pack, product.x.alignment, columns)
    across, rounds = (columns * prod(taps), 1) if way.joined else (columns, prod(taps))
    lie = (across, 1, outer) if way.joined else (columns, channel, outer, *taps_way)
    w_packed = packed(dtype, _FOUR, WIDEST_ACCESS, *lie)
    counts = (batch, lines, columns, -(-across // tile.columns), prod(taps), batch * prod(output), each)
    return KernelStep(
        way.filter, dtype, way.template(dtype, tile), "filter",
        (tile.needed(lines, across) * rounds, groups, splits), tile.threads,
        (product.w.at, product.y.at, product.x.at, partial),
        (float(product.alpha), float(product.beta), g.filter_size, *counts, y.outer, y.channel, x.outer, x.channel,
         outer, channel, first, *axes, y_packed, int(y.channel == 1), x_packed, int(x.channel == 1), w_packed),
        shared_bytes=tile.shared_bytes,
    )  # fmt: skip
