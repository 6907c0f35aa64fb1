"""Convolutions on Hopper whose tiles are too few for all multiprocessors: sums of some products each, and their sum."""

from __future__ import annotations

from math import prod

from ...dtypes import DType
from ...runtime.launch import Family, Kernel, KernelStep, Pointer, Scratch, Struct
from .hopper import (
    Ending,
    blend_reason,
    chunk_of,
    cycles,
    filter_map,
    image_reason,
    is_turned,
    library_reason,
    phases_of,
    tile_for,
    turned_filters,
    turned_filters_bytes,
)
from .hopper_phases import PHASE_FIELDS
from .hopper_tiles import Tile
from .product import Algorithm, Product, Work

_FAMILY = "convolution_hopper_split"
_NUMBERS = ("channels", "channel_tiles", "channel_blocks", "splits", "pixels", "matrix")
_PARTIAL = Struct(
    "ConvPartialParams",
    ("x", "w", "partials"),
    (("size", "i64"), *((name, "i32") for name in _NUMBERS), *((f"{field}0", "i32") for field in PHASE_FIELDS)),
)
_FORWARD = Kernel(_FAMILY, "conv_hopper_partial_forward", _PARTIAL)
_DATA = Kernel(_FAMILY, "conv_hopper_partial_data", _PARTIAL)
_FINISH = Kernel(
    _FAMILY,
    "conv_hopper_finish",
    Struct(
        "ConvFinishParams",
        ("y", "partials", "residual", "b", "scale", "shift"),
        (("alpha1", "A"), ("alpha2", "A"), *((name, "i64") for name in ("size", "channels", "splits", "relu"))),
    ),
)

_TILE = Tile(1, 128, 6, 2, False, False)
_THREADS, _FINISH_THREADS, _FINISH_VEC = 384, 256, 4
#: Threads that share the slots of an element, and slots that one of them takes before another is called.
_SHARING, _SLOTS_EACH = (1, 4, 16), 6
#: Cycles of 128 bytes of channels of a tile, of the second launch, and bytes of slots that go by in a cycle.
_BLOCK_CYCLES, _SECOND, _SLOT_BYTES = 560.0, 4500.0, 3000.0
#: Blocks of channels that a split has at least.
_FEWEST = 2


def cannot(product: Product) -> str | None:
    """Why the product is not for these kernels, or None."""
    reason = image_reason(product, tf32=True) or blend_reason(product)
    if reason:
        return reason
    ending, phases = Ending.of(product), phases_of(product)
    if ending.functor:
        return f"{product.then.activation.mode} is left to whole tiles"
    if len(phases) > 1 or not phases[0].is_dense:
        return "a data gradient with a stride"
    if _blocks(product) < 2 * _FEWEST:
        return f"{_blocks(product)} blocks of channels and taps are too few to split"
    return product.workspace_reason(4 * _splits(product) * _size(product) + turned_filters_bytes(product))


