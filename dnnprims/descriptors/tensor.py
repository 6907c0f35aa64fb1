"""Tensors: shape, element type and strides, and memory that is no array."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from math import prod
from operator import index
from typing import Any

from ..dtypes import BY_NAME, BY_NUMPY, DType
from ..errors import BadParamError


def dtype_row(dtype: object, op: str = "TensorDescriptor") -> DType:
    """Return the row of the dtype table for a name, a NumPy dtype, a scalar type or a row."""
    if isinstance(dtype, DType):
        return dtype
    if isinstance(dtype, str) and dtype in BY_NAME:
        return BY_NAME[dtype]
    try:
        import numpy as np

        # NumPy takes None for float64: nothing is taken silently here.
        return BY_NUMPY[np.dtype(dtype if dtype is not None else "none")]  # type: ignore[call-overload]
    except (TypeError, KeyError, ValueError, SyntaxError):  # the last one for a comma
        raise BadParamError(
            op, "is not an element type of this library", param="dtype", got=str(dtype), expected=", ".join(BY_NAME)
        ) from None


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a row-major array of this shape."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


#: Axes of a tensor, as many as NumPy has.
MOST_AXES = 64

#: Kernels count elements and bytes in 64 bits with a sign.
_BYTES = 2**63


def _integers(values: Any) -> tuple[int, ...] | None:
    """Return one integer or several as a tuple, or None where something else was given.

    Of items without an end no more are looked at than it takes to see that they are too many.
    """
    try:
        single = hasattr(values, "__index__") and not hasattr(values, "__len__")
        items = (values,) if single else tuple(islice(iter(values), MOST_AXES + 1))
        return None if any(isinstance(item, bool) for item in items) else tuple(index(item) for item in items)
    except (TypeError, ValueError):
        return None


def _bad_extents(shape: object) -> BadParamError:
    return BadParamError("TensorDescriptor", "has a bad extent", param="shape", got=shape, expected="integers >= 0")


def _bad_steps(strides: object, rule: str) -> BadParamError:
    return BadParamError("TensorDescriptor", "has a bad step", param="strides", got=strides, expected=rule)


def _require_countable(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> None:
    """No number that a kernel may be given about this tensor needs more than 64 bits; empty axes count as one."""
    op = "TensorDescriptor"
    if len(shape) > MOST_AXES:
        raise BadParamError(op, "has too many axes", param="shape", got=shape, expected=f"at most {MOST_AXES}")
    extents = [max(extent, 1) for extent in shape]
    if prod(extents) * itemsize >= _BYTES:
        raise BadParamError(op, "is too large", param="shape", got=shape, expected="fewer than 2^63 bytes")
    reach = sum(max(extent - 1, 1) * abs(step) for extent, step in zip(extents, strides, strict=True))
    if reach * itemsize >= _BYTES:
        raise BadParamError(op, "reach too far", param="strides", got=strides, expected="fewer than 2^63 bytes")


@dataclass(frozen=True, slots=True)
class TensorDescriptor:
    """Shape, element type and strides of a tensor.

    Parameters
    ----------
    shape : tuple of int
        Extents; 0 is allowed, and `()` is a scalar.
    dtype : str or dtype
        Element type: ``float32``, ``float64``, ``float16``, ``bfloat16``, ``int32``, ``int64``, ``uint8``.
    strides : tuple of int, optional
        Steps in elements (not bytes); row-major where left out.
    alignment : int, optional
        Bytes, a power of two up to 16, that the address is a multiple of. 16 where left out, as allocators give.

    Raises
    ------
    BadParamError
        An extent is negative or no integer, the strides have another length than the shape, or the tensor has more than
        64 axes or needs 2^63 bytes or more.
    """

    shape: tuple[int, ...]
    dtype: DType
    strides: tuple[int, ...]
    alignment: int = 16

    def __init__(
        self,
        shape: tuple[int, ...] | list[int] | int,
        dtype: object,
        strides: tuple[int, ...] | None = None,
        alignment: int = 16,
    ) -> None:
        extents = _integers(shape)
        if extents is None or min(extents, default=0) < 0:
            raise _bad_extents(shape)
        steps = dense_strides(extents) if strides is None else _integers(strides)
        if steps is None:
            raise _bad_steps(strides, "integers, in elements")
        if len(steps) != len(extents):
            raise BadParamError(
                "TensorDescriptor",
                "has the wrong length",
                param="strides",
                got=strides,
                expected=f"{len(extents)} steps",
            )
        if type(alignment) is not int or alignment not in (1, 2, 4, 8, 16):
            raise BadParamError(
                "TensorDescriptor",
                "is no alignment",
                param="alignment",
                got=alignment,
                expected="1, 2, 4, 8 or 16 bytes",
            )
        row = dtype_row(dtype)
        _require_countable(extents, steps, row.itemsize)
        object.__setattr__(self, "shape", extents)
        object.__setattr__(self, "dtype", row)
        object.__setattr__(self, "strides", steps)
        object.__setattr__(self, "alignment", alignment)
        if self.contiguous:
            # Steps that no element takes are no difference between descriptors.
            object.__setattr__(self, "strides", dense_strides(extents))

    @classmethod
    def from_array(cls, x: Any) -> TensorDescriptor:
        """Describe a NumPy or CuPy array, or anything with `shape`, `dtype` and byte `strides`."""
        row = dtype_row(x.dtype)
        steps = _integers(x.strides)
        if steps is None:
            raise _bad_steps(x.strides, "integers, in bytes")
        if any(step % row.itemsize for step in steps):
            raise BadParamError(
                "TensorDescriptor",
                "are no whole elements",
                param="strides",
                got=f"{x.strides} bytes",
                expected=f"multiples of {row.itemsize} bytes, the size of {row.name}",
                hint="pass a contiguous copy",
            )
        return cls(x.shape, row, tuple(step // row.itemsize for step in steps))

    def bind(self, pointer: int, owner: object = None) -> BoundTensor:
        """Name memory that is no array: an address on the handle's device, with this layout.

        `owner` is kept alive as long as the bound tensor is. That the memory is as large as described is not checked.
        """
        try:
            address = -1 if isinstance(pointer, bool) else index(pointer)
        except TypeError:
            address = -1
        if not (0 if self.size == 0 else 1) <= address < 2**64:
            rule = "an integer >= 0" if self.size == 0 else "an integer > 0"
            raise BadParamError("TensorDescriptor.bind", "is no address", param="pointer", got=pointer, expected=rule)
        return BoundTensor(self, address, owner)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie row-major without gaps; strides of axes of extent 1 do not matter."""
        if self.size == 0:
            return True
        dense = dense_strides(self.shape)
        return all(e == 1 or s == d for e, s, d in zip(self.shape, self.strides, dense, strict=True))

    @property
    def vectorizable(self) -> bool:
        """Whether 16-byte accesses from the first element on are allowed."""
        return self.alignment == 16

    def __repr__(self) -> str:
        strides = "" if self.contiguous else f", strides={self.strides}"
        alignment = "" if self.alignment == 16 else f", alignment={self.alignment}"
        return f"TensorDescriptor({self.shape}, '{self.dtype.name}'{strides}{alignment})"


@dataclass(frozen=True, slots=True, eq=False)
class BoundTensor:
    """Memory at an address, described; accepted wherever an array is. Made by `TensorDescriptor.bind`."""

    descriptor: TensorDescriptor
    pointer: int
    owner: object = field(default=None, repr=False)


def create_tensor_descriptor(
    shape: tuple[int, ...], dtype: object, strides: tuple[int, ...] | None = None
) -> TensorDescriptor:
    """Return `TensorDescriptor(shape, dtype, strides)`, for those who come from cuDNN."""
    return TensorDescriptor(shape, dtype, strides)
