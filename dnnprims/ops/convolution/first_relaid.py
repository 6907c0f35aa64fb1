"""First layers whose outputs lie in planes: by the kernels of few channels, behind a copy of the outputs alone.

Of outputs they move packs of filters, which planes do not have. NVIDIA H200, 2026-11-28, float16, 256 images of
3x224x224, 7x7 of stride 2 to 64, forward / data / filter in microseconds: 674 / 835 / 691 behind the copy, 891 / 1893
/ 1735 without, 318 / 633 / 397 with channels last. The copy is 822 MB, 200 us at its rate; the rest are images read
from planes, row by row of each channel. 1 image: 29 / 39 / 34 behind it, 34 / 55 / 48 without.
"""

from __future__ import annotations

from math import prod

from ...descriptors import dense_strides
from ...runtime.launch import Scratch
from .geometry import join
from .product import WIDEST_ACCESS, Algorithm, Operand, Product, Work, always_pays
from .relaid import Positioned, copy_reason, copy_step, positioned


def _home(product: Product) -> Operand:
    """The outputs in scratch, filters side by side, with steps in the convolution's own order."""
    g = product.g
    outer, *spatial, channel = dense_strides((g.batch, *g.output, g.out_channels))
    return Operand(Scratch(len(product.taken)), join(g.conv, outer, channel, tuple(spatial)), WIDEST_ACCESS)


def _nbytes(product: Product) -> int:
    return prod(product.g.y_shape) * product.dtype.itemsize


def _moved(product: Product) -> Product:
    return product._replace(y=_home(product), taken=(*product.taken, _nbytes(product)))


def _cannot(inner: Algorithm, product: Product) -> str | None:
    if product.g.conv.channels_last:
        return "outputs do not lie in planes"
    if product.direction == "forward" and (product.alpha != 1.0 or product.beta != 0.0):
        return "alpha and beta would be applied after a rounding"
    if product.g.out_channels % product.dtype.lanes:
        return f"{product.g.out_channels} filters, must be a multiple of {product.dtype.lanes}"
    reason = copy_reason(product, "y") or product.workspace_reason(_nbytes(product))
    return reason or inner.cannot(_moved(product))


def _work(inner: Algorithm, product: Product) -> Work:
    own, home = positioned(product, "y"), _home(product)
    assert own is not None
    there = Positioned(home, own.outer, own.channels, own.positions, (own.channels * own.positions, 1, own.channels))
    done = inner.work(_moved(product))
    forward = product.direction == "forward"
    copy = copy_step(product.dtype, there, own) if forward else copy_step(product.dtype, own, there)
    steps = (*done.steps, copy) if forward else (copy, *done.steps)
    return Work(steps, (_nbytes(product), *done.scratch))


def first_after_copy(inner: Algorithm) -> Algorithm:
    """The algorithm behind a copy of its outputs."""
    return Algorithm(
        f"{inner.name}_after_copies",
        lambda product: _cannot(inner, product),
        always_pays,
        lambda product: _work(inner, product),
    )
