"""How the images of depthwise convolutions are cut, and which kernel takes the parts."""

from __future__ import annotations

from typing import NamedTuple

from ...runtime.limits import MOST_ACROSS
from .geometry import Numbers, steps
from .product import Operand, Product

#: As in the kernels: threads of a block of strips, positions of a strip side by side.
BLOCK, _COLUMNS = 128, 4
#: Of a block of tiles: threads at most by taps, bytes of its channels and of a copy, positions of a row at most.
_MOST_THREADS, _PITCH, _CHUNK = {3: 256, 5: 128}, 128, 16
_MOST_POSITIONS = {"forward": 72, "data": 72, "filter": 114}
#: Rows that have places.
_RINGS = {"forward": 6, "data": 6, "filter": 3}
#: Of tiles: channels and positions side by side of a thread, by the bytes of an element, taps and stride: as many as
#: registers hold sums and filters for. The gradients of all filters, and images but for those of `STRIPS`.
TILES = {
    (2, 3, 1): (2, 7), (2, 3, 2): (2, 4), (2, 5, 1): (2, 7), (2, 5, 2): (2, 4),
    (4, 3, 1): (2, 7), (4, 3, 2): (2, 4), (4, 5, 1): (2, 5), (4, 5, 2): (2, 4),
}  # fmt: skip
#: Of strips of images, likewise: channels of a thread where they lie side by side, and how wide images must be that
#: tiles take longer for, if these are compiled. Other filters take a thread an element. NVIDIA H200, 2026-11-28,
#: bfloat16, batch 256, tiles and strips: 64@112 255 and 226 us, 128@56 140 and 134, 512@14 42 and 52; at stride 2
#: 128@56 91 and 82, 5x5 240@28 73 and 85.
STRIPS = {(2, 3, 1): (4, 29), (2, 3, 2): (4, 0), (4, 3, 1): (2, 29), (4, 3, 2): (2, 0)}
#: Of these no kernel with one channel is compiled: bytes of an element and taps.
PACKED_ONLY = {(4, 5)}
#: Rows that a strip is long: the longest, where that leaves blocks enough for each multiprocessor, of strips and tiles.
_LONGEST_WALK, _SHORTEST_WALK, _ENOUGH_BLOCKS, _ENOUGH_TILES = 64, 4, 8, 3
#: Numbers of positions have 32 bits, as have the offsets within a strip; blocks along y and z.
MOST, _MOST_STEP, _MOST_OFFSET = 2**31 - 1, 2**23, 2**30


def _pair(values: Numbers) -> Numbers:
    """Of the last two spatial axes."""
    return tuple(values[-2:])


def walk_of(product: Product, strides: Numbers) -> Numbers:
    """Steps of an operand from an image, a channel, a row and a position to the next."""
    outer, channel, _, h, w = steps(product.g.conv, strides)
    return outer, channel, h, w


def extents_of(product: Product) -> dict[str, Numbers]:
    """Extents along h and w, from the kernels' numbers of a problem."""
    numbers = product.g.scalars()[4:]
    names = ("image", "output", "taps", "stride", "dilation", "padding")
    return {name: _pair(numbers[3 * i : 3 * i + 3]) for i, name in enumerate(names)}


def _images(product: Product) -> list[tuple[str, Operand]]:
    named = [("x", product.x), ("y", product.y), ("residual", product.then.residual)]
    return [(name, one) for name, one in named if one is not None]


def _packs_fit(product: Product, size: int) -> bool:
    """Whether channels lie side by side and can be moved by so many bytes."""
    aligned = all(one.alignment % size == 0 for _, one in _images(product))
    walks = [walk_of(product, one.strides) for _, one in _images(product)]
    others = [step for outer, _, h, w in walks for step in (outer, h, w)]
    dense = all(walk[1] == 1 for walk in walks)
    whole = all(number * product.dtype.itemsize % size == 0 for number in (product.g.in_channels, *others))
    return aligned and dense and whole


class Shape(NamedTuple):
    """What a kernel is compiled for: channels and positions side by side of a thread, taps and stride."""

    tiled: bool
    vec: int
    wide: int
    taps: int
    stride: int

    def template(self, filters: bool = False) -> tuple[str, ...]:
        """Arguments of the kernel, after the type."""
        numbers = self[1:] if self.tiled else self[3:] if filters else (self.vec, *self[3:])
        return tuple(map(str, numbers))


