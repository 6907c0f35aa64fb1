"""The clock of the instrument: which way a case is timed, who begins, and what the device is asked."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmark import clock
from benchmark.case import Case, Contestant
from dnnprims.conformance.cases import Problem


def test_ways_and_turns() -> None:
    """Small cases are repeated in a graph; lists are captured; on the host it is the wall. Nobody always begins."""
    plain = Case(Problem.parse("x dtype=float32"), {}, {}, {}, nbytes=10**9)
    assert clock.way(plain, on_gpu=True) == "events"
    assert clock.way(plain, on_gpu=False) == "wall"
    assert clock.way(Case(plain.problem, {}, {}, {}, nbytes=100), on_gpu=True) == "repeat"
    assert clock.way(Case(plain.problem, {}, {}, {}, nbytes=50_000_000), on_gpu=True) == "graph"
    assert clock.way(Case(plain.problem, {}, {}, {}, nbytes=10**9, captured=True), on_gpu=True) == "graph"
    assert clock.way(Case(plain.problem, {}, {}, {}, nbytes=100, clock="wall"), on_gpu=True) == "wall"
    assert list(clock._turns(["a", "b", "c"], 3)) == list("abcbcacab")


class _Sliced:
    """An array whose slices are like it."""

    def __init__(self, room: SimpleNamespace) -> None:
        self.fill, self.max = room.fill, room.max

    def __getitem__(self, _: slice) -> _Sliced:
        return self


def _fake_cupy(log: list[str]) -> ModuleType:
    """As much of CuPy as the device clock touches, writing down what it is asked."""
    cupy = ModuleType("cupy")

    class Stream:
        ptr = 7

        def __init__(self, **_: Any) -> None: ...
        def __enter__(self) -> Stream:
            return self

        def __exit__(self, *_: object) -> None: ...
        def synchronize(self) -> None:
            log.append("wait")

        def begin_capture(self) -> None:
            log.append("begin")

        def end_capture(self) -> Any:
            log.append("end")
            return Graph()

    class Graph:
        def launch(self, stream: Any) -> None:
            log.append("launch")

    class Event:
        def record(self, stream: Any) -> None:
            log.append("event")

    class Pool:
        malloc = None

    class Using:
        def __init__(self, _: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    cuda = ModuleType("cuda")
    cuda.Stream, cuda.Event, cuda.MemoryPool, cuda.using_allocator = Stream, Event, Pool, Using  # type: ignore
    cuda.get_elapsed_time = lambda start, end: 100.0  # type: ignore[attr-defined]
    cuda.runtime = ModuleType("runtime")  # type: ignore[attr-defined]
    room = SimpleNamespace(fill=lambda _: log.append("write"), max=lambda out: log.append("read"))
    cupy.empty, cupy.float32 = lambda *_: _Sliced(room), None  # type: ignore[attr-defined]
    cupy.cuda = cuda  # type: ignore[attr-defined]
    return cupy


def test_device_clock_flushes_marks_and_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each timing is flush, event, call, event; a repeated graph is not flushed and is divided by its calls."""
    log: list[str] = []
    monkeypatch.setitem(sys.modules, "cupy", _fake_cupy(log))
    watch = clock.DeviceClock()
    with watch.active() if "torch" not in sys.modules else watch.stream:
        ours = watch.prepare(Contestant("ours", lambda: log.append("call")), "events")
        log.clear()
        assert watch.rounds({"ours": ours}, "events", 2) == {"ours": [100.0, 100.0]}
        assert log == ["write", "read", "event", "call", "event"] * 2 + ["wait"]
        log.clear()
        graph = watch.prepare(Contestant("ours", lambda: log.append("call")), "repeat")
        assert log[log.index("begin") : log.index("end") + 1] == ["begin", *["call"] * clock.REPEATS, "end"]
        log.clear()
        assert watch.rounds({"ours": graph}, "repeat", 1) == {"ours": [100.0 / clock.REPEATS]}
        assert log == ["event", "launch", "event", "wait"]
        watch.forget()
