"""Depthwise convolutions: a filter for each channel."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from ...dtypes import DType
from ...runtime.launch import NULL, Family, Kernel, KernelStep, Pointer, Scratch, Struct, blocks_for
from ...runtime.limits import MOST_ACROSS
from .direct import constants
from .geometry import Numbers, filter_steps, steps
from .product import Algorithm, Epilogue, Operand, Product, Work, always_pays


def _fields(*groups: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((f"{name}_{one}", "i64") for name, parts in groups for one in parts.split())


_AXES, _WALK = "h w", "outer channel h w"
_STRIPS = tuple((name, "i64") for name in ("batch", "channels", "lanes", "tiles_w", "segments", "walk"))
_EXTENTS = _fields(*((name, _AXES) for name in ("source", "result", "taps", "stride", "dilation", "padding")))
_WALKS = _fields(("x", _WALK), ("y", _WALK), ("w", _WALK))
_PARAMS = Struct(
    "DepthwiseParams",
    ("y", "x", "w", "b", "residual", "scale", "shift"),
    (
        *((name, "A") for name in ("alpha1", "alpha2", "alpha", "beta", "c0", "c1")),
        *(*_STRIPS, ("units", "i64"), *_EXTENTS, *_fields(("begin", _AXES)), *_WALKS, *_fields(("residual", _WALK))),
        *((name, "i64") for name in ("w_first", "mode", "bare")),
    ),
)
_FILTER_PARAMS = Struct(
    "DepthwiseFilterParams",
    ("dw", "parts", "dy", "x"),
    (("alpha", "A"), ("beta", "A"), *_STRIPS, ("splits", "i64"), *_EXTENTS, *_WALKS, ("w_first", "i64")),
)
_TILED, _ANY = (Kernel("convolution_depthwise", name, _PARAMS) for name in ("depthwise", "depthwise_any"))
_FILTER_TILED, _FILTER_ANY, _FOLD = (
    Kernel("convolution_depthwise", f"depthwise_{name}", _FILTER_PARAMS) for name in ("filter", "filter_any", "fold")
)

#: As in the kernels: threads, positions of a tile side by side, channels of a block.
_BLOCK, _COLUMNS, _MOST_WIDTH = 128, 4, 64
#: Channels of a thread, by the bytes of an element, taps and stride: as many as its registers hold filters for, where
#: those lie side by side, else one. Other filters take a thread an element. NVIDIA H200, 2026-11-28, bfloat16, 3x3 at
#: stride 2, 256x128x56x56, 2 channels and 4: forward 82 and 74 us, filter 93 and 86; filter at stride 1 156 and 141.
_CHANNELS = {
    (2, 3, 1): 4, (2, 3, 2): 4, (2, 5, 1): 2, (2, 5, 2): 2,
    (4, 3, 1): 2, (4, 3, 2): 2, (4, 5, 1): 2, (4, 5, 2): 2,
}  # fmt: skip
#: Of these no kernel with one channel is compiled: bytes of an element and taps.
_PACKED_ONLY = {(4, 5)}
#: Rows that a strip is long: the longest, where that leaves blocks enough for each multiprocessor.
_LONGEST_WALK, _SHORTEST_WALK, _ENOUGH_BLOCKS = 32, 4, 8
#: Blocks on a multiprocessor that share the tiles of a gradient in filters.
_FILTER_BLOCKS = 4
#: Activations that the kernels fuse, in the order of their enumeration.
FUSED = ("identity", "relu", "clipped_relu", "leaky_relu", "hard_swish", "swish")
#: Numbers of positions have 32 bits, as have the offsets within a strip; blocks along y and z.
_MOST, _MOST_STEP = 2**31 - 1, 2**27


def _pair(values: Numbers) -> Numbers:
    """Of the last two spatial axes."""
    return tuple(values[-2:])


def _walk(product: Product, strides: Numbers) -> Numbers:
    outer, channel, _, h, w = steps(product.g.conv, strides)
    return outer, channel, h, w


def _filter_walk(w_steps: Numbers) -> Numbers:
    """Each channel has a filter of its own."""
    return 0, w_steps[0], *w_steps[3:]


def _scalars(product: Product) -> dict[str, Numbers]:
    """Extents along h and w, from the kernels' numbers of a problem."""
    numbers = product.g.scalars()[4:]
    names = ("image", "output", "taps", "stride", "dilation", "padding")
    return {name: _pair(numbers[3 * i : 3 * i + 3]) for i, name in enumerate(names)}


