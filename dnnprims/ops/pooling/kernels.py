"""Kernels of poolings: their parameter structs, which of them takes a problem, and their launches."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from ...descriptors import TensorDescriptor, dense_strides
from ...descriptors.spatial import Numbers, filled_axes
from ...dtypes import DType
from ...runtime.launch import Family, Kernel, KernelStep, Pointer, Profile, Struct, blocks_for, unaligned
from .geometry import Geometry

_BLOCK = 256
#: Taps along both axes of the windows whose maximum has a kernel of its own, and with their strides, for its gradient.
_WINDOWS, _TILES = (2, 3), ((2, 2), (3, 2))
#: The same of means.
_MEAN_WINDOWS, _MEAN_TILES = (3,), ((3, 2),)
#: Threads side by side of a block that has whole images (backward 0.86 of a copy, with 32 of them 0.81: 2048x7x7,
#: float32), and packs of a thread where channels come first.
_WHOLE_SIDE, _WHOLE_PACKS = {"forward": 32, "backward": 128}, 4
#: Windows, one below the other, of a thread that works through packs of channels.
_ROWS = 4
#: Bytes of shared memory of a block that works through rows; the most that it may need for one row of windows.
_TILE_BYTES, _MOST_TILE_BYTES = 24 * 1024, 48 * 1024
#: Blocks for each multiprocessor before a block is given more planes.
_BLOCKS_EACH = 8
#: Extents, and elements of a tile, that the kernels of images of two axes count in 32 bits and in one thread.
_MOST_EXTENT, _MOST_TILE, _MOST_INDEX = 2**29, 256, 2**31


def _fields(kind: str, *names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, kind) for name in names)


_SPATIAL, _STEPS = ("d", "h", "w"), ("outer", "channel", "d", "h", "w")
_PROBLEM = (
    *_fields("i64", "channels"),
    *_fields("i64", *(f"{n}_{a}" for n in ("image", "output", "window", "stride", "padding") for a in _SPATIAL)),
    *_fields("i64", *(f"{n}_{step}" for n in ("x", "y", "indices") for step in _STEPS)),
    *_fields("i32", "channels_last", "padded", "wide"),
)
_AXIS = ("image", "output", "window", "stride", "before", "reach")
_PLANES = (
    *_fields("i64", "size", "images"),
    *_fields("i32", *(f"{a}_{name}" for a in "hw" for name in _AXIS), "padded", "inner", "across", "down", "height"),
    *_fields("i32", "dy_at", "indices_at"),
    *_fields("u32", *(f"{n}_{part}" for n in ("inner", "across", "down") for part in ("multiplier", "shift"))),
)
_BLEND = (("alpha", "A"), ("beta", "A"))
_TO, _FROM = ("y", "indices", "x"), ("dx", "flag", "dy", "indices")
_PLAIN = {
    "forward": Struct("PoolingPlainForwardParams", _TO, (*_BLEND, ("size", "i64"), *_PROBLEM)),
    "backward": Struct("PoolingPlainBackwardParams", _FROM, (*_BLEND, ("size", "i64"), *_PROBLEM)),
}
_FAST = {
    "forward": Struct("PoolingForwardParams", _TO, (*_BLEND, *_PLANES)),
    "backward": Struct("PoolingBackwardParams", _FROM, (*_BLEND, *_PLANES)),
}
_KERNELS = {
    **{(way, "plain"): Kernel("pooling", f"pooling_{way}", struct) for way, struct in _PLAIN.items()},
    **{
        (way, variant): Kernel("pooling", f"pooling_{way}_{kind}", struct)
        for way, struct in _FAST.items()
        for variant, kind in (
            ("whole_packed", "whole_packed"),
            ("packed_channels", "packed"),
            ("packed_lines", "lines"),
            ("staged_rows", "rows"),
        )
    },
    ("backward", "whole_planes"): Kernel("pooling", "pooling_backward_whole_planes", _FAST["backward"]),
}


class Launch(NamedTuple):
    """What a launch of one direction has beside the geometry.

    Attributes
    ----------
    way : str
        ``forward`` or ``backward``.
    image, output : TensorDescriptor or None
        x or dx, and y or dy; None where the call makes it.
    pointers : tuple
        In the order of the struct.
    alpha, beta : float
        Of the blend.
    """

    way: str
    dtype: DType
    image: TensorDescriptor | None
    output: TensorDescriptor | None
    indices: TensorDescriptor | None
    pointers: tuple[Pointer, ...]
    alpha: float
    beta: float


def variants(g: Geometry, launch: Launch) -> Iterator[tuple[str, str | None]]:
    """Each variant, and why it does not take the problem."""
    reason = _not_in_planes(g, launch)
    whole = reason or _not_whole(g)
    yield "whole_packed", whole or _not_packed(g, launch)
    if launch.way == "backward":  # forward, rows of planes in shared memory are faster
        yield "whole_planes", whole or _not_whole_planes(g, launch)
    reason = reason or _tile_too_large(g, launch)
    yield "packed_channels", reason or _not_packed(g, launch)
    yield "packed_lines", reason or _not_in_lines(g, launch)
    yield "staged_rows", reason or _not_in_rows(g, launch)
    yield "plain", None


def _not_in_planes(g: Geometry, launch: Launch) -> str | None:
    """Why the kernels of images of two axes do not take a problem."""
    if g.axes > 2:
        return "there are three spatial axes"
    for name, x in (("the image", launch.image), ("the result", launch.output), ("indices", launch.indices)):
        if x is not None and not x.contiguous:
            return f"{name} has gaps"
    if g.is_max and g.index_dtype.name != "uint8":
        return f"{g.taps} taps do not fit a byte"
    if max(*g.image, *g.pooling.windows(g.axes), *g.pooling.strides(g.axes)) >= _MOST_EXTENT:
        return "an extent is 2^29 or more"
    return None


def _tile_too_large(g: Geometry, launch: Launch) -> str | None:
    if launch.way == "backward" and prod(g.pooling.strides(g.axes)) > _MOST_TILE:
        return f"strides span more than {_MOST_TILE} elements"
    return None


def _not_whole(g: Geometry) -> str | None:
    if g.is_max or tuple(g.pooling.windows(g.axes)) != tuple(g.image) or any(g.befores()):
        return "it is no mean of whole images"
    if prod(g.x_shape) >= _MOST_INDEX:
        return "there are 2^31 elements or more"
    return None


def _not_whole_planes(g: Geometry, launch: Launch) -> str | None:
    if g.pooling.channels_last:
        return "channels are last"
    return unaligned(image=launch.image)


def _not_packed(g: Geometry, launch: Launch) -> str | None:
    lanes = launch.dtype.lanes
    if not g.pooling.channels_last:
        return "channels are not last"
    if g.channels % lanes:
        return f"{g.channels} channels are no multiple of {lanes}"
    most = max(prod(g.image), prod(g.output)) * g.channels // lanes
    pieces = g.batch * prod(_pieces(g, launch.way, 1)) * g.channels // lanes
    if max(most, pieces) >= _MOST_INDEX:
        return "there are 2^31 packs or more"
    return unaligned(image=launch.image, result=launch.output, indices=launch.indices)


def _not_in_lines(g: Geometry, launch: Launch) -> str | None:
    lanes, (height, width) = launch.dtype.lanes, _plane(g.image, 1)
    if g.pooling.channels_last:
        return "channels are last"
    windows, strides, befores = (
        set(_plane(values, 1)) for values in (g.pooling.windows(g.axes), g.pooling.strides(g.axes), g.befores())
    )
    known = [({3}, {1}), *([({2}, {0})] if g.is_max else [])]
    if strides != {2} or (windows, befores) not in known:
        return "it is nothing of 3 x 3 behind a padding of 1, and no maximum of 2 x 2, with stride 2"
    if width % lanes or 2 * _plane(g.output, 1)[1] != width:
        return f"rows of {width} elements are no multiple of {lanes}, or half as many windows"
    if max(height * width, g.batch * g.channels * height * width // lanes) >= _MOST_INDEX:
        return "there are 2^31 packs or more"
    return unaligned(image=launch.image, result=launch.output, indices=launch.indices)


def _not_in_rows(g: Geometry, launch: Launch) -> str | None:
    if g.pooling.channels_last:
        return "channels are last"
    if max(prod(g.image), prod(g.output), g.batch * g.channels) >= _MOST_INDEX:
        return "there are 2^31 elements of a plane, or planes, or more"
    if sum(_tile_bytes(g, launch, 1, 1)) > _MOST_TILE_BYTES:
        return f"a row of windows has more than {_MOST_TILE_BYTES} bytes of the image"
    if launch.way == "forward":
        return unaligned(image=launch.image)
    return unaligned(image=launch.image, result=launch.output, indices=launch.indices)


def _plane(values: Numbers, fill: int) -> Numbers:
    """Numbers for two axes."""
    return filled_axes(values, fill)[1:]


def _pieces(g: Geometry, way: str, rows: int) -> Numbers:
    """Pieces of work down and across an image: windows, `rows` one below the other, or tiles that the strides span."""
    if way == "forward":
        down, across = _plane(g.output, 1)
        return -(-down // rows), across
    image, strides, before = _plane(g.image, 1), _plane(g.pooling.strides(g.axes), 1), _plane(g.befores(), 0)
    down, across = (-(-(i + b) // s) for i, b, s in zip(image, before, strides, strict=True))
    return -(-down // rows), across


def _tile_bytes(g: Geometry, launch: Launch, planes: int, rows: int) -> tuple[int, int, int]:
    """Shared memory of a block that has so many planes, or rows of windows or tiles of one: of x or dx, dy, indices.

    Each has two packs to spare, as it begins and ends wherever it does.
    """
    (height, width), (down, across) = _plane(g.image, 1), _plane(g.output, 1)
    stride, window = (_plane(values, 1)[0] for values in (g.pooling.strides(g.axes), g.pooling.windows(g.axes)))
    span = (rows - 1) * stride + window if launch.way == "forward" else rows * stride
    image = planes * height * width if planes > 1 else min(span, height) * width
    windows = planes * down * across if planes > 1 else min(rows - 1 + -(-window // stride), down) * across
    of_image, of_windows = (_whole_packs(count * launch.dtype.itemsize) for count in (image, windows))
    if launch.way == "forward":
        return of_image, 0, 0
    return of_image, of_windows, _whole_packs(windows) if g.is_max else 0


def _whole_packs(nbytes: int) -> int:
    return (-(-nbytes // 16) + 2) * 16


def plain_step(profile: Profile, g: Geometry, launch: Launch) -> KernelStep:
    """A thread an element."""
    shape = g.y_shape if launch.way == "forward" else g.x_shape
    dense = dense_strides(g.x_shape), dense_strides(g.y_shape)
    several = zip((launch.image, launch.output, launch.indices), (*dense, dense[1]), strict=True)
    steps = (step for d, strides in several for step in g.steps(strides if d is None else d.strides))
    flags = int(g.pooling.channels_last), int(g.is_padded), int(g.index_dtype.name == "int32")
    numbers = (launch.alpha, launch.beta, prod(shape), *g.scalars(), *steps, *flags)
    template = (launch.dtype.cuda, _bool(g.is_max))
    grid = blocks_for(prod(shape), _BLOCK)
    return _step(launch, "plain", template, grid, numbers)


def packed_step(profile: Profile, g: Geometry, launch: Launch) -> KernelStep:
    """A thread a pack of channels of some windows, or of a tile."""
    packs = g.channels // launch.dtype.lanes
    known, rows = _windows(g, launch.way), 1
    shared = launch.way == "forward" or known == ("3", "2")  # whether pieces one below the other have windows in common
    if shared and g.batch * prod(_pieces(g, launch.way, 1)) * packs >= _ROWS * 2048 * profile.sm_count:
        rows = _ROWS
    down, across = _pieces(g, launch.way, rows)
    size = g.batch * down * across * packs
    numbers = (size, g.batch, *_axes(g), packs, across, down, rows, 0, 0, *_divisors(packs, across, down))
    template = (launch.dtype.cuda, str(launch.dtype.lanes), *known, _bool(g.is_max))
    grid = blocks_for(size, _BLOCK)
    return _step(launch, "packed_channels", template, grid, (launch.alpha, launch.beta, *numbers))


def lines_step(profile: Profile, g: Geometry, launch: Launch) -> KernelStep:
    """A thread a pack of a row, and the windows in it, or of two rows."""
    (height, width), (windows, _) = _plane(g.image, 1), _plane(g.output, 1)
    across, images, rows, down = width // launch.dtype.lanes, g.batch * g.channels, 1, -(-height // 2)
    if launch.way == "forward":
        rows = _ROWS if images * windows * across >= _ROWS * 2048 * profile.sm_count else 1
        down = -(-windows // rows)
    size = images * down * across
    numbers = (size, images, *_axes(g), 1, across, down, rows, 0, 0, *_divisors(1, across, down))
    window = _plane(g.pooling.windows(g.axes), 1)[0]
    template = (launch.dtype.cuda, str(launch.dtype.lanes), str(window), _bool(g.is_max))
    grid = blocks_for(size, _BLOCK)
    return _step(launch, "packed_lines", template, grid, (launch.alpha, launch.beta, *numbers))


def whole_packed_step(profile: Profile, g: Geometry, launch: Launch) -> KernelStep:
    """A thread some positions of a pack of channels of an image."""
    packs = g.channels // launch.dtype.lanes
    size = g.batch * packs
    numbers = (size, g.batch, *_axes(g), packs, 1, 1, 1, 0, 0, *_divisors(packs, 1, 1))
    template = (launch.dtype.cuda, str(launch.dtype.lanes))
    grid = blocks_for(size, _WHOLE_SIDE[launch.way])
    return _step(launch, "whole_packed", template, grid, (launch.alpha, launch.beta, *numbers))


def whole_planes_step(profile: Profile, g: Geometry, launch: Launch) -> KernelStep:
    """A thread some packs of dx."""
    planes, lanes = g.batch * g.channels, launch.dtype.lanes
    size = planes * g.taps
    numbers = (size, planes, *_axes(g), 1, 1, 1, 1, 0, 0, *_divisors(1, g.taps, 1))
    template = (launch.dtype.cuda, str(lanes))
    grid = blocks_for(size, lanes * _WHOLE_PACKS * _BLOCK)
    return _step(launch, "whole_planes", template, grid, (launch.alpha, launch.beta, *numbers))


def rows_step(profile: Profile, g: Geometry, launch: Launch) -> KernelStep:
    """A block some rows of a plane, or some planes."""
    images = g.batch * g.channels
    all_rows, across = _pieces(g, launch.way, 1)
    planes, rows = _share(profile, g, launch, images, all_rows)
    parts = -(-all_rows // rows)
    tile, of_dy, of_indices = _tile_bytes(g, launch, planes, rows)
    numbers = (
        *(images * prod(g.image), images, *_axes(g), planes, across, parts, rows, tile, tile + of_dy),
        *_divisors(rows, across, parts),
    )
    template = (launch.dtype.cuda, str(launch.dtype.lanes), _bool(g.is_max))
    grid = (-(-images // planes) * parts, 1, 1)
    nbytes = tile + of_dy + of_indices
    return _step(launch, "staged_rows", template, grid, (launch.alpha, launch.beta, *numbers), nbytes)


def _share(profile: Profile, g: Geometry, launch: Launch, images: int, all_rows: int) -> tuple[int, int]:
    """Planes of a block, or else rows of one, all blocks having about as many."""
    plane = sum(_tile_bytes(g, launch, 1, all_rows))
    if plane * 2 <= _TILE_BYTES:
        most = min(_TILE_BYTES // plane, -(-images // (_BLOCKS_EACH * profile.sm_count)))
        return max(most, 1), all_rows
    rows = all_rows
    while rows > 1 and sum(_tile_bytes(g, launch, 1, rows)) > _TILE_BYTES:
        rows -= 1 if rows <= 64 else rows // 2
    return 1, -(-all_rows // -(-all_rows // rows))


def _axes(g: Geometry) -> Numbers:
    """Two `PoolAxis`, and whether a mean counts the padding."""
    windows, strides = (_plane(values, 1) for values in (g.pooling.windows(g.axes), g.pooling.strides(g.axes)))
    along = zip(_plane(g.image, 1), _plane(g.output, 1), windows, strides, _plane(g.befores(), 0), strict=True)
    return (*(n for i, o, w, s, b in along for n in (i, o, w, s, b, -(-w // s))), int(g.is_padded))


def _windows(g: Geometry, way: str) -> tuple[str, ...]:
    """The window, and backward the stride, that a kernel of its own is for; 0 where it is for any."""
    windows, strides = (_plane(values, 1) for values in (g.pooling.windows(g.axes), g.pooling.strides(g.axes)))
    window = windows[0] if len(set(windows)) == 1 else 0
    if way == "forward":
        return (str(window if window in (_WINDOWS if g.is_max else _MEAN_WINDOWS) else 0),)
    known = len(set(strides)) == 1 and (window, strides[0]) in (_TILES if g.is_max else _MEAN_TILES)
    return (str(window), str(strides[0])) if known else ("0", "0")


def _divisors(*extents: int) -> Numbers:
    """Multiplier and shift of each `Divisor`: 2^shift / extent, rounded up, with 32 bits."""
    pairs = []
    for extent in extents:
        shift = 31 + (extent - 1).bit_length()
        pairs += [-(-(1 << shift) // extent), shift]
    return tuple(pairs)


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _step(
    launch: Launch, variant: str, template: tuple[str, ...], grid: Numbers, numbers: tuple[float, ...], nbytes: int = 0
) -> KernelStep:
    alpha, beta, *rest = numbers
    kernel = _KERNELS[launch.way, variant]
    scalars = (float(alpha), float(beta), *rest)
    x, y, z = grid
    return KernelStep(
        kernel, launch.dtype, template, launch.way, (x, y, z), _BLOCK, launch.pointers, scalars, shared_bytes=nbytes
    )


def _instances(dtype: DType) -> dict[str, list[str]]:
    t = dtype.cuda
    maxima = {"forward": [str(window) for window in (0, *_WINDOWS)]}
    maxima["backward"] = ["0, 0", *(f"{window}, {stride}" for window, stride in _TILES)]
    means = {"forward": ["0", *map(str, _MEAN_WINDOWS)], "backward": ["0, 0", *(f"{w}, {s}" for w, s in _MEAN_TILES)]}
    groups = {}
    for way, known in maxima.items():
        groups[way] = [
            *(f"pooling_{way}<{t}, {largest}>" for largest in ("true", "false")),
            *(f"pooling_{way}_packed<{t}, {dtype.lanes}, {window}, true>" for window in known),
            *(f"pooling_{way}_packed<{t}, {dtype.lanes}, {window}, false>" for window in means[way]),
            *(f"pooling_{way}_lines<{t}, {dtype.lanes}, {window}, true>" for window in _WINDOWS),
            *(f"pooling_{way}_lines<{t}, {dtype.lanes}, {window}, false>" for window in _MEAN_WINDOWS),
            f"pooling_{way}_whole_packed<{t}, {dtype.lanes}>",
            *(f"pooling_{way}_rows<{t}, {dtype.lanes}, {largest}>" for largest in ("true", "false")),
        ]
    groups["backward"].append(f"pooling_backward_whole_planes<{t}, {dtype.lanes}>")
    return groups


FAMILY = Family("pooling", tuple(_KERNELS.values()), _instances)
