"""Calls that come again as CUDA graphs: recorded once, then launched as one, whatever they are made of.

A launch takes the host 2.8 us and a product of cuBLASLt 5 to 11; that of a graph takes 1.3, be it of one kernel or of
ten, and needs nothing packed. So a small call that comes a second time, with the same addresses, stream and live
scalars, is captured on a stream of its own and kept; its kernels and their parameters are those that it would launch.

Microseconds of the host, NVIDIA H200, 2026-11-28, bursts of calls, step by step / as graphs: `activation_forward` of
1,024 elements with `out` 4.8 / 3.6, with a fresh result 7.0 / 5.6, through a plan object 3.8 / 2.5; `fc_forward` with
relu, 128 x 784 to 2048 in bfloat16, 11.7 / 5.0; its `fc_backward` of four steps 42 / 8.1; cross-entropy with its
gradient 14.7 / 6.4; a training step of three layers 177 / 80. Predicted were 1.5 less for one launch, and the same as
for one for several and for products. What is left of 3.6: 1.3 the launch, 0.2 whether the stream is being captured, 2.1
Python, of which half looks at two arrays and the plan.

Where the GPU is what limits, graphs lose what early launches gain (`early`): 18.0 us a call where these take 17.1 of
32 million bytes read and as many written, 3.2 where they take 4.0 of 4 million. So large calls are not recorded,
`plan.MOST_RECORDED_BYTES`. Between two events both take the same. Recording takes 0.1 ms; a graph takes 120 KB of the
GPU's memory, so that their number is bounded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakSet

from .driver import driver_function

#: ``CU_STREAM_CAPTURE_MODE_RELAXED``
_RELAXED = 2

#: Graphs of one plan that are kept at once, calls that it remembers to have seen (of more in turn than can be kept none
#: is recorded), and graphs that it makes in all.
MOST_KEPT, MOST_SEEN, MOST_MADE = 16, 16, 64
#: Graphs of one executor that are alive: 30 MB of the GPU's memory.
MOST_ALIVE = 256

#: A call: the stream, the addresses and, in words, the live scalars.
Call = tuple[Any, ...]
#: Enqueue the call once more; what is true says that nothing was enqueued.
Again = Callable[[], object]
#: Makes a graph of what a function enqueues on the stream that it is given, to be launched on the stream named; None
#: where it cannot be recorded.
Record = Callable[[Callable[[int], object], int], "Again | None"]


class Graphs:
    """The graphs of one plan's calls.

    Parameters
    ----------
    record : callable
        Makes one.
    capturing : callable
        Whether a stream is being captured.
    """

    def __init__(self, record: Record, capturing: Callable[[int], bool]) -> None:
        self._record, self._capturing, self._left = record, capturing, MOST_MADE
        self._kept: dict[Call, Again] = {}
        self._seen: set[int] = set()

    def launch(self, call: Call) -> Again | None:
        """Launch the graph of a call and return what does so again; None where nothing was enqueued."""
        again = self._kept.get(call)
        try:
            return None if again is None or again() else again
        except Exception:
            return None  # it is enqueued step by step, or says why not

    def record(self, call: Call, enqueue: Callable[[int], object]) -> Again | None:
        """The same for a call that has no graph yet, and gets one where it came before: it may come often."""
        if not self._left or not self._worthwhile(call):
            return None
        again = self._record(enqueue, call[0])
        if again is None:
            self._left = 0  # no other will be recorded then
            return None
        self._left -= 1
        if len(self._kept) >= MOST_KEPT:
            self._kept.clear()
        self._kept[call] = again
        return self.launch(call)

    def _worthwhile(self, call: Call) -> bool:
        """Whether it came before; of calls with one hash the first may be taken for that, and is recorded early."""
        seen = hash(call)
        if seen in self._seen:
            try:
                return not self._capturing(call[0])
            except Exception:
                return False  # the default stream cannot be asked while another is captured
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        self._seen.add(seen)
        return False


class _Holder:
    """Keeps a graph alive, and can be counted."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph


class GraphRecorder:
    """Makes graphs on one GPU.

    Parameters
    ----------
    cupy : module
        CuPy.
    """

    def __init__(self, cupy: Any) -> None:
        self._cuda = cupy.cuda
        self._stream: Any = None
        self._alive: WeakSet[_Holder] = WeakSet()

    def record(self, enqueue: Callable[[int], object], stream: int) -> Again | None:
        """As `Record`."""
        if len(self._alive) >= MOST_ALIVE:
            return None
        with _relaxed():
            graph = self._capture(enqueue)
        if graph is None:
            return None
        holder = _Holder(graph)
        self._alive.add(holder)
        runtime, executable = self._cuda.runtime, graph.graphExec
        capturing, launch = runtime.streamIsCapturing, runtime.graphLaunch

        def again(_keep: object = holder) -> object:
            # Into another graph it cannot be launched.
            return True if capturing(stream) else launch(executable, stream)

        return again

    def _capture(self, enqueue: Callable[[int], object]) -> Any:
        """The graph of what is enqueued, or None; on a stream of its own, as the caller's may be the default one."""
        if self._stream is None:
            self._stream = self._cuda.Stream(non_blocking=True)
        graph, whole = None, False
        try:
            self._stream.begin_capture()
            try:
                enqueue(self._stream.ptr)
                whole = True
            finally:
                graph = self._stream.end_capture()
        except Exception:
            return None  # the call itself is made next, and says what is wrong
        return graph if whole else None


@contextmanager
def _relaxed() -> Iterator[None]:
    """Recording disturbs no capture of another thread, and none disturbs it."""
    exchange, mode = _exchange(), ctypes.c_int(_RELAXED)
    if exchange is not None:
        exchange(ctypes.byref(mode))
    try:
        yield
    finally:
        if exchange is not None:
            exchange(ctypes.byref(mode))


@cache
def _exchange() -> Any:
    return driver_function("cuThreadExchangeStreamCaptureMode")
