"""Time: of the device by events, with the L2 flushed or in a CUDA graph; of the host; or of the wall where no GPU is.

Contestants are timed in turn, round after round and each round from another one on, so that a change of clocks meets
all of them and none always follows the same. Four ways:

``events``  flush, event, call, event: the flush also lets the host run ahead, so that its time does not count
``graph``   the same around a CUDA graph of one call, where a call is many launches
``repeat``  a CUDA graph of many calls over data that stay in the L2, where a launch would dominate
``wall``    host and device together, many calls and one wait
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .case import Case, Contestant

#: Past the L2 many times over; long enough, too, for the host to enqueue a call before the device is ready for it.
FLUSH_BYTES = 1 << 30
#: What is read of that afterwards: a call would else write the flush's own lines back while it is timed. A copy of
#: 64 MiB ran at 0.84 of a large one's rate among such lines, and at 0.91 among clean ones (NVIDIA H200, 2026-11-28).
CLEAN_ELEMENTS = 1 << 26
REPEATS = 50
WARM_UP = 3
#: Rates at which a case is thought to run, to choose the way: bytes and flops per second.
NOMINAL_BYTES, NOMINAL_FLOPS = 4e12, {"float32": 5e13, "float64": 5e13}
NOMINAL_TENSOR_FLOPS = 7e14
#: Seconds below which a launch dominates, and below which several launches do.
TINY, SMALL = 5e-6, 2e-5

Run = Callable[[], Any]


def way(case: Case, on_gpu: bool) -> str:
    """How a case is timed."""
    if not on_gpu or case.clock != "device":
        return "wall"
    rate = NOMINAL_TENSOR_FLOPS if case.math == "tf32" else NOMINAL_FLOPS.get(case.dtype, NOMINAL_TENSOR_FLOPS)
    seconds = max(case.nbytes / NOMINAL_BYTES, case.flops / rate)
    if case.captured:
        return "graph"
    return "repeat" if seconds < TINY else "graph" if seconds < SMALL else "events"


class WallClock:
    """Times calls that are done when they return."""

    on_gpu = False

    def __init__(self, calls: int = 1) -> None:
        self._calls = calls

    @contextmanager
    def active(self) -> Iterator[None]:
        """Nothing to set up."""
        yield

    def wait(self) -> None:
        """Calls are done when they return."""

    def prepare(self, contestant: Contestant, way: str) -> Run:
        """Warm up; return what is timed."""
        contestant.call()
        return contestant.call

    def forget(self) -> None:
        """Give back what `prepare` made."""

    def rounds(self, runs: Mapping[str, Run], way: str, rounds: int) -> dict[str, list[float]]:
        """Milliseconds of each, `rounds` times."""
        times: dict[str, list[float]] = {name: [] for name in runs}
        for name in _turns(list(runs), rounds):
            start = time.perf_counter()
            for _ in range(self._calls):
                runs[name]()
            self.wait()
            times[name].append((time.perf_counter() - start) * 1e3 / self._calls)
        return times

    def per_call(self, runs: Mapping[str, Run], calls: int) -> dict[str, float]:
        """Microseconds of wall time per call, best of three passes over all of them."""
        best: dict[str, float] = {}
        for _ in range(3):
            for name, run in runs.items():
                for _ in range(max(1, calls // 64)):
                    run()
                self.wait()
                start = time.perf_counter()
                for _ in range(calls):
                    run()
                self.wait()
                micros = (time.perf_counter() - start) / calls * 1e6
                best[name] = min(best.get(name, micros), micros)
        return best


class DeviceClock(WallClock):
    """Times work on a stream of its own, on which CuPy and torch then run alike."""

    on_gpu = True

    def __init__(self, calls: int = 20) -> None:
        import cupy

        super().__init__(calls)
        self._cupy, self.stream = cupy, cupy.cuda.Stream(non_blocking=True)
        self._flush, self._seen = cupy.empty(FLUSH_BYTES // 4, cupy.float32), cupy.empty((), cupy.float32)
        self._graphs: list[Any] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the stream the current one of CuPy and, where it is loaded, of torch."""
        with self.stream:
            torch = sys.modules.get("torch")
            if torch is None or not torch.cuda.is_available():
                yield
            else:
                with torch.cuda.stream(torch.cuda.ExternalStream(self.stream.ptr)):
                    yield

    def wait(self) -> None:
        """Until the stream is done."""
        self.stream.synchronize()

    def prepare(self, contestant: Contestant, way: str) -> Run:
        """Warm up and, where the way asks for it, capture; return what is timed."""
        for _ in range(WARM_UP):
            contestant.call()
        self.wait()
        if way in ("graph", "repeat"):
            capture = self._capture_torch if contestant.library == "torch" else self._capture_cupy
            run = capture(contestant.call, REPEATS if way == "repeat" else 1)
            run()
            self.wait()
            return run
        return contestant.call

    def forget(self) -> None:
        """Give back the graphs of the last case."""
        self.wait()
        self._graphs.clear()

    def rounds(self, runs: Mapping[str, Run], way: str, rounds: int) -> dict[str, list[float]]:
        """Milliseconds of each, `rounds` times, from events; nothing waits in between."""
        if way == "wall":
            return super().rounds(runs, way, rounds)
        marks: list[tuple[str, Any, Any]] = []
        for name in _turns(list(runs), rounds):
            if way != "repeat":
                self._flush_cache()
            start, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
            start.record(self.stream)
            runs[name]()
            end.record(self.stream)
            marks.append((name, start, end))
        self.wait()
        times: dict[str, list[float]] = {name: [] for name in runs}
        for name, start, end in marks:
            elapsed = self._cupy.cuda.get_elapsed_time(start, end)
            times[name].append(elapsed / (REPEATS if way == "repeat" else 1))
        return times

    def _flush_cache(self) -> None:
        """Leave nothing of the operands in the L2, and no line of its own to be written back while a call is timed."""
        self._flush.fill(0.0)
        self._flush[:CLEAN_ELEMENTS].max(out=self._seen)

    def _capture_cupy(self, call: Run, times: int) -> Run:
        """A graph of calls that allocate from CuPy's pools, if at all: from one that lives as long as the graph."""
        pool = self._cupy.cuda.MemoryPool()
        with self._cupy.cuda.using_allocator(pool.malloc):
            call()  # so that the pool has what the capture asks for
            self.wait()
            self.stream.begin_capture()
            try:
                for _ in range(times):
                    call()
            finally:
                graph = self.stream.end_capture()
        self._graphs.append((graph, pool))
        return lambda: graph.launch(self.stream)

    def _capture_torch(self, call: Run, times: int) -> Run:
        """A graph of calls that allocate from torch's allocator, which keeps a pool for it."""
        import torch

        graph, kept = torch.cuda.CUDAGraph(), []
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for _ in range(times):
                kept = [call()]
        finally:
            graph.capture_end()
        self._graphs.append((graph, kept))
        return graph.replay


def _turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Each name once a round, each round from another one on."""
    for k in range(rounds):
        yield from (names[(i + k) % len(names)] for i in range(len(names)))


def make_clock(backend: str) -> WallClock:
    """The clock of a backend."""
    return DeviceClock() if backend == "cuda" else WallClock()