def slower(product: Product) -> str | None:
    """By the estimates of both.

    NVIDIA H200, 2026-11-28, bfloat16 forward, batch 8, split / whole, microseconds: 512@7 15.5 / 29.5, 256@14
    15.7 / 19.7, 256@28 of stride 2 15.9 / 19.6, 128@28 15.7 / 15.0.
    Again and again in a graph, near where the estimates cross: 512-256@28 of 1x1 and stride 2 5.5 / 6.4 for one image,
    64-128@6x60 in the data of 16 8.9 / 9.8 (cuDNN 7.4); 128@27 of 8 10.6 / 9.8, 128-256@56 of stride 1 for one
    10.2 / 9.8. Still done whole: 512-256@28 for two, 5.7 / 6.5.
    """
    if library_reason(product):
        return library_reason(product)
    tiles, splits = _tiles(product), _splits(product)
    if splits < 2:
        return f"{tiles} tiles are enough without splitting them"
    turns = -(-tiles * splits // product.profile.sm_count) * -(-_blocks(product) // splits)
    mine = turns * _BLOCK_CYCLES + _SECOND + 8 * splits * _size(product) / _SLOT_BYTES
    whole = cycles(tile_for(product), product)
    return None if mine < whole else f"estimated {mine:.0f} cycles, {whole:.0f} without splitting"


def _channels(product: Product) -> tuple[int, int]:
    """In and out of the direction."""
    g = product.g
    return (g.in_channels, g.out_channels) if product.direction == "forward" else (g.out_channels, g.in_channels)


def _blocks(product: Product) -> int:
    return prod(product.g.taps) * -(-_channels(product)[0] // chunk_of(product.dtype))


def _size(product: Product) -> int:
    return phases_of(product)[0].pixels * _channels(product)[1]


def _tiles(product: Product) -> int:
    return -(-phases_of(product)[0].pixels // _TILE.pixels) * -(-_channels(product)[1] // _TILE.channels)


def _splits(product: Product) -> int:
    """As many as there are multiprocessors for."""
    return max(1, min(product.profile.sm_count // max(1, _tiles(product)), _blocks(product) // _FEWEST))


def work(product: Product) -> Work:
    """Sums of shares into slots, and the sum of the slots with what follows; in TF32 as `hopper.work` does it."""
    partials, copied = (Scratch(len(product.taken) + k) for k in range(2))
    nbytes = 4 * _splits(product) * _size(product)
    finish = _finish_step(product, partials)
    if not is_turned(product):
        return Work((_partial_step(product, partials, product.w.at), finish), (nbytes,))
    copy, w = turned_filters(product, copied)
    return Work((copy, _partial_step(product, partials, w), finish), (nbytes, turned_filters_bytes(product)))


def _partial_step(product: Product, partials: Scratch, w: Pointer) -> KernelStep:
    dtype, forward, (phase,) = product.dtype, product.direction == "forward", phases_of(product)
    channels_in, channels = _channels(product)
    each, pixel_tiles = -(-channels // _TILE.channels), -(-phase.pixels // _TILE.pixels)
    splits, chunk = _splits(product), chunk_of(dtype)
    maps = phase.input_map(0, dtype, channels_in, _TILE.pixels), filter_map(product, 1, _TILE)
    numbers = (
        *(_size(product), channels, each, -(-channels_in // chunk), splits, phase.pixels, int(phase.is_matrix)),
        *(*phase.numbers, pixel_tiles, pixel_tiles * each),
    )
    return KernelStep(
        _FORWARD if forward else _DATA, dtype, (dtype.cuda,), product.direction,
        (min(product.profile.sm_count, pixel_tiles * each * splits), 1, 1), _THREADS,
        ((product.x if forward else product.y).at, w, partials), numbers,
        shared_bytes=_TILE.shared_bytes, maps=maps, joint_maps=True,
    )  # fmt: skip


def _finish_step(product: Product, partials: Scratch) -> KernelStep:
    dtype, then, ending, splits = product.dtype, product.then, Ending.of(product), _splits(product)
    sharing = next((count for count in _SHARING if splits <= _SLOTS_EACH * count), _SHARING[-1])
    result = product.y if product.direction == "forward" else product.x
    each = _FINISH_THREADS // sharing * _FINISH_VEC
    return KernelStep(
        _FINISH, dtype, (dtype.cuda, str(sharing)), "finish", (-(-_size(product) // each), 1, 1), _FINISH_THREADS,
        (result.at, partials, ending.residual, then.b, then.scale, then.shift),
        (*ending.factors, _size(product), _channels(product)[1], splits, int(ending.relu)),
    )  # fmt: skip


def _instances(dtype: DType) -> dict[str, list[str]]:
    if dtype.name not in ("float16", "bfloat16", "float32"):
        return {}
    t = dtype.cuda
    ways = {kernel: [f"conv_hopper_partial_{kernel}<{t}>"] for kernel in ("forward", "data")}
    return {**ways, "finish": [f"conv_hopper_finish<{t}, {count}>" for count in _SHARING]}


CONV_HOPPER_SPLIT_FAMILY = Family(_FAMILY, (_FORWARD, _DATA, _FINISH), _instances, only="sm_90a")

#: Takes the 16-bit types and TF32.
HOPPER_SPLIT = Algorithm("hopper_split", cannot, slower, work)
