"""Print the extra that fits this machine's NVIDIA driver, ``cuda12x`` or ``cuda13x``, or nothing.

Runs before anything is installed, so it uses the standard library alone. A driver counts when it loads,
initialises and sees a device: a library file left behind by a removed card does not.
"""

from __future__ import annotations

import ctypes
import sys

LIBRARIES = ("libcuda.so.1", "nvcuda.dll")


def driver_version() -> int | None:
    """CUDA version that the driver supports, as 1000 * major + 10 * minor; None without a working device."""
    for name in LIBRARIES:
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        version, count = ctypes.c_int(), ctypes.c_int()
        failed = (
            driver.cuInit(0)
            or driver.cuDriverGetVersion(ctypes.byref(version))
            or driver.cuDeviceGetCount(ctypes.byref(count))
        )
        if not failed and count.value > 0:
            return version.value
    return None


def extra_for(version: int | None) -> str:
    """Name of the extra; later majors run the wheels of the last one known."""
    major = (version or 0) // 1000
    if major >= 13:
        return "cuda13x"
    return "cuda12x" if major == 12 else ""


if __name__ == "__main__":
    found = driver_version()
    if found and not extra_for(found):
        print(f"NVIDIA driver for CUDA {found // 1000} is too old: 12 or later is needed", file=sys.stderr)
    print(extra_for(found))
