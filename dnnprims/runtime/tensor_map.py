"""Tensor maps: how the copy engine of Hopper and later sees a matrix, and kernels that are launched with them.

A map holds the address, so it is encoded for the addresses of a call and kept until one of them changes.
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


@cache
def encoder() -> Callable[..., int] | None:
    """The driver's ``cuTensorMapEncodeTiled``, or None where the driver has none (before CUDA 12)."""
    encode: Callable[..., int] | None = driver_function("cuTensorMapEncodeTiled")
    if encode is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_uint32
        encode.argtypes = [pointer, number, number, *[pointer] * 5, *[number] * 4]  # type: ignore[attr-defined]
        encode.restype = ctypes.c_int  # type: ignore[attr-defined]
    return encode


class EncodedMaps:
    """The maps of a launch in the memory that the launch reads, encoded again when an address moves."""

    def __init__(self, maps: Sequence[TensorMap]) -> None:
        encode = encoder()
        if encode is None:
            raise ExecutionError("launch", "the driver has no cuTensorMapEncodeTiled", hint="it comes with CUDA 12")
        self._encode, self._maps = encode, maps
        self._room = ctypes.create_string_buffer(MAP_BYTES * len(maps) + MAP_ALIGNMENT)
        start = ctypes.addressof(self._room)
        self._start = start + -start % MAP_ALIGNMENT
        self._shapes = [_Shape(m) for m in maps]
        self._encoded: list[int] = [0] * len(maps)
        self.addresses = [self._start + MAP_BYTES * k for k in range(len(maps))]

    def update(self, pointers: Sequence[int]) -> None:
        """Encode the maps whose address is another than before; a null pointer needs none."""
        for k, m in enumerate(self._maps):
            address = pointers[m.pointer]
            if address != self._encoded[k] and address:
                self._encode_one(k, address)

    def _encode_one(self, k: int, address: int) -> None:
        m, shape = self._maps[k], self._shapes[k]
        self._encoded[k] = 0
        status = self._encode(
            self.addresses[k], KINDS[m.kind], 2, address, shape.extents, shape.steps, shape.box, shape.ones,
            0, _SWIZZLE, _PROMOTION, 0,
        )  # fmt: skip
        if status:
            raise ExecutionError("launch", f"cuTensorMapEncodeTiled answers {status} for {m} at {address:#x}")
        self._encoded[k] = address


class _Shape:
    """The arrays that the driver reads while it encodes a map."""

    def __init__(self, m: TensorMap) -> None:
        self.extents = (ctypes.c_uint64 * 2)(m.columns, m.rows)
        self.steps = (ctypes.c_uint64 * 1)(m.columns * m.itemsize)
        self.box = (ctypes.c_uint32 * 2)(m.box_columns, m.box_rows)
        self.ones = (ctypes.c_uint32 * 2)(1, 1)


def parameters_with(maps: EncodedMaps, block: int) -> Any:
    """The array of addresses that a launch is given: each map, then the parameter struct."""
    return (ctypes.c_void_p * (len(maps.addresses) + 1))(*maps.addresses, block)
