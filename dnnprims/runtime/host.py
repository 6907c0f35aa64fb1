"""Arrays in host memory: how a call sees, takes over and makes them. Shared by the NumPy and the emulator backend."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from ..descriptors import BoundTensor, TensorDescriptor
from ..dtypes import BY_NUMPY, DType

#: What `adopt` takes, in words.
ACCEPTED = "a NumPy array, a BoundTensor, or a CPU tensor that speaks DLPack"


def address_alignment(pointer: int) -> int:
    """Return the largest power of two up to 16 that an address is a multiple of."""
    return min(pointer & -pointer, 16) if pointer else 16


#: Stands in a signature for what is no array of the backend yet, so that it equals no plan's.
FOREIGN = object()


def look_aside(
    look: Callable[[Sequence[Any]], tuple[list[Any], list[int]]], a: Any, seen: list[Any], addresses: list[int]
) -> None:
    """Look at an operand that is not simply an array: left out, a list of arrays, described, or foreign.

    Lists within lists are foreign: one may be within itself.
    """
    if isinstance(a, list | tuple) and not any(isinstance(item, list | tuple) for item in a):
        items, pointers = look(a)
        seen.append(tuple(items))
        addresses += pointers
    else:
        seen.append(a if a is None or isinstance(a, TensorDescriptor) else FOREIGN)
        addresses.append(0)


class HostArrays:
    """The array side of an executor on NumPy arrays."""

    array_type = np.ndarray
    accepted = ACCEPTED
    #: Work is done when it is enqueued: there is nothing to record.
    graph = None

    def look(self, operands: Sequence[Any]) -> tuple[list[Any], list[int]]:
        """Return what a plan may depend on (shape, dtype, strides, alignment, writeability) and the addresses."""
        seen: list[Any] = []
        addresses: list[int] = []
        for a in operands:
            if type(a) is np.ndarray:
                pointer, flags = a.ctypes.data, a.flags
                seen += (a.shape, a.dtype, None if flags.c_contiguous else a.strides, pointer & 15, flags.writeable)
                addresses.append(pointer)
            else:
                look_aside(self.look, a, seen, addresses)
        return seen, addresses

    def addresses(self, operands: Sequence[Any]) -> list[int] | None:
        """Return the addresses alone, or None when an operand is no array of this backend yet."""
        known = all(a is None or type(a) is np.ndarray for a in operands)
        return [0 if a is None else a.ctypes.data for a in operands] if known else None

    def describe(self, a: np.ndarray[Any, Any]) -> TensorDescriptor:
        """Return the descriptor of an array."""
        plain = TensorDescriptor.from_array(a)
        return TensorDescriptor(plain.shape, plain.dtype, plain.strides, address_alignment(a.ctypes.data))

    def adopt(self, a: Any) -> np.ndarray[Any, Any]:
        """Return a NumPy array over the same memory, without a copy.

        Raises
        ------
        TypeError
            It is no array in host memory.
        """
        if isinstance(a, np.ndarray):
            return a.view(np.ndarray)
        if isinstance(a, BoundTensor):
            return _from_address(a)
        if type(a).__module__ == "torch" and a.device.type == "cpu":
            return _from_torch(a.detach())
        if hasattr(a, "__dlpack__") and hasattr(a, "__dlpack_device__") and a.__dlpack_device__()[0] == 1:
            return np.from_dlpack(a)
        if hasattr(a, "__array_interface__") and not isinstance(a, np.generic):
            return np.asarray(a)
        raise TypeError(self.accepted)

    def writeable(self, a: np.ndarray[Any, Any]) -> bool:
        """Whether the array may be written."""
        return bool(a.flags.writeable)

    def empty(self, shape: tuple[int, ...], dtype: DType) -> tuple[np.ndarray[Any, Any], int]:
        """Return an uninitialised array, 16-byte aligned as a device allocation is, and its address."""
        nbytes = int(np.prod(shape)) * dtype.itemsize
        room = np.empty(nbytes, np.uint8)
        if room.ctypes.data % 16:  # more room only where an allocator aligns to less, as a sanitizer sees past the end
            room = np.empty(nbytes + 16, np.uint8)
        start = -room.ctypes.data % 16
        array = room[start : start + nbytes].view(dtype.numpy).reshape(shape)
        return array, array.ctypes.data

    def maker(self, shape: tuple[int, ...], dtype: DType) -> Callable[[], tuple[np.ndarray[Any, Any], int]]:
        """Return what makes such arrays, as `empty` does."""
        return lambda: self.empty(shape, dtype)

    def from_numpy(self, a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return a copy in this backend's memory."""
        copy = np.array(a, order="C", copy=True)
        row = BY_NUMPY.get(copy.dtype)
        if row is None:
            return copy
        aligned, _ = self.empty(copy.shape, row)
        aligned[...] = copy
        return aligned

    def to_numpy(self, a: Any) -> np.ndarray[Any, Any]:
        """Return a copy in host memory."""
        return np.array(a, copy=True)

    def capturing(self, stream: int) -> bool:
        """Nothing is ever recorded instead of done."""
        return False

    def synchronize(self, stream: int) -> None:
        """Wait for enqueued work: there is none on the host."""


def _from_address(a: BoundTensor) -> np.ndarray[Any, Any]:
    d = a.descriptor
    last = sum((extent - 1) * step for extent, step in zip(d.shape, d.strides, strict=True)) if d.size else -1
    raw = (ctypes.c_char * max((last + 1) * d.dtype.itemsize, 0)).from_address(a.pointer)
    raw._owner = a.owner  # type: ignore[attr-defined]
    steps = tuple(step * d.dtype.itemsize for step in d.strides)
    array: np.ndarray[Any, Any] = np.ndarray(d.shape, d.dtype.numpy, memoryview(raw), strides=steps)
    return array


def _from_torch(a: Any) -> np.ndarray[Any, Any]:
    # NumPy's own DLPack import gives a read-only array and knows no bfloat16: its bits travel as int16.
    import torch

    array: np.ndarray[Any, Any] = a.view(torch.int16).numpy() if a.dtype is torch.bfloat16 else a.numpy()
    return array.view(ml_dtypes.bfloat16) if a.dtype is torch.bfloat16 else array
