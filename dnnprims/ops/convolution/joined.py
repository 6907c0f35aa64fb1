"""Few input channels with fused multiply-adds: taps and channels as one axis of an implicit product."""

from __future__ import annotations

from functools import partial
from math import prod

from ...dtypes import DType
from ...runtime.launch import Family, Kernel, KernelStep, Scratch, Struct, blocks_for
from .geometry import Numbers, filter_steps, seen_outputs
from .implicit_filter import filter_reason, filter_work
from .implicit_gather import Gather, gather_reason, gather_work
from .implicit_structs import JOINED_FILTER, JOINED_FORWARD
from .implicit_tiles import Tile, View, Way, packed, too_large
from .product import Algorithm, Product, Work

_JOINED = Way(
    "joined_taps", JOINED_FORWARD, JOINED_FILTER, lambda dtype, group: (Tile(64, 64, 64, 8, 6),), lambda dtype: 4,
    strict=False, joined=True,
)  # fmt: skip
#: As in the kernels: taps and channels of a table; filters at a time, elements of an output, m and threads of a block.
_MOST_JOINED, _EIGHT, _OUTPUT_PITCH, _TILE, _BLOCK = 512, 8, 12, (16, 32), 128
#: Columns that a thread of a data gradient has, in fours.
_PACKS = (1, 3, 4)
#: A tile's edges stick out further than this many times what joining spares: not joined.
_WORTH = 1.1


def _data_struct() -> Struct:
    pairs = ("image", "output", "taps", "stride", "padding", "lead", "offset", "reach")
    steps = ("x_steps", "y_steps", "w_steps")
    names = (
        *("batch", "channels", "filters", "tiles_h", "tiles_w"),
        *(f"{name}_{one}" for name in pairs for one in "hw"),
        *(f"{name}_{one}" for name in steps for one in ("outer", "channel", "h", "w")),
        *("w_first", "packed"),
    )
    scalars = (("alpha", "A"), ("beta", "A"), *((name, "i32") for name in names))
    return Struct("JoinedDataParams", ("dx", "dy", "w", "b", "ordered"), scalars)


_ORDER, _DATA = (Kernel("convolution_joined", name, _data_struct()) for name in ("joined_taps", "joined_data"))


def _cannot(product: Product) -> str | None:
    g = product.g
    if product.dtype.name != "float32":
        return f"{product.dtype.name} has kernels of its own"
    if g.axes > 2:
        return f"{g.axes} spatial axes, at most 2"
    reason = too_large(product)
    return reason or (_cannot_data(product) if product.direction == "data" else _cannot_join(product))


def _cannot_join(product: Product) -> str | None:
    joined = prod(product.g.taps) * product.g.scalars()[2]
    if joined > _MOST_JOINED:
        return f"{joined} taps and channels, at most {_MOST_JOINED}"
    if product.direction == "filter":
        return filter_reason(_JOINED, product)
    if Gather.of(_JOINED, product).splits > 1:
        return "so few results that splits pay"
    return gather_reason(_JOINED, product)


def _cannot_data(product: Product) -> str | None:
    g = product.g
    if g.conv.groups != 1 or g.conv.dilations(g.axes) != (1,) * g.axes:
        return "groups, or dilated"
    if g.axes != 2:
        return "not two spatial axes"
    if _columns(product) > 4 * _PACKS[-1]:
        return f"{_columns(product)} channels and residues of the strides, at most {4 * _PACKS[-1]}"
    if product.then.activation.mode != "identity":
        return f"{product.then.activation.mode} is not fused"
    needed = _shared_bytes(product)
    if needed > product.profile.shared_bytes:
        return f"{needed} bytes of shared memory, a block has {product.profile.shared_bytes}"
    return product.workspace_reason(_ordered_bytes(product))


