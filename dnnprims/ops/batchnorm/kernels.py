"""Kernels of the batch norms: how columns and rows are shared out, and each launch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd, inf

from ...descriptors import ActivationDescriptor
from ...dtypes import DType
from ...runtime.launch import Family, Kernel, KernelStep, Live, Pointer, Profile, Struct, blocks_for

_TILING = tuple(
    (name, "i64") for name in ("rows", "channels", "inner", "unit_channels", "tiles", "width", "depth", "rows_per_part")
)
_LIMITS = (("low", "A"), ("high", "A"))
_PARAMETERS = ("gamma", "beta", "mean", "rstd")

MOMENTS = Kernel("batchnorm", "batchnorm_moments", Struct("NormMomentsParams", ("parts", "x"), _TILING))
FINISH = Kernel(
    "batchnorm",
    "batchnorm_finish",
    Struct(
        "NormFinishParams",
        ("mean", "rstd", "running_mean", "running_variance", "parts"),
        (
            ("epsilon", "A"), ("factor", "f64"),
            ("channels", "i64"), ("slots", "i64"), ("team", "i64"), ("unbiased", "i64"),
        ),
    ),
)  # fmt: skip
APPLY = Kernel(
    "batchnorm",
    "batchnorm_apply",
    Struct(
        "NormApplyParams",
        ("y", "x", "residual", "gamma", "beta", "mean", "spread"),
        (("epsilon", "A"), *_LIMITS, ("from_variance", "i64"), *_TILING),
    ),
)
SUMS = Kernel(
    "batchnorm",
    "batchnorm_sums",
    Struct("NormSumsParams", ("parts", "dz", "dy", "x", "y", *_PARAMETERS), (*_LIMITS, *_TILING)),
)
GRADIENTS = Kernel(
    "batchnorm",
    "batchnorm_gradients",
    Struct(
        "NormGradientsParams",
        ("factors", "dgamma", "dbeta", "rstd", "parts"),
        (("channels", "i64"), ("slots", "i64"), ("team", "i64"), ("count", "i64")),
    ),
)
DATA = Kernel(
    "batchnorm",
    "batchnorm_data",
    Struct(
        "NormDataParams", ("dx", "dy", "x", "y", *_PARAMETERS, "factors"), (*_LIMITS, ("channels", "i64"), *_TILING)
    ),
)

_HELD = tuple((name, "i64") for name in ("rows", "channels", "inner", "packs"))
HELD_FORWARD = Kernel(
    "batchnorm",
    "batchnorm_held_forward",
    Struct(
        "NormHeldForwardParams",
        ("y", "x", "residual", "gamma", "beta", "mean", "rstd", "running_mean", "running_variance"),
        (("epsilon", "A"), *_LIMITS, ("factor", "f64"), ("unbiased", "i64"), *_HELD),
    ),
)
HELD_BACKWARD = Kernel(
    "batchnorm",
    "batchnorm_held_backward",
    Struct(
        "NormHeldBackwardParams",
        ("dx", "dz", "dgamma", "dbeta", "dy", "x", "y", *_PARAMETERS),
        (*_LIMITS, ("bent", "i64"), *_HELD),
    ),
)

#: Modes that clamp, or do nothing.
FUSED = ("identity", "relu", "clipped_relu", "hard_tanh")

#: Packs that lie side by side: of a block where whole channels have fewer, and at most, a thread for each.
_SIDE, _WIDEST = 32, 256
#: Threads of a block where its width leaves room; blocks that a multiprocessor has at once, by their registers.
_THREADS, _FORWARD_BLOCKS, _BACKWARD_BLOCKS = 256, 3, 2
#: Rows that a thread should have at least, and what it costs to begin and end a block, in rows.
_LEAST_ROWS, _BLOCK_ROWS = 8, 6
#: Threads of a block that holds a channel, and the bytes up to which it has no more: four, two and one of the blocks
#: share a multiprocessor.
_HELD_THREADS = ((256, 56 * 1024), (512, 113 * 1024), (1024, 227 * 1024))
#: Bytes of a channel in a row from which on a block holds channels (98 of 7 x 7 in 16 bits: 0.29 of a copy where the
#: passes over memory have 0.37; 196 of float32: 0.72 where they have 0.62).
_LEAST_RUN = 128
_MOST_PARTS, _MOST_ROWS, _MOST_WAVES = 65535, 2**30, 8


@dataclass(frozen=True)
class Tiling:
    """How a matrix of rows and channels * inner columns is shared out; ``NormTiling`` of ``batchnorm.cuh``."""

    rows: int
    channels: int
    inner: int
    vec: int
    unit_channels: int
    tiles: int
    width: int
    depth: int
    rows_per_part: int

    @property
    def blocks(self) -> tuple[int, int, int]:
        """The grid: pieces of the columns, parts of the rows."""
        return (-(-self.channels // self.unit_channels) * self.tiles, self.parts, 1)

    @property
    def parts(self) -> int:
        """Parts of the rows."""
        return -(-self.rows // self.rows_per_part)

    @property
    def threads(self) -> int:
        """Threads of a block: whole warps."""
        return -(-self.width * self.depth // 32) * 32

    @property
    def slots(self) -> int:
        """Partial results of each channel."""
        return self.parts * self.tiles

    @property
    def team(self) -> int:
        """Threads that merge those: a power of two, up to a block."""
        return min(_THREADS, 1 << max(self.slots - 1, 0).bit_length())

    @property
    def scalars(self) -> tuple[int, ...]:
        """What the kernels are told."""
        pieces = (self.unit_channels, self.tiles, self.width, self.depth)
        return (self.rows, self.channels, self.inner, *pieces, self.rows_per_part)


def reason_against_packs(channels: int, inner: int, lanes: int) -> str | None:
    """Why columns do not come in packs that a thread can keep, or None."""
    if channels * inner % lanes:
        return f"{channels * inner} elements of an image are no multiple of {lanes}"
    if inner % lanes and _channels_of_packs(inner, lanes) * inner > _WIDEST * lanes:
        return f"{inner} elements behind the channels are no multiple of {lanes}"
    return None


@dataclass(frozen=True)
class Held:
    """Channels that blocks hold, one each, in the packs that it touches of each row; ``HeldTiling`` of the kernels."""

    rows: int
    channels: int
    inner: int
    packs: int
    threads: int
    nbytes: int


def hold(rows: int, channels: int, inner: int, dtype: DType, arrays: int, shared_bytes: int) -> Held | str:
    """How blocks hold `arrays` arrays, or why they do not."""
    lanes = dtype.lanes
    if inner * dtype.itemsize < _LEAST_RUN:
        return f"the channels of a row have fewer than {_LEAST_RUN} bytes"
    if channels * inner % lanes:
        return f"rows of {channels * inner} elements are no multiple of {lanes}"
    packs = -(-(lanes - gcd(inner, lanes) + inner) // lanes)
    nbytes = arrays * rows * packs * lanes * dtype.itemsize
    for threads, most in _HELD_THREADS:
        if nbytes <= min(most, shared_bytes) and packs <= threads:
            return Held(rows, channels, inner, packs, threads, nbytes)
    return f"a channel has {nbytes} bytes, more than the {shared_bytes} that a block can hold"


def share_out(rows: int, channels: int, inner: int, vec: int, resident: int) -> Tiling:
    """Whole channels for each block as far as they are short, else a piece of one, and a part of the rows.

    `resident` blocks run at once. Of the ways to cut columns and rows that is taken whose blocks are done first,
    were a block as long as the rows of its threads and what it takes to begin and to end it.
    """
    best: tuple[float, Tiling] | None = None
    for unit, tiles, width in _pieces(channels, inner, vec):
        depth = max(1, _THREADS // width)
        pieces = -(-channels // unit) * tiles
        for wave in range(1, _MOST_WAVES + 1):
            parts = min(wave * resident // max(pieces, 1), rows // (depth * _LEAST_ROWS), _MOST_PARTS)
            parts = max(1, parts, -(-rows // _MOST_ROWS))
            per_part = max(1, -(-rows // parts))
            waves = -(-pieces * -(-rows // per_part) // resident)
            cost = waves * (-(-per_part // depth) + _BLOCK_ROWS)
            if best is None or cost < best[0]:
                best = cost, Tiling(rows, channels, inner, vec, unit, tiles, width, depth, per_part)
    assert best is not None
    return best[1]


def _pieces(channels: int, inner: int, vec: int) -> Iterator[tuple[int, int, int]]:
    """Ways to cut the columns: channels of a unit, tiles of it, packs side by side in a tile."""
    least = _channels_of_packs(inner, vec)
    packs = least * inner // vec
    if packs <= _WIDEST:
        several = _evenly(channels // least, max(1, _SIDE // packs))
        yield several * least, 1, several * packs
        return
    fewest = -(-packs // _WIDEST)
    for tiles in range(fewest, 2 * fewest + 1) if fewest < _WIDEST else (fewest,):
        width = -(-packs // tiles)
        yield 1, -(-packs // width), width


def _channels_of_packs(inner: int, vec: int) -> int:
    """The fewest channels whose elements fill whole packs."""
    return vec // gcd(inner, vec)


def _evenly(items: int, most: int) -> int:
    """Items of each share, none of which has more than `most`, of as few shares as there can be."""
    return max(1, -(-items // max(1, -(-items // most))))


def limits(activation: ActivationDescriptor, none: float = inf) -> tuple[float, float]:
    """What one of `FUSED` clamps to: from -none and up to none where it does not."""
    given = dict(activation.parameters)
    low = 0.0 if activation.mode in ("relu", "clipped_relu") else given.get("low", -none)
    return low + 0.0, given.get("ceiling", given.get("high", none))


def resident_blocks(profile: Profile, dtype: DType, backward: bool) -> int:
    """Blocks that the device has at once, by their registers (batchnorm.cuh)."""
    return profile.sm_count * (_BACKWARD_BLOCKS if backward or dtype.itemsize == 8 else _FORWARD_BLOCKS)


def walk_step(
    kernel: Kernel, dtype: DType, t: Tiling, pointers: Sequence[Pointer], scalars: Sequence[float | int] = ()
) -> KernelStep:
    """A launch of one of the kernels that walk down the rows."""
    template, group = (dtype.cuda, str(t.vec)), "backward" if kernel in (SUMS, DATA) else "forward"
    return KernelStep(kernel, dtype, template, group, t.blocks, t.threads, tuple(pointers), (*scalars, *t.scalars))


def held_step(
    kernel: Kernel, dtype: DType, held: Held, pointers: Sequence[Pointer], scalars: Sequence[float | int | Live]
) -> KernelStep:
    """A launch of a kernel that holds its channels."""
    group = "backward" if kernel is HELD_BACKWARD else "forward"
    numbers = (*scalars, held.rows, held.channels, held.inner, held.packs)
    template, grid = (dtype.cuda, str(dtype.lanes)), (held.channels, 1, 1)
    return KernelStep(kernel, dtype, template, group, grid, held.threads, tuple(pointers), numbers, held.nbytes)


def fold_step(
    kernel: Kernel, dtype: DType, t: Tiling, pointers: Sequence[Pointer], scalars: Sequence[float | int | Live]
) -> KernelStep:
    """A launch of one of the kernels that merge the slots of each channel."""
    group = "backward" if kernel is GRADIENTS else "forward"
    grid = blocks_for(t.channels * t.team, 256)
    return KernelStep(kernel, dtype, (dtype.cuda,), group, grid, 256, tuple(pointers), tuple(scalars))


def _instances(dtype: DType) -> dict[str, list[str]]:
    def walks(*entries: str) -> list[str]:
        return [f"{entry}<{dtype.cuda}, {vec}>" for entry in entries for vec in (1, dtype.lanes)]

    return {
        "forward": [
            *walks("batchnorm_moments", "batchnorm_apply"),
            f"batchnorm_finish<{dtype.cuda}>",
            f"batchnorm_held_forward<{dtype.cuda}, {dtype.lanes}>",
        ],
        "backward": [
            *walks("batchnorm_sums", "batchnorm_data"),
            f"batchnorm_gradients<{dtype.cuda}>",
            f"batchnorm_held_backward<{dtype.cuda}, {dtype.lanes}>",
        ],
    }


FAMILY = Family("batchnorm", (MOMENTS, FINISH, APPLY, SUMS, GRADIENTS, DATA, HELD_FORWARD, HELD_BACKWARD), _instances)
