"""Where 32 bits end: the predicates that tell, and the indices in the text of the kernels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

import dnnprims as dp
from dnnprims.ops import FAMILIES
from dnnprims.runtime.compiler import KERNEL_DIRECTORY
from dnnprims.runtime.launch import Kernel, KernelStep, Live, PlanSpec, Struct, blocks_for
from dnnprims.runtime.limits import FLOAT32_MAX, MOST_BLOCKS, oversized_grid, unrepresentable

Shape = tuple[int, ...]

# -- the predicates ---------------------------------------------------------------------------------------------------

WIDE = Kernel(
    "planted", "wide", Struct("WideParams", ("y",), (("n", "i64"), ("few", "i32"), ("bits", "u32"), ("a", "A")))
)


def planned(grid: Shape = (1, 1, 1), scalars: tuple[Any, ...] = (0, 0, 0, 0.0)) -> PlanSpec:
    """A plan of one launch."""
    step = KernelStep(WIDE, dp.TensorDescriptor((), "float16").dtype, ("half",), "all", grid, 256, (0,), scalars)  # type: ignore[arg-type]
    return PlanSpec("planted", "plain", (step,))


@pytest.mark.parametrize(
    ("scalars", "name"),
    [
        ((2**63 - 1, 2**31 - 1, 2**32 - 1, FLOAT32_MAX), None),
        ((-(2**63), -(2**31), 0, -FLOAT32_MAX), None),
        ((0, 0, 0, float("inf")), None),
        ((0, Live(0), Live(1), Live(2)), None),
        ((2**63, 0, 0, 0.0), "n"),
        ((0, 2**31, 0, 0.0), "few"),
        ((0, -(2**31) - 1, 0, 0.0), "few"),
        ((0, 0, -1, 0.0), "bits"),
        ((0, 0, 2**32, 0.0), "bits"),
        ((0, 0, 0, 1e39), "a"),
    ],
)
def test_numbers_that_a_field_cannot_hold(scalars: tuple[Any, ...], name: str | None) -> None:
    """The last that fits, and the first that does not, on either side."""
    found = unrepresentable(planned(scalars=scalars))
    assert (found[0] if found else None) == name


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_grids_that_cannot_be_launched(axis: int) -> None:
    """The last that can be, and the first that cannot."""
    for blocks in (MOST_BLOCKS[axis], MOST_BLOCKS[axis] + 1):
        grid = tuple(blocks if axis == k else 1 for k in range(3))
        assert (oversized_grid(planned(grid)) is None) == (blocks == MOST_BLOCKS[axis])  # type: ignore[arg-type]


@pytest.mark.parametrize("items", [2**31 - 1, 2**31, 2**31 + 256, 2**33 + 1, 2**62])
def test_blocks_cover_all_items(items: int) -> None:
    """And none too many: the last block has something to do."""
    (blocks, _, _) = blocks_for(items, 256)
    assert (blocks - 1) * 256 < items <= blocks * 256


# -- the text ---------------------------------------------------------------------------------------------------------

_FLAG, _OPERAND = "0 or 1", "number of an operand of the call"

#: Of the implicit products of convolutions, whose offsets have 32 bits.
_IMPLICIT = {
    name
    for family in ("convolution_implicit", "convolution_joined")
    for kernel in FAMILIES[family].kernels
    for name, kind in kernel.struct.scalars
    if kind == "i32" and name != "channels_last"
}
#: Of convolutions on Hopper: pixels, windows, channels and tiles; what the copy engine is told has 32 bits.
_ON_HOPPER = {
    name
    for family in (
        *(f"convolution_hopper{way}" for way in ("", "_filter", "_first", "_first_filter", "_split")),
        "convolution_patch",
    )
    for kernel in FAMILIES[family].kernels
    for name, kind in kernel.struct.scalars
    if kind == "i32"
}

#: Fields of 32 bits, and why their values fit.
NARROW_FIELDS = {
    **dict.fromkeys(("packs", "channels_last", "clip", "bias_correction", "accumulate_step", "nesterov"), _FLAG),
    **dict.fromkeys(("lr_wide", "gradient_scale_wide", "step_wide", "scalar_wide"), _FLAG),
    **dict.fromkeys(("weights", "gradients", "velocities", "masters", "arrays"), _OPERAND),
    **dict.fromkeys(("first_moments", "second_moments"), _OPERAND),
    **dict.fromkeys(_IMPLICIT, "below 2^30 with padding, as the front end sees to"),
    **dict.fromkeys(
        (
            *(f"{a}_{n}" for a in "hw" for n in ("image", "output", "window", "stride", "before", "reach")),
            *("inner", "across", "down", "height", "dy_at", "indices_at"),
        ),
        "fewer than 2^31, as the front end sees to",
    ),
    **dict.fromkeys(
        (f"{n}_{of}" for n in ("inner", "across", "down", "run", "channels") for of in ("multiplier", "shift")),
        "a divisor's",
    ),
    **dict.fromkeys(("padded", "wide"), _FLAG),
    "elements": "of a chunk, at most 65,536",
    "share": "of a block, at most a chunk",
    "label_bytes": "0, 1, 4 or 8",
    "algorithm": "one of three",
    "lanes": "at most the threads of a block",
    "kept": "packs in the shared memory of a block",
    "divisor_parts": "at most 32",
    **dict.fromkeys(_ON_HOPPER, "of images of fewer than 2^31 pixels, as the front end sees to"),
}

_CONVOLVED = "positions of images, below 2^31 as the front end sees to"

#: Where an index, or part of one, is narrower than 64 bits in the kernels' text, and why it may be.
NARROW_TEXT = {
    "for (int i = threadIdx.x; i < groups": "groups of a chunk, at most 65,536 elements",
    "for (int c = threadIdx.x; c < 32 * VEC": "columns of a tile",
    "for (int i = threadIdx.x % part.lanes; i < STRIDED_BLOCK": "threads of a block",
    "for (int k = threadIdx.x; k < p.kept": "packs in the shared memory of a block",
    "(int)(index - at * shares)": "a share of a chunk, at most 65,536 elements",
    "(int)(e % POOL)": "less than a pool",
    "(int)(index % PACKS)": "less than a pool",
    "(int)blockDim.x": "threads of a block",
    "for (int k = threadIdx.x; k < others": "packs in the shared memory of a block",
    "for (int k = threadIdx.x; k < kept": "packs in the shared memory of a block",
    "(int)cols": "packs in the shared memory of a block",
    "(int)(p.classes / VEC)": "a row that lies in registers",
    "(int)hot.at": "a row that lies in registers",
    "(int)low": "a label of 32 bits",
    "(int)packs": "no more than the shared memory of a block holds",
    "(int)(cols / VEC)": "a row that lies in registers",
    "(int)r.readable()": "a row that lies in registers",
    "(int)(r.start % VEC)": "less than a pack",
    "(int)p.lanes": "threads of a block",
    "(int)(p.k - k)": "less than a slice",
    "(int)(p.size - first)": "less than a pack",
    "(int)left": "less than a pack",
    "(u32)(item * VEC)": "fewer than 2^31 elements, as the front end sees to",
    "(int)(size - begin)": "less than a block has",
    "(int)threadIdx.x": "a thread of a block",
    "(int)at": "a tap, of fewer than 2^31",
    "(u32)v": "a tap that fits a byte",
    "(u32)first": "a tap that fits a byte",
    "(u32)second": "a tap that fits a byte",
    "(u32)tap": "a tap that fits a byte",
    "(u32)all": "four bytes of a pack",
    "(u32)left.bits": "a number of 16 bits",
    "(u32)(all >> 32)": "four bytes of a pack",
    "(u32)(r * WINDOW + s)": "a tap that fits a byte",
    "(u32)count": "taps that fit a byte",
    "(int)here": "less than an extent, of fewer than 2^31",
    "(u32)item": "fewer than 2^31 pieces of work, as the front end sees to",
    "block = blockIdx.x": "grids have fewer than 2^31 blocks",
    "(int)(c.images - first)": "fewer than the planes of a block",
    "(int)(first - pack * VEC)": "less than a pack",
    "for (int k = threadIdx.x; k < packs": "packs in the shared memory of a block",
    "for (int k = threadIdx.x; k < pieces": "pieces of a block, which its shared memory bounds",
    "(int)t.width": "threads of a block",
    "(int)t.depth": "threads of a block",
    "(int)p.shift": "less than 9: threads of a block",
    "(int)t.unit_channels": "lanes of a pack at most",
    "(u32)at": "fewer than 2^31 packs, as the front end sees to",
    **dict.fromkeys(("(int)t.rows", "(int)t.inner", "(int)t.packs"), "of what lies in the shared memory of a block"),
    "(int)(from - pack * VEC)": "less than a pack",
    "(u32)t.tiles": "blocks of a grid, fewer than 2^31",
    "(int)within": "columns of the threads of a block",
    "(int)held": "channels of the threads of a block",
    "(u32)a / (u32)b": "both are below 2^32, as is seen before",
    "(u32)n / (u32)d": "both are below 2^32, as is seen before",
    "(int)(steps % STAGES)": "a stage",
    "(u32)(steps / STAGES & 1)": "a parity",
    "(int)(first + at % rows)": "rows of a matrix, at most 2^31 - 128 as the front end sees to",
    "(int)(at / rows)": "columns of a matrix, at most 2^31 - 128 as the front end sees to",
    "for (int i = threadIdx.x; i < OUTS * ROWS": "outputs of a block",
    "for (int r = threadIdx.x / 32 % 4; r < PIECE_ROWS": "rows of a piece",
    "(int)p.k_blocks": "fewer than 2^31 elements along k, as the front end sees to",
    **dict.fromkeys(("(u32)index", "(u32)extent", "(u32)i", "(int)w", "(int)h"), _CONVOLVED),
    **dict.fromkeys(("(int)p.result.w", "(int)p.result.h", "(int)extent.h", "(int)See"), _CONVOLVED),
    **dict.fromkeys(("(int)(end - first)", "(int)wanted"), "rows of a strip"),
    **dict.fromkeys(("(int)walk.w", "(int)p.y_walk.w"), "between positions, below 2^27 as the front end sees to"),
    "(u32)within": "a bit",
    **dict.fromkeys(
        ("(int)p.channels", "(int)p.stride.w", "(int)p.stride.h"), "at most 4, or of a patch in shared memory"
    ),
    **dict.fromkeys(("(int)p.positions", "(int)p.chunk"), "of planes in shared memory"),
    **dict.fromkeys(("(int)p.patch", "(int)p.taps.w", "(int)pitch", "(int)rows"), "of a patch in shared memory"),
    **dict.fromkeys(("(int)(p.source.w * p.patch.per)", "(int)from", "(int)top", "(int)p.source.h"), _CONVOLVED),
    "for (int e = threadIdx.x % 32 * 8; e < (int)pitch": "of a patch in shared memory",
    **dict.fromkeys(
        ("for (int row = threadIdx.x / 32; row < rows", "for (int row = threadIdx.x / 32; row < p.rows"), "of a patch"
    ),
    "for (int w = threadIdx.x % 32": "of a patch in shared memory",
    "for (int i = threadIdx.x; i < p.rows * TILE_EXTENT * FILTERS": "of a tile",
    **dict.fromkeys(("(int)(p.result.h - at.h)", "(int)(p.result.w - at.w)"), _CONVOLVED),
    **dict.fromkeys(("(int)sharing", "(int)p.rows", "(int)p.groups"), "warps and rows of a block"),
    "< (int)p.groups * WARP_SUMS": "of shared memory",
    "(int)(tap * p.filters)": "filter elements, fewer than 2^31 as the front end sees to",
    "blockIdx.z * p.groups": "terms of a filter",
    **dict.fromkeys(
        ("(int)(p.reach.h * p.reach.w)", "(int)p.reach.h", "(int)p.reach.w"), "of filters in shared memory"
    ),
    "for (int i = threadIdx.x; i < size": "of filters in shared memory",
    **dict.fromkeys(("(int)(16 * across)", "(int)(2 * down)"), "of a patch in shared memory"),
    "(int)p.k_steps": "of filters in shared memory",
    "for (int i = threadIdx.x; i < ALL *": "filters of a block",
    "for (int at = threadIdx.x + lanes; at < BLOCK": "threads of a block",
    **dict.fromkeys(("(int)blockIdx.y", "blockIdx.y * tile.lanes"), "channels, fewer than 2^22"),
    **dict.fromkeys(("(int)p.strips", "(int)p.images", "i < TAPS * width"), "of a block"),
    **dict.fromkeys(
        ("(int)p.begin.h", "(int)p.begin.w", "(int)split_off", "(int)p.walk", "(int)units", "(int)(index * images)"),
        "positions and images, fewer than 2^31 as the front end sees to",
    ),
    "(int)(h + wanted < extent.h": "rows, fewer than 2^31 as the front end sees to",
    "int number = blockIdx.x": "tiles of fewer than 2^31 pixels, and splits for multiprocessors without one",
    "(u32)number / (u32)tiles": "tiles of fewer than 2^31 pixels, and splits for multiprocessors without one",
    "int tile = blockIdx.x": "tiles of fewer than 2^31 pixels, as the front end sees to",
    "for (int i = threadIdx.x; i < terms": "filters in the shared memory of a block",
    "for (int unit = threadIdx.x % WARPGROUP": "the shared memory of a block",
    "(int)(blockIdx.x % p.channel_tiles)": "no more than there are multiprocessors",
    "(int)(gridDim.x / p.channel_tiles)": "no more than there are multiprocessors",
    "(int)(blockIdx.x / p.channel_tiles)": "no more than there are multiprocessors",
    **dict.fromkeys(("(int)blockIdx.x", "(int)blockIdx.y", "(int)gridDim.x"), "no more than there are multiprocessors"),
    "blockIdx.y * 64": "filters, below 2^31",
    "for (u32 i = threadIdx.x * UNIT": "the shared memory of a block",
    "for (int row = threadIdx.x / 32 % SPREADERS": "rows of a patch",
    "(int)(gridDim.x / of_split)": "no more than there are multiprocessors",
    "(int)(blockIdx.x / of_split)": "no more than there are multiprocessors",
    "(int)(blockIdx.x % of_split)": "no more than there are multiprocessors",
    "for (int i = threadIdx.x * 16": "bytes of shared memory",
    "/ (u32)p.": "pixels and tiles, fewer than 2^31 as the front end sees to",
    "/ (u32)f.": "pixels, fewer than 2^31 as the front end sees to",
    "for (int i = share.slot * CONSUMERS * WARPGROUP + threadIdx.x": "of a tile",
    "blockIdx.y * p.columns": "columns have 64 bits",
    "blockIdx.y * per_split": "elements of a split have 64 bits",
}

#: Loops that begin at a thread, casts of what is no constant, and products with a block's number that come first.
NARROW = (
    r"for \((?:int|unsigned|u32) \w+ = [^;]*(?:threadIdx|blockIdx)[^;]*;[^;]*",
    r"\((?:int|u32|unsigned)\)(?:\([^()]*\)|[\w.]+(?:\(\))?)(?: [/%] \(u32\)[\w.]+)?",
    r"(?<!\(i64\))blockIdx\.[xyz] \* [\w.]+",
    r"\b(?:int|unsigned|u32) \w+ = (?:[^;(]*\b)?blockIdx[^;]*",
)

#: Kernels whose offsets have 32 bits: their front end refuses operands that reach over 2^30 elements.
IN_32_BITS = tuple(
    f"convolution_{stem}"
    for stem in (
        *(
            "implicit.cu",
            "implicit.cuh",
            "ffma.cuh",
            "gather.cuh",
            "filter.cuh",
            "mma.cu",
            "joined.cu",
            "joined_data.cuh",
        ),
    )
)

#: Headers that compute with bits of numbers and with addresses of shared memory, not with indices.
BITS = (
    *("elementary.cuh", "math.cuh", "series.cuh", "ptx.cuh", "parts.cuh", "gates.cuh"),
    *("activation.cuh", "hopper.cuh", "mma.cuh"),
)


def narrow_places() -> Iterator[str]:
    """What `NARROW` finds in the kernels, comments left out."""
    for path in sorted(KERNEL_DIRECTORY.iterdir()):
        if path.name in (*BITS, *IN_32_BITS) or path.suffix not in (".cu", ".cuh"):
            continue
        for line in path.read_text().splitlines():
            code = line.partition("//")[0]
            for pattern in NARROW:
                yield from (found.group().strip() for found in re.finditer(pattern, code))


def is_number_format(place: str) -> bool:
    """Conversions of bits and sizes of types, which are no indices."""
    return bool(re.match(r"\(\w+\)(sizeof|float_to|double_to|v\.bits|\((float|double)_to|\(n \+)", place))


def test_indices_have_64_bits() -> None:
    """Every narrower one is listed with its reason, and nothing else is."""
    places = [place for place in narrow_places() if not is_number_format(place)]
    unknown = [place for place in places if not any(known in place for known in NARROW_TEXT)]
    assert not unknown, unknown
    stale = [known for known in NARROW_TEXT if not any(known in place for place in places)]
    assert not stale, stale


def test_fields_have_64_bits() -> None:
    """Every narrower field of a parameter struct is listed with its reason."""
    narrow = {
        name
        for family in FAMILIES.values()
        for kernel in family.kernels
        for name, kind in kernel.struct.scalars
        if kind in ("i32", "u32")
    }
    assert narrow == set(NARROW_FIELDS)


@pytest.mark.parametrize(
    "planted",
    [
        "int i = blockIdx.x * blockDim.x + threadIdx.x;",
        "for (int i = threadIdx.x; i < p.size; i += blockDim.x) {",
        "i64 i = blockIdx.x * blockDim.x + threadIdx.x;",
        "int at = (int)(p.rows * p.cols);",
    ],
)
def test_narrow_index_is_noticed(planted: str) -> None:
    """The usual mistakes."""
    found = [match.group() for pattern in NARROW for match in re.finditer(pattern, planted)]
    assert any(not any(known in place for known in NARROW_TEXT) for place in found)
