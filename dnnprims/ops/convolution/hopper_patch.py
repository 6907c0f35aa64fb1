"""Convolutions of 3 x 3 taps over few channels on Hopper, whose patches of the input stay in shared memory."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import NamedTuple

from ...dtypes import DType
from ...runtime.launch import NULL, Family, Kernel, KernelStep, Scratch, Struct
from ...runtime.tensor_map import BoxMap
from .geometry import Numbers
from .hopper import FACTORS, FOLLOWING, Ending, blend_reason, filter_depth, image_reason
from .hopper_filter import Slots, fold_step
from .product import Algorithm, Product, Work, always_pays

_NUMBERS = (
    *("rows", "columns", "tiles", "tiles_down", "tiles_across", "top", "left", "stages", "patch_bytes"),
    *("channels", "channel_tiles", "backwards", "relu", "grouped"),
)
_STRUCT = Struct(
    "ConvPatchParams",
    ("x", "w", "y", *FOLLOWING),
    (*FACTORS, *((name, "i32") for name in _NUMBERS)),
)
_FORWARD = Kernel("convolution_patch", "conv_patch_forward", _STRUCT)
_DATA = Kernel("convolution_patch", "conv_patch_data", _STRUCT)
_FILTER_NUMBERS = (
    *("rows", "columns", "tiles", "tiles_down", "tiles_across", "top", "left", "patch_bytes"),
    *("row_tiles", "channel_blocks", "backwards"),
)
_FILTER = Kernel(
    "convolution_patch",
    "conv_patch_filter",
    Struct(
        "ConvPatchFilterParams",
        ("dy", "x", "partials"),
        (("padded_rows", "i64"), ("padded_columns", "i64"), *((name, "i32") for name in _FILTER_NUMBERS)),
    ),
)

#: As in the kernel: taps of an axis, pixels of a tile with what lies beside them, channels, bytes of a pixel, threads.
_TAPS, _PIXELS, _CHANNELS, _PIXEL_BYTES, _THREADS = 3, 232, 64, 128, 384
_FILTER_BYTES, _MOST_STAGES = _TAPS * _TAPS * _CHANNELS * _PIXEL_BYTES, 3
#: Where two consumers put their results together, beside patches, where there is a residual.
_OUT_BYTES = 2 * _PIXELS * _PIXEL_BYTES


#: Of the gradient in filters: pixels of a tile with what lies beside them, stages, threads.
_SUMMED, _FILTER_STAGES, _FILTER_THREADS = 176, 3, 512
#: Patches of a split at least: with one each, batch 8 of 64@56 took 23 us, most of it for slots.
_FEWEST_PATCHES = 2
#: compute-sanitizer counts three tiles that lie a pixel apart, 2,304 bytes, as 6,144 in a row.
_BELIEVED = 6144 - 2304
_ONLY = "for filters of 3 x 3 taps, a stride and a dilation of 1"


class Patching(NamedTuple):
    """How images are cut: rows and columns of a tile, tiles of an image, patches that fit, bytes of one."""

    rows: int
    columns: int
    down: int
    across: int
    stages: int
    patch_bytes: int

    def shared_bytes(self, beside: int, more: int) -> int:
        """So much beside the patches, and beside each one; barriers, and what aligning them may take."""
        return beside + self.stages * (self.patch_bytes + more + 16) + 3 * 8 + 1024


def patching(
    extents: Numbers, room: int, pixels: int = _PIXELS, beside: int = _FILTER_BYTES, more: int = 0
) -> Patching | None:
    """The fewest tiles of so many pixels whose patches fit into so much memory, two at least; of those the smallest."""
    height, width = extents
    found: list[Patching] = []
    for across in range(1, width + 1):
        columns = -(-width // across)
        wide = columns + _TAPS - 1
        if wide > pixels:
            continue
        down = -(-height // min(height, pixels // wide))
        patch = -(-(pixels + (_TAPS - 1) * (wide + 1)) * _PIXEL_BYTES // 1024) * 1024
        stages = min(_MOST_STAGES, (room - beside - 1024 - 24) // (patch + more + 16))
        if stages >= 2:
            found.append(Patching(-(-height // down), columns, down, across, stages, patch))
        if found and across > 2 * found[0].across:
            break
    return min(found, key=lambda cut: (cut.down * cut.across, cut.patch_bytes)) if found else None


def _walks(product: Product) -> bool:
    g, conv = product.g, product.g.conv
    return g.taps == (_TAPS, _TAPS) and set(conv.strides(2) + conv.dilations(2)) == {1}


def cannot(product: Product) -> str | None:
    """Why the product is not for this kernel, or None."""
    return walk_reason(product, image_reason(product))


def walk_reason(product: Product, reason: str | None) -> str | None:
    """`reason`, or why the product is not for this kernel, be it of groups or not."""
    reason = reason or blend_reason(product)
    if reason:
        return reason
    g = product.g
    if not _walks(product):
        return _ONLY
    channels = g.in_channels if product.direction == "forward" else g.out_channels
    channels = channels if g.conv.groups == 1 else filter_depth(product)
    if channels > _CHANNELS:
        return f"{channels} channels, at most {_CHANNELS} fit"
    if patching(_result_extents(product), product.profile.shared_bytes, beside=_beside(product)) is None:
        return "the shared memory of a block does not hold two patches"
    return None


def _result_extents(product: Product) -> Numbers:
    return product.g.output if product.direction == "forward" else product.g.image


def _beside(product: Product) -> int:
    """Bytes of shared memory beside patches; an old result is a residual."""
    return _FILTER_BYTES + (_OUT_BYTES if Ending.of(product).residual != NULL else 0)


def work(product: Product) -> Work:
    """The one launch."""
    g, dtype, then, ending = product.g, product.dtype, product.then, Ending.of(product)
    beside = _beside(product)
    cut = patching(_result_extents(product), product.profile.shared_bytes, beside=beside)
    assert cut is not None  # `cannot` has seen to it
    forward = product.direction == "forward"
    channels = g.out_channels if forward else g.in_channels
    each = -(-channels // _CHANNELS)
    tiles = g.batch * cut.down * cut.across
    before = [pads[0] for pads in g.conv.paddings(2)]
    top, left = before if forward else (_TAPS - 1 - pad for pad in before)
    backwards = (g.conv.mode == "cross_correlation") != forward
    source, result = (product.x.at, product.y.at) if forward else (product.y.at, product.x.at)
    grid = min(max(1, product.profile.sm_count // each), tiles) * each
    return Work(
        (
            KernelStep(
                _FORWARD if forward else _DATA, dtype, (dtype.cuda, *ending.functor), product.direction,
                (grid, 1, 1), _THREADS,
                (source, product.w.at, result, ending.residual, then.b, then.scale, then.shift),
                (
                    *(*ending.factors, *ending.constants),
                    *(cut.rows, cut.columns, tiles, cut.down, cut.across, top, left, cut.stages, cut.patch_bytes),
                    *(channels, each, int(backwards), int(ending.relu), int(g.conv.groups > 1)),
                ),
                shared_bytes=cut.shared_bytes(beside, 0), maps=_maps(product, cut), joint_maps=True,
            ),
        )
    )  # fmt: skip


def _maps(product: Product, cut: Patching) -> tuple[BoxMap, ...]:
    """As the struct `PatchMaps`."""
    g, taps = product.g, prod(product.g.taps)
    kind, size = product.dtype.name, product.dtype.itemsize
    images = (g.in_channels, g.image), (g.out_channels, g.output)
    (c, (height, width)), (k, (down, across)) = images if product.direction == "forward" else images[::-1]
    wide, tall = cut.columns + _TAPS - 1, cut.rows + _TAPS - 1
    x = BoxMap(
        0, kind, size, (c, width, height, g.batch), (c, c * width, c * width * height), (_CHANNELS, wide, tall, 1)
    )
    depth = filter_depth(product)
    w = BoxMap(1, kind, size, (depth, taps, g.out_channels), (depth, depth * taps), (_CHANNELS, 1, _CHANNELS))
    y = BoxMap(
        2, kind, size, (k, across, down, g.batch), (k, k * across, k * across * down), (_CHANNELS, cut.columns, 1, 1)
    )
    return x, w, y, replace(y, pointer=3)


def _filter_patching(product: Product) -> Patching | None:
    room = product.profile.shared_bytes
    cut = patching(product.g.output, room, _SUMMED, 0, _SUMMED * _PIXEL_BYTES)
    return cut if cut and cut.stages == _FILTER_STAGES else None


def filter_cannot(product: Product) -> str | None:
    """Why the gradient in filters is not for this kernel, or None."""
    reason = image_reason(product)
    if reason:
        return reason
    if not _walks(product):
        return _ONLY
    if not product.g.batch * prod(product.g.output):
        return "no pixels to sum over"
    cut, blocks = _filter_patching(product), _blocks(product)
    if cut is None or prod(blocks) > product.profile.sm_count:
        return "more tiles than there are multiprocessors, or larger ones than fit"
    return product.workspace_reason(_slots(product, cut).nbytes)


def filter_slower(product: Product) -> str | None:
    """NVIDIA H200, 2026-11-28, bfloat16, batch 256, beside tiles of 128x192: 64@56 93 and 220 us, 128@28 107 and 86."""
    if min(product.g.in_channels, product.g.out_channels) > _CHANNELS:
        return "more channels are summed faster in larger tiles"
    return None


def _blocks(product: Product) -> tuple[int, int]:
    """Blocks of 64 channels out and in."""
    return -(-product.g.out_channels // _CHANNELS), -(-product.g.in_channels // _CHANNELS)


def _slots(product: Product, cut: Patching) -> Slots:
    rows, columns = _blocks(product)
    patches = product.g.batch * cut.down * cut.across
    splits = min(product.profile.sm_count // (rows * columns), -(-patches // _FEWEST_PATCHES))
    return Slots(splits, rows * _CHANNELS, _TAPS * _TAPS * columns * _CHANNELS)


def _filter_shared_bytes(product: Product, cut: Patching) -> int:
    """Patches, and where there is room what compute-sanitizer believes the last ones to reach beyond (`_BELIEVED`)."""
    return min(cut.shared_bytes(0, _SUMMED * _PIXEL_BYTES) + _BELIEVED, product.profile.shared_bytes)


def filter_work(product: Product) -> Work:
    """Sums of shares of the tiles into slots, and the sum of the slots."""
    g, dtype, (rows, columns) = product.g, product.dtype, _blocks(product)
    cut, partials = _filter_patching(product), Scratch(len(product.taken))
    assert cut is not None  # `filter_cannot` has seen to it
    slots = _slots(product, cut)
    kind, size, (height, width), (down, across) = dtype.name, dtype.itemsize, g.image, g.output
    c, k = g.in_channels, g.out_channels
    dy = BoxMap(0, kind, size, (k, across, down, g.batch), (k, k * across, k * across * down), (64, cut.columns, 1, 1))
    box = (_CHANNELS, cut.columns + _TAPS - 1, cut.rows + _TAPS - 1, 1)
    x = BoxMap(1, kind, size, (c, width, height, g.batch), (c, c * width, c * width * height), box)
    numbers = (
        *(slots.padded_rows, slots.padded_columns, cut.rows, cut.columns, g.batch * cut.down * cut.across),
        *(cut.down, cut.across, *(pads[0] for pads in g.conv.paddings(2)), cut.patch_bytes, rows, columns),
        int(g.conv.mode != "cross_correlation"),
    )
    step = KernelStep(
        _FILTER, dtype, (dtype.cuda,), "filter", (slots.number * rows * columns, 1, 1), _FILTER_THREADS,
        (product.y.at, product.x.at, partials), numbers,
        shared_bytes=_filter_shared_bytes(product, cut), maps=(dy, x), joint_maps=True,
    )  # fmt: skip
    return Work((step, fold_step(product, slots, partials)), (slots.nbytes,))


def _instances(dtype: DType) -> dict[str, list[str]]:
    if dtype.name not in ("float16", "bfloat16"):
        return {}
    t = dtype.cuda
    ways = {way: [f"conv_patch_{way}<{t}>"] for way in ("forward", "data")}
    return {**ways, "filter": [f"conv_patch_filter<{t}>"]}


CONV_PATCH_FAMILY = Family("convolution_patch", (_FORWARD, _DATA, _FILTER), _instances, only="sm_90a")

#: Takes the 16-bit types.
HOPPER_PATCH = Algorithm("hopper_patch", cannot, always_pays, work)
HOPPER_PATCH_FILTER = Algorithm("hopper_patch", filter_cannot, filter_slower, filter_work)
