"""Tables of addresses: small data that kernels read in device memory, rewritten by the host without waiting for it."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Protocol

#: Tables of one stream that are kept before the oldest is rewritten.
RING = 8


class Transfers(Protocol):
    """What a table needs of its executor."""

    def buffer(self, nbytes: int) -> tuple[object, int]: ...
    def staging(self, nbytes: int) -> tuple[object, int]: ...
    def copy(self, pointer: int, staged: int, nbytes: int, stream: int) -> None: ...
    def event(self) -> Any: ...


@dataclass(frozen=True)
class Slot:
    """Device memory, the host's side of it, and the event behind the last copy between the two."""

    pointer: int
    staged: int
    copied: Any
    owners: tuple[object, object]

    def fill(self, executor: Transfers, data: bytes, stream: int) -> None:
        """Enqueue the copy of the data."""
        ctypes.memmove(self.staged, data, len(data))
        executor.copy(self.pointer, self.staged, len(data), stream)


class AddressTable:
    """The tables of one plan: the latest few of each stream, and those that graphs hold.

    A slot serves one stream, so that whatever reads it or rewrites it is in order; the host waits for a slot's last
    copy alone, and only when all slots of the stream are taken. A graph keeps what it was recorded with: a slot that
    the same stream had filled is frozen, other data are copied by the graph itself, from a slot of its own. One lies
    ready for that, because nothing should be allocated while a stream is recorded.
    """

    def __init__(self, executor: Transfers, nbytes: int) -> None:
        self._executor, self._nbytes = executor, nbytes
        self._rings: defaultdict[int, dict[bytes, Slot]] = defaultdict(dict)
        self._frozen: dict[tuple[int, bytes], Slot] = {}
        self._recorded: list[Slot] = []
        self._spare: Slot | None = None

    def write(self, data: bytes, stream: int, capturing: bool) -> int:
        """Return the address at which the stream's later work finds the data."""
        if capturing:
            return self._record(data, stream).pointer
        ring = self._rings[stream]
        slot = ring.get(data) or self._frozen.get((stream, data))
        if slot is None:
            slot = ring[data] = self._copy(ring, data, stream)
        if self._spare is None:
            self._spare = self._make()
        return slot.pointer

    def _copy(self, ring: dict[bytes, Slot], data: bytes, stream: int) -> Slot:
        if len(ring) < RING:
            slot = self._make()
        else:
            slot = ring.pop(next(iter(ring)))
            slot.copied.synchronize()
        slot.fill(self._executor, data, stream)
        slot.copied.record(stream)
        return slot

    def _record(self, data: bytes, stream: int) -> Slot:
        """A slot that holds the data for as long as a graph may be replayed."""
        filled = self._rings[stream].pop(data, None) or self._frozen.get((stream, data))
        if filled is not None:
            self._frozen[stream, data] = filled
            return filled
        slot, self._spare = self._spare or self._make(), None
        self._recorded.append(slot)
        slot.fill(self._executor, data, stream)
        return slot

    def _make(self) -> Slot:
        owner, pointer = self._executor.buffer(self._nbytes)
        staging, staged = self._executor.staging(self._nbytes)
        return Slot(pointer, staged, self._executor.event(), (owner, staging))
