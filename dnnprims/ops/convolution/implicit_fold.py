"""What becomes of the sums of splits, and what follows sums at all."""

from __future__ import annotations

from math import prod

from ...runtime.launch import NULL, KernelStep, Pointer, blocks_for
from .direct import forward_step
from .geometry import filter_steps, steps
from .implicit_structs import FOLD
from .product import Product

#: Threads of a block: fewer where many splits make few elements long, so that more multiprocessors share them.
_BLOCK, _LONG_BLOCK, _LONG = 256, 64, 16
#: Activations that the products and the fold apply themselves; the others are left to the direct kernel.
FUSED = ("identity", "relu")


def after(product: Product) -> tuple[Pointer, ...]:
    """Pointers to what follows the sums."""
    then = product.then
    return (then.b, then.residual.at if then.residual else NULL, then.scale, then.shift)


def fold_step(product: Product, splits: int, at: Pointer) -> KernelStep:
    """Sums of splits to the result, in the order of its memory."""
    g, then, dtype = product.g, product.then, product.dtype
    if then.activation.mode not in FUSED:
        return forward_step(product, at, splits)
    numbers = g.scalars()
    first = 0
    if product.direction == "filter":
        outer, channels, extents, result = g.out_channels, numbers[2], numbers[10:13], product.w
        first, way = filter_steps(g.conv, g.taps, product.w.strides)
    else:
        forward = product.direction == "forward"
        result = product.y if forward else product.x
        outer, channels = g.batch, g.out_channels if forward else g.in_channels
        extents, way = numbers[7:10] if forward else numbers[4:7], steps(g.conv, result.strides)
    residual = steps(g.conv, then.residual.strides) if then.residual else (0,) * 5
    size = outer * channels * prod(extents)
    block = _LONG_BLOCK if splits >= _LONG else _BLOCK
    factors = (then.alpha1, then.alpha2, product.alpha, product.beta)
    flags = (int(g.conv.channels_last), int(then.activation.mode == "relu"))
    return KernelStep(
        FOLD, dtype, (dtype.cuda,), "fold", blocks_for(size, block), block,
        (result.at, at, *after(product)),
        (*map(float, factors), size, splits, first, channels, *extents, *way, *residual, *flags),
    )  # fmt: skip
