"""Tensor maps: how the copy engine of Hopper and later sees arrays, and kernels that are launched with them.

A map holds the address, so it is encoded for the addresses of a call; those that a call has had are kept.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..errors import ExecutionError
from .driver import driver_function

#: Name of an element type for the copy engine -> ``CUtensorMapDataType``. "tf32" is float32, rounded on its way.
KINDS = {"float16": 6, "float32": 7, "bfloat16": 9, "tf32": 11}

#: Bytes of ``CUtensorMap``, and what its address must be a multiple of.
MAP_BYTES, MAP_ALIGNMENT = 128, 64

#: Bytes that the copy engine moves along the innermost axis.
SWIZZLED_ROW = 128
#: Addresses of an operand whose maps are kept: what a few buffers in turn need, and no more than 8 KB.
MOST_KEPT = 64

# CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B; no interleaving, zeros outside.
_SWIZZLE, _PROMOTION = 3, 3


@dataclass(frozen=True)
class TensorMap:
    """A row-major matrix and the box of it that is moved at once.

    Attributes
    ----------
    pointer : int
        Which of the step's pointers it describes.
    kind : str
        A key of `KINDS`.
    itemsize : int
        Bytes of an element; rows of the matrix are a multiple of 16 bytes.
    rows, columns : int
        Extents; rows follow each other without a gap.
    box_rows, box_columns : int
        Extents of the box; a row of it is 128 bytes.
    """

    pointer: int
    kind: str
    itemsize: int
    rows: int
    columns: int
    box_rows: int
    box_columns: int


@dataclass(frozen=True)
class BoxMap:
    """An array of any rank and the box of it that is moved at once; axes are given innermost first.

    Attributes
    ----------
    pointer, kind, itemsize
        As of `TensorMap`.
    extents : tuple of int
        Of the axes.
    steps : tuple of int
        Elements from one to the next along each axis but the innermost.
    box : tuple of int
        Extents of the box; 128 bytes along the innermost axis.
    """

    pointer: int
    kind: str
    itemsize: int
    extents: tuple[int, ...]
    steps: tuple[int, ...]
    box: tuple[int, ...]


@dataclass(frozen=True)
class WindowMap:
    """Images (channels, w, h, n) over which a filter moves: 64 channels of so many of its positions are moved at once.

    Attributes
    ----------
    pointer, kind, itemsize, extents, steps
        As of `BoxMap`.
    lower, upper : pair of int
        Along w and h: where the first tap lies for the first position, and how far past the last pixel for the last.
    strides : pair of int
        From position to position.
    pixels : int
        Positions that are moved at once.
    offset : int
        Elements from the pointer to the first pixel.
    """

    pointer: int
    kind: str
    itemsize: int
    extents: tuple[int, int, int, int]
    steps: tuple[int, int, int]
    lower: tuple[int, int]
    upper: tuple[int, int]
    strides: tuple[int, int]
    pixels: int
    offset: int = 0


AnyMap = TensorMap | BoxMap | WindowMap
Encode = Callable[[int, int], int]


@cache
def encoder() -> Callable[..., int] | None:
    """The driver's ``cuTensorMapEncodeTiled``, or None where the driver has none (before CUDA 12)."""
    encode: Callable[..., int] | None = driver_function("cuTensorMapEncodeTiled")
    if encode is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_uint32
        encode.argtypes = [pointer, number, number, *[pointer] * 5, *[number] * 4]  # type: ignore[attr-defined]
        encode.restype = ctypes.c_int  # type: ignore[attr-defined]
    return encode


@cache
def window_encoder() -> Callable[..., int] | None:
    """The driver's ``cuTensorMapEncodeIm2col``, or None."""
    encode: Callable[..., int] | None = driver_function("cuTensorMapEncodeIm2col")
    if encode is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_uint32
        head = [pointer, number, number, *[pointer] * 5, number, number]
        encode.argtypes = [*head, pointer, *[number] * 4]  # type: ignore[attr-defined]
        encode.restype = ctypes.c_int  # type: ignore[attr-defined]
    return encode


