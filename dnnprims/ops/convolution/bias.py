"""The gradient of a convolution in its bias, and sums of what it makes for a batch norm, at the speed of one read."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from ...descriptors import ConvolutionDescriptor, TensorDescriptor
from ...dtypes import DType
from ...runtime.launch import NULL, Family, Kernel, KernelStep, Pointer, Profile, Scratch, Struct, blocks_for
from ...runtime.layout import merge_axes
from .direct import bias_step
from .geometry import Numbers, split, steps
from .product import Work

_SIZES = ("channels", "splits", "lanes", "rows", "row_step", "outer", "outer_step", "channel_step", "positions")
_PARAMS = Struct(
    "BiasParams",
    ("db", "sums", "parts", "dy"),
    (("alpha", "A"), ("beta", "A"), *((name, "i64") for name in _SIZES)),
)
_COLUMNS, _PLANES, _FOLD = (
    Kernel("convolution_bias", name, _PARAMS) for name in ("bias_columns", "bias_planes", "bias_fold")
)

#: Threads of a block, most of them side by side, blocks that are enough for a GPU, and packs that are worth a split.
_BLOCK, _MOST_LANES, _LEAST_PACKS = 256, 32, 1024
_ENOUGH_BLOCKS = {"columns": 512, "planes": 2048}


class _Shape(NamedTuple):
    """dy as rows of channels (``columns``) or as planes of positions (``planes``), VEC elements at once."""

    kind: str
    vec: int
    outer: int
    outer_step: int
    channel_step: int
    positions: int
    row_step: int


def sums_of_channels(
    profile: Profile,
    conv: ConvolutionDescriptor,
    dy: TensorDescriptor,
    at: tuple[Pointer, Pointer],
    scaling: tuple[float, float],
    taken: Numbers = (),
) -> tuple[str, Work]:
    """How dy is summed over images and positions; `at` is where dy and the sums are."""
    batch, channels, spatial = split(conv, dy.shape)
    shape = _shape(conv, dy)
    if shape is None or not prod(dy.shape):
        step = bias_step(dy.dtype, batch, channels, spatial, steps(conv, dy.strides), (at[1], at[0]), *scaling)
        return "direct_plain", Work((step,))
    places: tuple[Pointer, Pointer, Pointer] = (at[1], NULL, at[0])
    return shape.kind, _sums(profile, shape, dy, channels, 1, places, scaling, taken)


def sums_of_result(
    profile: Profile,
    conv: ConvolutionDescriptor,
    y: TensorDescriptor,
    at: tuple[Pointer, Pointer],
    taken: Numbers = (),
) -> Work:
    """How y, without gaps, and its squares are summed over images and positions; `at` is where y and the sums are."""
    batch, channels, spatial = split(conv, y.shape)
    positions, lanes = prod(spatial), y.dtype.lanes if y.vectorizable else 1
    side = channels if conv.channels_last else positions
    vec = lanes if side % lanes == 0 else 1
    columns = _Shape("columns", vec, 1, 0, 1, 1, channels)
    planes = _Shape("planes", vec, batch, channels * positions, positions, positions, 0)
    shape, places = columns if conv.channels_last else planes, (NULL, at[1], at[0])
    return _sums(profile, shape, y, channels, 2, places, (1.0, 0.0), taken) if channels else Work(())


def _sums(
    profile: Profile,
    shape: _Shape,
    dy: TensorDescriptor,
    channels: int,
    count: int,
    at: tuple[Pointer, Pointer, Pointer],
    scaling: tuple[float, float],
    taken: Numbers,
) -> Work:
    """The launches for so many sums of each channel; `at` is where they go, as db or as sums, and where dy is."""
    lanes = min(1 << max(-(-channels // shape.vec) - 1, 0).bit_length(), _MOST_LANES)
    across = -(-channels // (lanes * shape.vec)) if shape.kind == "columns" else channels
    packs = -(-dy.size // shape.vec // across)
    splits = _splits(profile, shape, count * channels, (across, packs), taken, dy.dtype.acc.itemsize)
    sizes = (
        channels, splits, lanes, dy.size // channels, shape.row_step,
        shape.outer, shape.outer_step, shape.channel_step, shape.positions,
    )  # fmt: skip
    scalars = (*map(float, scaling), *sizes)
    pointers: tuple[Pointer, ...] = (*at[:2], Scratch(len(taken)) if splits > 1 else NULL, at[2])
    kernel, template = _COLUMNS if shape.kind == "columns" else _PLANES, (dy.dtype.cuda, str(shape.vec), str(count))
    made = [KernelStep(kernel, dy.dtype, template, "sums", (across, splits, 1), _BLOCK, pointers, scalars)]
    if splits > 1:
        fold = blocks_for(count * channels * 32, _BLOCK)
        of_fold = (dy.dtype.cuda, str(count))
        made.append(KernelStep(_FOLD, dy.dtype, of_fold, "sums", fold, _BLOCK, pointers, scalars))
    return Work(tuple(made), (count * channels * splits * dy.dtype.acc.itemsize,) if splits > 1 else ())


def _shape(conv: ConvolutionDescriptor, dy: TensorDescriptor) -> _Shape | None:
    """What dy's steps allow, or None where neither channels nor positions lie side by side."""
    batch, channels, spatial = split(conv, dy.shape)
    outer_step, channel_step, spatial_steps = split(conv, dy.strides)
    lanes = dy.dtype.lanes if dy.vectorizable else 1
    rows, row_steps = merge_axes([batch, *spatial], [outer_step, *spatial_steps])
    if len(rows) <= 1 and (channel_step == 1 or channels == 1):
        row_step = row_steps[0] if row_steps else 0
        vec = lanes if channels % lanes == 0 and row_step % lanes == 0 else 1
        return _Shape("columns", vec, 1, 0, 1, 1, row_step)
    plane, plane_steps = merge_axes(list(spatial), list(spatial_steps))
    if len(plane) <= 1 and all(step == 1 for step in plane_steps):
        positions = prod(plane)
        vec = lanes if all(n % lanes == 0 for n in (positions, outer_step, channel_step)) else 1
        return _Shape("planes", vec, batch, outer_step, channel_step, positions, 0)
    return None


def _splits(profile: Profile, shape: _Shape, sums: int, blocks: Numbers, taken: Numbers, itemsize: int) -> int:
    """Blocks that share a channel: enough to fill a GPU, each with packs enough to be worth it."""
    across, packs = blocks
    most = shape.outer if shape.kind == "planes" else packs
    splits = max(min(_ENOUGH_BLOCKS[shape.kind] // across, packs // _LEAST_PACKS, most), 1)
    return 1 if 0 <= profile.workspace_limit < sums * splits * itemsize + sum(taken) else splits


def _instances(dtype: DType) -> dict[str, list[str]]:
    t = dtype.cuda
    walks = [f"bias_{kind}<{t}, {vec}" for kind in ("columns", "planes") for vec in (1, dtype.lanes)]
    return {"sums": [f"{entry}, {count}>" for entry in (*walks, f"bias_fold<{t}") for count in (1, 2)]}


BIAS_FAMILY = Family("convolution_bias", (_COLUMNS, _PLANES, _FOLD), _instances)
