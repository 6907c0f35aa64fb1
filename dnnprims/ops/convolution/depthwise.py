"""Depthwise convolutions: a filter for each channel."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from ...dtypes import DType
from ...runtime.launch import NULL, Family, Kernel, KernelStep, Pointer, Scratch, Struct, blocks_for
from ...runtime.limits import MOST_ACROSS
from .depthwise_cut import (
    BLOCK,
    MOST,
    PACKED_ONLY,
    STRIPS,
    TILES,
    Cut,
    Shape,
    compiled_for,
    cut_for,
    extents_of,
    walk_of,
)
from .direct import constants
from .geometry import Numbers, filter_steps
from .product import Algorithm, Epilogue, Operand, Product, Work, always_pays


def _fields(*groups: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((f"{name}_{one}", "i64") for name, parts in groups for one in parts.split())


_AXES, _WALK = "h w", "outer channel h w"
_STRIPS = tuple(
    (name, "i64") for name in ("batch", "channels", "lanes", "strips", "images", "tiles_w", "segments", "walk")
)
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
_TILED, _STRIPS_ONLY, _ANY = (
    Kernel("convolution_depthwise", name, _PARAMS) for name in ("depthwise_tile", "depthwise", "depthwise_any")
)
_FILTER_TILED, _FILTER_STRIPS, _FILTER_ANY, _FOLD = (
    Kernel("convolution_depthwise", f"depthwise_{name}", _FILTER_PARAMS)
    for name in ("filter_tile", "filter", "filter_any", "fold")
)

#: Blocks on a multiprocessor that share the strips of a gradient in filters, and its tiles.
_STRIP_BLOCKS, _TILE_BLOCKS = 4, 2
#: Activations that the kernels fuse, in the order of their enumeration.
FUSED = ("identity", "relu", "clipped_relu", "leaky_relu", "hard_swish", "swish")


def _filter_walk(w_steps: Numbers) -> Numbers:
    """Each channel has a filter of its own."""
    return 0, w_steps[0], *w_steps[3:]


def _cannot(product: Product) -> str | None:
    g = product.g
    if not (g.conv.groups == g.in_channels == g.out_channels):
        return f"{g.conv.groups} groups of {g.in_channels} channels into {g.out_channels}, not one of each"
    if g.axes > 2:
        return "more than two spatial axes"
    numbers = (*g.taps, *g.conv.dilations(g.axes), *g.conv.strides(g.axes))
    if max(*numbers, g.batch * prod(g.image), g.batch * prod(g.output)) > MOST:
        return f"more than {MOST} positions"
    if max(-(-g.in_channels // 32), prod(g.taps)) > MOST_ACROSS:
        return f"more than {MOST_ACROSS} blocks of channels, or taps"
    if product.then.activation.mode not in FUSED:
        return f"{product.then.activation.mode} is not fused, only {', '.join(FUSED)}"
    return product.workspace_reason(_scratch(product)) if product.direction == "filter" else None


def is_bare(product: Product) -> bool:
    """Whether the sums are the results as they are."""
    return product.then == Epilogue.none() and (product.alpha, product.beta) == (1.0, 0.0)


class _View(NamedTuple):
    """A product as the kernels of images see it: results look at a source through taps.

    Attributes
    ----------
    shape : Shape, optional
        Of the kernel for these taps and stride; None for the one that takes any.
    data : bool
        Whether results are looked at by the source, which at stride 1 is a forward product with the filter flipped.
    padding, begin : tuple of int
        Along h and w; `begin` is where units and tiles begin.
    units, columns : int
        Steps down an image, and positions across it.
    w_first : int
        Offset of the first tap.
    w_walk : tuple of int
        Steps from a filter, a row and a tap to the next.
    """

    shape: Shape | None
    data: bool
    padding: Numbers
    begin: Numbers
    units: int
    columns: int
    w_first: int
    w_walk: Numbers


def _view(product: Product) -> _View:
    g, of, data, compiled = product.g, extents_of(product), product.direction == "data", compiled_for(product)
    first, w_steps = filter_steps(g.conv, g.taps, product.w.strides)
    walk, padding, (units, along) = _filter_walk(w_steps), of["padding"], of["image" if data else "output"]
    begin = (0, 0)
    if data and compiled and compiled.stride == 1:
        first += sum((count - 1) * step for count, step in zip(of["taps"], walk[2:], strict=True))
        walk = (*walk[:2], *(-step for step in walk[2:]))
        padding, data = tuple(count - 1 - pad for count, pad in zip(of["taps"], padding, strict=True)), False
    elif data and compiled:
        # Units of as many positions as the stride, the first one of which may begin before the image.
        stride = compiled.stride
        begin = padding[0] // stride, -(padding[1] % stride)
        units, along = (units + padding[0] - 1) // stride - begin[0] + 1, along - begin[1]
    return _View(compiled, data, padding, begin, units, along, first, walk)


def _steps(product: Product) -> tuple[KernelStep, ...]:
    g, dtype, then, of, view = product.g, product.dtype, product.then, extents_of(product), _view(product)
    backwards = product.direction == "data"
    source, result = (product.y, product.x) if backwards else (product.x, product.y)
    extents = (of["output"], of["image"]) if backwards else (of["image"], of["output"])
    cut = cut_for(product, view.shape, view.units, view.columns)
    residual = then.residual or Operand(NULL, (0,) * len(result.strides), 0)
    scalars = (
        *map(float, (then.alpha1, then.alpha2, product.alpha, product.beta, *constants(then.activation))),
        *(g.batch, g.in_channels, cut.lanes, cut.strips, cut.images, cut.tiles_w, cut.segments, cut.walk, view.units),
        *(*extents[0], *extents[1], *of["taps"], *of["stride"], *of["dilation"], *view.padding, *view.begin),
        *(*walk_of(product, source.strides), *walk_of(product, result.strides), *view.w_walk),
        *(*walk_of(product, residual.strides), view.w_first, FUSED.index(then.activation.mode), int(is_bare(product))),
    )
    pointers = (result.at, source.at, product.w.at, then.b, residual.at, then.scale, then.shift)
    kernel, template, grid, block = _images_launch(product, view, cut, prod(extents[1]))
    return (KernelStep(kernel, dtype, template, "images", grid, block, pointers, scalars, cut.shared_bytes),)


def _images_launch(
    product: Product, view: _View, cut: Cut, positions: int
) -> tuple[Kernel, tuple[str, ...], tuple[int, int, int], int]:
    """Kernel, template, grid and threads of a block."""
    g, of, data, shape = product.g, product.dtype.cuda, str(view.data).lower(), view.shape
    if not shape:
        return _ANY, (of, data), blocks_for(g.batch * g.in_channels * positions, BLOCK), BLOCK
    template, parts = (of, *shape.template(), data), cut.segments * cut.tiles_w
    if shape.tiled:
        return _TILED, template, (-(-g.batch // cut.images) * parts, cut.across, 1), cut.threads
    strips = g.batch * parts
    if shape.vec == 1:
        return _STRIPS_ONLY, template, blocks_for(strips * g.in_channels, BLOCK), BLOCK
    return _STRIPS_ONLY, template, (-(-strips // (BLOCK // cut.lanes)), cut.across, 1), BLOCK


def _filter_cut(product: Product) -> tuple[Cut, int]:
    """How a gradient in filters is cut, and blocks that share the pieces."""
    g, (h, w), shape = product.g, extents_of(product)["output"], compiled_for(product)
    cut, taps = cut_for(product, shape, h, w), 1
    pieces, each = -(-g.batch // cut.images) * cut.segments * cut.tiles_w, _TILE_BLOCKS
    if not shape or not shape.tiled:
        pieces, each, taps = -(-pieces // (BLOCK // cut.lanes)), _STRIP_BLOCKS, prod(g.taps)
    most = each * product.profile.sm_count // (cut.across * taps)
    return cut, min(max(most, 1), max(pieces, 1))


def _scratch(product: Product) -> int:
    return product.g.filter_size * _filter_cut(product)[1] * product.dtype.acc.itemsize


def _filter_steps(product: Product) -> tuple[KernelStep, ...]:
    g, dtype, of, (cut, splits) = product.g, product.dtype, extents_of(product), _filter_cut(product)
    first, w_steps = filter_steps(g.conv, g.taps, product.w.strides)
    scalars = (
        *(float(product.alpha), float(product.beta), g.batch, g.in_channels, cut.lanes, cut.strips, cut.images),
        *(cut.tiles_w, cut.segments, cut.walk, splits),
        *(n for name in ("image", "output", "taps", "stride", "dilation", "padding") for n in of[name]),
        *(*walk_of(product, product.x.strides), *walk_of(product, product.y.strides), *_filter_walk(w_steps), first),
    )
    pointers: tuple[Pointer, ...] = (product.w.at, Scratch(len(product.taken)), product.y.at, product.x.at)
    shape = compiled_for(product)
    template: tuple[str, ...] = (dtype.cuda,)
    kernel, grid, block = _FILTER_ANY, (splits, cut.across, prod(g.taps)), BLOCK
    if shape:
        kernel, block = (_FILTER_TILED, cut.threads) if shape.tiled else (_FILTER_STRIPS, BLOCK)
        template, grid = (dtype.cuda, *shape.template(filters=True)), (splits, cut.across, 1)
    fold = blocks_for(g.filter_size * 32, BLOCK)
    return (
        KernelStep(kernel, dtype, template, "filters", grid, block, pointers, scalars, cut.shared_bytes),
        KernelStep(_FOLD, dtype, (dtype.cuda,), "filters", fold, BLOCK, pointers, scalars),
    )


def _work(product: Product) -> Work:
    if product.direction == "filter":
        return Work(_filter_steps(product), (_scratch(product),))
    return Work(_steps(product))


DEPTHWISE = Algorithm("depthwise", _cannot, always_pays, _work)


def _instances(dtype: DType) -> dict[str, list[str]]:
    t, size = dtype.cuda, dtype.itemsize
    tiles = {key[1:]: Shape(True, *share, *key[1:]) for key, share in TILES.items() if key[0] == size}
    packs = [Shape(False, vec, 0, *key[1:]) for key, (vec, _) in STRIPS.items() if key[0] == size]
    single = [Shape(False, 1, 0, *key) for key in tiles if (size, key[0]) not in PACKED_ONLY]
    tiled = [("_tile", shape) for key, shape in tiles.items() if STRIPS.get((size, *key), (0, 1))[1]]
    ways = [(way, ", ".join((t, *shape.template())), shape.stride) for way, shape in tiled]
    ways += [("", ", ".join((t, *shape.template())), shape.stride) for shape in (*packs, *single)]
    images = [f"depthwise{way}<{each}, false>" for way, each, _ in ways]
    images += [f"depthwise{way}<{each}, true>" for way, each, stride in ways if stride == 2]
    images += [f"depthwise_any<{t}, {data}>" for data in ("false", "true")]
    filters = [f"depthwise_filter_tile<{', '.join((t, *shape.template()))}>" for shape in tiles.values()]
    filters += [f"depthwise_filter<{', '.join((t, *shape.template(filters=True)))}>" for shape in single]
    return {"images": images, "filters": [*filters, f"depthwise_filter_any<{t}>", f"depthwise_fold<{t}>"]}


DEPTHWISE_FAMILY = Family(
    "convolution_depthwise",
    (_TILED, _STRIPS_ONLY, _ANY, _FILTER_TILED, _FILTER_STRIPS, _FILTER_ANY, _FOLD),
    _instances,
)