def _cannot(product: Product) -> str | None:
    g = product.g
    if not (g.conv.groups == g.in_channels == g.out_channels):
        return f"{g.conv.groups} groups of {g.in_channels} channels into {g.out_channels}, not one of each"
    if g.axes > 2:
        return "more than two spatial axes"
    numbers = (*g.taps, *g.conv.dilations(g.axes), *g.conv.strides(g.axes))
    if max(*numbers, g.batch * prod(g.image), g.batch * prod(g.output)) > _MOST:
        return f"more than {_MOST} positions"
    if max(-(-g.in_channels // 32), prod(g.taps)) > MOST_ACROSS:
        return f"more than {MOST_ACROSS} blocks of channels, or taps"
    if product.then.activation.mode not in FUSED:
        return f"{product.then.activation.mode} is not fused, only {', '.join(FUSED)}"
    return product.workspace_reason(_scratch(product)) if product.direction == "filter" else None


def _images(product: Product) -> list[tuple[str, Operand]]:
    named = [("x", product.x), ("y", product.y), ("residual", product.then.residual)]
    return [(name, one) for name, one in named if one is not None]


def _packs_fit(product: Product, vec: int) -> bool:
    """Whether so many channels lie side by side and can be read at once."""
    size, channels = product.dtype.itemsize * vec, product.g.in_channels
    aligned = all(one.alignment % size == 0 for _, one in _images(product))
    walks = [_walk(product, one.strides) for _, one in _images(product)]
    others = [step for outer, _, h, w in walks for step in (outer, h, w)]
    dense = all(walk[1] == 1 for walk in walks)
    return aligned and dense and all(number % vec == 0 for number in (channels, *others))


def _compiled(product: Product) -> tuple[int, int, int] | None:
    """Channels of a thread, taps and stride where a kernel of their own is there."""
    of = _scalars(product)
    (taps, other), (stride, along) = of["taps"], of["stride"]
    vec = _CHANNELS.get((product.dtype.itemsize, taps, stride), 0)
    near = all(_walk(product, one.strides)[3] < _MOST_STEP for _, one in _images(product))
    if not (vec and near) or (taps, stride) != (other, along) or of["dilation"] != (1, 1):
        return None
    if _packs_fit(product, vec):
        return vec, taps, stride
    many = product.direction == "filter" and product.g.in_channels > MOST_ACROSS
    return None if many or (product.dtype.itemsize, taps) in _PACKED_ONLY else (1, taps, stride)


def _lanes(product: Product, vec: int) -> int:
    """Threads with neighbouring channels: a power of two up to a warp, one where positions lie together."""
    channels = product.g.in_channels
    together = product.direction != "filter" or channels <= MOST_ACROSS
    if vec == 1 and together and _walk(product, product.x.strides)[1] != 1:
        return 1
    return min(1 << max(-(-channels // vec) - 1, 0).bit_length(), _MOST_WIDTH // vec, 32)


def _segments(product: Product, units: int, tiles_w: int, threads: Numbers) -> Numbers:
    """Segments that columns of units are cut into, and units of each: long ones where that fills the GPU."""
    across, per_block = threads
    walk = _LONGEST_WALK
    while walk > _SHORTEST_WALK and across * product.g.batch * tiles_w * -(-units // walk) < (
        per_block * _ENOUGH_BLOCKS * product.profile.sm_count
    ):
        walk //= 2
    segments = max(-(-units // walk), 1)
    return segments, max(-(-units // segments), 1)


def is_bare(product: Product) -> bool:
    """Whether the sums are the results as they are."""
    return product.then == Epilogue.none() and (product.alpha, product.beta) == (1.0, 0.0)


class _View(NamedTuple):
    """A product as the kernels of images see it: results look at a source through taps.

    Attributes
    ----------
    vec : int
        Channels of a thread.
    template : tuple of str
        Of the kernel for these taps and stride; empty for the one that takes any.
    data : bool
        Whether results are looked at by the source, which at stride 1 is a forward product with the filter flipped.
    padding, begin : tuple of int
        Along h and w; `begin` is where units and tiles begin.
    units, tiles_w : int
        Steps down an image, and tiles across it.
    w_first : int
        Offset of the first tap.
    w_walk : tuple of int
        Steps from a filter, a row and a tap to the next.
    """

    vec: int
    template: Numbers
    data: bool
    padding: Numbers
    begin: Numbers
    units: int
    tiles_w: int
    w_first: int
    w_walk: Numbers


def _view(product: Product) -> _View:
    g, of, data, compiled = product.g, _scalars(product), product.direction == "data", _compiled(product)
    first, w_steps = filter_steps(g.conv, g.taps, product.w.strides)
    walk, padding, (units, along) = _filter_walk(w_steps), of["padding"], of["image" if data else "output"]
    begin = (0, 0)
    if data and compiled and compiled[2] == 1:
        first += sum((count - 1) * step for count, step in zip(of["taps"], walk[2:], strict=True))
        walk = (*walk[:2], *(-step for step in walk[2:]))
        padding, data = tuple(count - 1 - pad for count, pad in zip(of["taps"], padding, strict=True)), False
    elif data and compiled:
        # Units of as many positions as the stride, the first one of which may begin before the image.
        stride = compiled[2]
        begin = padding[0] // stride, -(padding[1] % stride)
        units, along = (units + padding[0] - 1) // stride - begin[0] + 1, along - begin[1]
    vec = compiled[0] if compiled else 1
    return _View(vec, compiled or (), data, padding, begin, units, -(-along // _COLUMNS), first, walk)


def _steps(product: Product) -> tuple[KernelStep, ...]:
    g, dtype, then, of, view = product.g, product.dtype, product.then, _scalars(product), _view(product)
    backwards = product.direction == "data"
    source, result = (product.y, product.x) if backwards else (product.x, product.y)
    extents = (of["output"], of["image"]) if backwards else (of["image"], of["output"])
    lanes = 1 if view.vec == 1 else _lanes(product, view.vec)
    across = -(-g.in_channels // (lanes * view.vec))
    segments, walk = _segments(product, view.units, view.tiles_w, (across, _BLOCK // lanes))
    residual = then.residual or Operand(NULL, (0,) * len(result.strides), 0)
    scalars = (
        *map(float, (then.alpha1, then.alpha2, product.alpha, product.beta, *constants(then.activation))),
        *(g.batch, g.in_channels, lanes, view.tiles_w, segments, walk, view.units),
        *(*extents[0], *extents[1], *of["taps"], *of["stride"], *of["dilation"], *view.padding, *view.begin),
        *(*_walk(product, source.strides), *_walk(product, result.strides), *view.w_walk),
        *(*_walk(product, residual.strides), view.w_first, FUSED.index(then.activation.mode), int(is_bare(product))),
    )
    pointers = (result.at, source.at, product.w.at, then.b, residual.at, then.scale, then.shift)
    kernel = _ANY
    template: tuple[str, ...] = (dtype.cuda, str(view.data).lower())
    grid = blocks_for(g.batch * g.in_channels * prod(extents[1]), _BLOCK)
    if view.template:
        kernel, template = _TILED, (dtype.cuda, *map(str, view.template), str(view.data).lower())
        strips = g.batch * segments * view.tiles_w
        grid = (
            (-(-strips // (_BLOCK // lanes)), across, 1) if view.vec > 1 else blocks_for(strips * g.in_channels, _BLOCK)
        )
    return (KernelStep(kernel, dtype, template, "images", grid, _BLOCK, pointers, scalars),)


class _Shares(NamedTuple):
    """How a gradient in filters is cut: threads side by side, strips, and who shares them."""

    vec: int
    lanes: int
    tiles_w: int
    segments: int
    walk: int
    splits: int


def _shares(product: Product) -> _Shares:
    g, (h, w) = product.g, _scalars(product)["output"]
    compiled = _compiled(product)
    vec = compiled[0] if compiled else 1
    lanes = 1 if compiled and vec == 1 else _lanes(product, vec)
    tiles_w = -(-w // _COLUMNS)
    per_block, across = _BLOCK // lanes, -(-g.in_channels // (lanes * vec))
    segments, walk = _segments(product, h, tiles_w, (across, per_block))
    most = max(_FILTER_BLOCKS * product.profile.sm_count // (across * (1 if vec > 1 else prod(g.taps))), 1)
    strips = g.batch * segments * tiles_w
    return _Shares(vec, lanes, tiles_w, segments, walk, min(most, max(-(-strips // per_block), 1)))


def _scratch(product: Product) -> int:
    return product.g.filter_size * _shares(product).splits * product.dtype.acc.itemsize


def _filter_steps(product: Product) -> tuple[KernelStep, ...]:
    g, dtype, of, shares = product.g, product.dtype, _scalars(product), _shares(product)
    first, w_steps = filter_steps(g.conv, g.taps, product.w.strides)
    scalars = (
        *(float(product.alpha), float(product.beta), g.batch, g.in_channels, shares.lanes),
        *(shares.tiles_w, shares.segments, shares.walk, shares.splits),
        *(n for name in ("image", "output", "taps", "stride", "dilation", "padding") for n in of[name]),
        *(*_walk(product, product.x.strides), *_walk(product, product.y.strides), *_filter_walk(w_steps), first),
    )
    pointers: tuple[Pointer, ...] = (product.w.at, Scratch(len(product.taken)), product.y.at, product.x.at)
    across, compiled = -(-g.in_channels // (shares.lanes * shares.vec)), _compiled(product)
    taps = prod(g.taps)
    kernel, grid = _FILTER_ANY, (shares.splits, across, taps)
    template: tuple[str, ...] = (dtype.cuda,)
    if compiled:
        kernel, template = _FILTER_TILED, (dtype.cuda, *map(str, compiled))
        grid = (shares.splits, across, 1)
    fold = blocks_for(g.filter_size * 32, _BLOCK)
    return (
        KernelStep(kernel, dtype, template, "filters", grid, _BLOCK, pointers, scalars),
        KernelStep(_FOLD, dtype, (dtype.cuda,), "filters", fold, _BLOCK, pointers, scalars),
    )


def _work(product: Product) -> Work:
    if product.direction == "filter":
        return Work(_filter_steps(product), (_scratch(product),))
    return Work(_steps(product))


DEPTHWISE = Algorithm("depthwise", _cannot, always_pays, _work)


def _instances(dtype: DType) -> dict[str, list[str]]:
    t = dtype.cuda
    known = [(vec, taps, stride) for (itemsize, taps, stride), vec in _CHANNELS.items() if itemsize == dtype.itemsize]
    shapes = [*known, *((1, taps, at) for _, taps, at in known if (dtype.itemsize, taps) not in _PACKED_ONLY)]
    images = [f"depthwise<{t}, {vec}, {taps}, {stride}, false>" for vec, taps, stride in shapes]
    images += [f"depthwise<{t}, {vec}, {taps}, {stride}, true>" for vec, taps, stride in shapes if stride == 2]
    images += [f"depthwise_any<{t}, {data}>" for data in ("false", "true")]
    filters = [f"depthwise_filter<{t}, {vec}, {taps}, {stride}>" for vec, taps, stride in shapes]
    return {"images": images, "filters": [*filters, f"depthwise_filter_any<{t}>", f"depthwise_fold<{t}>"]}


DEPTHWISE_FAMILY = Family("convolution_depthwise", (_TILED, _ANY, _FILTER_TILED, _FILTER_ANY, _FOLD), _instances)