def _slower(product: Product) -> str | None:
    """Where channels fill slices or tiles by themselves."""
    _, _, columns, lines, *_ = product.g.scalars()
    if product.direction == "data":
        return None
    taps, tile = prod(product.g.taps), _JOINED.tiles(product.dtype, product.direction)[0]
    if product.direction == "forward":
        joined, apart = -(-taps * columns // tile.depth), taps * -(-columns // tile.depth)
    else:
        joined, apart = tile.needed(lines, taps * columns), taps * tile.needed(lines, columns)
    return f"{columns} channels fill tiles as they are" if joined * _WORTH >= apart else None


# -- the gradient in data ----------------------------------------------------------------------------------------------


def _columns(product: Product) -> int:
    return product.g.in_channels * prod(product.g.conv.strides(product.g.axes))


def _packs(product: Product) -> int:
    return next(packs for packs in _PACKS if _columns(product) <= 4 * packs)


def _shared_bytes(product: Product) -> int:
    down, across = (axis.reach for axis in seen_outputs(product.g))
    outputs = (_TILE[0] + down - 1) * (_TILE[1] + across - 1) * _OUTPUT_PITCH
    return (outputs + down * across * _EIGHT * 4 * _packs(product)) * product.dtype.itemsize


def _ordered(product: Product) -> int:
    """Elements of the filters in the order of the kernel."""
    seen = prod(axis.reach for axis in seen_outputs(product.g))
    return -(-product.g.out_channels // _EIGHT) * _EIGHT * seen * 4 * _packs(product)


def _four(product: Product, strides: Numbers) -> Numbers:
    view = View.of(product, strides)
    return view.outer, view.channel, *view.spatial[1:]


def _ordered_bytes(product: Product) -> int:
    return _ordered(product) * product.dtype.itemsize


def _data_work(product: Product) -> Work:
    g, dtype, strides = product.g, product.dtype, product.g.conv.strides(2)
    tiles = tuple(-(-i // (stride * m)) for i, stride, m in zip(g.image, strides, _TILE, strict=True))
    first, (w_outer, w_channel, _, w_h, w_w) = filter_steps(g.conv, g.taps, product.w.strides)
    seen = (number for axes in zip(*seen_outputs(product.g), strict=True) for number in axes)
    y = _four(product, product.y.strides)
    whole = packed(dtype, 4, product.y.alignment, g.out_channels, y[1], y[0], *y[2:])
    scalars = (
        *(float(product.alpha), float(product.beta), g.batch, g.in_channels, g.out_channels, *tiles),
        *(*g.image, *g.output, *g.taps, *strides, *(pad for pad, _ in g.conv.paddings(2)), *seen),
        *(*_four(product, product.x.strides), *y, w_outer, w_channel, w_h, w_w, first, whole),
    )
    pointers = (product.x.at, product.y.at, product.w.at, product.then.b, Scratch(len(product.taken)))
    template = (dtype.cuda, str(_packs(product)))
    blocks = (max(1, g.batch * prod(tiles)), 1, 1)
    order = KernelStep(_ORDER, dtype, template, "data", blocks_for(_ordered(product), 256), 256, pointers, scalars)
    sums = KernelStep(
        _DATA, dtype, template, "data", blocks, _BLOCK, pointers, scalars, shared_bytes=_shared_bytes(product)
    )
    return Work((order, sums), (_ordered_bytes(product),))


JOINED_TAPS = Algorithm("joined_taps", _cannot, _slower, partial(gather_work, _JOINED))
JOINED_TAPS_FILTER = JOINED_TAPS._replace(work=partial(filter_work, _JOINED))
JOINED_TAPS_DATA = JOINED_TAPS._replace(work=_data_work)


def _instances(dtype: DType) -> dict[str, list[str]]:
    if dtype.name != "float32":
        return {}
    t = dtype.cuda
    return {
        "gather": [f"{JOINED_FORWARD.entry}<{t}>"],
        "filter": [f"{JOINED_FILTER.entry}<{t}>"],
        "data": [f"{kernel.entry}<{t}, {packs}>" for kernel in (_ORDER, _DATA) for packs in _PACKS],
    }


JOINED_FAMILY = Family("convolution_joined", (JOINED_FORWARD, JOINED_FILTER, _ORDER, _DATA), _instances)
