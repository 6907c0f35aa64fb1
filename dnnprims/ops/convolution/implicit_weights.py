"""Filters as the implicit products read them: where they lie, or rearranged in scratch."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from ...runtime.launch import KernelStep, Pointer, blocks_for
from .geometry import Geometry, Numbers, filter_steps
from .implicit_structs import REPACK
from .implicit_tiles import packed
from .product import WIDEST_ACCESS, Operand, Product
from .relaid import Positioned, copy_step

_BLOCK = 256
#: Channels of the result that rearranged filters have side by side.
_FOUR = 4


class Weights(NamedTuple):
    """Steps of what is summed over, of channels of the result, of groups and of taps; the first element; flags."""

    at: Pointer
    term: int
    line: int
    group: int
    taps: Numbers
    first: int
    packed: int
    along_terms: int


def in_place(product: Product, terms: int, lines: int, pack: int) -> Weights:
    """As they lie."""
    term, line, group, taps, first = _steps(product)
    along = term == 1
    unit, other, count = (term, line, terms) if along else (line, term, lines)
    whole = packed(product.dtype, pack, product.w.alignment, count, unit, other, group, first, *taps)
    return Weights(product.w.at, term, line, group, taps, first, whole, int(along))


def _steps(product: Product) -> tuple[int, int, int, Numbers, int]:
    first, (outer, channel, *taps) = filter_steps(product.g.conv, product.g.taps, product.w.strides)
    group = product.g.scalars()[3] * outer
    term, line = (channel, outer) if product.direction == "forward" else (outer, channel)
    return term, line, group, tuple(taps), first


# -- through registers: the channels of the result side by side, where no channels do ----------------------------------


def repacked_bytes(product: Product, terms: int, lines: int, *, always: bool = False) -> int:
    """Scratch for filters whose channels lie apart; 0 where they are read in place."""
    if not always and 1 in _steps(product)[:2]:
        return 0
    return product.g.conv.groups * prod(product.g.taps) * terms * _padded(lines, _FOUR) * product.dtype.itemsize


def repacked(product: Product, terms: int, lines: int, at: Pointer) -> tuple[KernelStep, Weights]:
    """The step that rearranges them, from the tap that comes first: a flipped filter is turned back."""
    dtype = product.dtype
    term, line, group, taps, first = _steps(product)
    extents, padded = product.g.scalars()[10:13], _padded(lines, _FOUR)
    size, per_tap = repacked_bytes(product, terms, lines, always=True) // dtype.itemsize, terms * padded
    tap_steps = (extents[1] * extents[2] * per_tap, extents[2] * per_tap, per_tap)
    step = KernelStep(
        REPACK, dtype, (dtype.cuda,), "repack", blocks_for(size, _BLOCK), _BLOCK, (at, product.w.at),
        (size, *extents, terms, lines, padded, group, *taps, term, line, first),
    )  # fmt: skip
    return step, Weights(at, padded, 1, prod(extents) * per_tap, tap_steps, 0, 1, 0)


def _padded(count: int, pack: int) -> int:
    return -(-count // pack) * pack


# -- to shared memory as they are: what is summed over side by side ----------------------------------------------------


def turned_bytes(product: Product, terms: int, lines: int, pack: int) -> int:
    """Scratch for the filters of a data gradient, whose outer axis comes to lie innermost."""
    g = product.g
    return g.conv.groups * prod(g.taps) * lines * _padded(terms, pack) * product.dtype.itemsize


def turned(product: Product, terms: int, lines: int, pack: int, at: Pointer) -> tuple[KernelStep, Weights]:
    """The step that turns filters without gaps."""
    g, padded = product.g, _padded(terms, pack)
    positions = prod(g.taps) * lines
    own = Positioned(product.w, g.conv.groups, terms, positions, (terms * positions, positions, 1))
    home = Operand(at, (), WIDEST_ACCESS)
    there = Positioned(home, g.conv.groups, padded, positions, (positions * padded, 1, padded))
    first, tap_steps = _tap_steps(g, lines * padded)
    weights = Weights(at, 1, padded, positions * padded, tap_steps, first, 1, 1)
    return copy_step(product.dtype, own, there), weights


def _tap_steps(g: Geometry, per_tap: int) -> tuple[int, Numbers]:
    """First tap and steps of taps that follow each other without gaps, `per_tap` elements each."""
    spatial = tuple(per_tap * prod(g.taps[axis + 1 :]) for axis in range(g.axes))
    strides = (0, *spatial, 0) if g.conv.channels_last else (0, 0, *spatial)
    first, (_, _, *steps) = filter_steps(g.conv, g.taps, strides)
    return first, tuple(steps)
