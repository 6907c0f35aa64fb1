"""An emulator whose streams are late: work waits in a queue until somebody waits for it, or is recorded into a graph.

It shows on the CPU what the host does wrong on a GPU: memory rewritten that work still to be done reads, an order
between streams that nobody ensures, waits and copies in the midst of a recording.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dnnprims as dp
from dnnprims.ops import FAMILIES
from dnnprims.runtime.emulator import EmulatorExecutor
from dnnprims.runtime.plan import Run

Work = Callable[[], object]


class LateEmulator(EmulatorExecutor):
    """Streams are numbers; `current` is the one that calls go to."""

    def __init__(self) -> None:
        super().__init__(FAMILIES)
        self.current = 1
        self._queues: defaultdict[int, list[Work]] = defaultdict(list)
        self._recordings: dict[int, list[Work]] = {}

    def enqueue(self, stream: int, work: Work) -> None:
        """Do it later, or record it."""
        self._recordings.get(stream, self._queues[stream]).append(work)

    def current_stream(self) -> int:
        return self.current

    def capturing(self, stream: int) -> bool:
        return stream in self._recordings

    def synchronize(self, stream: int) -> None:
        self.drain(stream)

    def drain(self, stream: int, until: int | None = None) -> None:
        """Do what is queued on the stream, or its first `until` pieces; never amid a recording, as in CUDA."""
        if self._recordings:
            raise RuntimeError("operation not permitted when a stream is capturing")
        queue = self._queues[stream]
        todo, queue[:] = queue[:until], queue[len(queue) if until is None else until :]
        for work in todo:
            work()

    def copy(self, pointer: int, staged: int, nbytes: int, stream: int) -> None:
        self.enqueue(stream, lambda: ctypes.memmove(pointer, staged, nbytes))

    def upload(self, pointer: int, data: bytes, stream: int) -> object:
        owner, staged = self.staging(max(len(data), 1))
        ctypes.memmove(staged, data, len(data))
        self.copy(pointer, staged, len(data), stream)
        return owner

    def download(self, pointer: int, nbytes: int, stream: int = 0) -> bytes:
        self.drain(stream)
        return super().download(pointer, nbytes)

    def event(self) -> LateEvent:
        return LateEvent(self)

    def realise(self, step: Any, slots: tuple[int, ...]) -> Run:
        run = super().realise(step, slots)

        def later(addresses: Sequence[int], stream: int, live: Sequence[Any]) -> None:
            given, values = list(addresses), tuple(live)
            self.enqueue(stream, lambda: run(given, stream, values))

        return later

    # -- as a recorder of tools/soak_capture.py ---------------------------------------------------------------

    @contextmanager
    def active(self) -> Iterator[None]:
        yield

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """Record a call; return what replays it on the stream that is current then."""
        stream = self.current
        self._recordings[stream] = []
        try:
            call()
        finally:
            graph = self._recordings.pop(stream)
        return lambda: self._queues[self.current].extend(graph)


class LateEvent:
    """A mark in a queue."""

    def __init__(self, executor: LateEmulator) -> None:
        self._executor, self._stream, self._passed = executor, 0, True

    def record(self, stream: int) -> None:
        self._stream, self._passed = stream, False
        self._executor.enqueue(stream, self._pass)

    def _pass(self) -> None:
        self._passed = True

    def synchronize(self) -> None:
        while not self._passed:
            self._executor.drain(self._stream, until=1)


def late_handle() -> tuple[dp.Handle, LateEmulator]:
    """A handle on streams that are late, and its executor."""
    executor = LateEmulator()
    return dp.Handle(executor, executor.profile, 0, None), executor
