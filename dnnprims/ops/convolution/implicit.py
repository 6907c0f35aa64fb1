"""Implicit matrix products with fused multiply-adds: parameter structs, tiles, splits, and when they pay."""

from __future__ import annotations

from math import gcd, prod
from typing import NamedTuple

from ...descriptors import dense_strides
from ...dtypes import DType
from ...runtime.launch import NULL, Family, Kernel, KernelStep, Pointer, Scratch, Struct, blocks_for
from .direct import forward_step
from .geometry import Numbers, filter_steps, join, steps
from .product import WIDEST_ACCESS, Algorithm, Operand, Product, Work

_FOLD_BLOCK = 256
#: Elements of a pack.
_FOUR = 4
#: Offsets have 32 bits in the kernels, with room for padding; positions likewise.
_MOST_ELEMENTS, _MOST_EXTENT = 2**30, 2**28
_MOST_BLOCKS = 65535  # of a grid along y and z

# Splits: as many blocks as keep two on each of 132 multiprocessors, of this many slices or positions at least. Sums are
# added up in their order, so these numbers decide on bits and follow from shapes alone.
_BLOCKS, _FEWEST_SLICES, _FEWEST_POSITIONS = 264, 16, 256
#: Activations that the products apply themselves; the others are left to the fold.
_FUSED = ("identity", "relu")


def _axes(names: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{name}_{axis}", "i32") for axis in "dhw" for name in names.split())


def _ints(names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, "i32") for name in names.split())


_FACTORS = tuple((name, "A") for name in ("alpha1", "alpha2", "alpha", "beta"))
_AFTER = ("b", "residual", "scale", "shift")
_GATHER = Kernel(
    "convolution_implicit",
    "implicit_gather",
    Struct(
        "ImplicitGatherParams",
        ("result", "source", "w", *_AFTER, "partial"),
        (
            *_FACTORS,
            ("partial_size", "i64"),
            *_ints("images terms lines column_tiles splits result_outer result_channel source_outer source_channel"),
            *_ints("residual_outer residual_channel w_term w_line w_group w_first"),
            *_axes(
                "result source taps stride dilation padding period hop result_step source_step tap_step residual_step"
            ),
            *_ints("backwards source_packed source_along_terms w_packed w_along_terms result_packed relu padded"),
        ),
    ),
)
_FILTER = Kernel(
    "convolution_implicit",
    "implicit_filter",
    Struct(
        "ImplicitFilterParams",
        ("dw", "dy", "x", "partial"),
        (
            *(("alpha", "A"), ("beta", "A"), ("partial_size", "i64")),
            *_ints("images lines columns column_tiles taps positions per_split y_outer y_channel x_outer x_channel"),
            *_ints("w_outer w_channel w_first"),
            *_axes("output image taps stride dilation padding y_step x_step w_step"),
            *_ints("y_packed y_along_channels x_packed x_along_channels w_packed"),
        ),
    ),
)
_STEPS = "outer channel d h w"
_FOLD = Kernel(
    "convolution_implicit",
    "implicit_fold",
    Struct(
        "ImplicitFoldParams",
        ("result", "partial", *_AFTER),
        (
            *_FACTORS,
            *((name, "i64") for name in ["size", "splits", "first", "channels", "extent_d", "extent_h", "extent_w"]),
            *((f"{name}_{step}", "i64") for name in ("result", "residual") for step in _STEPS.split()),
            *_ints("channels_last relu"),
        ),
    ),
)
_REPACK = Kernel(
    "convolution_implicit",
    "implicit_repack",
    Struct(
        "ImplicitRepackParams",
        ("packed", "w"),
        tuple(
            (name, "i64")
            for name in (
                *["size", "taps_d", "taps_h", "taps_w", "terms", "lines", "lines_padded"],
                *(f"step_{name}" for name in ["group", "d", "h", "w", "term", "line"]),
                "first",
            )
        ),
    ),
)


