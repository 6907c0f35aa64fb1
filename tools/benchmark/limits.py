"""The ceilings of the machine, measured in the same run: a large copy, and a large matrix product by type."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import dnnprims as dp

from .arrays import Arrays
from .case import Contestant
from .clock import WallClock

#: Elements of float32 that are copied, and rows of the square matrices; the smaller ones without a GPU.
COPY_ELEMENTS = {True: 1 << 30, False: 1 << 20}
SIDE = {True: 8192, False: 96}
ROUNDS = 15


def measure_limits(
    handles: Mapping[str, dp.Handle], arrays: Arrays, clock: WallClock, dtypes: list[str]
) -> dict[str, float]:
    """Bytes per second of a copy (read and written), and flops per second by ``dtype`` or ``tf32``."""
    source = arrays.normal(COPY_ELEMENTS[clock.on_gpu], "float32", tag="copy")
    target = arrays.result(source.shape, "float32", tag="copied")
    limits = {"copy": 2 * source.nbytes / _seconds(clock, _copy(arrays, source, target))}
    arrays.clear()
    del source, target
    n = SIDE[clock.on_gpu]
    for dtype, math in [(d, m) for d in dtypes for m in (("ieee", "tf32") if d == "float32" else ("ieee",))]:
        if math in handles:
            contestants = _products(handles[math], arrays, dtype, n, clock.on_gpu)
            best = min(_seconds(clock, one) for one in contestants)
            limits["tf32" if math == "tf32" else dtype] = 2 * n**3 / best
    arrays.clear()
    return limits


def _copy(arrays: Arrays, source: Any, target: Any) -> Contestant:
    return Contestant("copy", lambda: arrays._move(target, 0, source, source.size))


def _products(handle: dp.Handle, arrays: Arrays, dtype: str, n: int, on_gpu: bool) -> list[Contestant]:
    """The same product by the library's GEMM as we call it and, where torch is loaded, as torch does."""
    import sys

    x, w = arrays.normal((n, n), dtype, tag="x"), arrays.normal((n, n), dtype, tag="w")
    y = arrays.result((n, n), dtype)
    found = [Contestant("ours", lambda: dp.fc_forward(handle, x, w, out=y))]
    torch = sys.modules.get("torch")
    if torch is not None and on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = handle.math == "tf32"
        a, b = arrays.torch(x), arrays.torch(w)
        found.append(Contestant("torch", lambda: a @ b, library="torch"))
    return found


def _seconds(clock: WallClock, contestant: Contestant) -> float:
    way = "events" if clock.on_gpu else "wall"
    times = clock.rounds({"it": clock.prepare(contestant, way)}, way, ROUNDS)
    return statistics.median(times["it"]) * 1e-3
