"""Convolutions that are a product of matrices as they lie, by cuBLASLt: one tap, stride 1, channels side by side."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import prod

from ...runtime.gemm import GemmStep, Matrix, lower, lt_reason, workspace_for
from ...runtime.launch import NULL, Scratch
from .direct import direct_step
from .geometry import Numbers, split
from .product import WIDEST_ACCESS, Algorithm, Operand, Product, Work, always_pays

#: Activations that the library's epilogue has exactly.
_EPILOGUES = {"identity": "none", "relu": "relu"}


def _cannot(product: Product) -> str | None:
    g, conv = product.g, product.g.conv
    if not conv.channels_last:
        return "channels do not lie side by side"
    if prod(g.taps) != 1 or conv.groups != 1:
        return "more than one tap, or groups"
    if any(step != 1 for step in conv.strides(g.axes)) or any(sum(pads) for pads in conv.paddings(g.axes)):
        return "strides or padding"
    if any(_leading(product, name) is None for name in ("x", "w", "y")):
        return "positions that do not follow each other in even steps"
    if any(at.alignment != WIDEST_ACCESS for at in (product.x, product.w, product.y)):
        return f"an operand is not aligned to {WIDEST_ACCESS} bytes"
    return epilogue_reason(product) or lt_reason(product.profile, *_extents(product))


def epilogue_reason(product: Product) -> str | None:
    """Why the library's epilogue is not what follows the sums, or None."""
    then = product.then
    if then.residual or then.scale is not NULL or then.shift is not NULL:
        return "the library's epilogue has no residual, scale or shift"
    if then.activation.mode not in _EPILOGUES:
        return f"no epilogue for {then.activation.mode}"
    blended = product.alpha != 1.0 or product.beta != 0.0
    if blended and (then.activation.mode != "identity" or then.b is not NULL):
        return "alpha and beta apply after activation and bias"
    if product.dtype.itemsize == 2 and (then.b is not NULL or product.beta != 0.0):
        return "the library may round a 16-bit product before it adds"
    return None


def _extents(product: Product) -> Numbers:
    """m, n and k of the product, row-major."""
    g = product.g
    rows = g.batch * prod(g.output)
    return {
        "forward": (rows, g.out_channels, g.in_channels),
        "data": (rows, g.in_channels, g.out_channels),
        "filter": (g.out_channels, g.in_channels, rows),
    }[product.direction]


def _leading(product: Product, name: str) -> int | None:
    """Elements from one position, or filter, to the next, or None where they are uneven or channels have steps."""
    g = product.g
    at, outer, channels, extents = {
        "x": (product.x, g.batch, g.in_channels, g.image),
        "w": (product.w, g.out_channels, g.in_channels, g.taps),
        "y": (product.y, g.batch, g.out_channels, g.output),
    }[name]
    outer_step, channel_step, spatial = split(g.conv, at.strides)
    walk = [(n, step) for n, step in zip((outer, *extents), (outer_step, *spatial), strict=True) if n > 1]
    if channels > 1 and channel_step != 1:
        return None
    if any(step != n * below for (_, step), (n, below) in pairwise(walk)):
        return None
    leading = walk[-1][1] if walk else channels
    return leading if leading >= channels else None


def _matrix(product: Product, name: str, at: Operand) -> Matrix:
    return Matrix(at.at, _leading(product, name) or 1, alignment=at.alignment)


def _work(product: Product) -> Work:
    m, n, k = _extents(product)
    x, w, y = (_matrix(product, name, at) for name, at in (("x", product.x), ("w", product.w), ("y", product.y)))
    a, b, c = {
        "forward": (x, replace(w, transposed=True), y),
        "data": (y, w, x),
        "filter": (replace(y, transposed=True), x, w),
    }[product.direction]
    then, room = product.then, workspace_for(product.profile, sum(product.taken))
    bias = then.b is not NULL
    plain = _EPILOGUES[then.activation.mode]
    epilogue = plain if not bias else "bias" if plain == "none" else f"{plain}_bias"
    step = GemmStep(
        product.dtype, m, n, k, a, b, c, epilogue, then.b,
        alpha=float(product.alpha * then.alpha1), beta=float(product.beta),
        workspace=Scratch(len(product.taken)), workspace_bytes=room,
    )  # fmt: skip
    # What the library refuses when it runs is done by the plain kernel, epilogue and all.
    steps = (
        replace(one, fallback=(direct_step(product),))
        for one in lower(product.profile, step)
        if isinstance(one, GemmStep)
    )
    return Work(tuple(steps), (room,))


#: A product of matrices as they lie.
LIBRARY = Algorithm("lt_product", _cannot, always_pays, _work)
