"""Convolutions on Hopper: when they can be, which tile they are done in, and their one launch."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import NamedTuple

from ...descriptors import dense_strides
from ...dtypes import DType
from ...runtime.launch import NULL, Family, Kernel, KernelStep, Pointer, Scratch, Struct
from ...runtime.tensor_map import SWIZZLED_ROW, AnyMap, BoxMap, TensorMap
from .direct import constants, functor
from .geometry import Numbers
from .hopper_phases import PHASE_FIELDS, Phase, data_phases, factor_kind, forward_phase
from .hopper_tiles import Tile, tiles_of
from .implicit_weights import turned, turned_bytes
from .library import LIBRARY
from .product import WIDEST_ACCESS, Algorithm, Product, Work

#: Channels that smaller groups are put together to.
GROUP_BLOCK = 64
#: Most phases of a data gradient: strides up to 2 x 2.
DATA_PHASES = 4


#: ``Following`` of the kernels.
FOLLOWING = ("residual", "b", "scale", "shift")
FACTORS = tuple((name, "A") for name in ("alpha1", "alpha2", "c0", "c1"))


def _struct(name: str, phases: int) -> Struct:
    places = tuple(f"{letter}{k}" for letter in "xy" for k in range(phases))
    scalars = (
        *FACTORS,
        *(
            (name, "i32")
            for name in ("channels", "channel_tiles", "channel_blocks", "group", "relu", "mixed", "matrix", "dense")
        ),
        *((f"{field}{k}", "i32") for k in range(phases) for field in PHASE_FIELDS),
    )
    return Struct(name, (*places, "w", *FOLLOWING), scalars)


_FORWARD = Kernel("convolution_hopper", "conv_hopper_forward", _struct("ConvHopperParams", 1))
_DATA = Kernel("convolution_hopper", "conv_hopper_data", _struct("ConvHopperDataParams", DATA_PHASES))


# Which tile. NVIDIA H200, 2026-11-28, bfloat16, microseconds of 128x128 / 256x64, cuDNN's beside:
#   batch 256   forward   128@28 84 / 93, 89   256@14 80 / 84, 86   512@7 79 / 82, 83   stride 2: 128@56 93 / 103, 94
#                         256@28 82 / 89, 89   1x1 of 1024-2048@14 74 / 76, 79
#               data      128@28 88 / 96, 94   256@14 82 / 87, 83   512@7 80 / 85, 82   stride 2: 128@56 141 / 142, 146
#                         256@28 106 / 109, 115   1x1 of 1024-2048@14 109 / 117, 113
#   batch 8     forward   128@28 15.0 / 15.0, 12.9   256@14 19.7 / 19.7, 16.1   data  128@28 15.5 / 15.5, 13.2
# Tiles of 128x256, 64x256 and 256x128 were ahead of both at none of these by more than 2 %, but 256x128 for the data of
# 1024-2048@14 (102). Where a tile has 64 channels out, 256x64 has half the work.
#: Share of the tensor cores' rate that the products of a tile reach, and cycles of an epilogue that nothing hides.
_SHARES, _EPILOGUE = {"128x128 turns": 0.96, "256x64 turns": 0.87, "128x64 turns": 0.75}, 2000
#: Blocks of channels and taps up to which a residual outweighs them.
_SHORT_BESIDE_RESIDUAL = 8
#: Products of 64 x 64 x 64 in a cycle: 2,048 of single numbers.
_CYCLES = 32
#: What the copy engine can describe of windows: corners, distance of taps from the first one, strides.
_CORNERS, _REACH, _STRIDES = (-128, 127), 255, 8
_THREADS, _PIECE = 384, 64
#: Coordinates have 32 bits.
_MOST = 2**31 - 512
_KINDS = ("float16", "bfloat16")
#: Activations that every instantiation may end in; others have instantiations of their own.
_ACTIVATIONS = ("identity", "relu")
#: One of those, which the tests compile.
SAMPLE = "gelu_tanh"


def phases_of(product: Product) -> tuple[Phase, ...]:
    """The convolutions of stride 1 or of the problem's that the product consists of."""
    return data_phases(product.g) if product.direction == "data" else (forward_phase(product.g),)