class EncodedMaps:
    """The maps of a launch in the memory that the launch reads, exchanged where an address moves."""

    def __init__(self, maps: Sequence[AnyMap]) -> None:
        if encoder() is None:
            raise ExecutionError("launch", "the driver has no cuTensorMapEncodeTiled", hint="it comes with CUDA 12")
        self._maps = maps
        self._encode = [_window_call(m) if isinstance(m, WindowMap) else _box_call(m) for m in maps]
        self._room = ctypes.create_string_buffer(MAP_BYTES * len(maps) + MAP_ALIGNMENT)
        start = ctypes.addressof(self._room)
        self._start = start + -start % MAP_ALIGNMENT
        self._encoded: list[int] = [0] * len(maps)
        self._kept: list[dict[int, bytes]] = [{} for _ in maps]
        self.addresses = [self._start + MAP_BYTES * k for k in range(len(maps))]

    def update(self, pointers: Sequence[int]) -> None:
        """Have the maps of these addresses; a null pointer needs none."""
        for k, m in enumerate(self._maps):
            address = pointers[m.pointer]
            if address != self._encoded[k] and address:
                self._exchange(k, address)

    def _exchange(self, k: int, address: int) -> None:
        """Encoding takes microseconds, and a caller's arrays often lie in a few places in turn."""
        kept, at = self._kept[k], self.addresses[k]
        self._encoded[k] = 0
        if address in kept:
            ctypes.memmove(at, kept[address], MAP_BYTES)
        else:
            status, m = self._encode[k](at, address), self._maps[k]
            if status:
                name = "cuTensorMapEncodeIm2col" if isinstance(m, WindowMap) else "cuTensorMapEncodeTiled"
                raise ExecutionError("launch", f"{name} answers {status} for {m} at {address:#x}")
            if len(kept) >= MOST_KEPT:
                kept.clear()
            kept[address] = ctypes.string_at(at, MAP_BYTES)
        self._encoded[k] = address


def _numbers(kind: Any, values: Sequence[int]) -> Any:
    return (kind * len(values))(*values)


def _box_call(m: TensorMap | BoxMap) -> Encode:
    """What encodes the map for an address into memory, with the arrays that the driver reads."""
    if isinstance(m, TensorMap):
        extents, steps, box = (m.columns, m.rows), (m.columns,), (m.box_columns, m.box_rows)
        m = BoxMap(m.pointer, m.kind, m.itemsize, extents, steps, box)
    encode, kind, rank = encoder(), KINDS[m.kind], len(m.extents)
    shape = (
        _numbers(ctypes.c_uint64, m.extents),
        _numbers(ctypes.c_uint64, [step * m.itemsize for step in m.steps]),
        _numbers(ctypes.c_uint32, m.box),
        _numbers(ctypes.c_uint32, [1] * rank),
    )

    def call(at: int, address: int) -> int:
        return encode(at, kind, rank, address, *shape, 0, _SWIZZLE, _PROMOTION, 0)  # type: ignore[misc]

    return call


def _window_call(m: WindowMap) -> Encode:
    """Likewise."""
    encode, kind, offset = window_encoder(), KINDS[m.kind], m.offset * m.itemsize
    shape = (
        _numbers(ctypes.c_uint64, m.extents),
        _numbers(ctypes.c_uint64, [step * m.itemsize for step in m.steps]),
        _numbers(ctypes.c_int32, m.lower),
        _numbers(ctypes.c_int32, m.upper),
        SWIZZLED_ROW // m.itemsize,
        m.pixels,
        _numbers(ctypes.c_uint32, [1, *m.strides, 1]),
    )

    def call(at: int, address: int) -> int:
        return encode(at, kind, 4, address + offset, *shape, 0, _SWIZZLE, _PROMOTION, 0)  # type: ignore[misc]

    return call


def parameters_with(maps: EncodedMaps, block: int, joint: bool = False) -> Any:
    """The array of addresses that a launch is given: each map, or where they are joint all in one, then the struct."""
    addresses = maps.addresses[:1] if joint else maps.addresses
    return (ctypes.c_void_p * (len(addresses) + 1))(*addresses, block)
