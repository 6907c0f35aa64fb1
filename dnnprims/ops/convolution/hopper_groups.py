"""Groups of channels on Hopper: 64 channels at a time, with zeros in the filters between smaller groups.

Their gradients in the filters are those of as many groups together as a tile has rows for, of which a part is kept.

The tensor cores multiply the zeros: of groups of 4 channels 15 products of 16 are for nothing, at a rate of which one
in 16 is still several times what copies of single groups reach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

from ...descriptors import dense_strides
from ...runtime.launch import KernelStep, Scratch, blocks_for
from . import hopper, hopper_filter, hopper_patch
from .hopper import GROUP_BLOCK, filter_depth
from .product import WIDEST_ACCESS, Algorithm, Operand, Product, Work
from .relaid import FILTERS, OWN_FILTERS

_THREADS = 256
#: Channels of a group below which other kernels are left the work; times as many products as are wanted above which
#: gradients in filters are, too. NVIDIA H200, 2026-11-28, bfloat16, batch 256, 3x3, 32 groups, microseconds of those
#: (cuDNN 9): 128@56 309 to 464 (497), 256@28 163 (146), 512@14 95 (101), 1024@7 61 to 76 (50); 300 in the last where a
#: tile multiplied the channels of all groups. Batch 32 512@14 27 (20).
_FEWEST, _MOST_TIMES = 4, 64
#: Pixels of a patch below which tiles of any pixels take less time. NVIDIA H200, 2026-11-28, bfloat16, batch
#: 256, 32 groups, patches and tiles: 1024@7 94 and 48 us, 512@14 53 and 74.
_FEWEST_PIXELS = 116


def _width(product: Product) -> int:
    """Channels of a group, in."""
    return product.g.in_channels // product.g.conv.groups


def _in_blocks(
    name: str,
    inner_reason: Callable[[Product], str | None],
    inner: Callable[[Product], Work],
    slower: Callable[[Product], str | None],
) -> Algorithm:
    """The algorithm with filters of whole blocks of channels."""

    def cannot(product: Product) -> str | None:
        reason = _reason(product)
        if reason or _width(product) >= GROUP_BLOCK:
            return reason or inner_reason(product)
        return inner_reason(_widened(product)) or product.workspace_reason(_bytes(product))

    def work(product: Product) -> Work:
        if _width(product) >= GROUP_BLOCK:
            return inner(product)
        done = inner(_widened(product))
        return Work((_filters_step(product), *done.steps), (_bytes(product), *done.scratch))

    return Algorithm(f"{name}_in_blocks", cannot, slower, work)


def _reason(product: Product) -> str | None:
    g = product.g
    if g.conv.groups == 1:
        return "one group"
    if g.in_channels != g.out_channels:
        return f"groups of {g.in_channels} and {g.out_channels} channels, must be as many"
    width = _width(product)
    if not width or (GROUP_BLOCK % width and width % GROUP_BLOCK) or g.in_channels % GROUP_BLOCK:
        return f"{g.in_channels} channels in groups of {width} do not make up blocks of {GROUP_BLOCK}"
    return _gaps(product)


def _gaps(product: Product) -> str | None:
    shape = (product.g.out_channels, *product.g.taps, _width(product))
    wanted = zip(shape, product.w.strides, dense_strides(shape), strict=True)
    return "w has gaps" if any(extent > 1 and stride != dense for extent, stride, dense in wanted) else None


def _slower(product: Product) -> str | None:
    width = _width(product)
    return f"{width} channels of {GROUP_BLOCK} would be multiplied for something" if width < _FEWEST else None


def _patch_slower(product: Product) -> str | None:
    extents = product.g.output if product.direction == "forward" else product.g.image
    cut = hopper_patch.patching(extents, product.profile.shared_bytes)
    if cut and cut.rows * cut.columns < _FEWEST_PIXELS:
        return f"patches of {cut.rows} x {cut.columns} pixels leave most of a tile empty"
    return _slower(product)


def _bytes(product: Product) -> int:
    return product.g.out_channels * prod(product.g.taps) * GROUP_BLOCK * product.dtype.itemsize


def _widened(product: Product) -> Product:
    """With the filters among the scratch."""
    g, at = product.g, Scratch(len(product.taken))
    shape = (g.out_channels, *g.taps, filter_depth(product))
    w = Operand(at, dense_strides(shape), WIDEST_ACCESS)
    return product._replace(w=w, taken=(*product.taken, _bytes(product)))


def _filters_step(product: Product) -> KernelStep:
    g, dtype, taps = product.g, product.dtype, prod(product.g.taps)
    size = g.out_channels * taps * GROUP_BLOCK
    return KernelStep(
        FILTERS, dtype, (dtype.cuda,), "groups", blocks_for(size, _THREADS), _THREADS,
        (Scratch(len(product.taken)), product.w.at), (size, taps, _width(product)),
    )  # fmt: skip


def _filter_cannot(product: Product) -> str | None:
    if product.g.conv.groups == 1:
        return "one group"
    if product.beta != 0.0:
        return "beta would be applied after a rounding"
    reason = _gaps(product) or hopper_filter.cannot(_as_one(product))
    return reason or product.workspace_reason(sum(_filter_work(product).scratch))


def _filter_slower(product: Product) -> str | None:
    times = hopper_filter.row_channels(product.g) // max(1, _width(product))
    return f"{times} times as many products, {_MOST_TIMES} at most" if times > _MOST_TIMES else None


def _as_one(product: Product) -> Product:
    """All channels with all filters."""
    g = product.g
    w = Operand(product.w.at, dense_strides((g.out_channels, *g.taps, g.in_channels)), WIDEST_ACCESS)
    return product._replace(g=g._replace(conv=replace(g.conv, groups=1)), w=w)


def _together(product: Product) -> Product:
    """Filters that see all channels of their tile's groups, among the scratch."""
    g, at = product.g, Scratch(len(product.taken))
    shape = (g.out_channels, *g.taps, hopper_filter.row_channels(g))
    w = Operand(at, dense_strides(shape), WIDEST_ACCESS)
    return product._replace(w=w, taken=(*product.taken, prod(shape) * product.dtype.itemsize))


def _filter_work(product: Product) -> Work:
    g, dtype, whole = product.g, product.dtype, _together(product)
    done, size, taps = hopper_filter.work(whole), g.filter_size, prod(g.taps)
    numbers = (size, taps, hopper_filter.row_channels(g), _width(product), g.out_channels // g.conv.groups)
    step = KernelStep(
        OWN_FILTERS, dtype, (dtype.cuda,), "groups", blocks_for(size, _THREADS), _THREADS,
        (product.w.at, whole.w.at), numbers,
    )  # fmt: skip
    return Work((*done.steps, step), (whole.taken[-1], *done.scratch))


def _hopper_reason(product: Product) -> str | None:
    return hopper.image_reason(product, grouped=True) or hopper.blend_reason(product)


def _patch_reason(product: Product) -> str | None:
    return hopper_patch.walk_reason(product, hopper.image_reason(product, grouped=True))


#: Take the 16-bit types.
HOPPER_GROUPS = _in_blocks("hopper", _hopper_reason, hopper.work, _slower)
HOPPER_PATCH_GROUPS = _in_blocks("hopper_patch", _patch_reason, hopper_patch.work, _patch_slower)
HOPPER_FILTER_GROUPS = Algorithm("hopper_as_one_group", _filter_cannot, _filter_slower, _filter_work)
