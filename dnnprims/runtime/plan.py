"""A plan that can run: the steps of a `PlanSpec` realised by an executor, and what each call checks and fills in.

This is the hot path. What can be settled once is settled in `Plan.__init__`; a call collects addresses, checks that
nothing overlaps when an address has changed, and enqueues. A small call that comes again is a graph (`graphs`); a call
on the addresses and the stream of the one before is that graph, or its single launch, again (`Plan.again`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Protocol

from ..descriptors import TensorDescriptor
from ..dtypes import DType
from .graphs import Again, Graphs, Record
from .launch import Constant, FillStep, KernelStep, Named, PlanSpec, Pointer, Profile, Scratch
from .table import AddressTable

#: Bytes of operands for each step up to which calls are recorded: such calls take longer to enqueue than to do.
MOST_RECORDED_BYTES = 16 << 20
#: Enqueue one step: addresses by slot, stream, live scalars. Returns what does the same again, where there is such.
Run = Callable[[Sequence[int], int, Sequence[Any]], Again | None]


class Executor(Protocol):
    """What the CUDA and the emulator executor offer to plans and handles."""

    profile: Profile
    array_type: Any
    accepted: str

    def look(self, operands: Sequence[Any]) -> tuple[list[Any], list[int]]: ...
    def addresses(self, operands: Sequence[Any]) -> list[int] | None: ...
    def describe(self, a: Any) -> TensorDescriptor: ...
    def adopt(self, a: Any) -> Any: ...
    def writeable(self, a: Any) -> bool: ...
    def empty(self, shape: tuple[int, ...], dtype: DType) -> tuple[Any, int]: ...
    def maker(self, shape: tuple[int, ...], dtype: DType) -> Callable[[], tuple[Any, int]]: ...
    def from_numpy(self, a: Any) -> Any: ...
    def to_numpy(self, a: Any) -> Any: ...
    def buffer(self, nbytes: int) -> tuple[object, int]: ...
    def upload(self, pointer: int, data: bytes, stream: int) -> object: ...
    def download(self, pointer: int, nbytes: int, stream: int) -> bytes: ...
    def realise(self, step: Any, slots: tuple[int, ...]) -> Run: ...
    @property
    def graph(self) -> Record | None: ...
    def staging(self, nbytes: int) -> tuple[object, int]: ...
    def copy(self, pointer: int, staged: int, nbytes: int, stream: int) -> None: ...
    def event(self) -> Any: ...
    def capturing(self, stream: int) -> bool: ...
    def current_stream(self) -> int: ...
    def nvtx(self) -> Any: ...
    def synchronize(self, stream: int) -> None: ...


class Overlap(Exception):
    """Operands `written` and `other` share memory; `same` where it is exactly the same."""

    def __init__(self, written: int, other: int, same: bool) -> None:
        self.written, self.other, self.same = written, other, same


class OutOfMemory(MemoryError):
    """`nbytes` of memory cannot be had at `place`; the handle turns it into our error, which names the function."""

    def __init__(self, place: str, nbytes: int) -> None:
        self.place, self.nbytes = place, nbytes
        super().__init__(f"{place} has no {nbytes} bytes left")


class Plan:
    """A realised `PlanSpec`.

    Parameters
    ----------
    spec : PlanSpec
        What to do.
    executor : Executor
        Who does it.
    operands : sequence of TensorDescriptor or None
        What the plan is for, lists flattened.
    flag : int
        Address of the handle's error flag.
    workspace : callable
        (bytes, stream) -> address of scratch memory.
    stream : int
        Where the plan's constants are copied.
    retain : callable
        Takes what a captured graph holds of the plan, which must outlive both.

    Attributes
    ----------
    again, again_for, again_on
        The last call once more, the addresses and the stream that it is for (None where there is none). Whoever calls
        it holds the handle, hands back what `hand_back` does, and calls `enqueue` if it raises or returns what is true.
    hand_back : callable
        operands -> what the public function returns.
    has_lists : bool
        Whether operands come as lists, to be written out before `enqueue`; set by the caller.
    repeats : bool
        Whether `again` may be kept.
    """

    def __init__(
        self,
        spec: PlanSpec,
        executor: Executor,
        operands: Sequence[TensorDescriptor | None],
        flag: int,
        workspace: Callable[[int, int], int],
        stream: int = 0,
        retain: Callable[[object], None] = lambda owners: None,
    ) -> None:
        self.spec = spec
        self.operands = tuple(operands)
        self._workspace, self._capturing = workspace, executor.capturing
        self._workspace_bytes = spec.workspace_bytes
        self._scratch_offsets = spec.scratch_offsets()
        made = [r for r in spec.results if operands[r.operand] is None]
        self._makers = [(r.operand, executor.maker(r.shape, r.dtype)) for r in made]
        self._pairs = _overlap_pairs(spec, operands)
        self._written = [i for i in spec.writes if operands[i] is not None]
        self._checked: list[int] | None = None
        self.owners: list[object] = []
        self._tail = [flag, 0, 0]
        self._has_table = any(Named("table") in _pointers(step) for step in spec.steps)
        self._retain, self._retained = retain, False
        for data in spec.constants:
            owner, pointer = executor.buffer(max(len(data), 1))
            self.owners += [owner, executor.upload(pointer, data, stream)]
            self._tail.append(pointer)
        # Made while a graph is recorded, the constants are copied when it is replayed and not before.
        self.recorded = bool(spec.constants) and executor.capturing(stream)
        if spec.constants and not self.recorded:
            executor.synchronize(stream)
        if self._has_table:
            # Results that the call makes come last, and kernels are given them by themselves.
            self._listed = len(operands) - len(made)
            self._table = AddressTable(executor, 8 * max(self._listed, 1))
            self._tabled: tuple[int, list[int]] | None = None
            self.owners.append(self._table)
        slots = [self._slots(step) for step in spec.steps]
        self._runs = [executor.realise(step, own) for step, own in zip(spec.steps, slots, strict=True)]
        self._operands_only = all(slot < len(operands) for own in slots for slot in own)
        self.has_lists = False
        self.hand_back = itemgetter(*spec.returns) if spec.returns else _nothing
        self.repeats = not self._has_table  # which is looked after at each call
        small = sum(d.nbytes for d in operands if d is not None) <= MOST_RECORDED_BYTES * len(self._runs)
        record = executor.graph if small and self._runs and not self._has_table else None
        self._graphs = None if record is None else Graphs(record, executor.capturing)
        self.again: Again | None = None
        self.again_for: list[int] | None = None
        self.again_on = -1

    def _slots(self, step: Any) -> tuple[int, ...]:
        return tuple(self._slot(pointer) for pointer in _pointers(step))

    def _slot(self, pointer: Pointer) -> int:
        """Index of a pointer in the address list: operands, then flag, null, table, constants, then scratch."""
        named = len(self.operands)
        if isinstance(pointer, Named):
            return named + ("flag", "null", "table").index(pointer.name)
        if isinstance(pointer, Constant):
            return named + 3 + pointer.index
        if isinstance(pointer, Scratch):
            return named + 3 + len(self.spec.constants) + pointer.index
        return pointer

    def enqueue(self, operands: Sequence[Any], addresses: list[int], stream: int, live: Sequence[Any]) -> Any:
        """Enqueue the call on the stream and return what the public function returns.

        `operands` and their `addresses` come with lists written out.
        """
        if self._makers:
            operands = list(operands)
            for i, make in self._makers:
                operands[i], addresses[i] = make()
            if self._capturing(stream):
                # The graph writes to them at every replay, also when the caller has long dropped them.
                self._retain([operands[i] for i, _ in self._makers])
            if addresses == self.again_for and stream == self.again_on:
                try:
                    if not self.again():  # type: ignore[misc]
                        return self.hand_back(operands)
                except Exception:
                    self.again_for = None
        graphs = self._graphs
        call: tuple[object, ...] = ()
        if graphs is not None:
            call = (stream, *addresses, *map(repr, live))
            if (again := graphs.launch(call)) is not None:
                return self._finish(operands, again, addresses, stream, live)
        if addresses != self._checked:
            self.check(addresses)
        complete = addresses if self._operands_only else self._complete(addresses, stream)
        self.again_for = None  # what is packed below may never be launched
        again = None if graphs is None else graphs.record(call, lambda own: self._run_steps(complete, own, live))
        if again is None:
            again = self._run_steps(complete, stream, live)
            # Several steps would have to be taken up in the midst where one fails; and what comes again is recorded.
            again = again if graphs is None and len(self._runs) == 1 else None
        return self._finish(operands, again, addresses, stream, live)

    def _run_steps(self, complete: Sequence[int], stream: int, live: Sequence[Any]) -> Again | None:
        again = None
        for run in self._runs:
            again = run(complete, stream, live)
        return again

    def _finish(
        self, operands: Sequence[Any], again: Again | None, addresses: list[int], stream: int, live: Sequence[Any]
    ) -> Any:
        """Keep what does the same again, if anything does, and hand back what the public function returns."""
        if again is not None and self.repeats and not live and not self.has_lists:
            self.again, self.again_for, self.again_on = again, addresses, stream
        return self.hand_back(operands)

    def _complete(self, addresses: list[int], stream: int) -> list[int]:
        """Append what is no operand, in the order of `_slot`."""
        if self._has_table:
            self._place_table(addresses[: self._listed], stream)
        complete = addresses + self._tail
        if self._scratch_offsets:
            base = self._workspace(self._workspace_bytes, stream) if self._workspace_bytes else 0
            complete += [base + offset for offset in self._scratch_offsets]
        return complete

    def _place_table(self, addresses: list[int], stream: int) -> None:
        """Have the addresses on the device; the last ones of the same stream are there still."""
        capturing = self._capturing(stream)
        if capturing or self._tabled != (stream, addresses):
            self._tabled = None
            self._tail[2] = self._table.write(struct.pack(f"={len(addresses)}Q", *addresses), stream, capturing)
            self._tabled = None if capturing else (stream, addresses)
        if capturing and not self._retained:
            # Constants come with a table, so that no plan without one owns what a graph reads.
            self._retain(self.owners)
            self._retained = True

    def check(self, addresses: list[int]) -> None:
        """Raise `Overlap` when a written operand overlaps another; the handle words it."""
        if addresses == self._checked:
            return
        if len(self._written) > 8:
            self._check_sorted(addresses)
        else:
            for i, j, low_i, high_i, low_j, high_j, in_place in self._pairs:
                a, b = addresses[i], addresses[j]
                if a + low_i < b + high_j and b + low_j < a + high_i and not (in_place and a == b):
                    raise Overlap(i, j, a == b)
        self._checked = addresses

    def _check_sorted(self, addresses: list[int]) -> None:
        """The same for long lists: neighbours in address order suffice to find an overlap with a written operand."""
        spans = sorted((addresses[i], i) for i, d in enumerate(self.operands) if d is not None and d.size)
        written, allowed = set(self._written), set(self.spec.in_place)
        reach, holder, written_reach, written_holder = -1, -1, -1, -1
        for start, i in spans:
            end = start + self.operands[i].nbytes  # type: ignore[union-attr]
            other = holder if i in written else written_holder
            limit = reach if i in written else written_reach
            same = other >= 0 and addresses[other] == start
            if start < limit and not (same and ((i, other) in allowed or (other, i) in allowed)):
                raise Overlap(*((i, other) if i in written else (other, i)), same)
            if end > reach:
                reach, holder = end, i
            if i in written and end > written_reach:
                written_reach, written_holder = end, i


def _nothing(operands: Sequence[Any]) -> None:
    """What a function without a result hands back."""


def _pointers(step: Any) -> tuple[Pointer, ...]:
    return (step.pointer,) if isinstance(step, FillStep) else tuple(step.pointers)


def _extent(d: TensorDescriptor) -> tuple[int, int]:
    """Bytes from the address to the lowest and past the highest element."""
    reach = [(extent - 1) * step for extent, step in zip(d.shape, d.strides, strict=True)]
    low, high = sum(r for r in reach if r < 0), sum(r for r in reach if r > 0)
    return low * d.dtype.itemsize, (high + 1) * d.dtype.itemsize


def _overlap_pairs(spec: PlanSpec, operands: Sequence[TensorDescriptor | None]) -> list[tuple[Any, ...]]:
    pairs = []
    for i in spec.writes if len(spec.writes) <= 8 else ():
        for j, other in enumerate(operands):
            mine = operands[i]
            if mine is None or other is None or i == j or not (mine.size and other.size):
                continue
            alike = mine.shape == other.shape and mine.strides == other.strides and mine.dtype is other.dtype
            pairs.append((i, j, *_extent(mine), *_extent(other), (i, j) in spec.in_place and alike))
    return pairs


__all__ = ["Executor", "KernelStep", "OutOfMemory", "Overlap", "Plan", "Run"]
