"""Nothing grows: calls, plans, handles, descriptors and refusals, repeated until a single object each would show.

Growth is that of the second half of the repeats, so that whatever is filled once (tables of the interpreter, pools) has
been. The cyclic collector is switched off meanwhile and must then find nothing: what calls leave is given back by
counting references alone, device memory above all.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from soak_calls import ReadyCall, planned, threads_of, ways

import dnnprims as dp
from dnnprims.conformance.cases import Problem
from dnnprims.runtime.launch import Profile

#: Every primitive, by name.
OPS = tuple(op.__name__ for op in dp.PRIMITIVES)

#: Blocks and objects of the interpreter that may come and go whatever the number of calls: its lists of free objects
#: hold up to a hundred of a kind. One object left by one call in two shows at 600 calls, by one in 300 at 10^5.
NOISE_BLOCKS = 150
#: Bytes of the process that may: the C library takes memory in pieces of this order and gives it back when it likes.
NOISE_BYTES = 1 << 20


@dataclass
class Footprint:
    """What the process and the pools hold."""

    blocks: int
    objects: int
    resident_bytes: int
    pool_used_bytes: int
    pool_bytes: int

    @classmethod
    def now(cls, backend: str) -> Footprint:
        """Measure."""
        used = total = 0
        if backend == "cuda":
            import cupy

            pool = cupy.get_default_memory_pool()
            used, total = pool.used_bytes(), pool.total_bytes()
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
        objects = len(gc.get_objects())
        return cls(sys.getallocatedblocks(), objects, pages * os.sysconf("SC_PAGE_SIZE"), used, total)

    def since(self, before: Footprint) -> Footprint:
        """What came on top."""
        return Footprint(
            *(now - then for now, then in zip(asdict(self).values(), asdict(before).values(), strict=True))
        )

    @property
    def grown(self) -> bool:
        """Whether it is more than noise."""
        return (
            max(self.blocks, self.objects) > NOISE_BLOCKS
            or self.resident_bytes > NOISE_BYTES
            or self.pool_used_bytes > 0
            or self.pool_bytes > 0
        )


@dataclass
class Soaked:
    """Growth over the second half of many calls, and the objects in cycles that both halves left."""

    what: str
    calls: int
    microseconds: float
    growth: Footprint
    cyclic: int

    @property
    def leaks(self) -> bool:
        """Whether anything is left behind."""
        return self.growth.grown or self.cyclic > 0

    def as_row(self) -> dict[str, Any]:
        """For a report."""
        return {**asdict(self), "microseconds": round(self.microseconds, 2), "leaks": self.leaks}


def soak(what: str, call: Callable[[], object], calls: int, backend: str) -> Soaked:
    """Call so often, and measure what the second half left behind."""
    half = calls // 2
    _repeat(call, min(100, half))
    gc.collect()
    gc.freeze()  # what is there already is not looked at again
    gc.disable()
    try:
        seconds = _repeat(call, half)
        cyclic = gc.collect()
        settled = Footprint.now(backend)
        seconds += _repeat(call, half)
        cyclic += gc.collect()
        growth = Footprint.now(backend).since(settled)
    finally:
        gc.enable()
        gc.unfreeze()
    return Soaked(what, calls, seconds / (2 * half) * 1e6, growth, cyclic)


def _repeat(call: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - start


def _refused(call: Callable[[], object]) -> Callable[[], None]:
    """The call, which is refused each time; what it raises is let go of."""

    def attempt() -> None:
        try:
            call()
        except dp.DnnprimsError:
            return
        raise AssertionError("the call was not refused")

    return attempt


def calls_to_soak(
    handle: dp.Handle, ops: Sequence[str], dtypes: Sequence[str], every_way: bool
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls by name: into memory that is there, making results, and as a plan; each op in a dtype of its own.

    One way stands for each primitive, the one that costs least, unless every way is asked for.
    """
    seen: set[tuple[str, ...]] = set()
    turn = 0
    for op in [name for name in OPS if not ops or name in ops]:
        dtype = dtypes[turn % len(dtypes)]
        turn += 1
        profile = handle.profile if handle.backend != "numpy" else Profile("emulator")
        found = ways(profile, [dtype], most_threads=1, ops=[op])
        for way, problem in sorted(found.items(), key=lambda item: _cost(profile, item[1])):
            key = (op, way.variant) if every_way else (op,)
            if key in seen:
                continue
            seen.add(key)
            call = ReadyCall(handle, problem)
            for how, repeated in (("into out", call), ("fresh results", call.fresh), ("plan", call.prepare())):
                yield f"{way.op} {way.variant} {dtype}, {how}", repeated


def _cost(profile: Profile, problem: Problem) -> int:
    return next(threads_of(spec) for known, spec in planned(profile, problem.dtype) if known is problem)


def things_to_soak(handle: dp.Handle) -> Iterator[tuple[str, Callable[[], object], int]]:
    """What else a program repeats, by name, and how many calls one repeat stands for."""
    x, y = (handle.asarray(np.ones(8, np.float32)) for _ in range(2))
    narrow = handle.asarray(np.ones(3, np.float32))
    relu = dp.TensorDescriptor((8,), "float32")

    def open_and_close() -> None:
        with dp.create_handle(handle.backend) as own:
            dp.activation_forward(own, "relu", x, out=y)

    yield "TensorDescriptor", lambda: dp.TensorDescriptor((3, 4, 5), "bfloat16", (40, 10, 2)), 1
    yield "ActivationDescriptor", lambda: dp.ActivationDescriptor("leaky_relu", slope=0.25), 1
    yield "LossDescriptor", lambda: dp.LossDescriptor("cross_entropy", label_smoothing=0.1), 1
    yield "supports", lambda: dp.supports(dp.activation_forward, "relu", relu), 10
    yield "refused shape", _refused(lambda: dp.activation_forward(handle, "relu", x, out=narrow)), 10
    yield "refused option", _refused(lambda: dp.activation_forward(handle, "rleu", x)), 10
    yield "refused overlap", _refused(lambda: dp.activation_forward(handle, "relu", x[:4], out=x[1:5])), 10
    yield "refused object", _refused(lambda: dp.activation_forward(handle, "relu", object())), 10
    yield "prepare", lambda: dp.prepare(dp.activation_forward, handle, "relu", relu, out=relu), 10
    yield "handle, opened and closed", open_and_close, 100
