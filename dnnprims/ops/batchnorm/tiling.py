"""How the columns and rows of a batch norm are shared out among blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from ...dtypes import DType
from ...runtime.launch import Profile

#: Packs that lie side by side: of a block where whole channels have fewer, and at most, a thread for each.
_SIDE, _WIDEST = 32, 256
#: Threads of a block where its width leaves room; blocks that a multiprocessor has at once, by their registers.
THREADS, _FORWARD_BLOCKS, _BACKWARD_BLOCKS = 256, 3, 2
#: Rows that a thread should have at least, and what it costs to begin and end a block, in rows: forward, where there is
#: less to do in a row (512x7x7 channels last 25 us, with 8 and 6 as backward 29), and backward.
_FORWARD_ROWS, _BACKWARD_ROWS = (24, 12), (8, 6)
#: Threads of a block that holds a channel, and the bytes up to which it has no more: four, two and one of the blocks
#: share a multiprocessor.
_HELD_THREADS = ((256, 56 * 1024), (512, 113 * 1024), (1024, 227 * 1024))
#: Bytes of a channel in a row from which on a block holds channels (98 of 7 x 7 in 16 bits: 0.29 of a copy where the
#: passes over memory have 0.37; 196 of float32: 0.72 where they have 0.62).
_LEAST_RUN = 128
#: Threads of a block that holds a unit of channels, and how many of the blocks share a multiprocessor; what its sums
#: take but for two of two numbers of each thread; bytes of a channel in a row up to which there are such, and what part
#: of the multiprocessors should have one.
_UNIT_THREADS, _UNIT_RESERVE, _UNIT_RUN, _UNIT_PART = ((256, 4), (512, 2), (1024, 1)), 2048, 256, 0.9
#: Blocks that a multiprocessor has at once of those that have a channel each, forward and backward; how much of the
#: room for them they have to fill.
_CHANNEL_BLOCKS, _FULL = (4, 2), 0.75
#: Packs of a thread that goes straight through memory, and of all, which it counts in 32 bits.
PLANES_PACKS, _MOST_PACKS = 4, 2**31
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
        return min(THREADS, 1 << max(self.slots - 1, 0).bit_length())

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

    @property
    def blocks(self) -> int:
        """One for each channel."""
        return self.channels

    @property
    def scalars(self) -> tuple[int, ...]:
        """What the kernels are told."""
        return (self.rows, self.channels, self.inner, self.packs)


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


@dataclass(frozen=True)
class Unit:
    """The fewest channels whose elements in a row fill whole packs, held by a block; ``UnitTiling`` of the kernels."""

    rows: int
    channels: int
    inner: int
    unit_channels: int
    packs: int
    threads: int
    nbytes: int

    @property
    def blocks(self) -> int:
        """One for each unit."""
        return self.channels // self.unit_channels

    @property
    def scalars(self) -> tuple[int, ...]:
        """What the kernel is told."""
        return (self.rows, self.channels, self.inner, self.unit_channels, self.packs)


def hold_units(profile: Profile, rows: int, channels: int, inner: int, dtype: DType) -> Unit | str:
    """How blocks hold units of channels of one array, or why they do not."""
    lanes = dtype.lanes
    unit = _channels_of_packs(inner, lanes)
    packs = unit * inner // lanes
    if unit == 1 or inner < lanes or inner * dtype.itemsize >= _UNIT_RUN:
        return f"channels of {inner} elements in a row are whole packs, less than one or many"
    if channels % unit or channels // unit < _UNIT_PART * profile.sm_count:
        return f"{channels} channels are not whole units of {unit}, or too few of them"
    for threads, blocks in _UNIT_THREADS:
        nbytes = rows * packs * lanes * dtype.itemsize + 4 * threads * dtype.acc.itemsize
        if nbytes <= profile.shared_bytes // blocks - _UNIT_RESERVE and packs <= threads:
            return Unit(rows, channels, inner, unit, packs, threads, nbytes)
    return f"{unit} channels have more bytes than a block can hold"


def reason_against_planes(rows: int, channels: int, inner: int, lanes: int) -> str | None:
    """Why packs do not lie within planes that are gone straight through, or None."""
    if inner == 1 or inner % lanes:
        return f"{inner} elements behind the channels are no planes of whole packs of {lanes}"
    if not 0 < rows * channels * inner // lanes < _MOST_PACKS:
        return "there is no pack, or 2^31 and more"
    return None


def whole_channels(profile: Profile, dtype: DType, t: Tiling, *, backward: bool) -> Tiling | None:
    """A block for each channel, whose packs lie within planes, or None where those would not fill the device."""
    packs = t.inner // t.vec
    room = profile.sm_count * (2 if dtype.itemsize == 8 else _CHANNEL_BLOCKS[backward])
    if not _SIDE <= packs <= _WIDEST or t.rows >= _MOST_ROWS:
        return None
    if t.channels < _FULL * -(-t.channels // room) * room:
        return None
    return Tiling(t.rows, t.channels, t.inner, t.vec, 1, 1, packs, max(1, THREADS // packs), t.rows)


def share_out(rows: int, channels: int, inner: int, vec: int, resident: int, *, backward: bool) -> Tiling:
    """Whole channels for each block as far as they are short, else a piece of one, and a part of the rows.

    `resident` blocks run at once. Of the ways to cut columns and rows that is taken whose blocks are done first,
    were a block as long as the rows of its threads and what it takes to begin and to end it.
    """
    least, ends = _BACKWARD_ROWS if backward else _FORWARD_ROWS
    best: tuple[float, Tiling] | None = None
    for unit, tiles, width in _pieces(channels, inner, vec):
        depth = max(1, THREADS // width)
        pieces = -(-channels // unit) * tiles
        for wave in range(1, _MOST_WAVES + 1):
            parts = min(wave * resident // max(pieces, 1), rows // (depth * least), _MOST_PARTS)
            parts = max(1, parts, -(-rows // _MOST_ROWS))
            per_part = max(1, -(-rows // parts))
            waves = -(-pieces * -(-rows // per_part) // resident)
            cost = waves * (-(-per_part // depth) + ends)
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


def resident_blocks(profile: Profile, dtype: DType, backward: bool) -> int:
    """Blocks that the device has at once, by their registers (batchnorm.cuh)."""
    return profile.sm_count * (_BACKWARD_BLOCKS if backward or dtype.itemsize == 8 else _FORWARD_BLOCKS)