class _Tile(NamedTuple):
    """Rows and columns of a block, results of a thread along each, terms of a slice: `Tile` of the kernels."""

    rows: int
    columns: int
    each: int
    depth: int

    @property
    def threads(self) -> int:
        return self.rows * self.columns // self.each**2

    def needed(self, rows: int, columns: int) -> int:
        return -(-rows // self.rows) * -(-columns // self.columns)


_LARGE, _SMALL, _DOUBLE = _Tile(128, 128, 8, 8), _Tile(64, 64, 8, 8), _Tile(64, 64, 4, 16)


def _tiles(dtype: DType) -> tuple[_Tile, ...]:
    """From the largest; float32 alone is worth two."""
    if dtype.name == "float64":
        return (_DOUBLE,)
    return (_LARGE, _SMALL) if dtype.name == "float32" else (_SMALL,)


def _tile_for(product: Product, rows: int, columns: int, others: int) -> _Tile:
    """The larger one where there are enough of them and their edges do not stick out much further."""
    large, *rest = _tiles(product.dtype)
    if not rest or (
        large.needed(rows, columns) * others >= _BLOCKS
        and _wasted(large, rows, columns) <= 1.1 * _wasted(rest[0], rows, columns)
    ):
        return large
    return rest[0]


def _wasted(tile: _Tile, rows: int, columns: int) -> int:
    return tile.needed(rows, columns) * tile.rows * tile.columns


class _View(NamedTuple):
    """An operand as the kernels walk it: steps of images or filters, channels, and the spatial axes."""

    outer: int
    channel: int
    spatial: Numbers

    @classmethod
    def of(cls, product: Product, operand: Operand) -> _View:
        outer, channel, *spatial = steps(product.g.conv, operand.strides)
        return cls(outer, channel, tuple(spatial))


def _packed(dtype: DType, alignment: int, channels: int, along: int, *others: int) -> int:
    """Whether four channels lie together on a boundary, wherever the other steps lead."""
    wide = min(WIDEST_ACCESS, _FOUR * dtype.itemsize)
    whole = along == 1 and alignment >= wide and not any(n % _FOUR for n in (channels, *others))
    return int(whole)


# -- forward and data --------------------------------------------------------------------------------------------------


class _Gather(NamedTuple):
    """Forward or data gradient as one product: `terms` channels in, `lines` channels out of each group."""

    product: Product
    backwards: bool
    terms: int
    lines: int
    result: Operand
    source: Operand
    result_extents: Numbers
    source_extents: Numbers

    @classmethod
    def of(cls, product: Product) -> _Gather:
        _, _, in_per_group, out_per_group, *extents = product.g.scalars()
        image, output = tuple(extents[:3]), tuple(extents[3:6])
        if product.direction == "forward":
            return cls(product, False, in_per_group, out_per_group, product.y, product.x, output, image)
        return cls(product, True, out_per_group, in_per_group, product.x, product.y, image, output)

    @property
    def axes(self) -> list[Numbers]:
        """Taps, stride, dilation and padding of each spatial axis."""
        numbers = self.product.g.scalars()[10:]
        return [tuple(numbers[axis::3]) for axis in range(3)]

    @property
    def phases(self) -> int:
        return prod(stride for _, stride, _, _ in self.axes) if self.backwards else 1

    @property
    def rows(self) -> int:
        """Of the largest phase."""
        strides = [stride if self.backwards else 1 for _, stride, _, _ in self.axes]
        return self.product.g.batch * prod(-(-n // s) for n, s in zip(self.result_extents, strides, strict=True))

    @property
    def tile(self) -> _Tile:
        return _tile_for(self.product, self.rows, self.lines, self.product.g.conv.groups * self.phases)

    @property
    def blocks(self) -> int:
        return max(1, self.tile.needed(self.rows, self.lines) * self.product.g.conv.groups * self.phases)

    @property
    def splits(self) -> int:
        """How many blocks share the terms of a tile."""
        taps = -(-prod(self.product.g.taps) // self.phases)
        slices, blocks = taps * -(-self.terms // self.tile.depth), self.blocks
        if 2 * blocks > _BLOCKS:
            return 1
        return max(1, min(-(-_BLOCKS // blocks), slices // _FEWEST_SLICES))

    @property
    def partial_bytes(self) -> int:
        """Scratch for the sums, where they are not finished by the product itself."""
        if self.splits == 1 and self.product.then.activation.mode in _FUSED:
            return 0
        return self.splits * self.size * self.product.dtype.acc.itemsize

    @property
    def size(self) -> int:
        return self.product.g.batch * self.product.g.conv.groups * self.lines * prod(self.result_extents)

    @property
    def padded(self) -> bool:
        """Whether a tap may lie outside of the source."""
        before_and_after = self.product.g.conv.paddings(self.product.g.axes)
        return self.backwards or any(any(pads) for pads in before_and_after)


def _weights_of(gather: _Gather) -> tuple[int, int, int, Numbers, int]:
    """Steps of terms, lines, groups and taps, and the first element."""
    product = gather.product
    first, (outer, channel, *taps) = filter_steps(product.g.conv, product.g.taps, product.w.strides)
    group = product.g.scalars()[3] * outer
    return (*((outer, channel) if gather.backwards else (channel, outer)), group, tuple(taps), first)


class _Weights(NamedTuple):
    """The filters as a gather reads them."""

    at: Pointer
    term: int
    line: int
    group: int
    taps: Numbers
    first: int
    packed: int
    along_terms: int


def _weights_in_place(gather: _Gather) -> _Weights:
    dtype, alignment = gather.product.dtype, gather.product.w.alignment
    term, line, group, taps, first = _weights_of(gather)
    along = term == 1
    unit, other, count = (term, line, gather.terms) if along else (line, term, gather.lines)
    packed = _packed(dtype, alignment, count, unit, other, group, first, *taps)
    return _Weights(gather.product.w.at, term, line, group, taps, first, packed, int(along))


def _repacked_bytes(gather: _Gather) -> int:
    """Scratch for filters whose channels lie apart; 0 where they are read in place."""
    if 1 in _weights_of(gather)[:2]:
        return 0
    padded = -(-gather.lines // _FOUR) * _FOUR
    g = gather.product.g
    return g.conv.groups * prod(g.taps) * gather.terms * padded * gather.product.dtype.itemsize


def _repack_step(gather: _Gather, at: Pointer) -> tuple[KernelStep, _Weights]:
    product, dtype = gather.product, gather.product.dtype
    term, line, group, taps, first = _weights_of(gather)
    extents, padded = product.g.scalars()[10:13], -(-gather.lines // _FOUR) * _FOUR
    size = _repacked_bytes(gather) // dtype.itemsize
    per_tap = gather.terms * padded
    tap_steps = (extents[1] * extents[2] * per_tap, extents[2] * per_tap, per_tap)
    # Read from the first tap on: a flipped filter is unflipped here.
    source = (group, *taps, term, line)
    step = KernelStep(
        _REPACK, dtype, (dtype.cuda,), "repack", blocks_for(size, _FOLD_BLOCK), _FOLD_BLOCK, (at, product.w.at),
        (size, *extents, gather.terms, gather.lines, padded, *source, first),
    )  # fmt: skip
    return step, _Weights(at, padded, 1, prod(extents) * per_tap, tap_steps, 0, 1, 0)


def _gather_work(product: Product) -> Work:
    gather, region = _Gather.of(product), len(product.taken)
    made: list[KernelStep] = []
    scratch: list[int] = []
    weights, nbytes = _weights_in_place(gather), _repacked_bytes(gather)
    if nbytes:
        step, weights = _repack_step(gather, Scratch(region))
        made, scratch = [step], [nbytes]
    partial = gather.partial_bytes
    at = Scratch(region + len(scratch)) if partial else None
    made.append(_gather_step(gather, weights, at))
    if at is not None:
        scratch.append(partial)
        made.append(_fold_step(product, gather.splits, at))
    return Work(tuple(made), tuple(scratch))


def _gather_step(gather: _Gather, weights: _Weights, partial: Pointer | None) -> KernelStep:
    product, g, tile = gather.product, gather.product.g, gather.tile
    then, dtype = product.then, product.dtype
    source, result = _View.of(product, gather.source), _View.of(product, gather.result)
    result_alignment = gather.result.alignment
    if partial is not None:
        shape = g.y_shape if product.direction == "forward" else g.x_shape
        result, result_alignment = _View(*_dense(product, shape)), WIDEST_ACCESS
    residual = _View.of(product, then.residual) if then.residual else _View(0, 0, (0, 0, 0))
    axes = []
    for axis, (taps, stride, dilation, padding) in enumerate(gather.axes):
        common = gcd(stride, dilation)
        axes += [gather.result_extents[axis], gather.source_extents[axis], taps, stride, dilation, padding]
        axes += [stride // common, dilation // common, result.spatial[axis], source.spatial[axis]]
        axes += [weights.taps[axis], residual.spatial[axis]]
    column_tiles = -(-gather.lines // tile.columns)
    source_packed = _packed(dtype, gather.source.alignment, gather.terms, source.channel, source.outer, *source.spatial)
    # Sums have the accumulator's size: four of them are aligned where four of any type are.
    result_packed = _packed(dtype, result_alignment, gather.lines, result.channel, result.outer, *result.spatial)
    numbers = (float(then.alpha1), float(then.alpha2), float(product.alpha), float(product.beta))
    counts = (g.batch, gather.terms, gather.lines, column_tiles, gather.splits)
    way = (result.outer, result.channel, source.outer, source.channel, residual.outer, residual.channel)
    relu = int(then.activation.mode == "relu")
    flags = (int(gather.backwards), source_packed, int(source.channel == 1), weights.packed, weights.along_terms)
    operand = NULL if partial is None else partial
    return KernelStep(
        _GATHER, dtype, (dtype.cuda, str(tile.rows), str(tile.columns)), "gather",
        (tile.needed(gather.rows, gather.lines), g.conv.groups, gather.phases * gather.splits), tile.threads,
        (gather.result.at, gather.source.at, weights.at, *_after(product), operand),
        (*numbers, gather.size, *counts, *way, weights.term, weights.line, weights.group, weights.first, *axes,
         *flags, result_packed, relu, int(gather.padded)),
    )  # fmt: skip


def _after(product: Product) -> tuple[Pointer, ...]:
    then = product.then
    return (then.b, then.residual.at if then.residual else NULL, then.scale, then.shift)


def _dense(product: Product, shape: Numbers) -> tuple[int, int, Numbers]:
    outer, channel, *spatial = steps(product.g.conv, dense_strides(shape))
    return outer, channel, tuple(spatial)


def _fold_step(product: Product, splits: int, at: Pointer) -> KernelStep:
    """Sums of splits to the result, in the order of its memory."""
    g, then, dtype = product.g, product.then, product.dtype
    if then.activation.mode not in _FUSED:
        return forward_step(product, at, splits)
    numbers = g.scalars()
    first = 0
    if product.direction == "filter":
        outer, channels, extents, result = g.out_channels, numbers[2], numbers[10:13], product.w
        first, way = filter_steps(g.conv, g.taps, product.w.strides)
    else:
        forward = product.direction == "forward"
        result = product.y if forward else product.x
        outer, channels = g.batch, g.out_channels if forward else g.in_channels
        extents, way = numbers[7:10] if forward else numbers[4:7], steps(g.conv, result.strides)
    residual = steps(g.conv, then.residual.strides) if then.residual else (0,) * 5
    size = outer * channels * prod(extents)
    factors = (then.alpha1, then.alpha2, product.alpha, product.beta)
    flags = (int(g.conv.channels_last), int(then.activation.mode == "relu"))
    return KernelStep(
        _FOLD, dtype, (dtype.cuda,), "fold", blocks_for(size, _FOLD_BLOCK), _FOLD_BLOCK,
        (result.at, at, *_after(product)),
        (*map(float, factors), size, splits, first, channels, *extents, *way, *residual, *flags),
    )  # fmt: skip


# -- filter ------------------------------------------------------------------------------------------------------------


def _filter_splits(product: Product) -> tuple[_Tile, int, int]:
    """The tile, how many blocks share the positions, and how many each has."""
    _, groups, columns, lines, *_ = product.g.scalars()
    positions = product.g.batch * prod(product.g.output)
    others = groups * prod(product.g.taps)
    most = max(1, positions // _FEWEST_POSITIONS)
    tile = _tile_for(product, lines, columns, others * most)
    wanted = min(most, max(1, -(-2 * _BLOCKS // (tile.needed(lines, columns) * others))), _MOST_BLOCKS)
    each = max(1, -(-positions // wanted))
    each = -(-each // tile.depth) * tile.depth
    return tile, max(1, -(-positions // each)), each


def _filter_work(product: Product) -> Work:
    _, splits, _ = _filter_splits(product)
    if splits == 1:
        return Work((_filter_step(product, NULL),))
    at = Scratch(len(product.taken))
    nbytes = splits * product.g.filter_size * product.dtype.acc.itemsize
    return Work((_filter_step(product, at), _fold_step(product, splits, at)), (nbytes,))


def _filter_step(product: Product, partial: Pointer) -> KernelStep:
    g, dtype = product.g, product.dtype
    tile, splits, each = _filter_splits(product)
    batch, groups, columns, lines, *extents = g.scalars()
    image, output, taps, stride, dilation, padding = (tuple(extents[at : at + 3]) for at in range(0, 18, 3))
    x, y = _View.of(product, product.x), _View.of(product, product.y)
    first, (outer, channel, *spatial) = filter_steps(g.conv, g.taps, product.w.strides)
    way = tuple(spatial)
    if partial != NULL:
        first, (outer, channel, way) = 0, _dense(product, join(g.conv, g.out_channels, columns, g.taps))
    axes = [
        number[axis]
        for axis in range(3)
        for number in (output, image, taps, stride, dilation, padding, y.spatial, x.spatial, way)
    ]
    y_packed = _packed(dtype, product.y.alignment, lines, y.channel, y.outer, *y.spatial)
    x_packed = _packed(dtype, product.x.alignment, columns, x.channel, x.outer, *x.spatial)
    w_packed = int(channel == 1 and not any(n % _FOUR for n in (columns, outer, *way)))
    counts = (batch, lines, columns, -(-columns // tile.columns), prod(taps), batch * prod(output), each)
    return KernelStep(
        _FILTER, dtype, (dtype.cuda, str(tile.rows), str(tile.columns)), "filter",
        (tile.needed(lines, columns) * prod(taps), groups, splits), tile.threads,
        (product.w.at, product.y.at, product.x.at, partial),
        (float(product.alpha), float(product.beta), g.filter_size, *counts, y.outer, y.channel, x.outer, x.channel,
         outer, channel, first, *axes, y_packed, int(y.channel == 1), x_packed, int(x.channel == 1), w_packed),
    )  # fmt: skip


# -- the choice --------------------------------------------------------------------------------------------------------


def _cannot(product: Product) -> str | None:
    reason = _too_large(product)
    if reason:
        return reason
    if product.direction == "filter":
        _, splits, _ = _filter_splits(product)
        nbytes = splits * product.g.filter_size * product.dtype.acc.itemsize if splits > 1 else 0
        return product.workspace_reason(nbytes) if nbytes else None
    gather = _Gather.of(product)
    if gather.phases * gather.splits > _MOST_BLOCKS:
        return f"{gather.phases} residues of the strides"
    nbytes = _repacked_bytes(gather) + gather.partial_bytes
    return product.workspace_reason(nbytes) if nbytes else None


def _too_large(product: Product) -> str | None:
    g = product.g
    operands = [(product.x, g.x_shape), (product.y, g.y_shape), (product.w, _w_shape(product))]
    if product.then.residual:
        operands.append((product.then.residual, g.y_shape))
    for operand, shape in operands:
        reach = sum(n * abs(step) for n, step in zip(shape, operand.strides, strict=True))
        if max(reach, prod(shape)) >= _MOST_ELEMENTS:
            return f"an operand reaches over {reach} elements, offsets have 32 bits"
    numbers = zip(
        g.image, g.taps, g.conv.paddings(g.axes), g.conv.dilations(g.axes), g.conv.strides(g.axes), strict=True
    )
    most = max(i + sum(pads) + r * dilation + stride for i, r, pads, dilation, stride in numbers)
    if most >= _MOST_EXTENT or g.conv.groups > _MOST_BLOCKS:
        return f"extents of {most} with padding and dilation, and {g.conv.groups} groups"
    return None


def _w_shape(product: Product) -> Numbers:
    g = product.g
    return join(g.conv, g.out_channels, g.in_channels // g.conv.groups, g.taps)


def _slower(product: Product) -> str | None:
    """Tiles are mostly empty where few channels go out, and slices where few go in."""
    _, _, columns, lines, *_ = product.g.scalars()
    if min(columns, lines) < _FEWEST_CHANNELS:
        return f"{columns} and {lines} channels of a group, fewer than {_FEWEST_CHANNELS} do not fill a tile"
    return None


#: Channels of a group on either side from which on a tile has enough to do.
_FEWEST_CHANNELS = 8


def _work(product: Product) -> Work:
    return _filter_work(product) if product.direction == "filter" else _gather_work(product)


IMPLICIT_FFMA = Algorithm("implicit_ffma", _cannot, _slower, _work)


def _instances(dtype: DType) -> dict[str, list[str]]:
    t = dtype.cuda
    shapes = [f"{t}, {tile.rows}, {tile.columns}" for tile in _tiles(dtype)]
    return {
        "gather": [f"implicit_gather<{shape}>" for shape in shapes],
        "filter": [f"implicit_filter<{shape}>" for shape in shapes],
        "repack": [f"implicit_repack<{t}>"],
        "fold": [f"implicit_fold<{t}>"],
    }


IMPLICIT_FAMILY = Family("convolution_implicit", (_GATHER, _FILTER, _FOLD, _REPACK), _instances)