def cannot(product: Product) -> str | None:
    """Why the product is not for these kernels, or None."""
    reason = image_reason(product, tf32=True) or blend_reason(product)
    return reason or product.workspace_reason(turned_filters_bytes(product))


def image_reason(product: Product, *, tf32: bool = False, grouped: bool = False) -> str | None:
    """Why the copy engine or the tensor cores cannot take the operands, or None.

    With `tf32` float32 is taken, too, where the handle allows TF32; with `grouped` the filters are those of
    `hopper_groups`.
    """
    g, conv = product.g, product.g.conv
    if product.profile.hopper_reason:
        return product.profile.hopper_reason
    if product.dtype.name not in (*_KINDS, *(("float32",) if tf32 and product.profile.math == "tf32" else ())):
        return f"for float16 and bfloat16{', and float32 in TF32' if tf32 else ''}; not for {product.dtype.name} here"
    if not conv.channels_last or g.axes > 2:
        return "for NHWC images of one or two axes"
    if conv.groups > 1 and not grouped:
        return f"{conv.groups} groups, for one"
    lanes = product.dtype.lanes
    if g.in_channels % lanes or g.out_channels % lanes or not g.in_channels:
        return f"{g.in_channels} and {g.out_channels} channels, must be multiples of {lanes}"
    return operands_reason(product) or _window_reason(product)


def operands_reason(product: Product) -> str | None:
    """Why the arrays as they lie are not for the copy engine, or None."""
    g = product.g
    shapes = {"x": g.x_shape, "w": _filter_shape(product), "y": g.y_shape, "residual": g.y_shape}
    operands = {"x": product.x, "w": product.w, "y": product.y, "residual": product.then.residual}
    for name, of in operands.items():
        if of is None:
            continue
        wanted = zip(shapes[name], of.strides, dense_strides(shapes[name]), strict=True)
        if any(extent > 1 and stride != dense for extent, stride, dense in wanted):
            return f"{name} has gaps"
        if of.alignment < WIDEST_ACCESS:
            return f"{name} is aligned to {of.alignment} bytes only"
    if max(g.batch * prod(g.image), g.batch * prod(g.output), g.filter_size) > _MOST:
        return f"more than {_MOST} pixels or filter elements"
    return None


def _filter_shape(product: Product) -> Numbers:
    g = product.g
    return (g.out_channels, *g.taps, filter_depth(product))


