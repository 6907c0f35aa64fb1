"""Functions of the CUDA driver that CuPy does not offer."""

from __future__ import annotations

import ctypes
import sys
from typing import Any


def driver_function(name: str) -> Any:
    """The function of this name by ctypes, or None where there is no driver, or one that does not have it."""
    try:
        return getattr(ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"), name)
    except (OSError, AttributeError):
        return None
