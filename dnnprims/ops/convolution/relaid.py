"""Other layouts and other numbers of channels for an algorithm that takes channels side by side in packs of 16 bytes.

Images, filters and residual are copied to where the algorithm takes them, and what it makes is copied back. The copies
cost bandwidth, the product is the algorithm's.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import NamedTuple

from ...descriptors import dense_strides
from ...dtypes import DType
from ...runtime.launch import NULL, Family, Kernel, KernelStep, Scratch, Struct, blocks_for
from ...runtime.limits import MOST_BLOCKS
from .geometry import Geometry, Numbers, split
from .product import WIDEST_ACCESS, Algorithm, Operand, Product, Work

_LAYOUT = Kernel(
    "convolution_layout",
    "conv_layout",
    Struct(
        "ConvLayoutParams",
        ("y", "x"),
        tuple(
            (name, "i64")
            for name in (
                *("outer", "positions", "channels", "to_channels"),
                *("x_outer", "x_channel", "x_position", "y_outer", "y_channel", "y_position"),
            )
        ),
    ),
)
#: Copies of filters of groups (`hopper_groups`).
FILTERS = Kernel(
    "convolution_layout",
    "conv_group_filters",
    Struct("ConvGroupFiltersParams", ("y", "w"), (("size", "i64"), ("taps", "i64"), ("group", "i64"))),
)
OWN_FILTERS = Kernel(
    "convolution_layout",
    "conv_own_filters",
    Struct(
        "ConvOwnFiltersParams",
        ("y", "w"),
        tuple((name, "i64") for name in ("size", "taps", "channels", "group", "filters_of_group")),
    ),
)
_WHOLE = Kernel(
    "convolution_layout",
    "conv_whole_planes",
    Struct(
        "ConvWholePlanesParams",
        ("y", "x"),
        tuple(
            (name, "i64") for name in ("chunks", "chunk", "positions", "planes_outer", "last_outer", "last_position")
        ),
    ),
)
#: Channels of a block that copies planes whole, from the most, and the most elements that it takes.
_CHUNKS, _MOST_WHOLE = (64, 32, 16), 8192
#: Side of a tile, threads of a block.
_SIDE, _THREADS = 64, 256
#: Types that there are copies for: those with products on tensor cores.
_TYPES = ("float16", "bfloat16", "float32")


class Positioned(NamedTuple):
    """Images or filters with their positions in one row: where, how many, and steps; `planes` where positions touch."""

    at: Operand
    outer: int
    channels: int
    positions: int
    steps: Numbers  # outer, channel, position

    @property
    def planes(self) -> bool:
        return self.steps[2] == 1 and (self.steps[1] != 1 or self.channels == 1)

    def vec(self, dtype: DType) -> int:
        """Elements of one access along what lies side by side."""
        side, others = (self.positions, self.steps[:2]) if self.planes else (self.channels, self.steps[::2])
        widths = (dtype.lanes, dtype.lanes // 2) if self.planes else (dtype.lanes,)
        fitting = [width for width in widths if not any(extent % width for extent in (side, *others))]
        return fitting[0] if fitting and self.at.alignment == WIDEST_ACCESS else 1


def after_copies(inner: Algorithm) -> Algorithm:
    """The algorithm behind copies, for products that it does not take as they are."""

    def cannot(product: Product) -> str | None:
        if not inner.cannot(product):
            return f"{inner.name} takes it without copies"
        return _reason(product) or inner.cannot(_relaid(product)) or _workspace_reason(product, inner)

    return Algorithm(
        f"{inner.name}_after_copies",
        cannot,
        lambda product: inner.slower(_relaid(product)),
        lambda product: _work(product, inner),
    )


def _reason(product: Product) -> str | None:
    g, then = product.g, product.then
    if product.dtype.name not in _TYPES:
        return f"no copies of {product.dtype.name}"
    if product.alpha != 1.0 or product.beta != 0.0:
        return "alpha and beta would be applied after a rounding"
    padded = _padded(product)
    if padded != g and g.conv.groups > 1:
        return "channels of groups cannot be padded"
    if padded.out_channels != g.out_channels and any(a is not NULL for a in (then.b, then.scale, then.shift)):
        return f"{g.out_channels} channels with bias, scale or shift, must be a multiple of {product.dtype.lanes}"
    if padded.in_channels != g.in_channels and product.direction == "data" and then.b is not NULL:
        return f"{g.in_channels} channels with bias, must be a multiple of {product.dtype.lanes}"
    return next(filter(None, (copy_reason(product, name, padded) for name in _operands(product))), None)


def copy_reason(product: Product, name: str, g: Geometry | None = None) -> str | None:
    """Why an operand, whose channels may be padded by then, cannot be copied, or None."""
    if positioned(product, name) is None:
        return "spatial axes that do not follow each other without gaps"
    tiles = _tiles(*_shape(g or product.g, name))
    return f"{tiles} tiles to copy, at most {MOST_BLOCKS[0]}" if tiles > MOST_BLOCKS[0] else None


def _tiles(outer: int, channels: int, *extents: int) -> int:
    """Blocks of a copy, channels padded."""
    return outer * -(-prod(extents) // _SIDE) * -(-channels // _SIDE)


def _workspace_reason(product: Product, inner: Algorithm) -> str | None:
    return product.workspace_reason(sum(_work(product, inner).scratch))


def _operands(product: Product) -> dict[str, Operand]:
    named = {"x": product.x, "w": product.w, "y": product.y}
    return {**named, "residual": product.then.residual} if product.then.residual else named


def _shape(g: Geometry, name: str) -> Numbers:
    """Extents of an operand: outer, channels, spatial."""
    if name == "w":
        return (g.out_channels, g.in_channels // g.conv.groups, *g.taps)
    return (g.batch, g.in_channels, *g.image) if name == "x" else (g.batch, g.out_channels, *g.output)


def positioned(product: Product, name: str) -> Positioned | None:
    """An operand with its positions in one row, or None where they do not lie so."""
    at = _operands(product)[name]
    outer, channels, *extents = _shape(product.g, name)
    outer_step, channel_step, spatial = split(product.g.conv, at.strides)
    walk = [(extent, step) for extent, step in zip(extents, spatial, strict=True) if extent > 1]
    for (_, step), (extent, below) in pairwise(walk):
        if step != extent * below:
            return None
    position_step = walk[-1][1] if walk else 1
    if 1 not in (channel_step, position_step):
        return None
    return Positioned(at, outer, channels, prod(extents), (outer_step, channel_step, position_step))


def _padded(product: Product) -> Geometry:
    """The same problem with channels side by side, as many as fill packs."""
    g, lanes = product.g, product.dtype.lanes
    return g._replace(
        conv=replace(g.conv, layout="NHWC"),
        in_channels=-(-g.in_channels // lanes) * lanes,
        out_channels=-(-g.out_channels // lanes) * lanes,
    )


def _home(product: Product, name: str, number: int) -> Operand:
    """The place of an operand among the scratch, channels last."""
    outer, channels, *spatial = _shape(_padded(product), name)
    return Operand(Scratch(len(product.taken) + number), dense_strides((outer, *spatial, channels)), WIDEST_ACCESS)


def _relaid(product: Product) -> Product:
    homes = {name: _home(product, name, number) for number, name in enumerate(_operands(product))}
    return product._replace(
        g=_padded(product),
        x=homes["x"],
        w=homes["w"],
        y=homes["y"],
        then=product.then._replace(residual=homes.get("residual")),
        taken=(*product.taken, *_sizes(product)),
    )


def _sizes(product: Product) -> Numbers:
    itemsize, padded = product.dtype.itemsize, _padded(product)
    return tuple(prod(_shape(padded, name)) * itemsize for name in _operands(product))


def _work(product: Product, inner: Algorithm) -> Work:
    result = {"forward": "y", "data": "x", "filter": "w"}[product.direction]
    moved = _relaid(product)
    done = inner.work(moved)
    shapes = {name: _shape(product.g, name) for name in _operands(product)}
    read = [name for name, shape in shapes.items() if name != result and 0 not in shape]
    into = [_copy(product, name, into=True) for name in read]
    return Work((*into, *done.steps, _copy(product, result, into=False)), (*_sizes(product), *done.scratch))


def _copy(product: Product, name: str, *, into: bool) -> KernelStep:
    """Between an operand and its place among the scratch."""
    dtype, own = product.dtype, positioned(product, name)
    assert own is not None
    number = list(_operands(product)).index(name)
    home = _home(product, name, number)
    outer, channels, *spatial = _shape(_padded(product), name)
    there = Positioned(home, outer, channels, prod(spatial), (home.strides[0], 1, channels))
    source, to = (own, there) if into else (there, own)
    return copy_step(dtype, source, to)


def copy_step(dtype: DType, source: Positioned, to: Positioned) -> KernelStep:
    """One to the other, zeros for channels that the source lacks; one of them has channels side by side."""
    chunk = _chunk(dtype, source, to)
    if chunk:
        return _whole_step(dtype, source, to, chunk)
    tiles = _tiles(to.outer, to.channels, source.positions)
    template = (
        *(dtype.cuda, _bool(source.planes), _bool(to.planes)),
        *(str(source.vec(dtype)), str(to.vec(dtype))),
    )
    numbers = (
        min(source.outer, to.outer), source.positions, min(source.channels, to.channels), to.channels,
        *source.steps, *to.steps,
    )  # fmt: skip
    return KernelStep(
        _LAYOUT, dtype, template, "layout", blocks_for(tiles, 1), _THREADS, (to.at.at, source.at.at), numbers
    )


def _chunk(dtype: DType, source: Positioned, to: Positioned) -> int:
    """Channels whose planes a block takes as one run; 0 where packs fit planes one by one, or runs do not."""
    planes, last = (source, to) if source.planes else (to, source)
    if not planes.planes or last.planes or planes.vec(dtype) != 1 or last.vec(dtype) != dtype.lanes:
        return 0
    dense = planes.steps[1] == planes.positions and planes.steps[0] % dtype.lanes == 0
    if (
        not dense
        or planes.at.alignment != WIDEST_ACCESS
        or (planes.outer, planes.channels) != (last.outer, last.channels)
    ):
        return 0
    fits = (n for n in _CHUNKS if planes.channels % n == 0 and n * planes.positions <= _MOST_WHOLE)
    return next(fits, 0)


def _whole_step(dtype: DType, source: Positioned, to: Positioned, chunk: int) -> KernelStep:
    """Either way, of chunks of channels."""
    planes, last = (source, to) if source.planes else (to, source)
    chunks, gap = planes.channels // chunk, max(1, 4 // dtype.itemsize)
    return KernelStep(
        _WHOLE, dtype, (dtype.cuda, _bool(source.planes)), "layout", (planes.outer * chunks, 1, 1), _THREADS,
        (to.at.at, source.at.at),
        (chunks, chunk, planes.positions, planes.steps[0], last.steps[0], last.steps[2]),
        shared_bytes=planes.positions * (chunk + gap) * dtype.itemsize,
    )  # fmt: skip


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _instances(dtype: DType) -> dict[str, list[str]]:
    """Into packs of channels from anything, and out of them to anything."""
    if dtype.name not in _TYPES:
        return {}
    t, most = dtype.cuda, dtype.lanes
    return {
        "groups": [f"conv_group_filters<{t}>", f"conv_own_filters<{t}>"],
        "layout": [
            *(f"{_WHOLE.entry}<{t}, {_bool(into)}>" for into in (True, False)),
            *(
                f"conv_layout<{t}, {_bool(source)}, {_bool(to)}, {a}, {b}>"
                for source, to, a, b in (
                    *((True, False, a, most) for a in (1, most // 2, most)),
                    *((False, True, most, b) for b in (1, most // 2, most)),
                    *((False, False, a, b) for a, b in ((1, most), (most, 1), (most, most))),
                )
            ),
        ],
    }


LAYOUT_FAMILY = Family("convolution_layout", (_LAYOUT, _WHOLE, FILTERS, OWN_FILTERS), _instances)
