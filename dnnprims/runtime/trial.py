"""Timing ways of doing the same against each other, on a GPU, and choosing one.

All ways are timed in turn, round after round, with the L2 flushed before each, so that a change of clocks meets all of
them. A few rounds find the ones worth more; only a gain past the spread of such times counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import numpy as np

from ..dtypes import DType

#: Rounds over all ways, over the best of them, and how many those are.
QUICK_ROUNDS, ROUNDS, FINALISTS = 3, 15, 4
#: By how much a way must be faster than the default. Medians of 15 rounds spread by up to 0.02 on an NVIDIA H200.
LEAST_GAIN = 0.03
#: Past the L2 of any GPU.
FLUSH_BYTES = 256 << 20

Run = Callable[[], object]


class Trial(Protocol):
    """Ways of doing the same, the default first."""

    @property
    def count(self) -> int: ...
    def times(self, which: Sequence[int], rounds: int) -> list[float]: ...
    def compare(self, index: int) -> str: ...


@dataclass(frozen=True)
class Choice:
    """The way that was chosen.

    Attributes
    ----------
    index : int
        Its number; 0 is the default.
    default_us, tuned_us : float
        Median times.
    bits : str
        ``same`` or ``other``, as the default's.
    """

    index: int
    default_us: float
    tuned_us: float
    bits: str


def select(trial: Trial, other_bits: bool) -> Choice:
    """Find the fastest way; with `other_bits` also among those that give other bits than the default."""
    quick = trial.times(range(trial.count), QUICK_ROUNDS)
    bits = {0: "same"}
    finalists: list[int] = []
    for i in sorted(range(1, trial.count), key=quick.__getitem__):
        if quick[i] >= quick[0] or len(finalists) == FINALISTS:
            break
        bits[i] = trial.compare(i)
        if bits[i] == "same" or (bits[i] == "other" and other_bits):
            finalists.append(i)
    which = [0, *finalists]
    times = trial.times(which, ROUNDS) if finalists else [quick[0]]
    best = min(range(len(which)), key=times.__getitem__)
    if times[0] < times[best] * (1.0 + LEAST_GAIN):
        best = 0
    return Choice(which[best], times[0] * 1e6, times[best] * 1e6, bits[which[best]])


class DeviceTrial:
    """Ways on a GPU, timed by events.

    Parameters
    ----------
    runs : sequence of callables
        Each enqueues one way on the stream.
    outputs : sequence of (address, bytes)
        What they all write.
    dtype : DType
        Of the outputs.
    stream : int
        Where.
    """

    def __init__(
        self, executor: Any, runs: Sequence[Run], outputs: Sequence[tuple[int, int]], dtype: DType, stream: int
    ) -> None:
        from .cuda import load_cupy

        self._cupy, self._executor, self._runs = load_cupy(), executor, runs
        self._outputs, self._dtype, self._stream = outputs, dtype, stream
        self._flush = executor.buffer(FLUSH_BYTES)

    @property
    def count(self) -> int:
        """How many ways there are."""
        return len(self._runs)

    def times(self, which: Sequence[int], rounds: int) -> list[float]:
        """Median seconds of each of these ways; one round more goes before, to warm up."""
        found: list[list[float]] = [[] for _ in which]
        marks = [(self._event(), self._event()) for _ in which]
        for number in range(rounds + 1):
            for i, (before, behind) in zip(which, marks, strict=True):
                self._clear(*self._flush_span())
                self._record(before)
                self._runs[i]()
                self._record(behind)
            self._executor.synchronize(self._stream)
            for seconds, (before, behind) in zip(found, marks, strict=True):
                if number:
                    seconds.append(self._cupy.cuda.get_elapsed_time(before, behind) * 1e-3)
        return [median(seconds) for seconds in found]

    def compare(self, index: int) -> str:
        """How what a way writes compares with the default's: ``same`` bits, ``other`` bits, or ``wrong``."""
        expected, got = self._results(0), self._results(index)
        if expected == got:
            return "same"
        return "other" if all(map(self._close, expected, got)) else "wrong"

    def _results(self, index: int) -> list[bytes]:
        for address, nbytes in self._outputs:
            self._clear(address, nbytes)
        self._runs[index]()
        return [self._executor.download(address, nbytes, self._stream) for address, nbytes in self._outputs]

    def _close(self, expected: bytes, got: bytes) -> bool:
        """Half of the digits agree: no bound of rounding, but what other work does not meet."""
        a, b = (np.frombuffer(data, self._dtype.numpy).astype(np.float64) for data in (expected, got))
        return bool(np.linalg.norm(a - b) <= self._dtype.unit_roundoff**0.5 * np.linalg.norm(a))

    def _flush_span(self) -> tuple[int, int]:
        return self._flush[1], FLUSH_BYTES

    def _clear(self, address: int, nbytes: int) -> None:
        self._cupy.cuda.runtime.memsetAsync(address, 0, nbytes, self._stream)

    def _event(self) -> Any:
        return self._cupy.cuda.Event()

    def _record(self, event: Any) -> None:
        self._cupy.cuda.runtime.eventRecord(event.ptr, self._stream)
