"""thinc's CUDA kernels, launched as thinc launches them, without the checks that wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy
from thinc.backends import _custom_kernels as kernels

from ..arrays import Arrays
from ..case import Case, Contestant

GRID = ((128,), (128,))
#: Where thinc's kernels go over to the limit of the function.
THRESHOLDS = {"gelu": 6.0, "mish": 5.0, "swish": 17.0}


class Thinc:
    """Kernels of thinc, float32 alone."""

    name = "thinc"

    def contestants(self, case: Case) -> list[Contestant]:
        """One way for what thinc has a kernel for."""
        maker = _MAKERS.get(case.op)
        call = maker(case) if maker and case.dtype == "float32" else None
        return [Contestant(self.name, call, ("out",), "cupy")] if call else []


def _activation_forward(case: Case) -> Callable[[], Any] | None:
    mode, x = case.problem.word("mode"), case.operands["x"]
    if mode not in THRESHOLDS:
        return None
    kernel, out = getattr(kernels, f"{mode}_kernel_float"), cupy.empty_like(x)
    threshold = THRESHOLDS[mode]

    def run() -> Any:
        kernel(*GRID, (out, x, threshold, x.size))
        return out

    return run


def _activation_backward(case: Case) -> Callable[[], Any] | None:
    mode, dy = case.problem.word("mode"), case.operands["dy"]
    if mode not in ("gelu", "mish"):
        return None
    kernel, out, x = getattr(kernels, f"backprop_{mode}_kernel_float"), cupy.empty_like(dy), case.operands["x"]
    threshold = THRESHOLDS[mode]

    def run() -> Any:
        kernel(*GRID, (out, dy, x, threshold, out.size))
        return out

    return run


def _maxout_forward(case: Case) -> Callable[[], Any]:
    x, pool = case.operands["x"], case.options["pool_size"]
    rows, units = case.results["out"].shape
    best, which = cupy.empty((rows, units), "float32"), cupy.empty((rows, units), "int32")

    def run() -> Any:
        kernels.maxout_kernel_float(*GRID, (best, which, x, rows, units, pool))
        return best

    return run


def _maxout_backward(case: Case) -> Callable[[], Any]:
    dy, pool = case.operands["dy"], case.options["pool_size"]
    (rows, units), which = dy.shape, case.operands["which"].astype("int32")
    out = cupy.empty((rows, units * pool), "float32")

    def run() -> Any:
        out.fill(0)
        kernels.backprop_maxout_kernel_float(*GRID, (out, dy, which, rows, units, pool))
        return out

    return run


_MAKERS: dict[str, Callable[[Case], Callable[[], Any] | None]] = {
    "activation_forward": _activation_forward,
    "activation_backward": _activation_backward,
    "maxout_forward": _maxout_forward,
    "maxout_backward": _maxout_backward,
}


def make(name: str, arrays: Arrays) -> Thinc:
    """The peer, where there is a GPU."""
    if not arrays.on_gpu:
        raise RuntimeError("thinc's kernels have nothing to run on")
    return Thinc()
