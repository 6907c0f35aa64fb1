"""Arrays in a GPU's memory, as CuPy has them: how a call sees, takes over and makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any
from weakref import ref

from ..descriptors import BoundTensor, TensorDescriptor
from ..dtypes import DType
from .host import address_alignment, look_aside
from .known_lists import KnownLists
from .plan import OutOfMemory

#: What `adopt` takes, in words.
ACCEPTED = "a CuPy array, a BoundTensor, or a GPU array that speaks DLPack or __cuda_array_interface__"

_DLPACK_CUDA = (2, 13)


class DeviceArrays:
    """The array side of an executor on CuPy.

    Parameters
    ----------
    cupy : module
        CuPy.
    device : int
        Number of the GPU.
    """

    accepted = ACCEPTED
    #: What tells the thread's current GPU; None where there is but one, so that nobody need ask.
    get_device: Callable[[], int] | None = None

    def __init__(self, cupy: Any, device: int) -> None:
        self._cupy, self.device = cupy, device
        self.array_type = cupy.ndarray
        # Weakly, or an executor that is let go of, with the GPU's memory that it has, would wait for the collector.
        own = ref(self)
        self._lists = KnownLists(self.array_type, lambda arrays: own()._look_at_list(arrays))  # type: ignore[union-attr]

    def look(self, operands: Sequence[Any]) -> tuple[list[Any], list[int]]:
        """Return what a plan may depend on (shape, dtype, strides, alignment of each) and the addresses.

        `Handle.run` does the same itself where all are arrays.
        """
        seen: list[Any] = []
        addresses: list[int] = []
        array_type = self.array_type
        for a in operands:
            if type(a) is array_type:
                pointer = a.data.ptr
                seen += (a.shape, a.dtype, a._c_contiguous or a.strides, pointer & 15)
                addresses.append(pointer)
            elif a is None:
                seen.append(None)
                addresses.append(0)
            elif type(a) is list and (known := self._lists.known(a)) is not None:
                seen.append((known[0],))
                addresses += known[1]
            else:
                look_aside(self._lists.look, a, seen, addresses)
        return seen, addresses

    def _look_at_list(self, arrays: Sequence[Any]) -> tuple[list[Any], list[int]]:
        """`look`, and at the GPU of each where there are several: who knows the list need not ask again."""
        seen, addresses = self.look(arrays)
        if self.get_device is not None:
            array_type = self.array_type
            seen += (a.data.device_id for a in arrays if type(a) is array_type)
        return seen, addresses

    def addresses(self, operands: Sequence[Any]) -> list[int] | None:
        """Return the addresses alone, or None when an operand is no array of this backend yet."""
        array_type = self.array_type
        found = []
        for a in operands:
            if type(a) is array_type:
                found.append(a.data.ptr)
            elif a is None:
                found.append(0)
            else:
                return None
        return found

    def describe(self, a: Any) -> TensorDescriptor:
        """Return the descriptor of a CuPy array."""
        plain = TensorDescriptor.from_array(a)
        return TensorDescriptor(plain.shape, plain.dtype, plain.strides, address_alignment(a.data.ptr))

    def adopt(self, a: Any) -> Any:
        """Return a CuPy array over the same memory, without a copy.

        Raises
        ------
        TypeError
            It is no array in GPU memory.
        """
        if isinstance(a, self.array_type):
            return a.view(self.array_type) if type(a) is not self.array_type else a
        if isinstance(a, BoundTensor):
            return self._from_address(a)
        # A torch tensor in a graph must be detached; DLPack goes first, as only it can name bfloat16.
        a = a.detach() if getattr(a, "requires_grad", False) else a
        if hasattr(a, "__dlpack_device__") and a.__dlpack_device__()[0] in _DLPACK_CUDA:
            return self._cupy.from_dlpack(a)
        if hasattr(a, "__cuda_array_interface__"):
            return self._cupy.asarray(a)
        raise TypeError(self.accepted)

    def _from_address(self, a: BoundTensor) -> Any:
        d = a.descriptor
        last = sum((extent - 1) * step for extent, step in zip(d.shape, d.strides, strict=True)) if d.size else -1
        memory = self._cupy.cuda.UnownedMemory(a.pointer, (last + 1) * d.dtype.itemsize, a, self.device)
        steps = tuple(step * d.dtype.itemsize for step in d.strides)
        return self._cupy.ndarray(d.shape, d.dtype.numpy, self._cupy.cuda.MemoryPointer(memory, 0), strides=steps)

    def writeable(self, a: Any) -> bool:
        """CuPy arrays always may be written."""
        return True

    def empty(self, shape: tuple[int, ...], dtype: DType) -> tuple[Any, int]:
        """Return an uninitialised array from CuPy's pool, and its address."""
        return self.maker(shape, dtype)()

    def maker(self, shape: tuple[int, ...], dtype: DType) -> Callable[[], tuple[Any, int]]:
        """Return what makes such arrays; `cupy.empty` costs four times as much."""
        nbytes, kind = dtype.itemsize * prod(shape), dtype.numpy
        cuda, ndarray = self._cupy.cuda, _array_maker(self._cupy)
        exhausted = cuda.memory.OutOfMemoryError

        def make() -> tuple[Any, int]:
            try:
                memory = cuda.alloc(nbytes)
            except exhausted as error:
                raise OutOfMemory("the GPU", nbytes) from error
            return ndarray(shape, kind, memory), memory.ptr

        return make

    def _allocate(self, nbytes: int) -> Any:
        try:
            return self._cupy.cuda.alloc(nbytes)
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise OutOfMemory("the GPU", nbytes) from error

    def from_numpy(self, a: Any) -> Any:
        """Return a copy in GPU memory."""
        return self._cupy.asarray(a)

    def to_numpy(self, a: Any) -> Any:
        """Return a copy in host memory."""
        return self._cupy.asnumpy(a)


def _array_maker(cupy: Any) -> Callable[..., Any]:
    """CuPy's `ndarray`, past the step for subclasses that takes half of its 0.9 us, where CuPy is as we know it."""
    base = cupy.ndarray.__mro__[1]
    if base.__name__ != "_ndarray_base" or not hasattr(base, "_init"):
        return cupy.ndarray  # type: ignore[no-any-return]
    kind, blank = cupy.ndarray, base.__new__

    def make(shape: tuple[int, ...], dtype: Any, memory: Any) -> Any:
        array = blank(kind)
        array._init(shape, dtype, memory)
        return array

    return make
