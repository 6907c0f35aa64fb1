"""What `doctor` learns of the machine, apart from its judgement, so that a test can put faults in its place."""

from __future__ import annotations

import ctypes
import importlib
import sys
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np

from .runtime import blaslt

CUPY_WHEELS = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x", "cupy-rocm-5-0", "cupy-rocm-7-0")


def import_module(name: str) -> ModuleType:
    """Import."""
    return importlib.import_module(name)


def load_driver() -> Any:
    """Load libcuda; OSError where there is none."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def cupy_wheels() -> list[str]:
    """Installed distributions that hold CuPy."""
    names = {(found.metadata["Name"] or "").lower() for found in metadata.distributions()}
    return sorted(names & set(CUPY_WHEELS))


def run_activation(x: np.ndarray) -> np.ndarray:
    """Relu on the device."""
    from . import activation_forward, create_handle

    with create_handle("cuda") as handle:
        return np.asarray(handle.to_numpy(activation_forward(handle, "relu", handle.asarray(x))))


def run_fully_connected(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x w^T on the device."""
    from . import create_handle, fc_forward

    with create_handle("cuda") as handle:
        return np.asarray(handle.to_numpy(fc_forward(handle, handle.asarray(x), handle.asarray(w))))


def blaslt_version() -> str:
    """Version of the cuBLASLt that is loaded."""
    library, reason = blaslt.library()
    if library is None:
        raise OSError(reason)
    number = int(library.cublasLtGetVersion())
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
