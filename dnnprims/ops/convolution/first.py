"""Convolutions of few input channels, as the first layer of a network has them, on the tensor cores."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from ...dtypes import DType
from ...runtime.launch import NULL, Family, Kernel, KernelStep, Scratch, Struct
from ...runtime.limits import MOST_ACROSS
from .depthwise import FUSED, is_bare
from .direct import constants
from .geometry import Numbers, filter_steps, seen_outputs, steps
from .product import Algorithm, Operand, Product, Work, always_pays


def _fields(*groups: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((f"{name}_{one}", "i64") for name, parts in groups for one in parts.split())


_STEPS = "outer channel h w"
_PATCH = ("pixel", "pitch", "rows", "row_terms", "odd", "planes", "per", "raw_pitch", "way")
_FORWARD = Kernel(
    "convolution_first",
    "first_forward",
    Struct(
        "FirstParams",
        ("y", "x", "w", "b", "residual", "scale", "shift"),
        (
            *((name, "A") for name in ("alpha1", "alpha2", "alpha", "beta", "c0", "c1")),
            *((name, "i64") for name in ("batch", "channels", "filters", "tiles_h", "tiles_w")),
            *_fields(*((name, "h w") for name in ("source", "result", "taps", "stride", "padding"))),
            *_fields(*((name, _STEPS) for name in ("x", "y", "w", "residual"))),
            *((name, "i64") for name in ("w_first", "mode", "bare", "packed", "k_steps", *_PATCH)),
        ),
    ),
)
_DATA = Kernel(
    "convolution_first",
    "first_data",
    Struct(
        "FirstDataParams",
        ("dx", "dy", "w", "b"),
        (
            *(("alpha", "A"), ("beta", "A")),
            *((name, "i64") for name in ("batch", "channels", "filters", "tiles_h", "tiles_w")),
            *_fields(*((name, "h w") for name in ("image", "output", "taps", "stride", "padding"))),
            *_fields(*((name, "h w") for name in ("lead", "offset", "reach"))),
            *_fields(*((name, _STEPS) for name in ("x", "y", "w"))),
            *(("w_first", "i64"), ("packed", "i64")),
        ),
    ),
)
_FILTER, _FOLD = (
    Kernel(
        "convolution_first",
        name,
        Struct(
            "FirstFilterParams",
            ("dw", "parts", "dy", "x"),
            (
                *(("alpha", "A"), ("beta", "A")),
                *((name, "i64") for name in ("batch", "channels", "filters", "tiles_h", "tiles_w")),
                *_fields(*((name, "h w") for name in ("source", "result", "taps", "stride", "padding"))),
                *_fields(*((name, _STEPS) for name in ("x", "y", "w"))),
                *((name, "i64") for name in ("w_first", "packed", "splits", "groups", "rows", *_PATCH)),
            ),
        ),
    )
    for name in ("first_filter", "first_fold")
)

#: As in the kernels: threads, positions of a tile along each axis, filters of a block, floats of a row on its way out.
_BLOCK, _TILE, _FILTERS, _STAGE_PITCH = 256, 16, 64, 72
#: Most rests of positions by the strides, in a gradient in data.
_RESTS = 4
#: Rows of a tile of a gradient in filters where tiles are few and where each block has so many of the taller ones.
_FEW_ROWS, _ROWS, _TILES_EACH = 8, 16, 4
#: Elements of a position of dy, terms of a warp, most warps, and sums of a block that folds.
_DY_PITCH, _WARP_TERMS, _WARPS, _FOLD_SUMS = 72, 32, 8, 16
#: Floats of a position of a gradient in data on its way out.
_COLUMN_PITCH = 24
#: Terms of a product of the tensor cores, and elements of a copy.
_TERMS, _PACK = 16, 8
#: Numbers that kernels divide by have 32 bits; blocks along y.
_MOST = 2**31 - 1
#: Channels that are few, and blocks of a multiprocessor.
_MOST_CHANNELS, _BLOCKS = 4, 2


#: How rows of an image come to shared memory, as in the kernels.
_AS_THEY_LIE, _SPREAD, _ONE_BY_ONE = range(3)


class _Patch(NamedTuple):
    """What a tile sees of an image, as it lies in shared memory; the fields of the kernels."""

    pixel: int
    pitch: int
    rows: int
    row_terms: int
    odd: int
    planes: int
    per: int
    raw_pitch: int
    way: int

    @property
    def nbytes(self) -> int:
        """Of the patch, and of the rows that it is spread from or the next tile's patch."""
        return 2 * self.rows * (self.pitch + self.planes * self.raw_pitch)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _rows_of(product: Product) -> tuple[int, int] | None:
    """Planes of x and elements of a pixel in each, where rows lie without gaps and begin at multiples of 16 bytes."""
    outer, channel, h, w = _four(product, product.x.strides)
    channels, steps_even = product.g.in_channels, h % _PACK == 0 and outer % _PACK == 0
    if not steps_even or product.x.alignment != 16:
        return None
    if w == channels and (channel == 1 or channels == 1):
        return 1, channels
    return (channels, 1) if w == 1 and channel % _PACK == 0 else None


