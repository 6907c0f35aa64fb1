"""The one table of element types: NumPy, CUDA C++ and cuBLAS names of each, and what it accumulates in.

Adding an element type is a row here, its conversions in ``kernels/dtypes.cuh`` and its unit in the error bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True, slots=True)
class DType:
    """One element type and what every layer calls it.

    Attributes
    ----------
    name : str
        Public name.
    numpy : numpy.dtype
        The same on the host.
    cuda : str
        Storage type in the kernels (``kernels/dtypes.cuh``).
    accumulator : str
        Public name of the type that sums and statistics are kept in.
    code : str
        Character of the `struct` module for the type, empty where it has none.
    cublas : int
        ``cudaDataType_t``, or -1 where cuBLAS has none.
    unit_roundoff : float
        Largest relative error of one rounding; 0 for integers.
    """

    name: str
    numpy: np.dtype
    cuda: str
    accumulator: str
    code: str
    cublas: int
    unit_roundoff: float

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.numpy.itemsize

    @property
    def lanes(self) -> int:
        """Elements in one 16-byte access."""
        return 16 // self.itemsize

    @property
    def acc(self) -> DType:
        """Row of the accumulator type."""
        return BY_NAME[self.accumulator]

    def __repr__(self) -> str:
        return self.name


_ROWS = (
    #      name       NumPy                            CUDA             accumulator code cuBLAS roundoff
    DType("float32", np.dtype(np.float32), "float", "float32", "f", 0, 2.0**-24),
    DType("float64", np.dtype(np.float64), "double", "float64", "d", 1, 2.0**-53),
    DType("float16", np.dtype(np.float16), "float16", "float32", "", 2, 2.0**-11),
    DType("bfloat16", np.dtype(ml_dtypes.bfloat16), "bfloat16", "float32", "", 14, 2.0**-8),
    DType("int32", np.dtype(np.int32), "int", "int64", "i", 10, 0.0),
    DType("int64", np.dtype(np.int64), "i64", "int64", "q", -1, 0.0),
    DType("uint8", np.dtype(np.uint8), "u8", "int64", "B", -1, 0.0),
)

BY_NAME = {row.name: row for row in _ROWS}
BY_NUMPY = {row.numpy: row for row in _ROWS}

#: What every primitive takes.
FLOATS = _ROWS[:4]
#: What labels and indices may be.
LABELS = _ROWS[4:6]
