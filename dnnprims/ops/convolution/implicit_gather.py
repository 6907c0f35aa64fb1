"""Forward and data gradient as one implicit product: what is gathered, splits, and its steps."""

from __future__ import annotations

from math import gcd, prod
from typing import NamedTuple

from ...descriptors import dense_strides
from ...runtime.launch import NULL, KernelStep, Pointer, Scratch
from ...runtime.limits import MOST_ACROSS
from .geometry import Numbers
from .implicit_fold import FUSED, after, fold_step
from .implicit_tiles import Tile, View, Way
from .implicit_weights import Weights, in_place, repacked, repacked_bytes, turned, turned_bytes
from .product import WIDEST_ACCESS, Operand, Product, Work

#: Slices that a split has at least, and results that are stored at once.
FEWEST_SLICES, _FOUR = 16, 4


class Gather(NamedTuple):
    """Forward or data gradient as one product: `terms` channels in, `lines` channels out of each group."""

    way: Way
    product: Product
    backwards: bool
    terms: int
    lines: int
    result: Operand
    source: Operand
    result_extents: Numbers
    source_extents: Numbers

    @classmethod
    def of(cls, way: Way, product: Product) -> Gather:
        """Which operand is gathered, and what the result is."""
        _, _, in_per_group, out_per_group, *extents = product.g.scalars()
        image, output = tuple(extents[:3]), tuple(extents[3:6])
        if product.direction == "forward":
            return cls(way, product, False, in_per_group, out_per_group, product.y, product.x, output, image)
        return cls(way, product, True, out_per_group, in_per_group, product.x, product.y, image, output)

    @property
    def axes(self) -> list[Numbers]:
        """Taps, stride, dilation and padding of each spatial axis."""
        numbers = self.product.g.scalars()[10:]
        return [tuple(numbers[axis::3]) for axis in range(3)]

    @property
    def phases(self) -> int:
        """Residues of the strides."""
        return prod(stride for _, stride, _, _ in self.axes) if self.backwards else 1

    @property
    def rows(self) -> int:
        """Of the largest phase."""
        strides = [stride if self.backwards else 1 for _, stride, _, _ in self.axes]
        return self.product.g.batch * prod(-(-n // s) for n, s in zip(self.result_extents, strides, strict=True))

    @property
    def tile(self) -> Tile:
        """Of a block."""
        others = self.product.g.conv.groups * self.phases
        return self.way.tile_for(self.product.dtype, "gather", self.rows, self.lines, others)

    @property
    def blocks(self) -> int:
        """Without splits."""
        return max(1, self.tile.needed(self.rows, self.lines) * self.product.g.conv.groups * self.phases)

    @property
    def splits(self) -> int:
        """How many blocks share the terms of a tile."""
        taps = -(-prod(self.product.g.taps) // self.phases)
        slices = taps * -(-self.terms // self.tile.depth)
        # Sums of splits cost more bandwidth than they spare where results are many.
        return 1 if 2 * self.blocks > self.tile.places else self.tile.splits(self.blocks, slices // FEWEST_SLICES)

    @property
    def partial_bytes(self) -> int:
        """Scratch for the sums, where they are not finished by the product itself."""
        if self.splits == 1 and self.product.then.activation.mode in FUSED:
            return 0
        return self.splits * self.size * self.product.dtype.acc.itemsize

    @property
    def size(self) -> int:
        """Elements of the result."""
        return self.product.g.batch * self.product.g.conv.groups * self.lines * prod(self.result_extents)

    @property
    def padded(self) -> bool:
        """Whether a tap may lie outside of the source."""
        before_and_after = self.product.g.conv.paddings(self.product.g.axes)
        return self.backwards or any(any(pads) for pads in before_and_after)

    def rearranged_bytes(self) -> int:
        """Scratch for the filters."""
        if not self.way.strict:
            return repacked_bytes(self.product, self.terms, self.lines, always=self.way.joined)
        if self.product.direction == "forward":
            return 0
        return turned_bytes(self.product, self.terms, self.lines, self.way.pack(self.product.dtype))

    def weights(self, at: Pointer) -> tuple[KernelStep | None, Weights]:
        """The filters as they are read, and the step that rearranges them at `at` where one is needed."""
        pack = self.way.pack(self.product.dtype)
        if not self.rearranged_bytes():
            return None, in_place(self.product, self.terms, self.lines, pack)
        if self.way.strict:
            return turned(self.product, self.terms, self.lines, pack, at)
        return repacked(self.product, self.terms, self.lines, at)


def gather_reason(way: Way, product: Product) -> str | None:
    """Why it cannot be done, or None."""
    gather = Gather.of(way, product)
    if gather.phases * gather.splits > MOST_ACROSS:
        return f"{gather.phases} residues of the strides"
    reason = _packs_reason(gather) if way.strict else None
    nbytes = gather.rearranged_bytes() + gather.partial_bytes
    return reason or (product.workspace_reason(nbytes) if nbytes else None)


def _packs_reason(gather: Gather) -> str | None:
    product, way = gather.product, gather.way
    pack = way.pack(product.dtype)
    source = View.of(product, gather.source.strides)
    if not source.packed(product.dtype, pack, gather.source.alignment, gather.terms):
        return f"{gather.terms} channels of a group do not lie in packs of {pack}"
    if product.direction == "forward":
        whole = in_place(product, gather.terms, gather.lines, pack)
        return None if whole.packed and whole.along_terms else f"filters do not lie in packs of {pack} channels"
    dense = dense_strides((product.g.out_channels, *product.g.taps, gather.lines))
    own = (
        product.w.strides
        if product.g.conv.channels_last
        else (product.w.strides[0], *product.w.strides[2:], product.w.strides[1])
    )
    return None if own == dense else "filters with gaps, or with channels apart"


def gather_work(way: Way, product: Product) -> Work:
    """Filters rearranged where they need be, the product, and the fold where there is one."""
    gather, region = Gather.of(way, product), len(product.taken)
    step, weights = gather.weights(Scratch(region))
    scratch = [gather.rearranged_bytes()] if step else []
    made = [step] if step else []
    if not gather.partial_bytes:
        return Work((*made, _product_step(gather, weights, None)), tuple(scratch))
    at = Scratch(region + len(scratch))
    steps = (*made, _product_step(gather, weights, at), fold_step(product, gather.splits, at))
    return Work(steps, (*scratch, gather.partial_bytes))


def _product_step(gather: Gather, weights: Weights, partial: Pointer | None) -> KernelStep:
    product, g, tile = gather.product, gather.product.g, gather.tile
    then, dtype = product.then, product.dtype
    source, result = View.of(product, gather.source.strides), View.of(product, gather.result.strides)
    result_alignment = gather.result.alignment
    if partial is not None:
        shape = g.y_shape if product.direction == "forward" else g.x_shape
        result, result_alignment = View.of(product, dense_strides(shape)), WIDEST_ACCESS
    residual = View.of(product, then.residual.strides) if then.residual else View(0, 0, (0, 0, 0))
    axes = []
    for axis, (taps, stride, dilation, padding) in enumerate(gather.axes):
        common = gcd(stride, dilation)
        axes += [gather.result_extents[axis], gather.source_extents[axis], taps, stride, dilation, padding]
        axes += [stride // common, dilation // common, result.spatial[axis], source.spatial[axis]]
        axes += [weights.taps[axis], residual.spatial[axis]]
    column_tiles = -(-gather.lines // tile.columns)
    source_packed = source.packed(dtype, gather.way.pack(dtype), gather.source.alignment, gather.terms)
    result_packed = result.packed(dtype, _FOUR, result_alignment, gather.lines)
    numbers = (float(then.alpha1), float(then.alpha2), float(product.alpha), float(product.beta))
    counts = (g.batch, gather.terms, gather.lines, column_tiles, gather.splits)
    way = (result.outer, result.channel, source.outer, source.channel, residual.outer, residual.channel)
    relu = int(then.activation.mode == "relu")
    flags = (int(gather.backwards), source_packed, int(source.channel == 1), weights.packed, weights.along_terms)
    operand = NULL if partial is None else partial
    return KernelStep(
        gather.way.gather, dtype, gather.way.template(dtype, tile), "gather",
        (tile.needed(gather.rows, gather.lines), g.conv.groups, gather.phases * gather.splits), tile.threads,
        (gather.result.at, gather.source.at, weights.at, *after(product), operand),
        (*numbers, gather.size, *counts, *way, weights.term, weights.line, weights.group, weights.first, *axes,
         *flags, result_packed, relu, int(gather.padded)),
        shared_bytes=tile.shared_bytes,
    )  # fmt: skip
