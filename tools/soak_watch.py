"""Counts what a call asks of memory and of the host's time, and lets memory run out where a test wants it to."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import dnnprims as dp

#: What an executor allocates with, results first, and what it waits with.
ALLOCATIONS = ("empty", "buffer", "staging")
WAITS = ("synchronize", "download")

#: Functions of the CUDA runtime that wait for the device or allocate there.
RUNTIME = (
    "streamSynchronize",
    "deviceSynchronize",
    "eventSynchronize",
    "memcpy",
    "memset",
    "malloc",
    "mallocManaged",
    "hostAlloc",
    "free",
    "freeHost",
)


def progress(work: Sequence[Any]) -> Iterator[Any]:
    """The items, with a line on standard error every few seconds."""
    start = last = time.perf_counter()
    for k, item in enumerate(work):
        now = time.perf_counter()
        if now - last > 5:
            print(f"{k} of {len(work)} after {now - start:.0f} s", file=sys.stderr, flush=True)
            last = now
        yield item


class Watch:
    """Counts, while it is entered, the allocations and the waits of a handle's executor.

    On CUDA the functions of the runtime and the allocations of CuPy's pool from the device are counted too.

    Attributes
    ----------
    seen : Counter
        Name -> number of calls.
    """

    def __init__(self, handle: dp.Handle) -> None:
        self.seen: Counter[str] = Counter()
        self._executor: Any = handle._executor
        self._on_cuda = handle.backend == "cuda"
        self._stack = ExitStack()

    @property
    def allocations(self) -> int:
        """Allocations, other than of results."""
        return sum(n for name, n in self.seen.items() if name in ("buffer", "staging", "device memory", *RUNTIME[5:]))

    @property
    def waits(self) -> int:
        """Waits for the device."""
        return sum(n for name, n in self.seen.items() if name in (*WAITS, *RUNTIME[:5]))

    def __enter__(self) -> Watch:
        self.seen.clear()
        with ExitStack() as stack:
            for name in (*ALLOCATIONS[self._on_cuda :], *WAITS):
                stack.enter_context(mock.patch.object(self._executor, name, self._counted(self._executor, name)))
            if self._on_cuda:
                self._enter_cuda(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _counted(self, owner: Any, name: str, called: str = "") -> Callable[..., Any]:
        really = getattr(owner, name)

        def counted(*arguments: Any) -> Any:
            self.seen[called or name] += 1
            return really(*arguments)

        return counted

    def _enter_cuda(self, stack: ExitStack) -> None:
        import cupy

        watch = self

        class Hook(cupy.cuda.MemoryHook):  # type: ignore[misc]
            name = "soak"

            def alloc_preprocess(self, **_: Any) -> None:
                watch.seen["device memory"] += 1

        # Plans make their results from CuPy's pool without the executor. Buffers come from there, too.
        stack.enter_context(mock.patch.object(cupy.cuda, "alloc", self._counted(cupy.cuda, "alloc", "empty")))
        for name in RUNTIME:
            runtime = cupy.cuda.runtime
            stack.enter_context(mock.patch.object(runtime, name, self._counted(runtime, name)))
        stack.enter_context(Hook())


class Scarcity:
    """Lets one allocation fail, the one after `allowed` others, and counts how many there were.

    On the CPU the executor's own allocators fail, as NumPy does; on CUDA CuPy's device and page-locked allocators do.

    Attributes
    ----------
    count : int
        Allocations asked for so far.
    """

    def __init__(self, handle: dp.Handle, allowed: int) -> None:
        self.count, self._allowed = 0, allowed
        self._executor: Any = handle._executor
        self._on_cuda = handle.backend == "cuda"
        self._stack = ExitStack()

    @property
    def struck(self) -> bool:
        """Whether an allocation has failed."""
        return self.count > self._allowed

    def __enter__(self) -> Scarcity:
        with ExitStack() as stack:
            if self._on_cuda:
                self._enter_cuda(stack)
            else:
                for name in ALLOCATIONS:
                    failing = self._failing(getattr(self._executor, name), MemoryError("planted"))
                    stack.enter_context(mock.patch.object(self._executor, name, failing))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _failing(self, really: Callable[..., Any], error: Exception) -> Callable[..., Any]:
        def allocate(*arguments: Any) -> Any:
            self.count += 1
            if self.count == self._allowed + 1:
                raise error
            return really(*arguments)

        return allocate

    def _enter_cuda(self, stack: ExitStack) -> None:
        import cupy

        cuda = cupy.cuda
        device, pinned = cupy.get_default_memory_pool().malloc, cupy.get_default_pinned_memory_pool().malloc
        out_of_memory = cuda.runtime.CUDARuntimeError(2)
        cuda.set_allocator(self._failing(device, cuda.memory.OutOfMemoryError(1, 0, 0)))
        stack.callback(cuda.set_allocator, device)
        cuda.set_pinned_memory_allocator(self._failing(pinned, out_of_memory))
        stack.callback(cuda.set_pinned_memory_allocator, pinned)
