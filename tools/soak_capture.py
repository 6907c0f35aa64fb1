"""Calls recorded into a graph and replayed with other inputs: the bits are those of the eager calls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from soak_calls import ReadyCall
from soak_watch import Watch

#: Sets of inputs that replays go through in turn.
INPUT_SETS = 4
#: Calls on other arrays between the recording and the replays: more than a plan keeps tables for.
DECOY_CALLS = 12


class Recorder(Protocol):
    """Records what is enqueued on the handle's stream."""

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """Record a call; return what replays it."""

    def active(self) -> AbstractContextManager[Any]:
        """Make the handle's stream the current one."""


class CudaRecorder:
    """Records in CUDA's global mode, in which the runtime itself refuses waits and allocations."""

    def __init__(self) -> None:
        import cupy

        self.stream = cupy.cuda.Stream(non_blocking=True)

    def active(self) -> AbstractContextManager[Any]:
        """The stream as CuPy's current one."""
        return self.stream  # type: ignore[no-any-return]

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """Record a call; return what replays it."""
        import cupy

        self.stream.synchronize()
        self.stream.begin_capture(cupy.cuda.runtime.streamCaptureModeGlobal)
        try:
            call()
        finally:
            graph = self.stream.end_capture()
        return lambda: graph.launch(self.stream)


@dataclass
class Replayed:
    """What became of a call: replays that were compared, and complaints."""

    replays: int
    complaints: list[str]


def replay(call: ReadyCall, recorder: Recorder, replays: int) -> Replayed:
    """Record a call that has run before, then replay it and compare with eager calls on the same inputs."""
    with recorder.active():
        inputs = [call.draw(seed) for seed in range(INPUT_SETS)]
        expected = [_eager(call, contents) for contents in inputs]
        decoys = [ReadyCall(call.handle, call.problem) for _ in range(2)]
        for decoy in decoys:
            decoy()
        call.restore()
        call()  # as a program does: what is recorded has just run on these very arrays
        call.handle.synchronize()
        watch = Watch(call.handle)
        with watch:
            launch = recorder.record(call)
        complaints = _complaints(call, watch)
        held = call.result
        for k in range(DECOY_CALLS):
            decoys[k % 2].restore()
            decoys[k % 2]()
        for k in range(replays):
            call.use(inputs[k % INPUT_SETS])
            launch()
            call.handle.synchronize()
            call.result = held
            if not call.gives(expected[k % INPUT_SETS]):
                complaints.append(f"replay {k} gave other bits than the eager call")
                break
        for contents, kept in zip(inputs, expected, strict=True):
            _eager(call, contents)
            if not call.gives(kept):
                complaints.append("an eager call after the replays gave other bits than before")
        return Replayed(replays, complaints)


def _eager(call: ReadyCall, contents: list[Any]) -> bytes | list[Any]:
    call.use(contents)
    call()
    call.handle.synchronize()
    return call.keep()


def _complaints(call: ReadyCall, watch: Watch) -> list[str]:
    """What a recorded call must not do. A result that the primitive takes no destination for is allocated."""
    found = []
    if watch.allocations or watch.seen["empty"] != len(call.made()):
        found.append(f"allocated while recorded: {dict(watch.seen)}")
    if watch.waits:
        found.append(f"waited while recorded: {dict(watch.seen)}")
    return found