def filter_depth(product: Product) -> int:
    """Channels that a filter sees: all, or those of its group, or of the groups that make up a block of 64."""
    g = product.g
    return g.in_channels if g.conv.groups == 1 else max(g.in_channels // g.conv.groups, GROUP_BLOCK)


def _window_reason(product: Product) -> str | None:
    phases = phases_of(product)
    if product.direction == "data" and len(phases) > DATA_PHASES:
        return f"strides of {product.g.conv.strides(product.g.axes)}, {DATA_PHASES} residues at most"
    for phase in phases:
        for along in phase.rows, phase.columns:
            corners = (along.lower, along.upper)
            if along.stride > _STRIDES:
                return f"a stride of {along.stride}, at most {_STRIDES}"
            if min(corners) < _CORNERS[0] or max(corners) > _CORNERS[1]:
                return f"windows that reach {corners} pixels over the image, from {_CORNERS[0]} to {_CORNERS[1]}"
            if (along.tap_count - 1) * along.dilation > _REACH:
                return f"windows of more than {_REACH + 1} pixels"
    return None


def blend_reason(product: Product) -> str | None:
    """Why what follows the sums is not for these kernels, or None."""
    then = product.then
    if product.dtype.itemsize > 2 and then.activation.mode not in _ACTIVATIONS:
        return f"{then.activation.mode} is not among {', '.join(_ACTIVATIONS)}"
    bare = then.activation.mode == "identity" and then.residual is None
    if product.beta != 0.0 and not bare:
        return "beta applies after the activation or beside a residual"
    if product.alpha != 1.0 and not (bare and then.b is NULL and then.shift is NULL):
        return "alpha applies after the activation, bias, shift or residual"
    return None


class Ending(NamedTuple):
    """What follows the sums, as the kernels have it: alpha is a factor of the sums, what beta blends in a residual.

    `functor` is the last argument of the template where an activation has instantiations of its own.
    """

    factors: tuple[float, float]
    residual: Pointer
    relu: bool
    constants: tuple[float, float]
    functor: tuple[str, ...]

    @classmethod
    def of(cls, product: Product) -> Ending:
        """Of a product that `blend_reason` has nothing against."""
        then = product.then
        residual, factor = then.residual.at if then.residual else NULL, then.alpha2
        if product.beta != 0.0:
            out = product.x if product.direction == "data" else product.y
            residual, factor = out.at, product.beta
        factors = float(then.alpha1 * product.alpha), float(factor)
        mode = then.activation.mode
        own = () if mode in _ACTIVATIONS else (functor(mode, product.dtype),)
        return cls(factors, residual, mode == "relu", constants(then.activation), own)


def tile_for(product: Product) -> str:
    """The tile that is estimated to be done first; of groups that of 64 channels, as where a residual is most of it.

    NVIDIA H200, 2026-11-28, bfloat16, batch 256, with bias, residual and relu, microseconds of 128x128 / 256x64, and
    cuDNN's: 64-64@56 140 / 82, 83; 64-256@56 295 / 241, 259; 128-512@28 156 / 129, 127; 256-1024@14 91 / 75, 86;
    512-2048@7 65 / 56, 61; 512-128@28 84 / 79, 83; 3x3 of stride 2 128@56 113 / 114, 111.
    """
    steps = max(phase.taps for phase in phases_of(product)) * -(-_channels_seen(product) // chunk_of(product.dtype))
    short = product.then.residual is not None and product.dtype.itemsize == 2 and steps <= _SHORT_BESIDE_RESIDUAL
    if short or product.g.conv.groups > 1:
        return "256x64 turns"
    return min(tiles_of(product.dtype), key=lambda name: cycles(name, product))


def chunk_of(dtype: DType) -> int:
    """Channels of a stage and of a piece: 128 bytes."""
    return SWIZZLED_ROW // dtype.itemsize


def cycles(name: str, product: Product) -> float:
    """Of all tiles, those of a multiprocessor one after the other; an estimate."""
    tile, phases = tiles_of(product.dtype)[name], phases_of(product)
    channels = product.g.in_channels if product.direction == "data" else product.g.out_channels
    blocks, each = -(-_channels_seen(product) // chunk_of(product.dtype)), -(-channels // tile.channels)
    of_block = tile.pixels * tile.channels / _CYCLES / _SHARES[name]
    counts = [-(-phase.pixels // tile.pixels) * each for phase in phases]
    tiles = sum(counts)
    work = sum(count * phase.taps for count, phase in zip(counts, phases, strict=True)) * blocks * of_block
    turns = -(-tiles // product.profile.sm_count)
    return work / max(tiles, 1) * turns + _EPILOGUE


def work(product: Product) -> Work:
    """The one launch; of a data gradient in TF32 after a copy of the filters, which is summed over along its rows."""
    name = tile_for(product)
    if not is_turned(product):
        return Work((step_with(product, name),))
    copy, at = turned_filters(product, Scratch(len(product.taken)))
    return Work((copy, step_with(product, name, at)), (turned_filters_bytes(product),))


def is_turned(product: Product) -> bool:
    """Whether products read filters that have the channels out side by side: floats cannot be multiplied across."""
    return product.direction == "data" and product.dtype.itemsize == 4


def turned_filters_bytes(product: Product) -> int:
    """Of the copy of filters that products read, where there is one."""
    g = product.g
    return turned_bytes(product, g.out_channels, g.in_channels, product.dtype.lanes) if is_turned(product) else 0


def turned_filters(product: Product, at: Scratch) -> tuple[KernelStep, Pointer]:
    """The copy, and where it is."""
    copy, weights = turned(product, product.g.out_channels, product.g.in_channels, product.dtype.lanes, at)
    return copy, weights.at


def step_with(product: Product, name: str, w: Pointer | None = None) -> KernelStep:
    """The launch with a tile of this name, with these filters."""
    tile, phases, dtype = tiles_of(product.dtype)[name], phases_of(product), product.dtype
    forward, ending = product.direction == "forward", Ending.of(product)
    kernel, slots = (_FORWARD, 1) if forward else (_DATA, DATA_PHASES)
    pixel_tiles = [-(-phase.pixels // tile.pixels) for phase in phases]
    channels = product.g.out_channels if forward else product.g.in_channels
    each = -(-channels // tile.channels)
    ends = [sum(pixel_tiles[: k + 1]) * each for k in range(len(phases))]
    grid = min(product.profile.sm_count, ends[-1])
    mixed = slots == len(phases) > 1 and len(set(pixel_tiles)) == 1 and grid >= slots
    rows = [(*phase.numbers, tiles, end) for phase, tiles, end in zip(phases, pixel_tiles, ends, strict=True)]
    rows += [(0, 1, *[0] * (len(PHASE_FIELDS) - 3), ends[-1])] * (slots - len(phases))
    group = filter_depth(product) if product.g.conv.groups > 1 else 0
    numbers = (
        *(*ending.factors, *ending.constants),
        *(channels, each, -(-_channels_seen(product) // chunk_of(dtype)), group, int(ending.relu), int(mixed)),
        *(int(phases[0].is_matrix), int(phases[0].is_dense)),
        *(number for row in rows for number in row),
    )
    return KernelStep(
        kernel, dtype, (dtype.cuda, *tile.arguments, *ending.functor), product.direction,
        (grid // slots * slots if mixed else grid, 1, 1), _THREADS,
        _pointers(product, len(phases), slots, product.w.at if w is None else w), numbers,
        shared_bytes=tile.shared_bytes, maps=_maps(product, phases, slots, tile), joint_maps=True,
    )  # fmt: skip


def _channels_in(product: Product) -> int:
    return product.g.in_channels if product.direction == "forward" else product.g.out_channels


def _channels_seen(product: Product) -> int:
    """Of those, what a channel out sees."""
    return _channels_in(product) if product.g.conv.groups == 1 else filter_depth(product)


def _pointers(product: Product, phases: int, slots: int, w: Pointer) -> tuple[Pointer, ...]:
    """Input and output of each phase, NULL for those that there are not, and the rest."""
    x, y = product.x, product.y
    source, result = (x.at, y.at) if product.direction == "forward" else (y.at, x.at)
    none: tuple[Pointer, ...] = (NULL,) * (slots - phases)
    then, residual = product.then, Ending.of(product).residual
    places = (*(source,) * phases, *none, *(result,) * phases, *none)
    return (*places, w, residual, then.b, then.scale, then.shift)


def _maps(product: Product, phases: tuple[Phase, ...], slots: int, tile: Tile) -> tuple[AnyMap, ...]:
    """As the struct `ConvMaps`; pointers are numbers of `_pointers`."""
    g, dtype = product.g, product.dtype
    kind, size, chunk = dtype.name, dtype.itemsize, chunk_of(dtype)
    loaded = min(tile.pixels, 256)
    inputs = [phase.input_map(k, dtype, _channels_in(product), loaded) for k, phase in enumerate(phases)]
    result = g.x_shape if product.direction == "data" else g.y_shape
    whole = TensorMap(slots, kind, size, prod(result[:-1]), result[-1], _PIECE, chunk)
    outputs: list[AnyMap] = (
        [whole]
        if phases[0].is_dense
        else [phase.output_map(slots + k, dtype, g.in_channels, g.image, _PIECE) for k, phase in enumerate(phases)]
    )
    w = filter_map(product, 2 * slots, tile)
    # Where there is no phase the pointer is null, and no map is encoded.
    absent = range(len(phases), slots)
    inputs += [replace(inputs[0], pointer=k) for k in absent]
    outputs += [replace(outputs[0], pointer=slots + k) for k in absent]
    return (*inputs, *outputs, w, replace(whole, pointer=2 * slots + 1))


def filter_map(product: Product, pointer: int, tile: Tile) -> BoxMap:
    """Boxes that are summed over along their rows, or across where filters are not turned for that.

    They hold no more filters than there are, as the kernel expects: rows of zeros take the copy engine longer than
    others. NVIDIA H200, 2026-11-28, bfloat16, batch 16, 5x5 taps, microseconds with such boxes / with boxes of 128, and
    cuDNN's: 192-32@28 33 / 58, 28; 512-48@14 in splits 23 / 34, 29. The data gradient of 192-32 takes 34 (20): half of
    what its stages have of dy are such zeros. By ncu its 31 us have the tensor cores 33 % busy, sectors of the L2 20 %,
    issue slots 11 %: no unit is full.
    """
    g, dtype = product.g, product.dtype
    c, k, taps, chunk = filter_depth(product), g.out_channels, prod(g.taps), chunk_of(dtype)
    across = product.direction == "data" and not is_turned(product)
    extents, steps = ((k, taps, c), (c * k, k)) if is_turned(product) else ((c, taps, k), (c, c * taps))
    channels = g.in_channels if product.direction == "data" else k
    box = (chunk, 1, chunk if across else min(tile.channels, channels))
    return BoxMap(pointer, factor_kind(dtype), dtype.itemsize, extents, steps, box)


def _instances(dtype: DType) -> dict[str, list[str]]:
    arguments = [", ".join((dtype.cuda, *tile.arguments)) for tile in tiles_of(dtype).values()]
    sample = [f"{_FORWARD.entry}<{arguments[0]}, {functor(SAMPLE, dtype)}>"] if dtype.itemsize == 2 else []
    return {
        direction: [f"{kernel.entry}<{each}>" for each in arguments] + (sample if direction == "forward" else [])
        for direction, kernel in {"forward": _FORWARD, "data": _DATA}.items()
        if dtype.itemsize < 8
    }


CONV_HOPPER_FAMILY = Family("convolution_hopper", (_FORWARD, _DATA), _instances, only="sm_90a")


def library_reason(product: Product) -> str | None:
    """That a product of matrices is left to cuBLASLt, where that takes it.

    NVIDIA H200, 2026-11-28, bfloat16, microseconds of cuBLASLt / of the best tile: batch 256 forward 64-256@56
    148 / 153, 256-1024@14 53.5 / 53.8, 2048-512@7 40.5 / 41.0, data 256-128@56 171 / 180, filter 256-1024@14 43 / 50;
    batch 8 9 to 12 / 10 to 18. Not so of TF32 forward / in the data: batch 64, cuBLASLt's beside, 64-64@56
    35 / 37, 39 / 49, 64-256@56 79 / 75, 83 / 89, 256-128@56 86 / 105, 90 / 118.
    """
    if product.dtype.itemsize == 4 and product.direction != "filter":
        return None
    if phases_of(product)[0].is_matrix and LIBRARY.cannot(product) is None:
        return "cuBLASLt's product of matrices is as fast or faster"
    return None


def slower(product: Product) -> str | None:
    """What is left to cuBLASLt."""
    return library_reason(product)


#: Takes the 16-bit types, and TF32.
HOPPER = Algorithm("hopper", cannot, slower, work)
