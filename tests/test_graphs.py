"""Calls that come again as graphs: when they are recorded, and that nothing of it shows."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dnnprims as dp
from dnnprims.runtime import graphs
from dnnprims.runtime.cuda import gpu_works
from dnnprims.runtime.graphs import GraphRecorder, Graphs


class Recorder:
    """Makes graphs that note their launches."""

    def __init__(self) -> None:
        self.made, self.launched = list[int](), list[int]()
        self.able, self.answer = True, object

    def __call__(self, enqueue: Callable[[int], object], stream: int) -> Any:
        if not self.able:
            return None
        self.made.append(stream)
        enqueue(99)

        def again() -> object:
            self.launched.append(stream)
            return None

        return again


def never(stream: int) -> bool:
    return False


def come(made: Graphs, call: tuple[Any, ...]) -> bool:
    """Whether the call was a graph's launch, recorded before or now."""
    return made.launch(call) is not None or made.record(call, lambda stream: None) is not None


def test_a_call_is_recorded_when_it_comes_again() -> None:
    recorder = Recorder()
    made = Graphs(recorder, never)
    calls = [(7, 1), (7, 2), (8, 1), (7, 1), (7, 1), (8, 1), (7, 2)]
    assert [come(made, call) for call in calls] == [False, False, False, True, True, True, True]
    assert recorder.made == [7, 8, 7]
    assert recorder.launched == [7, 7, 8, 7]


def test_neither_graphs_nor_recordings_grow_without_end() -> None:
    recorder = Recorder()
    made = Graphs(recorder, never)
    for k in range(3 * graphs.MOST_MADE):
        assert [come(made, (7, k)) for _ in range(3)] == [False, *[k < graphs.MOST_MADE] * 2]
    assert len(recorder.made) == graphs.MOST_MADE
    assert len(made._kept) <= graphs.MOST_KEPT
    assert len(made._seen) <= graphs.MOST_SEEN


def test_of_more_calls_in_turn_than_can_be_kept_none_is_recorded() -> None:
    most, few, many = graphs.MOST_KEPT, Graphs(Recorder(), never), Graphs(Recorder(), never)
    assert [come(few, (7, k)) for _ in range(3) for k in range(most)] == [False] * most + [True] * (2 * most)
    assert not any(come(many, (7, k)) for _ in range(4) for k in range(most + 1))


def test_nothing_is_recorded_while_the_caller_captures_or_may() -> None:
    """The default stream cannot even be asked while another one is captured."""

    def asked(stream: int) -> bool:
        if stream == 0:
            raise RuntimeError("cudaErrorStreamCaptureImplicit")
        return True

    recorder = Recorder()
    made = Graphs(recorder, asked)
    assert not any(come(made, (stream,)) for stream in (0, 7) for _ in range(3))
    assert recorder.made == []


def test_a_plan_that_cannot_be_recorded_is_not_tried_again() -> None:
    recorder = Recorder()
    made = Graphs(recorder, never)
    recorder.able = False
    assert not come(made, (7,))
    assert not come(made, (7,))
    recorder.able = True
    assert not any(come(made, (7,)) for _ in range(3))


class FakeStream:
    """A stream that notes what happens to it."""

    ptr = 99

    def __init__(self, non_blocking: bool) -> None:
        self.events = list[str]()

    def begin_capture(self) -> None:
        self.events.append("begin")

    def end_capture(self) -> Any:
        self.events.append("end")
        return SimpleNamespace(graphExec=1234)


def fake_recorder(launched: list[tuple[int, int]], capturing: list[int]) -> GraphRecorder:
    runtime = SimpleNamespace(
        streamIsCapturing=lambda stream: stream in capturing,
        graphLaunch=lambda executable, stream: launched.append((executable, stream)),
    )
    return GraphRecorder(SimpleNamespace(cuda=SimpleNamespace(Stream=FakeStream, runtime=runtime)))


def test_a_graph_is_launched_where_nothing_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_exchange", lambda: None)
    launched, capturing, streams = list[tuple[int, int]](), list[int](), list[int]()
    again = fake_recorder(launched, capturing).record(streams.append, 7)
    assert again is not None
    assert streams == [99]
    assert not again()
    capturing.append(7)
    assert again()
    assert launched == [(1234, 7)]


def test_a_call_that_fails_ends_the_capture_and_is_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_exchange", lambda: None)
    recorder = fake_recorder([], [])
    assert recorder.record(lambda stream: 1 // 0, 7) is None
    assert recorder._stream.events == ["begin", "end"]


def test_graphs_that_are_alive_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_exchange", lambda: None)
    monkeypatch.setattr(graphs, "MOST_ALIVE", 2)
    recorder = fake_recorder([], [])
    kept = [recorder.record(lambda stream: None, 7) for _ in range(3)]
    assert [again is None for again in kept] == [False, False, True]
    del kept[0]
    assert recorder.record(lambda stream: None, 7) is not None


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_works(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("own", [False, True], ids=["default stream", "own stream"])
def test_a_call_gives_the_same_bits_each_time(own: bool) -> None:
    """Of one launch, of several and of the library's; the first is enqueued, those that follow are a graph."""
    import cupy

    rng = np.random.default_rng(0)
    stream = cupy.cuda.Stream(non_blocking=True) if own else cupy.cuda.Stream.null
    with stream, dp.create_handle("cuda") as handle:
        x, w, dy = (handle.asarray(rng.standard_normal(s).astype(np.float16)) for s in ((64, 96), (32, 96), (64, 32)))
        y, dx, dw, db = (handle.asarray(np.zeros(s, np.float16)) for s in ((64, 32), (64, 96), (32, 96), 32))
        found = set()
        for _ in range(6):
            for a in y, dx, dw, db:
                a.fill(0)
            dp.fc_forward(handle, x, w, activation="relu", out=y)
            dp.fc_backward(handle, dy, x, w, activation="relu", y=y, dx=dx, dw=dw, db=db)
            fresh = dp.activation_forward(handle, "tanh", dx)
            found.add(tuple(a.get().tobytes() for a in (y, dx, dw, db, fresh)))
        assert len(found) == 1
        assert all(plan._graphs._kept for plan in handle._plans.values())


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_works(), reason="no NVIDIA GPU here")
def test_recording_breaks_no_capture_of_another_stream() -> None:
    """Even one in CUDA's global mode, in which no thread may do what could disturb it."""
    import cupy

    x, y, z = (cupy.full(64, value, np.float32) for value in (2, 0, 0))
    other, own = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    with dp.create_handle("cuda", stream=own) as handle, dp.create_handle("cuda", stream=other) as captured:
        dp.activation_forward(handle, "relu", x, out=y)
        dp.activation_forward(captured, "relu", x, out=z)
        own.synchronize()
        other.synchronize()
        y.fill(0)
        z.fill(0)
        cupy.cuda.Device().synchronize()
        other.begin_capture(cupy.cuda.runtime.streamCaptureModeGlobal)
        dp.activation_forward(captured, "relu", x, out=z)
        for _ in range(2):
            dp.activation_forward(handle, "relu", x, out=y)
        other.end_capture().launch(other)
        cupy.cuda.Device().synchronize()
        assert bool((y == 2).all())
        assert bool((z == 2).all())
        (plan,) = handle._plans.values()
        assert plan._graphs._kept
