"""The gradient of first layers in their filters on Hopper: few channels, windows two pixels apart, which overlap."""

from __future__ import annotations

from typing import NamedTuple

from ...dtypes import DType
from ...runtime.launch import Family, Kernel, KernelStep, Scratch, Struct
from ...runtime.tensor_map import BoxMap
from .first import fold_step
from .hopper import operands_reason
from .hopper_first import CHANNELS, layer_reason, up
from .product import WIDEST_ACCESS, Algorithm, Product, Work, always_pays

_NUMBERS = (
    *("tiles", "tiles_down", "height", "width", "channels", "filters", "taps_h", "taps_w", "stride_h", "top", "left"),
    *("lead", "rows", "columns", "pitch", "seen", "patch_bytes", "raw_bytes"),
)
_FILTER = Kernel(
    "convolution_hopper_first_filter",
    "conv_hopper_first_filter",
    Struct("ConvHopperFirstFilterParams", ("x", "dy", "parts"), tuple((name, "i32") for name in _NUMBERS)),
)
#: As in the kernel: taps down and across, pixels of a pair with four channels in bytes, filters, stages, threads.
_TAPS, _UNIT, _FILTERS, _STAGES, _THREADS = 8, 16, 64, 2, 512
#: Rows of positions of a tile, the most that fit; positions that are multiplied at once, and at most in a row.
_ROWS, _POSITIONS, _WIDEST = (8, 6, 4, 2), 16, 256


class _Cut(NamedTuple):
    """How the work is cut: the fields of the kernel of the same names."""

    lead: int
    rows: int
    columns: int
    pitch: int
    seen: int
    patch_bytes: int
    raw_bytes: int

    @classmethod
    def of(cls, product: Product, rows: int) -> _Cut:
        """With so many rows of positions in a tile."""
        g, stride = product.g, product.g.conv.strides(2)[0]
        columns = -(-g.output[1] // _POSITIONS) * _POSITIONS
        pitch = columns + _TAPS // 2 - 1
        seen, raw_row = (rows - 1) * stride + g.taps[0], g.image[1] * g.in_channels * product.dtype.itemsize
        patch = ((rows - 1) * stride + _TAPS) * pitch * _UNIT
        return cls(g.conv.paddings(2)[1][0] % 2, rows, columns, pitch, seen, up(patch), up(seen * raw_row))

    @property
    def shared_bytes(self) -> int:
        """Of two stages; sums of one consumer go there in the end. Barriers, and what aligning them may take."""
        stage = self.rows * self.columns * 128 + self.patch_bytes + self.raw_bytes
        return max(_STAGES * stage, _FILTERS * _TAPS * _TAPS * CHANNELS * 4) + 3 * _STAGES * 8 + 1024


def _cut(product: Product) -> _Cut:
    """The tallest tile that fits and is not all beside the image, or the lowest."""
    room, tallest = product.profile.shared_bytes, product.g.output[0]
    cuts = [_Cut.of(product, rows) for rows in _ROWS if rows < 2 * tallest] or [_Cut.of(product, _ROWS[-1])]
    return next((cut for cut in cuts if cut.shared_bytes <= room), cuts[-1])


def _tiles(product: Product) -> tuple[int, int]:
    """Of an image from top to bottom, and of all."""
    down = -(-product.g.output[0] // _cut(product).rows)
    return down, product.g.batch * down


def _blocks(product: Product) -> tuple[int, int]:
    """That share the tiles, and that share the filters."""
    each = -(-product.g.out_channels // _FILTERS)
    return min(max(1, product.profile.sm_count // each), _tiles(product)[1]), each


def _cannot(product: Product) -> str | None:
    g, reason = product.g, layer_reason(product)
    if reason:
        return reason
    if g.image[1] % 2 or g.image[1] * g.in_channels * product.dtype.itemsize % WIDEST_ACCESS:
        return f"rows of {g.image[1]} pixels, must be even and multiples of {WIDEST_ACCESS} bytes"
    return operands_reason(product) or _no_room(product)


def _no_room(product: Product) -> str | None:
    g, cut, profile = product.g, _cut(product), product.profile
    if g.taps[0] > _TAPS or g.taps[1] + cut.lead > _TAPS or g.output[1] > _WIDEST:
        return f"{g.taps} taps or rows of {g.output[1]} positions, at most {_TAPS} and {_WIDEST}"
    if cut.shared_bytes > profile.shared_bytes:
        return f"{cut.shared_bytes} bytes of shared memory, a block has {profile.shared_bytes}"
    if not g.batch:
        return "no positions to sum over"
    return product.workspace_reason(_scratch(product))


def _scratch(product: Product) -> int:
    return 4 * _blocks(product)[0] * product.g.filter_size


def _work(product: Product) -> Work:
    """Sums of shares of the tiles into slots, and the sum of the slots."""
    g, dtype, cut, partials = product.g, product.dtype, _cut(product), Scratch(len(product.taken))
    (down, tiles), blocks, (top, left) = _tiles(product), _blocks(product), (pads[0] for pads in g.conv.paddings(2))
    numbers = (
        *(tiles, down, *g.image, g.in_channels, g.out_channels, *g.taps, g.conv.strides(2)[0], top, left + cut.lead),
        *cut,
    )
    k, (p, q) = g.out_channels, g.output
    box = (_FILTERS, cut.columns, cut.rows, 1)
    dy = BoxMap(1, dtype.name, dtype.itemsize, (k, q, p, g.batch), (k, k * q, k * q * p), box)
    sums = KernelStep(
        _FILTER, dtype, (dtype.cuda,), "filter", (*blocks, 1), _THREADS,
        (product.x.at, product.y.at, partials), numbers,
        shared_bytes=cut.shared_bytes, maps=(dy,), joint_maps=True,
    )  # fmt: skip
    return Work((sums, fold_step(product, blocks[0], partials)), (_scratch(product),))


def _instances(dtype: DType) -> dict[str, list[str]]:
    if dtype.name not in ("float16", "bfloat16"):
        return {}
    return {"filter": [f"{_FILTER.entry}<{dtype.cuda}>"]}


CONV_HOPPER_FIRST_FILTER_FAMILY = Family("convolution_hopper_first_filter", (_FILTER,), _instances, only="sm_90a")

#: Takes the 16-bit types.
HOPPER_FIRST_FILTER = Algorithm("hopper_first", _cannot, always_pays, _work)