def _patch_of(product: Product, tile_rows: int, pixel: int, row_terms: int) -> _Patch:
    """A patch of pixels of their own size, spread from rows where those can be copied."""
    (r, s), (stride_h, stride_w), found = product.g.taps, product.g.conv.strides(2), _rows_of(product)
    pitch = _up((_TILE - 1) * stride_w * pixel + row_terms, _PACK)
    planes, per = found or (0, 1)
    raw_pitch = _up(_PACK - 1 + ((_TILE - 1) * stride_w + s) * per, _PACK) if found else 0
    rows, way = (tile_rows - 1) * stride_h + r, _SPREAD if found else _ONE_BY_ONE
    return _Patch(pixel, pitch, rows, row_terms, 0, planes, per, raw_pitch, way)


def _forward_patch(product: Product) -> _Patch:
    """Rows as they lie where each position begins at an even element, else pixels of an even size."""
    g, channels = product.g, product.g.in_channels
    (r, s), (stride_h, stride_w) = g.taps, g.conv.strides(2)
    if _rows_of(product) != (1, channels) or stride_w * channels % 2:
        pixel = _up(channels, 2)
        return _patch_of(product, _TILE, pixel, s * pixel)
    odd = g.conv.paddings(2)[1][0] * channels % 2
    row_terms = _up(s * channels + odd, 2)
    pitch = _up(_PACK - 1 + (_TILE - 1) * stride_w * channels + row_terms, _PACK)
    return _Patch(channels, pitch, (_TILE - 1) * stride_h + r, row_terms, odd, 1, channels, pitch, _AS_THEY_LIE)


def _filter_patch(product: Product, rows: int) -> _Patch:
    """Pixels such that each position begins at a multiple of 16 bytes."""
    stride_w = product.g.conv.strides(2)[1]
    pixel = next(n for n in (2, 4, 8) if n >= product.g.in_channels and stride_w * n % _PACK == 0)
    return _patch_of(product, rows, pixel, _up(product.g.taps[1] * pixel, _TERMS))