def compiled_for(product: Product) -> Shape | None:
    """The kernel of their own that filters have, if there is one."""
    of = extents_of(product)
    (taps, other), (stride, along) = of["taps"], of["stride"]
    key, filters = (product.dtype.itemsize, taps, stride), product.direction == "filter"
    near = all(walk_of(product, one.strides)[3] < _MOST_STEP for _, one in _images(product))
    if key not in TILES or not near or (taps, stride) != (other, along) or of["dilation"] != (1, 1):
        return None
    vec, least = STRIPS.get(key, (1, MOST))
    width = of["image" if product.direction == "data" else "output"][1]
    if (filters or width < least) and _packs_fit(product, _CHUNK):
        return Shape(True, *TILES[key], taps, stride)
    if vec > 1 and not filters and _packs_fit(product, vec * product.dtype.itemsize):
        return Shape(False, vec, _COLUMNS, taps, stride)
    many = filters and product.g.in_channels > MOST_ACROSS
    return None if many or key[:2] in PACKED_ONLY else Shape(False, 1, _COLUMNS, taps, stride)


def _packs_across(product: Product, vec: int) -> int:
    """Threads with neighbouring packs of channels: a power of two."""
    packs = -(-product.g.in_channels // vec)
    return min(1 << max(packs - 1, 0).bit_length(), _PITCH // product.dtype.itemsize // vec, 32)


def _lanes(product: Product, shape: Shape | None) -> int:
    """The same of strips: one where positions lie together, or threads are numbered across all channels."""
    if shape and shape.vec == 1:
        return 1
    together = product.direction != "filter" or product.g.in_channels <= MOST_ACROSS
    if not shape and together and walk_of(product, product.x.strides)[1] != 1:
        return 1
    return _packs_across(product, shape.vec if shape else 1)


class Cut(NamedTuple):
    """How images are cut: what a block has side by side, blocks of channels, pieces across and down, rows of each."""

    lanes: int
    strips: int
    images: int
    across: int
    tiles_w: int
    segments: int
    walk: int
    shared_bytes: int = 0

    @property
    def threads(self) -> int:
        """Of a block of tiles."""
        return self.lanes * self.strips * self.images


def _seen(product: Product, shape: Shape, strips: int) -> int:
    """Positions of a row, and of the gradient's, that so many strips side by side see of a source."""
    across = strips * shape.wide
    if product.direction == "data" and shape.stride > 1:
        return (across - 1) // shape.stride + (shape.taps - 1) // shape.stride + 1
    return (across - 1) * shape.stride + shape.taps + (across if product.direction == "filter" else 0)


def _tiles(product: Product, shape: Shape, units: int, columns: int) -> Cut:
    """The cut for packs: as much of rows as a block has threads and places for, of several narrow images."""
    g, strips_w, positions = product.g, max(-(-columns // shape.wide), 1), _MOST_POSITIONS[product.direction]
    packs, lanes = -(-g.in_channels // shape.vec), _packs_across(product, shape.vec)
    slots = _MOST_THREADS[shape.taps] // lanes
    most = max(n for n in range(1, slots + 1) if n == 1 or _seen(product, shape, n) <= positions)
    tiles_w = -(-strips_w // most)
    strips, images = -(-strips_w // tiles_w), 1
    if tiles_w == 1 and max(walk_of(product, one.strides)[0] for _, one in _images(product)) * slots < _MOST_OFFSET:
        images = max(min(slots // strips, positions // _seen(product, shape, strips), g.batch), 1)
    across, groups = -(-packs // lanes), -(-g.batch // images)
    segments, walk = _segments(product, units, across * groups * tiles_w, _ENOUGH_TILES)
    rows = _RINGS[product.direction] * _seen(product, shape, strips) * images * _PITCH
    sums = shape.taps * shape.vec * lanes * strips * images * product.dtype.acc.itemsize
    return Cut(lanes, strips, images, across, tiles_w, segments, walk, max(rows, sums))


def _strips(product: Product, shape: Shape | None, units: int, columns: int) -> Cut:
    """The cut for threads that have a strip each."""
    tiles_w, lanes = -(-columns // _COLUMNS), _lanes(product, shape)
    across = -(-product.g.in_channels // (lanes * (shape.vec if shape else 1)))
    blocks = across * product.g.batch * tiles_w * lanes // BLOCK
    segments, walk = _segments(product, units, blocks, _ENOUGH_BLOCKS)
    return Cut(lanes, 1, 1, across, tiles_w, segments, walk)


def cut_for(product: Product, shape: Shape | None, units: int, columns: int) -> Cut:
    """The cut for a kernel: steps down an image and positions across it."""
    if shape and shape.tiled:
        return _tiles(product, shape, units, columns)
    return _strips(product, shape, units, columns)


def _segments(product: Product, units: int, blocks: int, enough: int) -> tuple[int, int]:
    """Segments that columns of units are cut into, and units of each: long ones where that fills the GPU."""
    walk = _LONGEST_WALK
    while walk > _SHORTEST_WALK and blocks * -(-units // walk) < enough * product.profile.sm_count:
        walk //= 2
    segments = max(-(-units // walk), 1)
    return segments, max(-(-units // segments), 1)
