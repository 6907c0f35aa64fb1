"""First layers on Hopper: convolutions of few channels at stride 2, whose windows overlap in shared memory."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import NamedTuple

from ...dtypes import DType
from ...runtime.launch import Family, Kernel, KernelStep, Struct
from ...runtime.tensor_map import BoxMap
from .hopper import FACTORS, FOLLOWING, Ending, blend_reason, operands_reason
from .product import WIDEST_ACCESS, Algorithm, Product, Work, always_pays

_NUMBERS = (
    *("tiles", "tiles_down", "height", "width", "channels", "taps_h", "taps_w", "stride_h", "top", "left"),
    *("out_height", "out_width", "filters", "channel_tiles", "rows", "pitch", "lead", "plane_rows"),
    *("patch_bytes", "raw_bytes", "backwards", "relu"),
)
_FIRST = Kernel(
    "convolution_hopper_first",
    "conv_hopper_first",
    Struct(
        "ConvHopperFirstParams",
        ("x", "w", "y", *FOLLOWING),
        (*FACTORS, *((name, "i32") for name in _NUMBERS)),
    ),
)
#: As in the kernel: positions of a tile with what lies between its rows, filters of a block, threads.
_POSITIONS, _FILTERS, _THREADS = 232, 64, 384
#: Bytes of two pixels, of the results of two consumers, of the filters for 16 terms; patches and rows on their way.
_UNIT, _OUTS, _STEP_BYTES, _PATCHES, _RAWS = 16, 2 * _POSITIONS * 128, 2048, 3, 4
#: Channels that a pixel is filled up to, pixels of a product, most products of a row of taps.
CHANNELS, _PIXELS, _MOST_STEPS = 4, 4, 2
_STRIDE, _MOST = 2, 2**29


class _Cut(NamedTuple):
    """How the work is cut: the fields of the kernel of the same names, and products of a row of taps."""

    steps: int
    lead: int
    pitch: int
    rows: int
    plane_rows: int
    patch_bytes: int
    raw_bytes: int
    filter_bytes: int

    @classmethod
    def of(cls, product: Product) -> _Cut:
        """Of a product, whose tiles may not fit; rows are 0 where not one does."""
        g = product.g
        (r, s), (stride, _), lead = g.taps, g.conv.strides(2), g.conv.paddings(2)[1][0] % 2
        steps = -(-(lead + s) // _PIXELS)
        beside = 2 * steps - 1
        pitch = g.output[1] + beside
        rows = min((_POSITIONS + beside) // pitch, g.output[0])
        seen = (rows - 1) * stride + r
        plane_rows = -(-seen // stride)
        last = max((i % stride * plane_rows + i // stride) * pitch for i in range(r)) + _POSITIONS + beside
        patch = max(stride * plane_rows * pitch, last) * _UNIT
        raw = seen * g.image[1] * g.in_channels * product.dtype.itemsize
        return cls(steps, lead, pitch, rows, plane_rows, up(patch), up(raw + 2 * _UNIT), r * steps * _STEP_BYTES)

    @property
    def shared_bytes(self) -> int:
        """Results of two consumers, filters, patches, rows, barriers, and what aligning them may take."""
        barriers = 8 * (2 * _PATCHES + _RAWS + 3)
        moving = _PATCHES * self.patch_bytes + _RAWS * self.raw_bytes
        return _OUTS + self.filter_bytes + moving + barriers + 1024


def up(size: int) -> int:
    """Bytes, up to whole rows of 128."""
    return -(-size // 128) * 128


def layer_reason(product: Product) -> str | None:
    """Why a layer, whatever its rows are, is none of few channels whose windows lie two pixels apart, or None."""
    g, conv, dtype = product.g, product.g.conv, product.dtype
    if product.profile.hopper_reason:
        return product.profile.hopper_reason
    if dtype.name not in ("float16", "bfloat16"):
        return f"for float16 and bfloat16, not for {dtype.name}"
    if not conv.channels_last or g.axes != 2 or conv.groups != 1:
        return "for NHWC images of two axes and one group"
    if not 0 < g.in_channels <= CHANNELS or g.out_channels % dtype.lanes:
        return f"{g.in_channels} channels by {g.out_channels} filters, must be {CHANNELS} at most by a multiple of 8"
    if conv.strides(2)[1] != _STRIDE or set(conv.dilations(2)) != {1}:
        return "for windows two pixels apart, and no dilation"
    return None


def _cannot(product: Product) -> str | None:
    g, reason = product.g, layer_reason(product)
    if reason:
        return reason
    if g.image[1] % 2 or prod(g.image) * g.in_channels * product.dtype.itemsize % WIDEST_ACCESS:
        return f"images of {g.image} pixels, rows must be even and images multiples of {WIDEST_ACCESS} bytes"
    return operands_reason(product) or blend_reason(product) or _no_room(product)


def _no_room(product: Product) -> str | None:
    g, cut = product.g, _Cut.of(product)
    if cut.steps > _MOST_STEPS or cut.rows < 1:
        return f"rows of {g.taps[1]} taps or of {g.output[1]} positions, more than a tile has"
    if prod(g.taps) * g.in_channels * _FILTERS * product.dtype.itemsize > _OUTS:
        return f"filters of {g.taps} taps, which are brought where results are put"
    if cut.shared_bytes > product.profile.shared_bytes:
        return f"{cut.shared_bytes} bytes of shared memory, a block has {product.profile.shared_bytes}"
    if prod(g.image) * CHANNELS > _MOST:
        return f"images of more than {_MOST} bytes"
    return None


def _work(product: Product) -> Work:
    """The one launch."""
    g, dtype, then, ending, cut = product.g, product.dtype, product.then, Ending.of(product), _Cut.of(product)
    each, down = -(-g.out_channels // _FILTERS), -(-g.output[0] // cut.rows)
    tiles, (before, left) = g.batch * down, (pads[0] for pads in g.conv.paddings(2))
    grid = min(max(1, product.profile.sm_count // each), tiles) * each
    numbers = (
        *(*ending.factors, *ending.constants, tiles, down, *g.image, g.in_channels),
        *(*g.taps, g.conv.strides(2)[0], before, left, *g.output, g.out_channels, each),
        *(cut.rows, cut.pitch, cut.lead, cut.plane_rows, cut.patch_bytes, cut.raw_bytes),
        *(int(g.conv.mode != "cross_correlation"), int(ending.relu)),
    )
    k, (p, q) = g.out_channels, g.output
    y = BoxMap(2, dtype.name, dtype.itemsize, (k, q, p, g.batch), (k, k * q, k * q * p), (_FILTERS, q, 1, 1))
    step = KernelStep(
        _FIRST, dtype, (dtype.cuda, str(cut.steps), *ending.functor), "forward", (grid, 1, 1), _THREADS,
        (product.x.at, product.w.at, product.y.at, ending.residual, then.b, then.scale, then.shift), numbers,
        shared_bytes=cut.shared_bytes, maps=(y, replace(y, pointer=3)), joint_maps=True,
    )  # fmt: skip
    return Work((step,))


def _instances(dtype: DType) -> dict[str, list[str]]:
    if dtype.name not in ("float16", "bfloat16"):
        return {}
    return {"forward": [f"{_FIRST.entry}<{dtype.cuda}, {steps}>" for steps in range(1, _MOST_STEPS + 1)]}


CONV_HOPPER_FIRST_FAMILY = Family("convolution_hopper_first", (_FIRST,), _instances, only="sm_90a")

#: Takes the 16-bit types.
HOPPER_FIRST = Algorithm("hopper_first", _cannot, always_pays, _work)