def _k_steps(product: Product) -> int:
    return -(-product.g.taps[0] * _forward_patch(product).row_terms // _TERMS)


def _groups(product: Product) -> tuple[int, int]:
    """Warps of a block that have terms of their own, and blocks along z that have the others."""
    all_terms = product.g.taps[0] * _filter_patch(product, 1).row_terms
    blocks = -(-all_terms // (_WARPS * _WARP_TERMS))
    return -(-all_terms // (blocks * _WARP_TERMS)), blocks


def _tile_rows(product: Product) -> int:
    """Of a gradient in filters: tall tiles see less beside them, lower ones go round more evenly where they are few."""
    (h, w), profile = product.g.output, product.profile
    tiles = product.g.batch * -(-h // _ROWS) * -(-w // _TILE)
    fit = _filter_bytes(product, _ROWS) <= profile.shared_bytes // _BLOCKS - 1024
    return _ROWS if fit and tiles >= _TILES_EACH * _BLOCKS * profile.sm_count else _FEW_ROWS


def _filter_bytes(product: Product, rows: int) -> int:
    """Shared memory of a gradient in filters: the patch, and two tiles of dy."""
    return _filter_patch(product, rows).nbytes + 2 * 2 * rows * _TILE * _DY_PITCH


def _shared_bytes(product: Product) -> int:
    """Beside the patch: filters, rows on their way out and the table of terms, or two tiles of dy."""
    if product.direction == "data":
        down, across = (axis.reach for axis in seen_outputs(product.g))
        patch = (_TILE + down - 1) * (_TILE + across - 1) * _DY_PITCH * 2
        return patch + _BLOCK * _COLUMN_PITCH * 4 + down * across * _FILTERS * 32
    if product.direction == "filter":
        return _filter_bytes(product, _tile_rows(product))
    k_steps, stage = _k_steps(product), _BLOCK // 32 * _TILE * _STAGE_PITCH * 4
    return _forward_patch(product).nbytes + k_steps * (_TERMS * _FILTERS * 2 + _TERMS // 2 * 4) + stage


def _cannot(product: Product) -> str | None:
    g, profile = product.g, product.profile
    if profile.backend == "cuda" and profile.arch < 80:
        return "needs a GPU of compute capability 8.0"
    if product.dtype.itemsize != 2:
        return f"the tensor cores do not multiply {product.dtype.name} here"
    if g.conv.groups != 1 or not 1 <= g.in_channels <= _MOST_CHANNELS:
        return f"{g.in_channels} channels in {g.conv.groups} groups, must be 1 to {_MOST_CHANNELS} in one"
    if g.axes != 2 or g.conv.dilations(g.axes) != (1,) * g.axes:
        return "not two spatial axes, or dilated"
    row, positions = g.image[1] * _MOST_CHANNELS, g.batch * prod(g.output)
    if max(row, positions, g.image[0], *g.output, *g.taps, *g.conv.strides(2)) > _MOST:
        return f"more than {_MOST} positions"
    if g.out_channels > _FILTERS * MOST_ACROSS:
        return f"{g.out_channels} filters, at most {_FILTERS * MOST_ACROSS}"
    if product.then.activation.mode not in FUSED:
        return f"{product.then.activation.mode} is not fused, only {', '.join(FUSED)}"
    if product.direction == "data" and (g.out_channels > _FILTERS or prod(g.conv.strides(2)) > _RESTS):
        return f"{g.out_channels} filters and strides {g.conv.strides(2)}, at most {_FILTERS} and a product of {_RESTS}"
    return _no_room(product)


def _no_room(product: Product) -> str | None:
    """In shared memory and in the workspace."""
    profile, filters = product.profile, product.direction == "filter"
    needed = _shared_bytes(product)
    if needed > profile.shared_bytes:
        return f"{needed} bytes of shared memory, a block has {profile.shared_bytes}"
    return product.workspace_reason(_scratch(product)) if filters else None


def _four(product: Product, strides: Numbers) -> Numbers:
    outer, channel, _, h, w = steps(product.g.conv, strides)
    return outer, channel, h, w


def _packed(product: Product) -> bool:
    """Whether eight filters of y lie side by side and can be stored at once."""
    outer, channel, h, w = _four(product, product.y.strides)
    even = all(number % _PACK == 0 for number in (outer, h, w, product.g.out_channels))
    return channel == 1 and even and product.y.alignment == 16


def _forward_steps(product: Product) -> Work:
    g, then, dtype, patch = product.g, product.then, product.dtype, _forward_patch(product)
    tiles_h, tiles_w = (-(-extent // _TILE) for extent in g.output)
    first, (w_outer, w_channel, _, w_h, w_w) = filter_steps(g.conv, g.taps, product.w.strides)
    residual = then.residual or Operand(NULL, (0,) * 4, 0)
    before = tuple(pad for pad, _ in g.conv.paddings(2))
    scalars = (
        *map(float, (then.alpha1, then.alpha2, product.alpha, product.beta, *constants(then.activation))),
        *(g.batch, g.in_channels, g.out_channels, tiles_h, tiles_w),
        *(*g.image, *g.output, *g.taps, *g.conv.strides(2), *before),
        *(*_four(product, product.x.strides), *_four(product, product.y.strides)),
        *(w_outer, w_channel, w_h, w_w, *_four(product, residual.strides)),
        *(first, FUSED.index(then.activation.mode), int(is_bare(product)), int(_packed(product))),
        *(_k_steps(product), *patch),
    )
    blocks = min(prod((g.batch, tiles_h, tiles_w)), _BLOCKS * product.profile.sm_count)
    step = KernelStep(
        _FORWARD, dtype, (dtype.cuda,), "forward", (blocks, -(-g.out_channels // _FILTERS), 1), _BLOCK,
        (product.y.at, product.x.at, product.w.at, then.b, residual.at, then.scale, then.shift),
        scalars, shared_bytes=_shared_bytes(product),
    )  # fmt: skip
    return Work((step,))


def _data_steps(product: Product) -> Work:
    g, dtype, strides = product.g, product.dtype, product.g.conv.strides(2)
    before = tuple(pad for pad, _ in g.conv.paddings(2))
    tiles_h, tiles_w = (-(-i // (stride * _TILE)) for i, stride in zip(g.image, strides, strict=True))
    first, (w_outer, w_channel, _, w_h, w_w) = filter_steps(g.conv, g.taps, product.w.strides)
    seen = (number for axes in zip(*seen_outputs(product.g), strict=True) for number in axes)
    scalars = (
        *(float(product.alpha), float(product.beta), g.batch, g.in_channels, g.out_channels, tiles_h, tiles_w),
        *(*g.image, *g.output, *g.taps, *strides, *before, *seen),
        *(*_four(product, product.x.strides), *_four(product, product.y.strides), w_outer, w_channel, w_h, w_w),
        *(first, int(_packed(product))),
    )
    grid = (min(max(g.batch * tiles_h * tiles_w, 1), _BLOCKS * product.profile.sm_count), 1, 1)
    pointers = (product.x.at, product.y.at, product.w.at, product.then.b)
    shared = _shared_bytes(product)
    step = KernelStep(_DATA, dtype, (dtype.cuda,), "data", grid, _BLOCK, pointers, scalars, shared_bytes=shared)
    return Work((step,))


def _tiles(product: Product) -> Numbers:
    """Of a gradient in filters: rows and columns of tiles, and blocks that share them."""
    g = product.g
    tiles_h, tiles_w = -(-g.output[0] // _tile_rows(product)), -(-g.output[1] // _TILE)
    most = max(_BLOCKS * product.profile.sm_count // _groups(product)[1], 1)
    return tiles_h, tiles_w, min(max(g.batch * tiles_h * tiles_w, 1), most)


def _scratch(product: Product) -> int:
    return product.g.filter_size * _tiles(product)[2] * 4


def _filter_scalars(product: Product, tiles: Numbers, groups: int, rows: int, patch: Numbers) -> tuple[float, ...]:
    g, (tiles_h, tiles_w, blocks) = product.g, tiles
    first, (w_outer, w_channel, _, w_h, w_w) = filter_steps(g.conv, g.taps, product.w.strides)
    before = tuple(pad for pad, _ in g.conv.paddings(2))
    return (
        *(float(product.alpha), float(product.beta), g.batch, g.in_channels, g.out_channels, tiles_h, tiles_w),
        *(*g.image, *g.output, *g.taps, *g.conv.strides(2), *before),
        *(*_four(product, product.x.strides), *_four(product, product.y.strides), w_outer, w_channel, w_h, w_w),
        *(first, int(_packed(product)), blocks, groups, rows, *patch),
    )


def fold_step(product: Product, splits: int, partials: Scratch) -> KernelStep:
    """The sum of so many slots, whose sums are in the order of taps, channels and filters."""
    scalars = _filter_scalars(product, (1, 1, splits), 1, 1, (0,) * len(_PATCH))
    pointers, blocks = (product.w.at, partials, product.y.at, product.x.at), -(-product.g.filter_size // _FOLD_SUMS)
    return KernelStep(_FOLD, product.dtype, (product.dtype.cuda,), "filter", (blocks, 1, 1), _BLOCK, pointers, scalars)


def _filter_steps(product: Product) -> Work:
    g, dtype, rows, (groups, shares) = product.g, product.dtype, _tile_rows(product), _groups(product)
    tiles, partials = _tiles(product), Scratch(len(product.taken))
    scalars = _filter_scalars(product, tiles, groups, rows, _filter_patch(product, rows))
    pointers, grid = (
        (product.w.at, partials, product.y.at, product.x.at),
        (tiles[2], -(-g.out_channels // _FILTERS), shares),
    )
    shared = _shared_bytes(product)
    sums = KernelStep(_FILTER, dtype, (dtype.cuda,), "filter", grid, _BLOCK, pointers, scalars, shared_bytes=shared)
    return Work((sums, fold_step(product, tiles[2], partials)), (_scratch(product),))


FIRST_FORWARD = Algorithm("few_channels", _cannot, always_pays, _forward_steps)
FIRST_DATA = Algorithm("few_channels", _cannot, always_pays, _data_steps)
FIRST_FILTER = Algorithm("few_channels", _cannot, always_pays, _filter_steps)


def _instances(dtype: DType) -> dict[str, list[str]]:
    if dtype.itemsize != 2:
        return {}
    t = dtype.cuda
    return {
        "forward": [f"first_forward<{t}>"],
        "data": [f"first_data<{t}>"],
        "filter": [f"first_filter<{t}>", f"first_fold<{t}>"],
    }


FIRST_FAMILY = Family("convolution_first", (_FORWARD, _DATA, _FILTER, _FOLD), _instances)
