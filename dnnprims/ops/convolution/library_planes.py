"""Convolutions of one tap and stride 1 whose positions lie side by side: a product of matrices for each image.

By cuBLASLt, in one call. NVIDIA H200, 2026-11-28, bfloat16, 256 images of 56 x 56, microseconds, in brackets cuDNN's
and behind copies to channels side by side: forward 64-256 145 (144, 403), 64-64 56 (57, 164), data 64-256 128 (128).
Gradients in filters, float16, in brackets behind copies and with channels last: 64-64 75 (170, 67), 64-256 152 (389,
139), 256-128 184 (463, 165): what is beyond is the fold, 256 sums of each element.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import prod

from ...runtime.gemm import GemmStep, Matrix, lt_reason, workspace_for
from ...runtime.launch import NULL, Scratch
from .direct import direct_step
from .geometry import split
from .implicit import FFMA
from .implicit_filter import step_by_images
from .implicit_fold import fold_step
from .library import epilogue_reason
from .product import WIDEST_ACCESS, Algorithm, Operand, Product, Work, always_pays

#: As the grid of a launch has them along its last axis.
_MOST_IMAGES = 65535


def _cannot(product: Product) -> str | None:
    g, conv = product.g, product.g.conv
    if conv.channels_last:
        return "positions do not lie side by side"
    if prod(g.taps) != 1 or conv.groups != 1:
        return "more than one tap, or groups"
    if any(step != 1 for step in conv.strides(g.axes)) or any(sum(pads) for pads in conv.paddings(g.axes)):
        return "strides or padding"
    positions, lanes = prod(g.image), product.dtype.lanes
    if positions % lanes or product.then.b is not NULL:
        return f"{positions} positions, must be a multiple of {lanes}, without a bias"
    if g.batch > _MOST_IMAGES:
        return f"{g.batch} images, at most {_MOST_IMAGES}"
    w_outer, w_channel, _ = split(conv, product.w.strides)
    if (g.in_channels > 1 and w_channel != 1) or w_outer < g.in_channels:
        return "filters that do not lie one behind the other"
    if not all(_lies_in_planes(product, at) for at in (product.x, product.y)):
        return "positions that do not follow each other without gaps"
    if any(at.alignment != WIDEST_ACCESS for at in (product.x, product.w, product.y)):
        return f"an operand is not aligned to {WIDEST_ACCESS} bytes"
    reason = None if product.direction == "filter" else epilogue_reason(product)
    return reason or lt_reason(product.profile, g.out_channels, positions * g.batch, g.in_channels)


def _lies_in_planes(product: Product, at: Operand) -> bool:
    """Whether positions follow each other, and planes in steps that keep the alignment."""
    outer, channel, spatial = split(product.g.conv, at.strides)
    walk = [(extent, step) for extent, step in zip(product.g.image, spatial, strict=True) if extent > 1]
    touching = all(step == extent * below for (_, step), (extent, below) in pairwise(walk))
    lanes, positions = product.dtype.lanes, prod(product.g.image)
    return (
        touching and (not walk or walk[-1][1] == 1) and channel >= positions and not (channel % lanes or outer % lanes)
    )


def _work(product: Product) -> Work:
    g, then, room = product.g, product.then, workspace_for(product.profile, sum(product.taken))
    x, y = (_planes(product, at) for at in (product.x, product.y))
    forward, leading = product.direction == "forward", split(g.conv, product.w.strides)[0]
    w = Matrix(product.w.at, leading, transposed=not forward, alignment=product.w.alignment)
    m, k = (g.out_channels, g.in_channels) if forward else (g.in_channels, g.out_channels)
    step = GemmStep(
        product.dtype, m, prod(g.image), k, w, x if forward else y, y if forward else x,
        "none" if then.activation.mode == "identity" else then.activation.mode,
        alpha=float(product.alpha * then.alpha1), beta=float(product.beta), batch=g.batch, math=product.profile.math,
        workspace=Scratch(len(product.taken)) if room else NULL, workspace_bytes=room, fallback=(direct_step(product),),
    )  # fmt: skip
    return Work((step,), (room,))


def _planes(product: Product, at: Operand) -> Matrix:
    outer, channel, _ = split(product.g.conv, at.strides)
    return Matrix(at.at, channel, alignment=at.alignment, step=outer)


#: A product for each image.
LIBRARY_PLANES = Algorithm("lt_products", _cannot, always_pays, _work)


# -- the gradient in filters: the sums of each image, and what they come to -------------------------------------------


def _cannot_filter(product: Product) -> str | None:
    return _cannot(product) or product.workspace_reason(_sums_bytes(product))


def _sums_bytes(product: Product) -> int:
    return product.g.batch * product.g.filter_size * product.dtype.acc.itemsize


def _slower_filter(product: Product) -> str | None:
    """Where sums of images are more bytes, there and back, than operands that copies would move."""
    g = product.g
    moved = (prod(g.x_shape) + prod(g.y_shape)) * product.dtype.itemsize
    return "filters are as large as images" if _sums_bytes(product) > moved else None


def _filter_work(product: Product) -> Work:
    g, sums = product.g, len(product.taken)
    room = workspace_for(product.profile, sum(product.taken) + _sums_bytes(product))
    x, y = (_planes(product, at) for at in (product.x, product.y))
    parts = Matrix(Scratch(sums), g.in_channels, step=g.filter_size)
    step = GemmStep(
        product.dtype, g.out_channels, g.in_channels, prod(g.image), y, replace(x, transposed=True), parts,
        batch=g.batch, sums=True, math=product.profile.math,
        workspace=Scratch(sums + 1) if room else NULL, workspace_bytes=room,
        fallback=(step_by_images(FFMA, product, Scratch(sums)),),
    )  # fmt: skip
    return Work((step, fold_step(product, g.batch, Scratch(sums))), (_sums_bytes(product), room))


#: A product for each image, and the fold of its sums.
LIBRARY_PLANES_FILTER = Algorithm("lt_products", _cannot_filter, _slower_filter, _filter_work)
