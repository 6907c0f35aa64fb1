"""How long a call takes: the host to enqueue it, and a GPU to do it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

#: Calls before the first that counts, calls that count where no number is given, and when even those are too many.
WARM_UP, REPEAT, SECONDS = 5, 200, 5.0


def measure(handle: Any, call: Callable[[], object], repeat: int | None) -> list[str]:
    """Lines with the median, the 10th and the 90th percentile of the time of a call.

    On a GPU calls are enqueued one behind the other: the host's time is that until a call returns, the device's that
    between events before and behind it. On the CPU a call is done when it returns.
    """
    start = time.perf_counter()
    for _ in range(WARM_UP):
        call()
    handle.synchronize()
    warm = (time.perf_counter() - start) / WARM_UP
    count = repeat or max(3, min(REPEAT, int(SECONDS / max(warm, 1e-9))))
    if handle.backend != "cuda":
        return [_show("call", [_timed(call) for _ in range(count)])]
    with _events(handle) as mark:
        host, marks = [], []
        for _ in range(count):
            before = mark()
            host.append(_timed(call))
            marks.append((before, mark()))
        handle.synchronize()
        device = [(behind - before) for before, behind in ((0.0, elapsed(*pair)) for pair in marks)]
    return [_show("host", host), _show("device", device)]


def elapsed(before: Any, behind: Any) -> float:
    """Seconds between two events that have passed."""
    from cupy.cuda import get_elapsed_time

    return float(get_elapsed_time(before, behind)) * 1e-3


@contextmanager
def _events(handle: Any) -> Iterator[Callable[[], Any]]:
    """A function that puts an event onto the handle's stream."""
    import cupy

    with cupy.cuda.Device(handle.device):
        stream = cupy.cuda.ExternalStream(handle.stream) if handle.stream else cupy.cuda.Stream.null

        def mark() -> Any:
            event = cupy.cuda.Event()
            event.record(stream)
            return event

        yield mark


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _show(what: str, seconds: list[float]) -> str:
    median, low, high = (float(np.quantile(seconds, q)) * 1e6 for q in (0.5, 0.1, 0.9))
    return f"{what:<6}  {median:.1f} us median, {low:.1f} p10, {high:.1f} p90, of {len(seconds)} calls"
